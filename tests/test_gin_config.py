"""What gin files may say, and the one message that each mistake gets."""

import dataclasses
import sys
import types
from pathlib import Path

import pytest

from instructrec_jax.cli import gin_config, gin_files
from instructrec_jax.errors import UserError

HEAD = "from __gin__ import dynamic_registration\nimport toy_stage\n"


@dataclasses.dataclass(frozen=True)
class Optimizer:
    rate: float
    decay: float = 0.0


def train(*, model_dir: str, steps: int, optimizer: Optimizer, dry_run: bool = False):
    """Stands for a stage's function."""
    if steps < 0:
        raise UserError("steps must not be negative")
    if model_dir == "full":
        raise UserError("MODEL_DIR has no room for STEPS")
    if steps == 13:
        raise ValueError("an error of the program")
    return model_dir, steps, optimizer, dry_run


@pytest.fixture(autouse=True)
def _toy_stage(monkeypatch):
    module = types.ModuleType("toy_stage")
    for thing in (train, Optimizer):
        monkeypatch.setattr(thing, "__module__", "toy_stage")
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, "toy_stage", module)


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def _write(name: str, text: str, head: str = HEAD) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + text)
        return name

    return _write


RUN = """
MODEL_DIR = %gin.REQUIRED
STEPS = %gin.REQUIRED
toy_stage.train.model_dir = %MODEL_DIR
toy_stage.train.steps = %STEPS
toy_stage.train.optimizer = @toy_stage.Optimizer()
toy_stage.Optimizer.rate = 0.5
"""


def run(files, *bindings, **kwargs):
    return gin_config.run_with_gin(train, gin_file_names=files, bindings=bindings, **kwargs)


def test_arguments_come_from_files_and_command_line(write):
    files = [write("run.gin", RUN), write("size.gin", "STEPS = 7\n", head="")]
    model_dir, steps, optimizer, dry_run = run(files, "MODEL_DIR='runs/a'")
    assert (model_dir, steps, optimizer.rate, dry_run) == ("runs/a", 7, 0.5, False)


def test_the_order_of_files_does_not_decide_the_result(write):
    files = [write("run.gin", RUN), write("size.gin", "STEPS = 7\nMODEL_DIR = 'd'\n", head="")]
    assert run(files)[:2] == run(files[::-1])[:2] == ("d", 7)


def test_the_command_line_stands_above_files_and_overlays(write):
    files = [
        write("run.gin", RUN),
        write("size.gin", "STEPS = 7\nMODEL_DIR = 'd'\n", head=""),
        write("overlays/small.gin", "STEPS = 2\n", head=""),
    ]
    assert run(files)[1] == 2
    assert run(files, "STEPS=3")[1] == 3


def test_bindings_of_the_command_line_reach_arguments_too(write):
    files = [write("run.gin", RUN)]
    result = run(files, "MODEL_DIR='d'", "STEPS=1", "toy_stage.Optimizer.decay=0.25")
    assert result[2].decay == 0.25


def test_the_value_of_a_macro_can_be_shown_after_a_run(write):
    run([write("run.gin", RUN)], "MODEL_DIR='runs/a'", "STEPS=1")
    assert gin_config.macro_value("MODEL_DIR") == "runs/a"
    assert gin_config.macro_value("NO_SUCH_MACRO") == ""


def test_nothing_remains_of_an_earlier_run(write):
    first = [write("run.gin", RUN), write("size.gin", "STEPS = 7\nMODEL_DIR = 'd'\n", head="")]
    run(first, "toy_stage.Optimizer.decay=0.25")
    assert run(first)[2].decay == 0.0


def test_included_files_count_as_the_files_they_are(write):
    write("run.gin", RUN)
    top = write("top.gin", "include 'run.gin'\nSTEPS = 4\nMODEL_DIR = 'd'\n", head="")
    assert run([top])[1] == 4


