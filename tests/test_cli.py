"""The command: help, mistakes, exit codes, and flags that agree with the stages' settings."""

import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cli_toy import COMMANDS, Settings, run_stage, toy

from instructrec_jax import __main__ as entry
from instructrec_jax.cli import flags, gin_config, main
from instructrec_jax.cli.command_line import make_parser
from instructrec_jax.cli.main import VERBS
from instructrec_jax.cli.verb import Group, Verb
from instructrec_jax.errors import UserError
from instructrec_jax.stages.dry_run import DryRun

RUNS = ("train", "eval", "score", "generate")
WITH_GIN = (*RUNS, "inspect", "plan")


def find(command) -> Verb:
    """Returns the verb of one or two words."""
    found = {verb.name: verb for verb in VERBS}[command[0]]
    return found if len(command) == 1 else {v.name: v for v in found.verbs}[command[1]]


def subparser(command):
    parser = make_parser(VERBS, command)
    for word in command:
        (action,) = [a for a in parser._actions if a.dest in ("verb", "action")]
        parser = action.choices[word]
    return parser


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_is_complete_and_its_example_is_accepted(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main([*command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "example:\n  instructrec " + " ".join(command) in text
    assert "\n\n" in text  # a description stands between usage and flags
    for action in subparser(command)._actions:
        assert action.help, f"{command} {action.dest} has no help"
        assert "None" not in action.help, "nobody types None"
    words = find(command).example.replace("\\\n", " ").split()
    plain = [word for word in words[1:] if not word.startswith("--gin.")]
    assert make_parser(VERBS, plain).parse_args(plain).chosen is find(command)


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
        "heavy = {'jax', 'tensorflow', 'seqio', 'numpy', 'pyarrow', 'gin', 'matplotlib', 'rich'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_help_of_no_verb_imports_tensorflow():
    code = (
        "import sys\n"
        "from instructrec_jax.cli import main\n"
        "for verb in main.VERBS:\n"
        "    try:\n        main.main([verb.name, '--help'])\n    except SystemExit:\n        pass\n"
        "heavy = {'tensorflow', 'seqio', 'tensorflow_datasets', 'torch'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "instructrec_jax", "inspekt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    shown = " ".join(done.stderr.split())
    assert shown.startswith("instructrec: unknown verb 'inspekt'; the nearest known: inspect, lint")


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
    assert "instructrec toy --output_dir=x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "a/b"), "cannot use 'a/b': Permission denied"),
        (OSError(28, "No space left on device"), "the system refuses: No space left on device"),
        (MemoryError("1.51 TiB"), r"out of memory \(1.51 TiB\)"),
        (RecursionError(), "nested too deep"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), "expected UTF-8: set LC_ALL"),
    ],
)
def test_an_error_of_the_machine_is_one_message_and_code_2(monkeypatch, capsys, error, message):
    def fail(**_):
        raise error

    assert run_stage(monkeypatch, fail) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert re.match(f"instructrec: .*{message}", " ".join([first, *map(str.strip, rest)]))
    assert all(line.startswith("  ") for line in rest), "the message is one"
    monkeypatch.setenv(main.DEBUG, "1")
    with pytest.raises(type(error)):
        run_stage(monkeypatch, fail)


def test_a_message_is_shown_in_any_locale_and_to_nobody():
    code = (
        "import sys; from instructrec_jax.cli import main; from instructrec_jax.errors import *\n"
        "def fail(_): raise UserError('Käse \\udcff')\n"
        "main._run = fail; sys.exit(main.main([]))"
    )
    plain = dict(os.environ, PYTHONIOENCODING="ascii")
    found = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (2, "instructrec: K\\xe4se \\udcff\n")
    out, into = os.pipe()
    os.close(out)
    gone = subprocess.run([sys.executable, "-c", code], env=plain, stderr=into, timeout=60)
    os.close(into)
    assert gone.returncode == 2


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch):
    def break_down(**_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_stage(monkeypatch, break_down)


def test_messages_go_to_stderr_as_plain_lines_and_the_result_to_stdout(monkeypatch, capsys):
    def talk(**_):
        logging.getLogger("instructrec_jax.stages.report").info("n=%d", 3)
        logging.getLogger("other.package").info("noise")

    assert run_stage(monkeypatch, talk) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("x\n", "n=3\n")


def test_the_shell_takes_a_result_into_a_variable(tmp_path):
    sizes = "--num_users=40 --num_interactions=600"
    log = f"instructrec data synthesize {sizes} --output_dir={tmp_path}/a"
    prepare = f"instructrec prepare --dataset=own --output_dir={tmp_path}/b"
    code = (
        f'instructrec() {{ {shlex.quote(sys.executable)} -m instructrec_jax "$@"; }}\n'
        f'logs="$({log})"; prepared="$({prepare} --input_dir="$logs")"; ls "$prepared"\n'
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True, check=True
    )
    assert "candidates.parquet" in done.stdout.split()
    assert "users=" in done.stderr and "users=" not in done.stdout


def test_a_task_module_in_the_working_folder_is_found_by_the_console_script(tmp_path):
    (tmp_path / "my_tasks.py").write_text("from instructrec_jax.tasks.pairwise import TEMPLATES\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = "import sys; sys.path[:1] = sys.argv[1:2]; from instructrec_jax.cli.main import main; "
    script += "sys.exit(main(sys.argv[2:]))"
    root = str(Path(main.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, root, "templates", "--task_module=my_tasks"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^X1 .*\| pairwise ", done.stdout, re.MULTILINE)


def test_a_flag_has_the_name_type_default_and_text_of_its_field():
    found = {flag.name: flag for flag in flags.flags_of(toy)}
    assert set(found) == {"output_dir", "seed", "rate", "size", "names", "is_wide"}
    assert found["output_dir"].is_required and found["output_dir"].metavar == "DIR"
    assert found["seed"].help == "of all (default 0)"
    assert found["rate"].help == "a share, 10%% for example (default 0.5)"
    assert found["size"].help == "without it 5" and found["size"].metavar == "N"
    assert found["names"].help == "what to do, one or more of them (default a b)"
    assert found["is_wide"].help == "do it widely"


def test_flags_fill_the_dataclasses_and_what_is_not_given_keeps_its_default(monkeypatch):
    seen = {}
    run_stage(monkeypatch, lambda **given: seen.update(given))
    assert seen == {"output_dir": "x", "seed": 0, "settings": Settings()}
    words = (
        "--seed=3",
        "--rate=0.25",
        "--size",
        "7",
        "--names=c",
        "--names",
        "d",
        "e",
        "--is_wide",
    )
    run_stage(monkeypatch, lambda **given: seen.update(given), *words)
    settings = Settings(rate=0.25, size=7, names=["c", "d", "e"], is_wide=True)
    assert seen == {"output_dir": "x", "seed": 3, "settings": settings}


def test_a_flag_may_be_typed_in_another_way(monkeypatch):
    seen = {}
    spelled = {"is_wide": "--wide", "names": "--name", "seed": "SEED"}
    run_stage(
        monkeypatch, lambda **given: seen.update(given), "4", "--wide", "--name=--x=1",
        spelled=spelled,
    )  # fmt: skip
    assert seen["seed"] == 4
    assert seen["settings"] == Settings(is_wide=True, names=["--x=1"])


@pytest.mark.parametrize("verb", RUNS)
def test_a_run_without_gin_files_says_what_is_missing(verb, capsys):
    assert main.main([verb]) == 2
    assert "--gin_file" in capsys.readouterr().err


def test_gin_bindings_reach_the_stage_in_order(monkeypatch, capsys):
    seen = {}

    def note(function, **arguments):
        seen.update(arguments, name=function.__name__)
        found = DryRun()
        found.rows["work"] = "8 requests"
        return found

    monkeypatch.setattr(gin_config, "run_with_gin", note)
    monkeypatch.setattr(gin_config, "macro_value", lambda name: f"the value of {name}")
    arguments = ["--gin_file=a.gin", "--gin.X=1", "--gin_file", "b.gin", "--gin.m.f.y='z'"]
    monkeypatch.setattr(gin_config, "resolved_config", lambda: "X = 1")
    assert main.main(["score", *arguments, "--dry_run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "X = 1" and shown[-1] == "# verdict     would start"
    assert shown[-4] == "# work        8 requests"
    assert seen == {
        "name": "score",
        "gin_file_names": ["a.gin", "b.gin"],
        "bindings": ["X=1", "m.f.y='z'"],
        "search_paths": [],
        "dry_run": True,
    }
    capsys.readouterr()
    assert main.main(["score", "--gin_file=a.gin"]) == 0
    assert capsys.readouterr().out == "the value of INFER_OUTPUT_DIR\n"


DRY_RUN = ["train", "--dry_run", "--gin.DATA_DIR='nowhere'", "--gin.MODEL_DIR='model'"]
DRY_RUN += [
    f"--gin_file=gin/{name}.gin"
    for name in ("models/flan_t5_small", "mixtures/ml_100k", "runs/from_scratch")
]


def test_a_dry_run_looks_at_devices_that_are_not_here_and_ends_with_its_verdict(tmp_path):
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    plain["PYTHONPATH"] = str(Path(main.__file__).parents[2])
    options = {"cwd": tmp_path, "env": plain, "capture_output": True, "text": True}
    start = [sys.executable, "-m", "instructrec_jax", *DRY_RUN, "--num_devices=6"]
    done = subprocess.run([*start, "--gin.NUM_PARTITIONS=2", "--gin.BATCH_SIZE=12"], **options)
    assert done.returncode == 1, done.stderr
    model, work, data, checkpoint, verdict = done.stdout.splitlines()[-5:]
    assert re.fullmatch(
        r"# model       76,961,152 parameters, [\d.]+ MiB on each of 6 devices "
        r"\(data=3, tensor=2\)",
        model,
    )
    assert re.fullmatch(r"# work        [\d,]+ steps of 12 rows, into model", work)
    assert data.startswith("# data        nowhere/ml_100k holds no manifest.json")
    assert checkpoint == "# checkpoint  none: random weights"
    assert verdict == "# verdict     would stop because of data"
    assert not list(tmp_path.iterdir())


def test_a_dry_run_refuses_a_mesh_that_does_not_fit_the_devices(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main([*DRY_RUN, "--gin.NUM_PARTITIONS=3"]) == 2
    said = " ".join(capsys.readouterr().err.split())  # lines are folded
    assert "(NUM_PARTITIONS) does not fit 8 devices" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--num_devices=8"], "--num_devices belongs to --dry_run"),
        (["--num_devices=0", "--dry_run"], "--num_devices is 0; expected 1 to 1024"),
    ],
)
def test_devices_are_pretended_for_dry_runs_alone(given, message, capsys):
    assert main.main(["train", "--gin_file=gin/runs/finetune.gin", *given]) == 2
    assert message in capsys.readouterr().err


def test_other_verbs_take_no_gin_bindings(capsys):
    flags = ("dataset", "input_dir", "output_dir")
    assert main.main(["prepare", *(f"--{flag}=x" for flag in flags), "--gin.SEED=1"]) == 2
    assert "takes no gin binding" in capsys.readouterr().err


def test_what_a_stage_returns_decides_the_exit_code_and_the_result(monkeypatch, capsys):
    changes = {"exit_code": lambda found: found, "result": lambda found, _: f"found {found}"}
    assert run_stage(monkeypatch, lambda **_: 0, **changes) == 0
    assert run_stage(monkeypatch, lambda **_: 1, **changes) == 1
    assert capsys.readouterr().out == "found 0\nfound 1\n"


def test_verbs_of_gin_document_gin_flags_in_their_help():
    for verb in VERBS:
        takes_gin = not isinstance(verb, Group) and verb.takes_gin
        assert takes_gin == (verb.name in WITH_GIN)
        assert ("--gin.NAME=VALUE" in verb.description) == takes_gin


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m instructrec_jax templates | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("id ")
    assert "Error" not in done.stderr


def report_scores(*given):
    """What `instructrec report` makes of its --scores."""
    flags = [f"--{name}=x" for name in ("dataset", "prepared_dir", "output_dir")]
    words = ["report", *flags, *(f"--scores={text}" for text in given)]
    return make_parser(VERBS, words).parse_args(words).scores


def test_each_system_of_a_report_is_named_with_both_splits():
    found = report_scores("a=runs/v:runs/t", "b=v.jsonl:t.jsonl", "one_template=t")
    assert found == {"a": ["runs/v", "runs/t"], "b": ["v.jsonl", "t.jsonl"], "one_template": ["t"]}


@pytest.mark.parametrize("text", ["v:t", "=v:t", "a=", "a=v:t:u", "a=:t"])
def test_a_system_without_name_or_split_is_refused(text):
    with pytest.raises(UserError, match=f"--scores is {text!r}; expected NAME=VALIDATION:TEST"):
        report_scores(text)


def test_two_systems_of_one_name_are_refused():
    with pytest.raises(UserError, match="names the system 'a' twice"):
        report_scores("a=v:t", "a=u:w")


def test_the_command_starts_again_with_huge_pages_and_keeps_its_arguments(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execv", lambda *asked: started.append(asked))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "instructrec_jax", "templates"])
    monkeypatch.setattr(main, "main", lambda: 7)  # as a process of its own it would keep Ctrl-C
    monkeypatch.setenv(entry.MALLOC_SETTINGS, "")
    monkeypatch.delenv(entry.MALLOC_SETTINGS)
    assert entry.main() == 7
    asked = (sys.executable, [sys.executable, "-m", "instructrec_jax", "templates"])
    assert started == [asked]
    assert "hugetlb=1" in os.environ[entry.MALLOC_SETTINGS]
    monkeypatch.setenv(entry.MALLOC_SETTINGS, "glibc.malloc.check=3")
    assert entry.main() == 7
    assert started == [asked]
    assert os.environ[entry.MALLOC_SETTINGS] == "glibc.malloc.check=3"
