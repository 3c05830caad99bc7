"""What a user types: unknown words, help, less or more said, long lines, completion."""

import logging
import os
import subprocess
import sys

import pytest
from cli_toy import COMMANDS, Settings, run_stage

from instructrec_jax.cli import main
from instructrec_jax.errors import UserError


@pytest.mark.parametrize(
    "arguments", [["report"], ["prepare", "--dataset"], [], ["data"], ["prepare", "--seed=x"]]
)
def test_flags_that_are_missing_or_wrong_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2
    assert "usage: instructrec" in capsys.readouterr().err


UNKNOWN = {
    "prepare --inputdir=x": "unknown flag --inputdir; did you mean --input_dir?",
    "prepare --xyzzy=x": "unknown flag --xyzzy; --help shows what there is",
    "score --gin-fil=a.gin": "unknown flag --gin_fil; did you mean --gin_file",
    "data fetsh": "unknown verb 'fetsh'; the nearest known: fetch",
    "-q trane": "unknown verb 'trane'; the nearest known: train",
    "help trane": "unknown verb 'trane'; the nearest known: train",
}


@pytest.mark.parametrize("words", UNKNOWN)
def test_a_verb_or_flag_that_there_is_not_gets_the_nearest(words, capsys):
    assert main.main(words.split()) == 2
    assert capsys.readouterr().err.startswith(f"instructrec: {UNKNOWN[words]}")


def test_words_of_a_flag_are_joined_by_either_mark_and_values_stay_as_they_are(monkeypatch):
    seen = {}
    words = ["--is-wide", "--names=a-b", "--names=--c-d", "--output-dir", "x-y"]
    run_stage(monkeypatch, lambda **given: seen.update(given), *words)
    assert seen["output_dir"] == "x-y"
    assert seen["settings"] == Settings(is_wide=True, names=["a-b", "--c-d"])


@pytest.mark.parametrize("command", [("train",), ("data", "fetch"), ("data",), ()], ids=" ".join)
def test_help_and_a_verb_is_the_verb_s_help(command, capsys):
    shown = []
    for words in (["help", *command], [*command, "--help"]):
        with pytest.raises(SystemExit) as caught:
            main.main(words)
        assert caught.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and shown[0].startswith("usage: instructrec")


QUIET, VERBOSE = ("-q", "--quiet"), ("-v", "--verbose")


@pytest.mark.parametrize("flag", ["", *QUIET, *VERBOSE])
def test_less_or_more_is_said_wherever_the_flag_stands(monkeypatch, capsys, flag):
    def talk(**_):
        logging.getLogger("instructrec_jax.a").info("n=3")
        logging.getLogger("other.b").info("noise")
        logging.getLogger("instructrec_jax.a").warning("careful")

    run_stage(monkeypatch, talk, *([flag] if flag else []))
    after = capsys.readouterr()
    main.main([*([flag] if flag else []), "toy", "--output_dir=x"])
    before = capsys.readouterr()
    assert before.out == after.out == "x\n"
    for text in (before.err, after.err):
        assert "careful" in text
        assert ("n=3" in text, "noise" in text) == (flag not in QUIET, flag in VERBOSE)
        assert ("instructrec_jax.a: n=3" in text) == (flag in VERBOSE)


@pytest.mark.parametrize("columns", [80, 100, 250])
def test_no_line_is_longer_than_the_terminal_or_100(monkeypatch, capsys, columns):
    path = "a" * 150

    def talk(**_):
        logging.getLogger("instructrec_jax.a").info("word  by word " * 30 + path)
        raise UserError("so that " * 40)

    monkeypatch.setenv("COLUMNS", str(columns))
    run_stage(monkeypatch, talk)
    lines = capsys.readouterr().err.splitlines()
    assert path in [line.strip() for line in lines], "a path stays whole"
    rest = [line for line in lines if path not in line]
    assert min(columns, 100) - 20 < max(map(len, rest)) <= min(columns, 100)


@pytest.mark.parametrize("command", [(), ("data",), *COMMANDS], ids=" ".join)
@pytest.mark.parametrize("columns", [80, 250])
def test_no_line_of_a_help_is_too_long(monkeypatch, capsys, command, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main.main([*command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= min(columns, 100)


COMPLETED = {
    "instructrec in": ["inspect"],
    "instructrec data fe": ["fetch"],
    "instructrec -q lint --data": ["--data_dir", "--dataset"],
    "instructrec train --dry": ["--dry_run"],
}


@pytest.mark.parametrize("typed", COMPLETED)
def test_a_shell_completes_verbs_and_flags_without_tensorflow(tmp_path, typed):
    code = (
        "import os, sys\nfrom instructrec_jax.cli import main\n"
        "def leave(_):\n"
        "    assert 'tensorflow' not in sys.modules and 'seqio' not in sys.modules\n"
        "    os.write(1, b'left')\n    raise SystemExit\n"
        "os._exit = leave\nmain.main([])\n"
    )
    given = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "a"),
        "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | given, capture_output=True)
    assert done.stdout == b"left", done.stderr
    found = (tmp_path / "a").read_text().split("\n")
    assert sorted(map(str.strip, found)) == COMPLETED[typed]
