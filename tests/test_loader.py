"""Batches: the contract's shapes, determinism, resuming, padding and buckets."""

import itertools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from instructrec_jax.pipeline import loader, preprocessors, vocabulary
from instructrec_jax.pipeline.registry import register_mixture


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


def ranking_training(number: int, *, name: str = "toy.pair", **changes) -> list:
    settings = {"feature_lengths": LENGTHS, "batch_size": 4, "num_candidates": 10, "seed": 3}
    return list(
        itertools.islice(loader.ranking_training_batches(name, **settings | changes), number)
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
    }
    assert all(rows.dtype == np.int32 for name, rows in batch.items() if name != "example_id")
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
def test_a_stream_goes_on_after_the_examples_that_were_read(toy, name, pack):
    settings = {"name": name, "pack": pack, "feature_lengths": {"inputs": 512, "targets": 64}}
    settings["batch_size"] = 8
    whole, read, expected = stream(**settings), [], []
    for _ in range(90):
        read.append(whole.num_examples)
        expected.append(next(whole))
    assert whole.num_examples > 512, "more than are packed at a time"
    for number in (1, 89):
        found = training(1, num_examples_read=read[number], **settings)
        assert_equal(found, expected[number : number + 1])


def test_rankings_go_on_after_the_examples_that_were_read(toy):
    assert_equal(ranking_training(5)[2:], ranking_training(3, num_examples_read=8))


@pytest.fixture
def rendered(monkeypatch) -> list:
    """Every example that is rendered."""
    seen = []
    arrange = preprocessors.arrange

    def noting(record, *arguments):
        tf.py_function(lambda example: seen.append(example.numpy()), [record["example_id"]], [])
        return arrange(record, *arguments)

    monkeypatch.setattr(preprocessors, "arrange", noting)
    return seen


def test_examples_that_were_read_are_not_rendered_again(toy, rendered):
    next(stream(name="toy.A10", num_examples_read=400))
    assert 0 < len(rendered) < 200


@pytest.mark.parametrize("name", ["toy.A10", "toy.pair"])
def test_processes_share_the_rows_that_one_process_would_load(toy, name):
    """Of a task they take turns, with the same draws; of a mixture, turns in each of its tasks."""
    whole = training(16, name=name)
    halves = [training(8, name=name, process=(index, 2)) for index in range(2)]
    rows = [ids_and_rows(batches) for batches in (whole, *halves)]
    assert rows[1].keys().isdisjoint(rows[2].keys())
    if name == "toy.A10":
        assert rows[1] | rows[2] == rows[0]
        assert list(rows[0])[::2] == list(rows[1]) and list(rows[0])[1::2] == list(rows[2])


def ids_and_rows(batches: list) -> dict:
    return {
        str(ids[0]): tokens.tobytes()
        for batch in batches
        for ids, tokens in zip(batch["example_id"], batch["encoder_input_tokens"], strict=True)
    }


@pytest.mark.parametrize("pack", [False, True])
def test_rows_are_those_of_seqio_and_name_their_examples(toy, pack):
    lengths = {"inputs": 512, "targets": 64}
    ds = seqio.get_dataset(
        "toy.A10",
        lengths,
        seqio.EncDecFeatureConverter(pack=pack),
        dataset_split="train",
        shuffle=True,
        seed=3,
        num_epochs=None,
        batch_size=4,
    )
    found = training(60, name="toy.A10", feature_lengths=lengths, pack=pack)
    for batch, expected in zip(found, ds.as_numpy_iterator(), strict=False):
        ids = batch.pop("example_id")
        assert_equal([batch], [expected])
        num_named = np.count_nonzero(ids != "", axis=1)
        number = batch["decoder_segment_ids"].max(axis=1) if pack else np.ones(4)
        np.testing.assert_array_equal(num_named, number)


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
    }
    assert all(rows.dtype == np.int32 for name, rows in batch.items() if name != "example_id")
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


def test_inputs_are_trimmed_to_the_smallest_bucket_that_holds_them(toy):
    lengths = {"inputs": 400, "targets": 24}
    settings = {"name": "toy.A7", "batch_size": 2, "feature_lengths": lengths}
    whole = ranking_training(30, **settings)
    trimmed = ranking_training(30, buckets=(64, 320, 360), **settings)
    widths = set()
    for full, cut in zip(whole, trimmed, strict=True):
        width = cut["encoder_input_tokens"].shape[1]
        widths.add(width)
        longest = int((full["encoder_input_tokens"] > 0).sum(axis=1).max())
        assert width == min(w for w in (64, 320, 360, 400) if w >= longest)
        np.testing.assert_array_equal(
            full["encoder_input_tokens"][:, :width], cut["encoder_input_tokens"]
        )
    assert len(widths) > 1
