"""The recipes of `demo` and of the scales of `reproduce`: small models that start from nothing."""

import dataclasses

from instructrec_jax.data.settings import PrepareSettings, SyntheticSettings
from instructrec_jax.stages.build import BuildSettings
from instructrec_jax.stages.reproduce.steps import Recipe

TINY, CPU, FULL = "tiny", "cpu", "full"
SCALES = (TINY, CPU, FULL)
_TEST_DRAWS = 5  # of negatives: with one, luck hides what is less than .03
_NUM_TRAIN_NEGATIVES = 49  # a pool to draw nine from, afresh each epoch
_TITLE_PIECES = 2000  # the commonest titles are one token each: prompts are half as long
_LENGTHS = {"inputs": 192, "targets": 40, "history": 6, "preference": 0}
_BUCKETS = (64, 96, 128)
_OWN_TITLE_CHARS = 60  # the user's own logs may hold longer titles than MovieLens
_OWN_LENGTHS = {**_LENGTHS, "inputs": 512}
_OWN_BUCKETS = (*_BUCKETS, 192, 256, 384)  # scoring needs none: it pads nothing


def cpu(dataset: str | None, *, is_own: bool) -> Recipe:
    """Returns the recipe of a real data set on a machine without an accelerator.

    Args:
      dataset: its name; None for ml_100k, or my_data if it is the user's own.
      is_own: whether the logs are the user's own, not MovieLens-100K.
    """
    prepared = PrepareSettings(test_draws=_TEST_DRAWS)
    return Recipe(
        dataset=dataset or ("my_data" if is_own else "ml_100k"),
        prepare=dataclasses.replace(prepared, max_title_chars=_OWN_TITLE_CHARS)
        if is_own
        else prepared,
        build=BuildSettings(num_train_negatives=_NUM_TRAIN_NEGATIVES, title_pieces=_TITLE_PIECES),
        feature_lengths=_OWN_LENGTHS if is_own else _LENGTHS,
        buckets=_OWN_BUCKETS if is_own else _BUCKETS,
        baselines={"TRAIN_STEPS": 2000, "PATIENCE": 3},
    )


_TINY_WORLD = SyntheticSettings(
    num_users=400,
    num_interactions=4000,
    num_items=300,  # a tenth of them are the test of product search
    zipf_exponent=0.7,
    format="amazon_2018",
    has_reviews=True,
)
# The second has other users and more items, whose names are made of the same words.
TINY_WORLDS = {
    "tiny": _TINY_WORLD,
    "other_tiny": dataclasses.replace(
        _TINY_WORLD, num_users=250, num_interactions=2500, num_items=330
    ),
}


def tiny(dataset: str) -> Recipe:
    """Returns the recipe of an invented world, whose models learn in few steps."""
    return Recipe(
        dataset=dataset,
        prepare=PrepareSettings(),
        build=BuildSettings(num_train_negatives=19, vocab_size=400, title_pieces=300),
        feature_lengths=_LENGTHS,
        buckets=_BUCKETS[1:2],
        training={"TRAIN_STEPS": 60, "EVAL_PERIOD": 60, "EVAL_STEPS": 2},
        baselines={
            "TRAIN_STEPS": 120,
            "EVAL_PERIOD": 120,
            "LEARNING_RATE": 3e-3,
            "BATCH_SIZE": 64,
        },
    )
