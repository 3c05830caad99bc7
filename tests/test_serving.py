"""Scoring and ranking of texts from Python."""

import subprocess
import sys

import numpy as np
import pytest
from score_toy import score_toy
from test_request_files import write
from tiny_model import tiny_model

from instructrec_jax import generate, open_model, rank, score_candidates
from instructrec_jax.checkpoints.store import CheckpointStore
from instructrec_jax.errors import UserError
from instructrec_jax.scores.parts import read_scores

INSTRUCTIONS = ["Choose one of these,\n please.", "What  would I like?"]
CANDIDATES = [["Quiet Fox", "Red Moon; part 2", "Quiet Fox 2"], ["Tiny River", "Blue Bee"]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    store = CheckpointStore(folder / "checkpoints", keep=1)
    sizes = {"vocab_size": 600, "num_encoder_layers": 1, "num_decoder_layers": 1}
    store.save(5, {"model": tiny_model(**sizes)})
    store.close()
    return folder


@pytest.fixture(scope="module")
def vocabulary(toy_records):
    return toy_records / "toy" / "vocabulary" / "sentencepiece.model"


@pytest.fixture(scope="module")
def model(checkpoint, vocabulary):
    return open_model(checkpoint, vocabulary=vocabulary)


def test_texts_are_scored_as_requests_with_whole_instructions(
    toy_records, checkpoint, model, tmp_path
):
    rows = [
        {"id": str(number), "instruction": instruction, "candidates": candidates}
        for number, (instruction, candidates) in enumerate(
            zip(INSTRUCTIONS, CANDIDATES, strict=True)
        )
    ]
    path = write(tmp_path / "r.jsonl", rows)
    score_toy(toy_records, checkpoint, tmp_path / "out", tasks=["toy.all"], requests=str(path))
    expected = read_scores(tmp_path / "out").log_likelihood
    found = score_candidates(model, INSTRUCTIONS, CANDIDATES)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_candidates_are_ranked_best_first(model):
    found = score_candidates(model, INSTRUCTIONS, CANDIDATES)
    for ranked, given, values in zip(
        rank(model, INSTRUCTIONS, CANDIDATES), CANDIDATES, found, strict=True
    ):
        assert [each.value for each in ranked] == sorted(values, reverse=True)
        assert [given[each.index] for each in ranked] == [each.candidate for each in ranked]
        assert all(each.log_likelihood == each.value for each in ranked)
    (ranked,) = rank(model, ["Choose."], [["Blue Bee", "Blue Bee"]], normaliser="mean")
    assert [each.index for each in ranked] == [0, 1]
    assert ranked[0].value == ranked[1].value > ranked[0].log_likelihood
    (ranked,) = rank(model, ["Choose."], [["Blue  Bee"]], normaliser="char")
    assert ranked[0].value == pytest.approx(ranked[0].log_likelihood / 8)


TITLES = ["Blue Bee", "Red Moon", "Blue Bee", "Quiet Fox", "Tiny River"]


def test_what_is_generated_is_what_scoring_finds_likeliest(model):
    instructions = [f"What comes after number {number}?" for number in range(9)]
    found = generate(model, instructions, TITLES, num_titles=3, num_beams=5)
    scored = score_candidates(model, instructions, [TITLES] * len(instructions))
    for generated, values in zip(found, scored, strict=True):
        best = [index for index in np.argsort(-values, kind="stable") if index != 2][:3]
        assert [each.index for each in generated] == best
        assert [each.candidate for each in generated] == [TITLES[index] for index in best]
        np.testing.assert_allclose([each.value for each in generated], values[best], rtol=1e-5)


def test_an_excluded_title_is_not_generated_under_another_index(model):
    (found,) = generate(model, ["Choose."], TITLES, num_titles=3, excluded=[[2]])
    assert sorted(each.index for each in found) == [1, 3, 4]
    with pytest.raises(UserError, match="num_titles is 4, but instruction 0 leaves 3"):
        generate(model, ["Choose."], TITLES, num_titles=4, excluded=[[0]])
    with pytest.raises(UserError, match="excluded index 5 is none of the 5 titles"):
        generate(model, ["Choose."], TITLES, num_titles=1, excluded=[[5]])
    with pytest.raises(UserError, match=r"write \[text\]"):
        generate(model, "Choose.", TITLES)


@pytest.mark.parametrize(
    ("instructions", "candidates", "message"),
    [
        ("Choose.", [["a"]], r"write \[text\]"),
        (["Choose."], ["Blue Bee"], r"write \[text\]"),
        (["Choose."], [["a"], ["b"]], "1 instructions and candidates for 2"),
        (["Choose."], [[]], "number 0.* at least one candidate"),
        (["Choose."], [["Blue Bee", " "]], "number 0.* no empty text"),
        ([""], [["Blue Bee"]], "number 0.* no empty text"),
    ],
)
def test_requests_that_cannot_be_scored_are_refused(model, instructions, candidates, message):
    with pytest.raises(UserError, match=message):
        score_candidates(model, instructions, candidates)


def test_a_model_needs_the_vocabulary_it_was_made_for(checkpoint, vocabulary, tmp_path):
    with pytest.raises(UserError, match="no SentencePiece model is in"):
        open_model(checkpoint)
    store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    sizes = {"vocab_size": 16, "num_encoder_layers": 1, "num_decoder_layers": 1}
    store.save(5, {"model": tiny_model(**sizes)})
    store.close()
    with pytest.raises(UserError, match="only 16 rows for them"):
        open_model(tmp_path, vocabulary=vocabulary)


def test_a_model_opens_and_ranks_without_what_only_training_needs(checkpoint, vocabulary):
    """In a process of its own; the import alone loads no more."""
    code = f"""
import sys
from instructrec_jax import open_model, rank, score_candidates
forbidden = {{"tensorflow", "seqio", "tensorflow_datasets", "orbax", "orbax.checkpoint", "pyarrow"}}
assert not forbidden & sys.modules.keys()
model = open_model({str(checkpoint)!r}, vocabulary={str(vocabulary)!r})
assert len(rank(model, ["Choose."], [["Blue Bee", "Red Moon"]])[0]) == 2
sys.exit(str(forbidden & sys.modules.keys()) if forbidden & sys.modules.keys() else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_offers_its_api_and_nothing_else():
    import instructrec_jax

    assert instructrec_jax.rank is rank
    with pytest.raises(AttributeError, match="has no attribute 'rnak'"):
        _ = instructrec_jax.rnak
