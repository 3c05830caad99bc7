"""Explanations: what history items add for a candidate."""

import dataclasses
import json

import jax
import numpy as np
import planted_world
import pytest
from score_toy import save_toy_model
from tiny_model import EOS, ranking_batch, requests_of, tiny_model

from instructrec_jax import explain, open_model, score_candidates
from instructrec_jax.data.settings import KINDS
from instructrec_jax.errors import UserError
from instructrec_jax.generation.free_text import write_texts
from instructrec_jax.instructions.render import render_record
from instructrec_jax.instructions.task_modules import SHIPPED, find_variant
from instructrec_jax.scoring.leave_one_out import Prompts, leave_one_out
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.stages import explain as stage
from instructrec_jax.stages.explain import ExplainSettings
from instructrec_jax.stages.report.given import opened

FIRST = 2  # token of item 0


def request(history, candidates):
    return TokenRequest(
        request_id="u",
        instruction=np.array([*(np.array(history, np.int64) + FIRST), EOS], np.int32),
        candidates=[np.array([item + FIRST, EOS], np.int32) for item in candidates],
    )


def prompts(history, candidates, chosen=0):
    return Prompts(
        whole=request(history, candidates),
        without=[request(np.delete(history, n), candidates) for n in range(len(history))],
        history=[str(item) for item in history],
        num_chars=[1] * len(candidates),
        chosen=chosen,
    )


def test_items_that_carry_the_planted_signal_come_first():
    """Of half of a history's items the invented world's favourite kind and brand are the cause."""
    probability = planted_world.item_probabilities(planted_world.WORLD)
    num_items = probability.shape[1]
    kind = np.arange(num_items) % len(KINDS)
    generator, asked, signal = np.random.default_rng(0), [], []
    for _ in range(100):
        favourite = generator.integers(len(probability))
        own = kind == favourite // planted_world.NUM_BRANDS
        drawn = [
            generator.choice(num_items, 4, replace=False, p=p / p.sum())
            for p in (probability[favourite] * own, probability.mean(axis=0) * ~own)
        ]
        history = generator.permutation(np.concatenate([drawn[0][1:], drawn[1][1:]]))
        asked.append(prompts(history, [drawn[0][0], *generator.choice(np.flatnonzero(~own), 9)]))
        signal.append({str(item) for item in drawn[0][1:]})

    def bayes(requests):
        """log P(candidate | history) of one who knows how the world draws."""
        assert len(requests) == 100 * 7, "history + 1 prompts each, in one call"
        for each in requests:
            seen = each.instruction[:-1] - FIRST
            posterior = np.log(probability[:, seen]).sum(axis=1)
            weights = np.exp(posterior - np.logaddexp.reduce(posterior))
            items = [tokens[0] - FIRST for tokens in each.candidates]
            yield np.log(weights @ probability[:, items])

    found = leave_one_out(lambda requests: list(bayes(requests)), asked, normaliser="sum")
    first = [{item.title for item in own.telling[:3]} for own in found]
    assert np.mean([a == b for a, b in zip(first, signal, strict=True)]) > 0.9
    assert all(own.num_prompts == 7 <= 2 * (6 + 1) for own in found)


def test_an_item_adds_what_is_lost_without_it():
    values = {2: [-1.0, -2.0, -4.0], 1: [-3.0, -2.0, -4.0]}
    (found,) = leave_one_out(
        lambda requests: [np.array(values[len(own.instruction) - 1]) for own in requests],
        [prompts(np.array([5, 6]), [0, 1, 2], chosen=None)],
        normaliser="sum",
    )
    others = np.logaddexp(-2.0, -4.0)
    assert (found.index, found.rank, found.log_likelihood) == (0, 1, -1.0)
    assert found.margin == pytest.approx(-1.0 - others)
    for item in found.items:
        assert (item.rank, item.log_likelihood) == (2, 2.0)
        assert item.margin == pytest.approx(found.margin - (-3.0 - others))


@pytest.fixture(scope="module")
def checkpoint(toy_records, tmp_path_factory):
    folder = save_toy_model(tmp_path_factory.mktemp("trained"))
    words = toy_records / "toy" / "vocabulary" / "sentencepiece.model"
    (folder / "spiece.model").write_bytes(words.read_bytes())
    return folder


