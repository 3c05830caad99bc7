"""Settings of any other type or out of range are refused, by the name that the user gave them."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

import instructrec_jax
from instructrec_jax import settings
from instructrec_jax.cli import gin_config
from instructrec_jax.errors import UserError
from instructrec_jax.settings import Count, Names, OneOf, Positive, Range, SettingError, Share
from instructrec_jax.stages import train as stage
from instructrec_jax.training.loop import Periods
from instructrec_jax.training.optimizers import adamw, constant

FINETUNE = ["gin/models/t5_tiny.gin", "gin/mixtures/ml_100k.gin", "gin/runs/finetune.gin"]
GIVEN = ['DATA_DIR="d"', 'MODEL_DIR="m"', "TRAIN_STEPS=2", "INITIAL_CHECKPOINT_PATH=None"]


def run(more, bindings):
    gin_config.run_with_gin(
        stage.train, gin_file_names=[*FINETUNE, *more], bindings=bindings, dry_run=True
    )


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (True, Count, "a whole number, at least 1"),
        (1.0, Count, "a whole number, at least 1"),
        ("3", Count, "a whole number, at least 1"),
        (0, Count, "a whole number, at least 1"),
        ("a", Count | None, "a whole number, at least 1 or None"),
        (True, float, "a finite number"),
        (float("nan"), Share, "a finite number, 0 to 1"),
        (2.0, Share, "a finite number, 0 to 1"),
        (0, Positive, "a finite number, above 0"),
        (1, bool, "True or False"),
        (5, str | None, "a text or None"),
        ("toys.A7", Sequence[str], "a list, each a text"),
        ([5], Sequence[str], "a list, each a text"),
        ([], Names, "a list, each a text, at least 1"),
        ([0], Sequence[Count], "a list, each a whole number, at least 1"),
        (192, Mapping[str, int], "a mapping, each value a whole number"),
        ({"inputs": "9"}, Mapping[str, int], "'inputs' to be a whole number"),
        ({1: 9}, Mapping[str, int], "names, not 1"),
        ("c", Annotated[str, OneOf(("a", "b"))], "one of 'a', 'b'"),
        ("t5", Periods, "a Periods"),
    ],
)
def test_what_does_not_fit_is_told_by_what_was_expected(value, hint, expected):
    assert settings.misfit(value, hint) == expected


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (None, Count | None),
        (1, float),
        (2**40, int),
        ((), Sequence[str]),
        ({}, Mapping[str, int]),
        ("", str),
        (10, Annotated[int, Range(1, 10)]),
    ],
)
def test_what_fits_is_taken(value, hint):
    assert settings.misfit(value, hint) == ""


def test_long_values_are_shown_in_part():
    assert len(settings.shown(["x"] * 10_000)) < 130


def test_every_settings_dataclass_checks_its_fields():
    """A dataclass that gin or flags fill and that checks nothing would take anything."""
    for module in pkgutil.walk_packages(instructrec_jax.__path__, "instructrec_jax."):
        if "__main__" in module.name:
            continue
        for name, found in vars(importlib.import_module(module.name)).items():
            if not dataclasses.is_dataclass(found) or not isinstance(found, type):
                continue
            if name.endswith("Settings") or name in {"Learning", "Periods", "RunData", "Execution"}:
                assert "__post_init__" in dir(found), f"{module.name}.{name}"


@given(st.one_of(st.booleans(), st.floats(), st.text(), st.none(), st.lists(st.integers())))
def test_a_count_is_a_whole_number_whatever_gin_hands_over(value):
    with pytest.raises(SettingError, match=r"^log is (?s:.*); expected a whole number"):
        Periods(train_steps=1, log=value)


@pytest.mark.parametrize("value", [2.0, -1, "a", True, float("inf")])
def test_arguments_of_optimizers_are_checked(value):
    with pytest.raises(SettingError, match="b1 is"):
        adamw(learning_rate=constant(learning_rate=0.1), b1=value)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("BATCH_SIZE=True", "BATCH_SIZE is True; expected a whole number, 1 to 65536"),
        ("BATCH_SIZE=10000000", "BATCH_SIZE is 10000000; expected"),
        ("DROPOUT_RATE=2.0", "DROPOUT_RATE is 2.0; expected a finite number, 0 to 0.99"),
        ("LOG_PERIOD=1.5", "LOG_PERIOD is 1.5; expected a whole number"),
        ("EVAL_PERIOD=-1", "EVAL_PERIOD is -1; expected a whole number"),
        ('EVAL_TASKS="toys.A7"', "EVAL_TASKS is 'toys.A7'; expected a list"),
        ("EVAL_TASKS=[]", r"EVAL_TASKS is \[\]; expected a list, each a text, at least 1"),
        ("RANDOM_SEED=None", "RANDOM_SEED is None; expected a whole number, 0 to"),
        ('MODEL="t5"', "MODEL is 't5'; expected a T5Config"),
        ('LEARNING_RATE="a"', "LEARNING_RATE is 'a'; expected a finite number"),
        ('MODEL_DIR=""', "MODEL_DIR is ''; expected a text that is not empty"),
        ('TASK_FEATURE_LENGTHS={"inputs": 0}', "TASK_FEATURE_LENGTHS is .*; expected at least 1"),
        ("NUM_PARTITIONS=0", "NUM_PARTITIONS is 0; expected a number of devices"),
        ("INPUT_BUCKETS=[-1]", r"INPUT_BUCKETS is \[-1\]; expected a list"),
    ],
)
def test_a_wrong_value_is_named_by_its_macro_and_the_place_that_gave_it(binding, message):
    taken = binding.split("=")[0]
    others = [given for given in GIVEN if not given.startswith(f"{taken}=")]
    with pytest.raises(UserError, match=rf"^{message}.*{taken} is set in the command line\)"):
        run([], [*others, binding])


def test_a_wrong_value_of_a_file_is_named_by_file_and_line(tmp_path):
    overlay = tmp_path / "overlays" / "mine.gin"
    overlay.parent.mkdir()
    overlay.write_text("LOG_PERIOD = 'often'\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"^LOG_PERIOD is 'often'.*{overlay} line 1"):
        run([str(overlay)], GIVEN)
