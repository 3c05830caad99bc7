"""The stage `inspect`: what it shows of tasks, mixtures and tasks from elsewhere."""

import pytest
import seqio
import tensorflow as tf

from instructrec_jax.errors import UserError
from instructrec_jax.pipeline.registry import pair_features, register_mixture
from instructrec_jax.stages.inspect import as_text, inspect


def test_it_shows_examples_with_their_tokens(toy_records):
    whole = inspect("toy.A7", data_dir=toy_records, split="test", num_examples=2)
    cut = inspect(
        "toy.A7.rank", data_dir=toy_records, split="test", num_examples=2, input_tokens=200
    )
    assert [example.example_id for example in whole] == [example.example_id for example in cut]
    assert whole[0].num_history_dropped == 0 < cut[0].num_history_dropped
    assert cut[0].num_input_tokens <= 200 < whole[0].num_input_tokens
    assert whole[0].targets == cut[0].targets
    text = as_text(cut, "toy.A7.rank")
    shown = " ".join(text.split())
    assert cut[0].inputs in shown
    assert f"toy.A7.rank, example {cut[0].example_id}" in shown
    assert f"({cut[0].num_input_tokens} tokens, {cut[0].num_history_dropped} of the oldest" in shown
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_last_line_counts_what_was_read(toy_records):
    found = inspect("toy.A7", data_dir=toy_records, split="test", num_examples=5, input_tokens=200)
    dropped = [example.num_history_dropped for example in found]
    last = as_text(found, "toy.A7").splitlines()[-1]
    assert last.startswith("5 examples: ")
    assert f"-{max(example.num_input_tokens for example in found)} tokens asked" in last
    assert f"history dropped in {sum(map(bool, dropped))} ({sum(dropped)} items)" in last


def test_a_mixture_may_hold_a_task_from_elsewhere(toy):
    """Its examples have neither an id nor a history."""

    def lines(split, shuffle_files, seed=None):
        text = tf.data.Dataset.from_tensors("a lamp")
        return text.repeat(3).map(lambda line: {"inputs": line, "targets": line})

    seqio.TaskRegistry.add(
        "elsewhere",
        seqio.FunctionDataSource(lines, splits=("train",), num_input_examples={"train": 3}),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=pair_features(),
    )
    register_mixture("toy.both", [("toy.A1", 1.0), ("elsewhere", 1.0)])
    found = inspect("toy.both", data_dir=toy, num_examples=6)
    foreign = [example for example in found if not example.example_id]
    assert foreign
    assert len(foreign) < len(found)
    assert all(example.inputs == example.targets == "a lamp" for example in foreign)
    assert all(example.num_history_dropped == 0 for example in foreign)
    number = found.index(foreign[0]) + 1
    assert f"toy.both, example {number}" in as_text(found, "toy.both").splitlines()


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("toy.A99", {}, r"'toy\.A99'; the nearest known"),
        ("tiy.A7", {}, "unknown dataset 'tiy'; the nearest known: toy"),
        ("toy.A7", {"split": "tests"}, "no split 'tests'"),
        ("toy.A7", {"num_examples": 0}, "num_examples=0"),
        ("toy.A7", {"input_tokens": 0}, "input_tokens=0"),
        ("toy.A7", {"input_tokens": 30}, "raise it"),
        ("toy.A7", {"task_module": "tasks.none"}, r"'tasks\.none' cannot be imported"),
    ],
)
def test_it_names_what_it_cannot_show(toy_records, task, changes, message):
    with pytest.raises(UserError, match=message):
        inspect(task, data_dir=toy_records, **{"split": "test", "num_examples": 1, **changes})
