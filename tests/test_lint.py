"""The stage `lint` on records that are right and on records that are wrong in one way each."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from lint_toy import LEAVE_ONE_OUT, check_splits, numbered, write_dataset

from instructrec_jax.cli.main import main
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.coverage import (
    CoverageRow,
    cover,
    coverage_findings,
)
from instructrec_jax.instructions.lint import Severity
from instructrec_jax.manifest import read_manifest
from instructrec_jax.pipeline import record_store, registry
from instructrec_jax.report import lint_report, tables
from instructrec_jax.stages.lint import leaks, lint
from instructrec_jax.stages.lint.leaks import check_records
from instructrec_jax.stages.lint.tokens import token_findings
from instructrec_jax.stages.run_data import VOCABULARY_FILE

MODULE = "lint_toy"
SEARCH = {"user_id": "", "position": -1, "history": (), "preference": ()}


def check(tmp_path, **changes):
    """Returns what is found in 4 training and 2 held-out records, one training record changed."""
    train = [numbered(10 + n) for n in range(4)]
    train[1] = dataclasses.replace(train[1], **changes)
    return check_splits(tmp_path, train=train)


def found_in(tally) -> dict[str, int]:
    return {name: number for name, number in tally.counts.items() if number}


def test_records_without_a_fault_give_no_finding(tmp_path):
    tally = check(tmp_path)
    assert tally.num_records == 6
    assert found_in(tally) == {}
    assert tally.findings == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"vague_intention": ("tea", "a braku dole la please")}, leaks.INTENTION),
        ({"second_vague_intention": ("The user wants Braku Dole La",)}, leaks.INTENTION),
        ({"preference": ("likes Braku Dole La",)}, leaks.PREFERENCE),
        ({"candidate_ids": (1, 2)}, leaks.NO_CANDIDATE),
        ({"example_id": "u10:2"}, leaks.REPEATED),
        ({"example_id": "u30:2"}, leaks.IN_TWO_SPLITS),
    ],
)
def test_a_record_that_gives_its_answer_away_is_an_error(tmp_path, changes, name):
    tally = check(tmp_path, target="Braku Dole La", **changes)
    assert found_in(tally) == {name: 1}
    (finding,) = tally.findings
    assert finding.severity is Severity.ERROR
    assert changes.get("example_id", "u11:2") in finding.message


def test_words_of_the_shown_history_are_no_leak(tmp_path):
    """A preference for what a user has is what a preference is; the next item may be like it."""
    tally = check(
        tmp_path,
        target="Braku Dole La",
        history=("Braku Dole Wo, Deluxe", "La Kite"),
        preference=("likes Braku Dole, and La",),
    )
    assert found_in(tally) == {}


def test_one_word_of_a_preference_may_be_the_title_of_an_item_by_chance(tmp_path):
    tally = check(tmp_path, target="Variety Pack", preference=("likes variety",))
    assert found_in(tally) == {}


def test_a_search_by_a_preference_that_names_its_target_is_a_warning(tmp_path):
    """The history that it was taken from is not in the record."""
    tally = check(tmp_path, target="Braku Dole La", history=(), preference=("likes Braku Dole La",))
    assert found_in(tally) == {leaks.SEARCH_PREFERENCE: 1}
    assert [finding.severity for finding in tally.findings] == [Severity.WARNING]


def test_an_item_that_was_chosen_twice_is_counted_and_no_finding(tmp_path):
    tally = check(tmp_path, target="Copper kettle")
    assert found_in(tally) == {leaks.REPEAT_PURCHASE: 1}
    assert tally.findings == []


def test_equal_intentions_in_training_and_held_out_records_are_a_coincidence(tmp_path):
    held_out = numbered(30)
    tally = check(tmp_path, target_id=30, candidate_ids=(1, 30),
                  vague_intention=held_out.vague_intention)  # fmt: skip
    assert found_in(tally) == {leaks.SAME_INTENTION: 1}
    assert [finding.severity for finding in tally.findings] == [Severity.WARNING]


def test_a_search_that_is_held_out_must_not_be_trained_on(tmp_path):
    held_out = numbered(30, example_id="item:30", **SEARCH)
    other = numbered(31, example_id="item:31", **SEARCH)
    same = {"target_id": 30, "candidate_ids": (1, 30)}
    for number, (category, expected) in enumerate((("", 0), ("Bazaar, Kettles", 1))):
        folder = tmp_path / str(number)
        write_dataset(
            folder,
            {
                (LEAVE_ONE_OUT, "train"): [numbered(11, specific_intention=category, **same)],
                ("product_search", "train"): [other],
                ("product_search", "test"): [held_out],
            },
        )
        record_store.use_data_dir(folder)
        assert check_records("own").counts[leaks.HELD_OUT_PAIR] == expected


@pytest.mark.parametrize("max_hashes", [1, 3, 1000])
def test_repeated_ids_are_found_in_any_number_of_passes(tmp_path, monkeypatch, max_hashes):
    monkeypatch.setattr(leaks, "_MAX_HASHES", max_hashes)
    train = [numbered(n) for n in (*range(40, 60), 41, 41, 50)]
    tally = check_splits(tmp_path, train=train, test=[numbered(42), numbered(99)])
    assert tally.counts[leaks.REPEATED] == 3
    assert tally.counts[leaks.IN_TWO_SPLITS] == 1
    assert set(tally.examples[leaks.REPEATED]) == {"u41:2", "u50:2"}
    assert tally.examples[leaks.IN_TWO_SPLITS] == ["u42:2"]


def test_a_damaged_file_is_named(tmp_path):
    write_dataset(tmp_path, {(LEAVE_ONE_OUT, "train"): [numbered(n) for n in range(10, 20)]})
    (path,) = tmp_path.rglob("*.tfrecord-*")
    path.write_bytes(path.read_bytes()[:-100])
    record_store.use_data_dir(tmp_path)
    with pytest.raises(UserError, match=r"own/leave_one_out/.* are damaged \(the record at byte"):
        check_records("own")


def test_columns_are_the_fields_of_the_records(tmp_path):
    records = [numbered(n, history=("é",) * (n - 10)) for n in range(10, 14)]
    write_dataset(tmp_path, {(LEAVE_ONE_OUT, "train"): records})
    record_store.use_data_dir(tmp_path)
    names = ("example_id", "history", "candidate_ids", "target_id")
    (batch,) = record_store.column_batches("own", LEAVE_ONE_OUT, "train", names)
    assert batch == {
        "example_id": [record.example_id.encode() for record in records],
        "history": [[title.encode() for title in record.history] for record in records],
        "candidate_ids": [list(record.candidate_ids) for record in records],
        "target_id": [record.target_id for record in records],
    }
    assert not list(record_store.column_batches("own", LEAVE_ONE_OUT, "test", names))


def test_the_toy_data_fill_every_cell_of_the_paper_and_leak_nothing(toy):
    rendered = [task.variant for task in registry.instruction_tasks("toy")]
    rows = cover(rendered, read_manifest(toy / "toy"))
    assert len({row.template_id for row in rows}) == 39
    assert all(row.counts["train"] for row in rows)
    assert not [f for f in coverage_findings(rows) if f.severity is Severity.ERROR]
    tally = check_records("toy")
    assert not [f for f in tally.findings if f.severity is Severity.ERROR]


@pytest.fixture(autouse=True)
def messages_of_the_command_end_with_its_test():
    """The command logs to the standard output of its time, which a later test has no more."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    root.handlers = handlers


