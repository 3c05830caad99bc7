"""Batches: the contract's shapes, determinism, resuming, padding and buckets."""

import itertools
import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from instructrec_jax.pipeline import loader, training_examples, vocabulary
from instructrec_jax.pipeline.registry import register_mixture
from instructrec_jax.pipeline.training_examples import TrainingExamples


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Few examples are packed together, so that few are rendered."""
    monkeypatch.setattr(loader, "_WINDOW", 24)


@pytest.fixture(autouse=True)
def mixture_of_two(toy):
    """A small mixture, because a graph takes a third of a second for each of its tasks."""
    register_mixture("toy.pair", [("toy.A10", 1.0), ("toy.C10.specific", 2.0)])
    grouped = [("toy.A10.grouped", 1.0), ("toy.C10.specific.grouped", 2.0)]
    register_mixture("toy.pair.grouped", grouped)


LENGTHS = {"inputs": 256, "targets": 24}


def stream(*, name: str = "toy.pair", seed: int = 3, pack: bool = False, **changes):
    settings = {"feature_lengths": LENGTHS, "batch_size": 4, **changes}
    return loader.training_batches(name, seed=seed, pack=pack, **settings)


def training(number: int, **changes) -> list:
    return list(itertools.islice(stream(**changes), number))


RANKING = {"feature_lengths": LENGTHS, "batch_size": 4, "num_candidates": 10, "seed": 3}


def ranking_training(number: int, *, name: str = "toy.pair", **changes) -> list:
    return list(
        itertools.islice(loader.ranking_training_batches(name, **RANKING | changes), number)
    )


def assert_equal(left: list, right: list) -> None:
    assert len(left) == len(right)
    for first, second in zip(left, right, strict=True):
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


def test_training_batches_have_the_shapes_of_the_contract(toy):
    (batch,) = training(1)
    assert {name: rows.shape for name, rows in batch.items()} == {
        "encoder_input_tokens": (4, 256),
        "decoder_input_tokens": (4, 24),
        "decoder_target_tokens": (4, 24),
        "decoder_loss_weights": (4, 24),
        "example_id": (4, 1),
        "example_number": (4, 1),
    }
    told = ("example_id", "example_number")
    assert all(rows.dtype == np.int32 for name, rows in batch.items() if name not in told)
    np.testing.assert_array_equal(batch["decoder_loss_weights"], batch["decoder_target_tokens"] > 0)


def test_packed_batches_hold_several_examples_in_a_row(toy):
    lengths = {"inputs": 512, "targets": 128}
    (batch,) = training(1, name="toy.A1", feature_lengths=lengths, batch_size=2, pack=True)
    for side, length in (("encoder", 512), ("decoder", 128)):
        assert batch[f"{side}_segment_ids"].shape == (2, length)
        assert batch[f"{side}_positions"].shape == (2, length)
    assert batch["encoder_segment_ids"].max() > 1
    assert batch["encoder_segment_ids"].max() == batch["decoder_segment_ids"].max()


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(toy):
    assert_equal(training(5), training(5))
    first, other = training(1)[0], training(1, seed=4)[0]
    assert (first["encoder_input_tokens"] != other["encoder_input_tokens"]).any()


@pytest.mark.parametrize("name", ["toy.pair", "toy.A10"])
@pytest.mark.parametrize("pack", [False, True])
def test_a_stream_goes_on_where_another_one_stopped(toy, name, pack):
    settings = {"name": name, "pack": pack, "feature_lengths": {"inputs": 512, "targets": 64}}
    settings["batch_size"] = 12
    whole, positions, expected = stream(**settings), [], []
    for _ in range(24):
        positions.append(json.loads(json.dumps(whole.position)))
        expected.append(next(whole))
    assert not pack or max(window for window, _ in positions[-1]) > 0, "of several windows"
    for number in (1, 23):
        found = training(1, position=positions[number], **settings)
        assert_equal(found, expected[number : number + 1])


def test_rankings_go_on_where_another_stream_stopped(toy):
    whole = loader.ranking_training_batches("toy.pair", **RANKING)
    for _ in range(2):
        next(whole)
    expected = list(itertools.islice(ranking_training(5), 2, None))
    assert_equal(ranking_training(3, position=whole.position), expected)


@pytest.fixture
def read(monkeypatch) -> list:
    """The position and number of all examples that are made."""
    seen = []
    made = training_examples.TrainingExamples.read

    def noting(self, begin, number):
        seen.append((begin, number))
        return made(self, begin, number)

    monkeypatch.setattr(training_examples.TrainingExamples, "read", noting)
    return seen


@pytest.mark.parametrize("pack", [False, True])
def test_nothing_before_a_position_is_made_to_go_on_from_it(toy, read, pack):
    batches = stream(name="toy.A10", pack=pack, position=[[20_000, 0]])
    next(batches)
    size = 24 if pack else 4
    assert min(begin for begin, _ in read) == 20_000 * size
    assert {number for _, number in read} == {size}


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("number", [2, 3, 8])
def test_the_batches_do_not_depend_on_the_number_of_processes(toy, pack, number):
    lengths = {"inputs": 512, "targets": 64}
    settings = {"batch_size": 24, "pack": pack, "feature_lengths": lengths}
    whole = training(5, **settings)
    shares = [training(5, rows=rows, **settings) for rows in np.split(np.arange(24), number)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for name in batch.keys() - {"example_id", "example_number"}:
            np.testing.assert_array_equal(batch[name], np.concatenate([p[name] for p in parts]))
        of_parts = [row for part in parts for row in part["example_id"].tolist()]
        for row, of_part in zip(batch["example_id"].tolist(), of_parts, strict=True):
            assert [i for i in row if i] == [i for i in of_part if i]


def test_rows_of_a_process_need_not_be_neighbours(toy):
    rows = [1, 2, 9, 15, 16]
    whole, own = (training(3, batch_size=24, rows=of) for of in (None, rows))
    for batch, part in zip(whole, own, strict=True):
        for name in batch.keys() - {"example_id", "example_number"}:
            np.testing.assert_array_equal(part[name], batch[name][rows])


def test_a_process_notes_the_position_of_its_own_rows_alone(toy):
    streams = [stream(batch_size=16, rows=range(4 * i, 4 * i + 4)) for i in range(4)]
    for batches in streams:
        next(batches)
    assert [batches.position for batches in streams] == [
        *[[[1, 0], [0, 0]]] * 2,
        *[[[0, 0], [1, 0]]] * 2,
    ]


def test_an_epoch_shows_every_example_of_each_task_once(toy):
    """At rates by the tasks' sizes, over the border of an epoch too."""
    total = len(list(loader.examples("toy.A10", split="train")))
    ids = np.concatenate([b["example_id"][:, 0] for b in training(3 * total // 4, name="toy.A10")])
    for epoch in (ids[:total], ids[total : 2 * total]):
        assert len(set(epoch)) == total
    assert (ids[:total] != ids[total : 2 * total]).any()


@pytest.mark.parametrize("pack", [False, True])
def test_rows_are_laid_out_as_by_seqio_and_name_their_examples(toy, pack):
    """SeqIO is given the examples of one row at a time."""
    lengths = {"inputs": 512, "targets": 64}
    (batch,) = training(1, name="toy.A1", feature_lengths=lengths, pack=pack)
    ids, _ = (batch.pop(f"example_{name}") for name in ("id", "number"))
    number = batch["decoder_segment_ids"].max(axis=1) if pack else np.ones(4)
    assert np.count_nonzero(ids != "", axis=1).tolist() == number.tolist()
    assert not pack or number.max() > 1
    for row in range(4):
        ours = {name: rows[row] for name, rows in batch.items()}
        ds = tf.data.Dataset.from_generator(
            lambda ours=ours: examples_of(ours),
            output_signature={name: tf.TensorSpec([None], tf.int32) for name in lengths},
        )
        (theirs,) = seqio.EncDecFeatureConverter(pack=pack)(ds, lengths).as_numpy_iterator()
        assert_equal([ours], [theirs])


def examples_of(row):
    """Yields inputs and targets of the examples of a row."""
    inside = [row.get(f"{side}_segment_ids") for side in ("encoder", "decoder")]
    tokens = row["encoder_input_tokens"], row["decoder_target_tokens"]
    if inside[0] is None:
        inside = [(side > 0).astype(int) for side in tokens]
    for number in range(1, inside[0].max() + 1):
        pair = [side[own == number] for side, own in zip(tokens, inside, strict=True)]
        yield dict(zip(("inputs", "targets"), pair, strict=True))


def test_ranking_batches_have_the_shapes_of_the_contract(toy):
    (batch,) = ranking_training(1, name="toy.A7")
    shapes = {name: rows.shape for name, rows in batch.items()}
    assert shapes == {
        "encoder_input_tokens": (4, 256),
        "candidate_tokens": (4, 10, 24),
        "candidate_ids": (4, 10),
        "candidate_num_chars": (4, 10),
        "target_index": (4,),
        "num_history_dropped": (4,),
        "example_id": (4,),
        "example_number": (4,),
    }
    told = ("example_id", "example_number")
    assert all(rows.dtype == np.int32 for name, rows in batch.items() if name not in told)
    words = vocabulary.CorpusVocabulary()
    for tokens, characters in zip(
        batch["candidate_tokens"].reshape(-1, 24), batch["candidate_num_chars"].ravel(), strict=True
    ):
        used = tokens[tokens > 0]
        assert used[-1] == 1
        assert not tokens[len(used) :].any()
        assert len(words.decode(used.tolist())) == characters


def test_training_draws_candidates_afresh_each_time(toy):
    batches = ranking_training(200, seed=1, num_candidates=4, name="toy.A8")
    of_example: dict[str, set] = {}
    for batch in batches:
        assert batch["candidate_ids"].shape == (4, 4)
        for example, ids in zip(batch["example_id"], batch["candidate_ids"], strict=True):
            of_example.setdefault(example, set()).add(tuple(ids.tolist()))
    again = [sets for sets in of_example.values() if len(sets) > 1]
    assert len(again) > 0.2 * len(of_example)
    assert len(set(np.concatenate([batch["target_index"] for batch in batches]))) == 4


def test_each_epoch_shows_every_example_once(toy):
    (total,) = {len(list(loader.examples("toy.A8", split="train")))}
    batches = ranking_training(total, batch_size=1, seed=1, name="toy.A8")
    assert len({batch["example_id"][0] for batch in batches}) == total


def test_a_stream_keeps_the_vocabulary_that_it_was_opened_with(toy, monkeypatch):
    """Also where examples are cut, which Python does while the run goes on."""
    lengths = {"inputs": 40, "targets": 64}
    blank = {"inputs": np.zeros(40, np.int32), "num_history_dropped": np.zeros((), np.int32)}
    training_examples._renderer.cache_clear()
    examples = TrainingExamples("toy.A1", lengths, blank, seed=0)
    before = examples.read(0, 32)
    assert before["num_history_dropped"].any()
    monkeypatch.setattr(vocabulary, "_choice", vocabulary._Choice("no such file", 0))
    for name, values in examples.read(0, 32).items():
        np.testing.assert_array_equal(values, before[name])
