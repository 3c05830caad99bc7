"""The stage `inspect`: what it shows of tasks, mixtures and tasks from elsewhere."""

from collections.abc import Sequence

import pytest
import seqio
import tensorflow as tf

from instructrec_jax.cli.main import main
from instructrec_jax.errors import UserError
from instructrec_jax.pipeline import loader
from instructrec_jax.pipeline.registry import pair_features, register_mixture
from instructrec_jax.stages.inspect import TokenLimits, as_text, inspect
from instructrec_jax.stages.score.request_sets import Rendering, SetReader, task_sets
from instructrec_jax.tokenizer import load_vocabulary


def test_it_shows_examples_with_their_tokens(toy_records):
    whole = inspect("toy.A7", data_dir=toy_records, split="test", num_examples=2)
    cut = inspect(
        "toy.A7.rank",
        data_dir=toy_records,
        split="test",
        num_examples=2,
        limits=TokenLimits(input_tokens=200),
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


def test_the_last_lines_count_what_was_read(toy_records):
    found = inspect(
        "toy.A7",
        data_dir=toy_records,
        split="test",
        num_examples=5,
        limits=TokenLimits(input_tokens=200),
    )
    dropped = [example.num_history_dropped for example in found]
    lengths, losses = as_text(found, "toy.A7").splitlines()[-2:]
    assert lengths.startswith("5 examples: ")
    assert f"-{max(example.num_input_tokens for example in found)} tokens asked" in lengths
    assert losses.startswith(f"history dropped in {sum(map(bool, dropped))} ({sum(dropped)} items)")
    assert losses.endswith(", titles cut in 0, words cut in 0")


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
        ("toy.A7", {"num_examples": 0}, "num_examples is 0"),
        ("toy.A7", {"numbers": [3]}, "--numbers are places in the order of training, but --split"),
        ("toy.A7", {"limits": TokenLimits(input_tokens=30)}, "raise it"),
        (
            "toy.A7",
            {"task_module": "instructrec_jax.tasks.none"},
            r"'instructrec_jax\.tasks\.none' cannot be imported",
        ),
    ],
)
def test_it_names_what_it_cannot_show(toy_records, task, changes, message):
    with pytest.raises(UserError, match=message):
        inspect(task, data_dir=toy_records, **{"split": "test", "num_examples": 1, **changes})


def test_a_limit_of_no_token_is_refused():
    with pytest.raises(UserError, match="input_tokens is 0"):
        TokenLimits(input_tokens=0)


RUN = [f"gin/{name}.gin" for name in ("models/t5_tiny", "mixtures/ml_100k")]
LENGTHS = {"inputs": 400, "targets": 30, "history": 3, "candidates": 4, "title": 14}


def shown_by_command(
    capsys, records, task: str, split: str, kind: str, numbers: Sequence[int] = ()
) -> list[str]:
    """The instructions that the command shows with the gin files of a run."""
    files = [f"--gin_file={file}" for file in (*RUN, f"gin/runs/{kind}.gin")]
    macros = [f"--gin.TASK_FEATURE_LENGTHS={LENGTHS}", "--gin.RANDOM_SEED=5"][
        : 1 + (split == "train")
    ]
    flags = [f"--data_dir={records}", f"--split={split}", "--num_examples=8"]
    flags += ["--numbers", *map(str, numbers)] if numbers else []
    assert main(["inspect", task, *flags, *files, *macros]) == 0
    blocks = capsys.readouterr().out.split("instruction (")[1:]
    return [" ".join(block.split("  answer (")[0].split("\n", 1)[1].split()) for block in blocks]


def in_words(rows, toy_records) -> list[str]:
    words = load_vocabulary(toy_records / "toy" / "vocabulary" / "sentencepiece.model")
    return [words.decode([int(token) for token in row]) for row in rows]


def test_it_shows_what_training_reads(toy, capsys):
    """The same order, draws, candidates, history and titles as either way of training."""
    rankings = loader.ranking_training_batches(
        "toy.A7", feature_lengths=LENGTHS, batch_size=8, num_candidates=10, seed=5
    )
    pairs = loader.training_batches(
        "toy.A7",
        feature_lengths={**LENGTHS, "candidates": 10},
        batch_size=8,
        seed=5,
        pack=False,
    )
    for batches, task in ((rankings, "toy.A7.grouped"), (pairs, "toy.A7")):
        shown = shown_by_command(capsys, toy, task, "train", "from_scratch")
        first, second = next(batches), next(batches)
        assert in_words(first["encoder_input_tokens"], toy) == shown
        numbers = second["example_number"].ravel()[[3, 1]].tolist()
        assert numbers == [11, 9]
        shown = shown_by_command(capsys, toy, task, "train", "from_scratch", numbers=numbers)
        assert in_words(second["encoder_input_tokens"][[3, 1]], toy) == shown


def test_it_shows_what_scoring_reads(toy, capsys):
    rendering = Rendering(
        vocabulary=load_vocabulary(toy / "toy" / "vocabulary" / "sentencepiece.model"),
        feature_lengths=LENGTHS,
        shard_size=8,
        on_damage="fail",
    )
    shown = shown_by_command(capsys, toy, "toy.A7", "test", "score")
    (requests,) = task_sets(["toy.A7"], split="test", rendering=rendering, limit=8)
    read, _ = SetReader(requests).read(requests.shards()[0])
    assert in_words([each.prompts[0].instruction for each in read], toy) == shown


def test_a_run_that_names_no_data_is_refused(capsys):
    files = [f"--gin_file={file}" for file in (*RUN, "gin/runs/score.gin")]
    assert main(["inspect", "toy.A7", *files]) == 2
    assert "DATA_DIR" in capsys.readouterr().err
    assert main(["inspect", "toy.A7"]) == 2
    assert "neither --data_dir nor --gin_file" in capsys.readouterr().err