@pytest.fixture
def data_dir(tmp_path, toy_records):
    """A data set "own" of 12 records, 3 of them held out."""
    splits = {"train": range(10, 19), "validation": (20,), "test": (30, 31)}
    write_dataset(
        tmp_path / "records",
        {
            (LEAVE_ONE_OUT, split): [numbered(n) for n in numbers]
            for split, numbers in splits.items()
        },
        vocabulary=toy_records / "toy" / "vocabulary" / "sentencepiece.model",
    )
    return tmp_path / "records"


def command(data_dir, *more: str) -> int:
    flags = ["--dataset=own", f"--data_dir={data_dir}", f"--task_module={MODULE}", *more]
    return main(["lint", *flags])


def test_the_command_shows_everything_and_writes_it(data_dir, tmp_path, capsys):
    output = tmp_path / "lint"
    assert command(data_dir, f"--output_dir={output}") == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= tables.WIDTH for line in shown.splitlines()[:-1])
    for part in (
        "Coverage",
        "Cells",
        "as they are trained on (train)",
        "as they are ranked (test)",
    ):
        assert part in shown
    assert shown.startswith("own: ok, ") and "(2 templates, 3 tasks, 12 records)\n" in shown
    found = json.loads((output / "lint.json").read_text())
    assert found["coverage"][0]["counts"] == {"train": 9, "validation": 1, "test": 2}
    (ranked,) = [row for row in found["samples"] if row["is_grouped"]]
    assert (ranked["task"], ranked["split"], ranked["num_examples"]) == ("L1", "test", 2)
    assert ranked["shares"]["whole_targets"] == 1
    assert ranked["drop_rates"] == {"candidates": 0, "history": 0, "preference": 0}
    text = (output / "lint.md").read_text()
    assert "| L1 | `<P1,(P2),I0,T3>` | plain | yes | 9 | 1 | 2 |" in text
    manifest = read_manifest(output)
    assert (manifest.stage, manifest.counts["errors"]) == ("lint", 0)
    assert command(data_dir, f"--output_dir={output}") == 0
    assert command(data_dir, f"--output_dir={output}", "--max_examples=3") == 2


def test_a_leak_fails_the_command(tmp_path, data_dir, capsys):
    leaking = dataclasses.replace(numbered(12), preference=("likes Braku Dole Lla",),
                                  target="Braku Dole Lla")  # fmt: skip
    (path,) = data_dir.rglob("own-train*")
    record_store.write_shard(path, [leaking])
    assert command(data_dir, "--max_examples=1") == 1
    assert "error records: leak: 1 records have a preference" in capsys.readouterr().out


