"""The command: help, mistakes, exit codes, and flags that agree with the stages' settings."""

import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys

import pytest

from instructrec_jax.cli import gin_config, main, quiet, report_verb, run_verbs
from instructrec_jax.cli.main import VERBS, make_parser
from instructrec_jax.data.settings import PrepareSettings
from instructrec_jax.errors import UserError
from instructrec_jax.stages import report


def subparser(name):
    (action,) = [a for a in make_parser()._actions if a.dest == "verb"]
    return action.choices[name]


def run_stage(monkeypatch, function):
    """Lets `instructrec report` run a function in place of its stage."""
    monkeypatch.setattr(report, "report", function)
    flags = ("dataset", "prepared_dir", "validation_scores_dir", "test_scores_dir", "output_dir")
    return main.main(["report", *(f"--{flag}=x" for flag in flags)])


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_every_help_is_complete_and_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main([verb, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "example:\n  instructrec " + verb in text
    assert "\n\n" in text  # a description stands between usage and flags
    for action in subparser(verb)._actions:
        assert action.dest == "action" or action.help, f"{verb} {action.dest} has no help"


def test_the_examples_of_the_help_are_accepted_by_the_parser():
    for verb in VERBS:
        words = verb.example.replace("\\\n", " ").split()
        plain = [word for word in words[1:] if not word.startswith("--gin.")]
        assert make_parser().parse_args(plain).verb == verb.name


def test_the_general_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit):
        main.main(["--help"])
    text = capsys.readouterr().out
    names = ("data", "prepare", "build", "templates", "inspect", "lint", "train", "score")
    for name in (*names, "report", "demo"):
        assert re.search(rf"^    {name} ", text, re.MULTILINE)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from instructrec_jax.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'tensorflow', 'seqio', 'numpy', 'pyarrow', 'gin', 'matplotlib'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "instructrec_jax", "inspekt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    nearest = "inspect, lint, convert"
    assert done.stderr == f"instructrec: unknown verb 'inspekt'; the nearest known: {nearest}\n"


def test_a_mistake_of_the_user_is_one_message_and_code_2(monkeypatch, capsys):
    def fail(**_):
        raise UserError("the file is not there")

    assert run_stage(monkeypatch, fail) == 2
    captured = capsys.readouterr()
    assert captured.err == "instructrec: the file is not there\n"
    assert captured.out == ""


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(**_):
        raise KeyboardInterrupt

    assert run_stage(monkeypatch, interrupt) == 130
    assert "instructrec report --dataset=x" in capsys.readouterr().err


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch):
    def break_down(**_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_stage(monkeypatch, break_down)


def test_messages_of_the_stages_are_plain_lines_on_stdout(monkeypatch, capsys):
    import logging

    def talk(**_):
        logging.getLogger("instructrec_jax.stages.report").info("n=%d", 3)
        logging.getLogger("other.package").info("noise")

    assert run_stage(monkeypatch, talk) == 0
    assert capsys.readouterr().out == "n=3\n"


@pytest.mark.parametrize(
    "arguments", [["report"], ["prepare", "--dataset"], [], ["train", "--gin_fil=a.gin"]]
)
def test_flags_that_are_missing_or_unknown_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2
    assert "usage: instructrec" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "eval", "score", "generate"])
def test_a_run_without_gin_files_says_what_is_missing(verb, capsys):
    assert main.main([verb]) == 2
    assert "--gin_file" in capsys.readouterr().err


def test_gin_bindings_reach_the_stage_in_order(monkeypatch):
    seen = {}

    def note(function, **arguments):
        seen.update(arguments, name=function.__name__)

    monkeypatch.setattr(gin_config, "run_with_gin", note)
    arguments = ["--gin_file=a.gin", "--gin.X=1", "--gin_file", "b.gin", "--gin.m.f.y='z'"]
    assert main.main(["score", *arguments, "--dry_run"]) == 0
    assert seen == {
        "name": "score",
        "gin_file_names": ["a.gin", "b.gin"],
        "bindings": ["X=1", "m.f.y='z'"],
        "dry_run": True,
    }


def test_other_verbs_take_no_gin_bindings(capsys):
    flags = ("dataset", "input_dir", "output_dir")
    assert main.main(["prepare", *(f"--{flag}=x" for flag in flags), "--gin.SEED=1"]) == 2
    assert "takes no gin binding" in capsys.readouterr().err


def test_prepare_offers_every_setting_with_the_default_it_has():
    helps = {action.dest: action.help for action in subparser("prepare")._actions}
    for field in dataclasses.fields(PrepareSettings):
        default = 5 if field.name == "k_core" else field.default
        assert field.name in helps
        if default is not False:
            assert f"default {default}" in helps[field.name]


@pytest.mark.parametrize("verb", ["annotate", "build"])
def test_annotate_and_build_offer_every_setting_with_the_default_it_has(verb):
    import importlib

    module = importlib.import_module(f"instructrec_jax.stages.{verb}")
    helps = {action.dest: action.help for action in subparser(verb)._actions}
    for field in dataclasses.fields(getattr(module, f"{verb.capitalize()}Settings")):
        assert field.name in helps
        if field.default is not None:
            assert f"default {field.default}" in helps[field.name]


@pytest.mark.parametrize("verb", ["templates", "inspect", "lint", "report"])
def test_flags_have_the_names_of_the_stage_s_arguments(verb):
    import importlib

    module = importlib.import_module(f"instructrec_jax.stages.{verb}")
    accepted = set(inspect.signature(getattr(module, verb)).parameters)
    flags = {action.dest for action in subparser(verb)._actions} - {"help"}
    assert flags <= accepted


@pytest.mark.parametrize("verb", ["templates", "inspect", "lint"])
def test_helps_state_the_defaults_of_the_stage(verb):
    import importlib

    module = importlib.import_module(f"instructrec_jax.stages.{verb}")
    helps = {action.dest: action.help for action in subparser(verb)._actions}
    for name, parameter in inspect.signature(getattr(module, verb)).parameters.items():
        assert name in helps
        if parameter.default not in (inspect.Parameter.empty, None):
            assert f"default {parameter.default}" in helps[name]


def test_what_a_verb_returns_is_the_exit_code(monkeypatch):
    assert run_stage(monkeypatch, lambda **_: None) == 0
    verb = dataclasses.replace(report_verb.REPORT, run=lambda _: 1)
    monkeypatch.setattr(main, "VERBS", (verb,))
    assert run_stage(monkeypatch, lambda **_: None) == 1


def test_verbs_of_gin_document_gin_flags_in_their_help():
    for verb in (run_verbs.TRAIN, run_verbs.EVAL, run_verbs.SCORE, run_verbs.GENERATE):
        assert "--gin.NAME=VALUE" in verb.description and verb.takes_gin


def test_start_up_notes_are_held_back_and_real_messages_are_not(capfd):
    with pytest.raises(ImportError), quiet.quiet_imports():
        os.write(2, b"I0000 00:00:17.1 12 port.cc:153] note\nE0000 00:00 broken\nplain\n")
        raise ImportError
    assert capfd.readouterr().err == "E0000 00:00 broken\nplain\n"


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m instructrec_jax templates | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("id ")
    assert "Error" not in done.stderr