def test_a_file_found_behind_the_first_folder_is_no_error(tmp_path, monkeypatch, caplog):
    from instructrec_jax.stages import train as stage

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    names = ("models/t5_tiny.gin", "mixtures/ml_100k.gin", "runs/finetune.gin")
    texts = gin_files.read_files([f"gin/{name}" for name in names])
    given = ["DATA_DIR='a'", "MODEL_DIR='b'", "TRAIN_STEPS=3", "INITIAL_CHECKPOINT_PATH=None"]
    bindings = gin_files.read_bindings(given, texts)
    gin_config.configure(stage.train, [*texts, *bindings])
    assert caplog.records == []


def test_a_dry_run_tells_the_stage_and_leaves_the_config_to_be_shown(write):
    result = run([write("run.gin", RUN)], "MODEL_DIR='d'", "STEPS=4", dry_run=True)
    assert result[3] is True
    text = gin_config.resolved_config()
    assert "STEPS = 4" in text and "toy_stage.Optimizer.rate = 0.5" in text


def test_the_resolved_config_reproduces_the_run(write, tmp_path):
    first = run([write("run.gin", RUN)], "MODEL_DIR='d'", "STEPS=4")
    (tmp_path / "config.gin").write_text(gin_config.resolved_config())
    assert run(["config.gin"]) == first


def test_a_function_that_asks_for_the_config_text_gets_it(write, monkeypatch):
    def note(*, steps: int, config_text: str):
        return steps, config_text

    monkeypatch.setattr(note, "__module__", "toy_stage")
    monkeypatch.setattr(note, "__qualname__", "note")
    monkeypatch.setattr(sys.modules["toy_stage"], "note", note, raising=False)
    file = write("note.gin", "STEPS = 3\ntoy_stage.note.steps = %STEPS\n")
    steps, text = gin_config.run_with_gin(note, gin_file_names=[file])
    assert steps == 3 and "toy_stage.note.steps = %STEPS" in text