def test_a_models_explanations_are_differences_of_its_scores(
    checkpoint, toy_prepared, tmp_path, monkeypatch
):
    def written(_, prompts, *, max_tokens):
        return [tokens[:-1] for tokens in prompts]  # as if the model said the prompt again

    monkeypatch.setattr(stage, "write_texts", written)
    output = tmp_path / "explained.jsonl"
    asked = {"model": str(checkpoint), "prepared_dir": str(toy_prepared), "output": str(output)}
    lines = stage.explain(ExplainSettings(**asked, num_examples=2, reasoning="A3"))
    assert [json.loads(line) for line in output.read_text().splitlines()] == lines
    model, variant = open_model(checkpoint), find_variant(SHIPPED, "A7")
    with opened(toy_prepared) as given:
        lists = {own.example_id: own for own in given.data.candidates}
        records = list(given.checks.records([lists[line["example_id"]] for line in lines]))
    asked_for = [render_record(variant, record)[0] for record in records]
    scored = score_candidates(model, asked_for, [record.candidates for record in records])
    for line, record, log_likelihood in zip(lines, records, scored, strict=True):
        assert line["reasoning"].startswith("Past choices: ")
        target = record.candidates.index(record.target)
        assert line["log_likelihood"] == pytest.approx(log_likelihood[target], abs=1e-3)
        assert line["rank"] == 1 + (log_likelihood > log_likelihood[target]).sum()
        assert sorted(item["title"] for item in line["items"]) == sorted(record.history)
        assert line["num_prompts"] == len(record.history) + 1
    text = stage.as_text(lines)
    assert " prompts for " in text and max(map(len, text.splitlines())) <= 80
    numbers = iter([[-1.0, -2.0], [-1.5, -1.0], [-3.0, -2.0]])
    fake = dataclasses.replace(
        model, scorer=lambda _, asked: [np.array(next(numbers)) for _ in asked]
    )
    history, others = records[0].history[:2], records[0].candidates[:2]
    (why,) = explain(fake, "Seen: {history}. Next?", [history], [others], normaliser="sum")
    assert [(item.title, item.log_likelihood, item.rank) for item in why.items] == [
        (history[0], 0.5, 2),
        (history[1], 2.0, 2),
    ]
    assert why.telling[0].title == history[1]
    assert all(-1 <= item.likeness <= 1 for item in why.items)


def test_what_cannot_be_explained_is_refused(checkpoint, toy_prepared, tmp_path):
    asked = {"model": str(checkpoint), "prepared_dir": str(toy_prepared)}
    for changes, message in (
        ({"output": "x.txt"}, r"expected the name of a file \*.jsonl"),
        ({"templates": ["B2.specific"]}, "template B2.specific shows no history"),
        ({"examples": ["nobody:3"]}, "'nobody:3' is no test example"),
        ({"templates": ["C2.vague"]}, "has no vague intention.*--texts_dir"),
    ):
        with pytest.raises(UserError, match=message):
            stage.explain(
                ExplainSettings(**({"output": str(tmp_path / "o.jsonl")} | asked | changes))
            )
    with pytest.raises(UserError, match=r"with \{history\} in it"):
        explain(None, "Next?", [["a"]], [["b", "c"]])


@jax.jit
def next_tokens(model, instruction, read):
    """Returns the logits of each next token, of a whole text at once."""
    mask = np.ones((1, 1, read.shape[2], instruction.shape[1]), bool)
    encoded = model.encode(instruction)
    return model.logits(model.decode(read, read * 0 + 1, encoded=encoded, cross_mask=mask))


def test_greedy_texts_are_the_likeliest_next_tokens():
    model = tiny_model(num_encoder_layers=1, num_decoder_layers=1)
    asked = [own.instruction for own in requests_of(ranking_batch(3, rows=2))]
    texts = write_texts(model, asked, max_tokens=5)
    for instruction, text in zip(asked, texts, strict=True):
        assert EOS not in text and len(text) <= 5
        read = np.array([[[0, *text]]], np.int32)
        following = np.argmax(next_tokens(model, instruction[None], read)[0, 0], axis=-1)
        assert following[: len(text)].tolist() == text.tolist()
        assert len(text) == 5 or following[len(text)] == EOS