def test_what_does_not_fit_fails_the_command_with_its_example(data_dir, capsys):
    assert command(data_dir, "--input_tokens=30") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "error L1: task own.L1, example u10:2: the instruction" in shown
    assert "raise it in TASK_FEATURE_LENGTHS" in shown


def test_samples_tell_what_is_cut_and_what_is_repeated(tmp_path, toy_records):
    long = [numbered(n, history=tuple(f"Copper kettle {i}" for i in range(30)))
            for n in range(10, 14)]  # fmt: skip
    same = [numbered(40, example_id=f"u{n}:2") for n in range(40, 44)]
    write_dataset(
        tmp_path,
        {(LEAVE_ONE_OUT, "train"): [*long, *same], (LEAVE_ONE_OUT, "test"): [numbered(30)]},
        vocabulary=toy_records / "toy" / "vocabulary" / "sentencepiece.model",
    )
    report = lint(dataset="own", data_dir=tmp_path, task_module=MODULE, input_tokens=100)
    rows = {(row.task, row.is_grouped): row for row in report.samples}
    row = rows["L1", False]
    assert row.num_examples == 8
    assert row.num_truncated == 4
    assert row.num_history == 4 * 30 + 4 * 2
    assert 4 * 20 < row.num_history_dropped < 4 * 30
    assert row.inputs[2] <= 100
    assert row.drop_rates["history"] == row.num_history_dropped / row.num_history
    assert rows["L2.vague", False].num_duplicates == 3
    assert rows["L2.vague", False].num_truncated == 0
    assert any("L2" in finding.message for finding in token_findings(list(report.samples)))


def test_statistics_are_those_of_the_tokens_that_a_model_gets(data_dir):
    from instructrec_jax.pipeline import loader, vocabulary

    model = data_dir / "own" / "vocabulary" / "sentencepiece.model"
    vocabulary.use_vocabulary(model)
    report = lint(dataset="own", data_dir=data_dir, task_module=MODULE, max_examples=5)
    vocabulary.use_vocabulary(data_dir / "own" / VOCABULARY_FILE)
    (row,) = [row for row in report.samples if row.task == "L2.specific"]
    stream = loader.examples(
        "own.L2.specific", split="train", feature_lengths={"inputs": 512, "targets": 128}
    )
    lengths = [len(example["inputs"]) for example, _ in zip(stream, range(5), strict=False)]
    assert row.num_examples == 5
    assert row.inputs == tuple(
        int(np.percentile(lengths, q, method="higher")) for q in (50, 95, 100)
    )
    vocabulary.use_vocabulary(None)


def test_tables_of_large_numbers_fit_a_terminal_and_say_what_a_dataset_lacks():
    row = CoverageRow(
        task="C10.second_vague",
        template_id="C10",
        cell="<P1,(P2),I1,T3>",
        kind="chain of thought",
        family="personalized_search",
        is_evaluated=True,
        needs=(),
        counts={"train": 123_456_789, "validation": 12_345_678, "test": 12_345_678},
    )
    nothing = dict.fromkeys(row.counts, 0)
    report = lint_report.LintReport(
        dataset="own",
        protocol={"sample": "all examples", "input_tokens": 512, "target_tokens": 128},
        coverage=[row, dataclasses.replace(row, cell="<P0>", counts=nothing, reason="no reviews")],
        samples=[],
        shortcuts=[],
        records={"records": 9},
        findings=[],
    )
    lines = tables.as_text(lint_report.document(report)).splitlines()
    assert max(map(len, lines)) <= tables.WIDTH
    for start in ("C10.second_vague", "<P1,(P2),I1,T3>"):
        (line,) = [line for line in lines if line.startswith(start) and "123456789" in line]
        assert line.split(" | ")[-3].strip() == "123456789"
    assert sum(line.count("no reviews") for line in lines) == 2 * 3
    assert lint_report.values(report)["cells"][0]["reason"] == "no reviews"


def test_unknown_tokens_and_lost_answers_are_shares(data_dir):
    row = lint_report.TokenSummary(
        task="L1", split="train", num_examples=4, num_tokens=50, num_unknown=2, num_whole_targets=3
    )
    assert row.shares["unknown_tokens"] == 0.04
    assert row.shares["whole_targets"] == 0.75
    messages = [finding.message for finding in token_findings([row])]
    assert any("does not know; most in L1, 4.00%" in message for message in messages)
    assert any("do not read back" in message and "25.00%" in message for message in messages)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "owm"}, "unknown dataset 'owm'; the nearest known: own"),
        ({"input_tokens": 0}, "input_tokens is 0"),
        ({"max_examples": -1}, "max_examples is -1"),
        (
            {"task_module": "instructrec_jax.tasks.none"},
            r"'instructrec_jax\.tasks\.none' cannot be imported",
        ),
        ({"task_module": "json"}, "registers no template for dataset 'own'"),
    ],
)
def test_a_mistake_is_named(data_dir, changes, message):
    with pytest.raises(UserError, match=message):
        lint(**{"dataset": "own", "data_dir": data_dir, "task_module": MODULE, **changes})


def test_nothing_is_written_where_something_else_stands(data_dir, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        lint(dataset="own", data_dir=data_dir, task_module=MODULE, output_dir=tmp_path / "taken")