MISTAKES = {
    "missing file": ({}, [], r"unknown gin file 'none\.gin'"),
    "syntax": ({"a.gin": "STEPS = = 3\n"}, [], r"a\.gin line 3 is not valid gin.*'STEPS = = 3'"),
    "unquoted string": ({"a.gin": RUN}, ["MODEL_DIR=/tmp/x"], r"MODEL_DIR=/tmp/x is not valid gin"),
    "no value": ({"a.gin": RUN}, ["MODEL_DIR"], r"--gin\.MODEL_DIR has no value"),
    "unset": (
        {"a.gin": RUN},
        [],
        r"MODEL_DIR \(required by a\.gin line 4\); STEPS \(required by a\.gin line 5\)",
    ),
    "undefined": (
        {"a.gin": "toy_stage.train.steps = %STEPS\n"},
        [],
        r"STEPS \(used in a\.gin line 3\)",
    ),
    "two owners": (
        {"a.gin": RUN, "b.gin": "STEPS = 1\n", "c.gin": "STEPS = 2\n"},
        ["MODEL_DIR='d'"],
        r"STEPS is defined in b\.gin line 3 and in c\.gin line 3",
    ),
    "unused macro": (
        {"a.gin": RUN + "WARMUP = 3\n"},
        ["MODEL_DIR='d'", "STEPS=1"],
        r"macro WARMUP of a\.gin line 10 is used by no gin file",
    ),
    "unused macro of the command line": (
        {"a.gin": RUN},
        ["MODEL_DIR='d'", "STEPS=1", "MODEL_DIRS='e'"],
        r"'MODEL_DIRS'; the nearest known: MODEL_DIR",
    ),
    "unknown configurable": (
        {"a.gin": RUN + "toy_stage.train.optimizer = @toy_stage.Adam()\n"},
        ["MODEL_DIR='d'", "STEPS=1"],
        r"(?s)gin cannot use this config.*Adam.*line 10",
    ),
    "unknown argument": (
        {"a.gin": RUN + "toy_stage.Optimizer.speed = 1\n"},
        ["MODEL_DIR='d'", "STEPS=1"],
        r"(?s)speed.*line 10",
    ),
    "unknown module": ({"a.gin": "import no_such_module\n"}, [], r"(?s)no_such_module.*line 3"),
    "binding that nothing uses": (
        {"a.gin": "toy_stage.Optimizer.rate = 1.0\n"},
        [],
        r"a\.gin line 3 binds toy_stage\.Optimizer\.rate, but this run of toy_stage\.train never",
    ),
    "argument that nothing binds": (
        {"a.gin": "toy_stage.train.steps = 3\n"},
        [],
        r"no gin file binds these arguments of toy_stage\.train: model_dir, optimizer",
    ),
    "required argument": (
        {"a.gin": RUN + "toy_stage.Optimizer.decay = %gin.REQUIRED\n"},
        ["MODEL_DIR='d'", "STEPS=1"],
        r"toy_stage\.Optimizer\.decay \(required by a\.gin line 10\)",
    ),
    "unclosed bracket": ({"a.gin": "STEPS = [1,\n"}, [], r"a\.gin line \d is not valid gin \(EOF"),
    "too deep": (
        {"a.gin": f"STEPS = {'[' * 5000}{']' * 5000}\n"},
        [],
        r"a\.gin line \d is not valid gin",
    ),
    "a null character": ({"a.gin": "STEPS = 1\0\n"}, [], r"a\.gin line \d is not valid gin"),
    "two lines": ({"a.gin": RUN}, ["STEPS=1\nMODEL_DIR='d'"], "has no value in one line"),
    "a long name": ({}, [], None),
    "a file that includes itself": ({"a.gin": "include 'a.gin'\n"}, [], "includes itself"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_that_names_it(write, name):
    files, bindings, message = MISTAKES[name]
    names = [write(file, text) for file, text in files.items()] or ["none.gin"]
    if name == "a long name":
        names, message = ["a" * 5000], r"gin file 'a+' cannot be read: File name too long"
    with pytest.raises(UserError, match=message):
        run(names, *bindings)


@pytest.mark.parametrize(
    "text", ["STEPS = 1\n# caf\xe9\n".encode("latin-1"), "# a".encode("utf-16")]
)
def test_a_file_that_is_not_utf_8_is_named_with_its_line_even_where_it_is_included(write, text):
    for folder, names in (("a", ["a/own.gin"]), ("b", ["b/top.gin"])):
        Path(folder).mkdir()
        Path(folder, "own.gin").write_bytes(text)
        write(f"{folder}/top.gin", f"include '{folder}/own.gin'\n")
        line = 1 + text.startswith(b"STEPS")
        with pytest.raises(
            UserError, match=rf"{folder}/own\.gin line {line} is not UTF-8; convert"
        ):
            run(names)


def test_a_byte_order_mark_is_skipped(write):
    for name in ("run.gin", "size.gin"):
        write(name, RUN if name == "run.gin" else "STEPS = 4\nMODEL_DIR = 'd'\ninclude 'run.gin'\n")
        Path(name).write_bytes(b"\xef\xbb\xbf" + Path(name).read_bytes())
    assert run(["size.gin"])[1] == 4


def test_a_file_overrides_what_it_includes(write):
    write("run.gin", RUN)
    write("middle.gin", "include 'run.gin'\nSTEPS = 5\nMODEL_DIR = 'm'\n", head="")
    top = write(
        "top.gin",
        "toy_stage.Optimizer.rate = 0.25\ninclude 'middle.gin'\nSTEPS = 1\n"
        "MODEL_DIR = %gin.REQUIRED\n",
    )
    found = run([top], "MODEL_DIR='d'")
    assert (found[0], found[1], found[2].rate) == ("d", 1, 0.25)
    with pytest.raises(UserError, match=r"MODEL_DIR \(required by top\.gin line 6\)"):
        run([top])


def test_a_user_error_of_the_function_keeps_its_plain_message(write):
    with pytest.raises(UserError) as caught:
        run([write("run.gin", RUN)], "MODEL_DIR='d'", "STEPS=-1")
    assert str(caught.value) == "steps must not be negative"


def test_a_user_error_that_names_macros_tells_which_file_owns_them(write):
    files = [write("run.gin", RUN), write("size.gin", "STEPS = 7\n", head="")]
    for binding, place in ((), "size.gin line 1"), (("STEPS=21",), "the command line"):
        with pytest.raises(UserError) as caught:
            run(files, "MODEL_DIR='full'", *binding)
        owners = f"MODEL_DIR is set in the command line, STEPS in {place}"
        assert str(caught.value) == f"MODEL_DIR has no room for STEPS ({owners})"


def test_an_error_of_the_program_stays_what_it_is(write):
    with pytest.raises(ValueError, match="an error of the program"):
        run([write("run.gin", RUN)], "MODEL_DIR='d'", "STEPS=13")


def test_shipped_files_are_found_from_any_folder(tmp_path, monkeypatch):
    root = tmp_path / "checkout"
    (root / "gin" / "runs").mkdir(parents=True)
    (root / "gin" / "runs" / "mine.gin").write_text("")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(gin_files, "home", lambda: root)
    assert gin_files.find_gin_file("gin/runs/mine.gin") == root / "gin" / "runs" / "mine.gin"
    assert gin_files.shipped_files() == [root / "gin" / "runs" / "mine.gin"]
    with pytest.raises(UserError, match=r"nearest known: gin/runs/mine\.gin"):
        gin_files.find_gin_file("gin/runs/mime.gin")


def test_a_file_of_the_working_folder_comes_before_a_shipped_one(tmp_path, monkeypatch):
    (tmp_path / "mine.gin").write_text("")
    monkeypatch.chdir(tmp_path)
    assert gin_files.find_gin_file("mine.gin") == Path(tmp_path / "mine.gin").resolve()


def test_what_a_shipped_file_includes_is_shipped_whatever_the_working_folder_holds(write):
    for name in ("gin/wiring/score.gin", "gin/runs/score.gin"):
        write(name, "mine = 1\n", head="")
    shipped = gin_files.home() / "gin" / "runs" / "score_requests.gin"
    texts = gin_files.read_files([shipped])
    assert len(texts) == 3
    assert "mine" not in {statement.key for text in texts for statement in text.statements}


def test_search_paths_come_before_every_other_folder(write):
    write("mine.gin", "STEPS = 1\n", head="")
    write("a/mine.gin", "STEPS = 2\ninclude 'part.gin'\n", head="")
    write("b/mine.gin", "STEPS = 3\n", head="")
    write("b/part.gin", RUN)
    found = run(["mine.gin"], "MODEL_DIR='d'", search_paths=["none", "a", "b"])
    assert found[1] == 2


def test_a_shared_file_may_say_what_only_another_kind_of_run_uses(write, monkeypatch):
    files = [write("run.gin", RUN), write("mixture.gin", "EVAL_TASKS = ['a']\n", head="")]
    write("other.gin", "toy_stage.train.tasks = %EVAL_TASKS\n")
    bindings = ["MODEL_DIR='d'", "STEPS=1"]
    monkeypatch.setattr(gin_files, "shipped_files", lambda: [])
    with pytest.raises(UserError, match="EVAL_TASKS"):
        run(files, *bindings)
    monkeypatch.setattr(gin_files, "shipped_files", lambda: [Path("other.gin")])
    assert run(files, *bindings)[1] == 1
    with pytest.raises(UserError, match="EVAL_TASKS"):
        run(files, *bindings, "EVAL_TASKS=['b']")


RUNS = sorted((Path(__file__).parents[1] / "gin" / "runs").glob("*.gin"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
@pytest.mark.parametrize("overlays", [[], ["gin/overlays/local_tiny.gin"]], ids=["", "local_tiny"])
def test_every_shipped_run_is_complete_but_for_what_it_requires(path, overlays):
    from instructrec_jax.stages import evaluate, generate, score, train

    names = ["gin/models/t5_tiny.gin", "gin/mixtures/ml_100k.gin", str(path), *overlays]
    texts = gin_files.read_files(names)
    statements = [statement for text in texts for statement in text.statements]
    required = {s.key for s in statements if s.is_required} - {
        s.key for s in statements if not s.is_required
    }
    values = {"TRAIN_STEPS": "3"}
    bindings = [f"{key}={values.get(key, repr('x'))}" for key in sorted(required)]
    functions = (evaluate.evaluate, generate.generate, score.score, train.train)
    (function,) = (
        f
        for f in functions
        if any(s.key == f"{f.__module__}.{f.__qualname__}.data" for s in statements)
    )
    gin_config.configure(function, [*texts, *gin_files.read_bindings(bindings, texts)])
    gin_config._check_arguments(function, {})
