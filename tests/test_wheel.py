"""What is distributed: a wheel that needs no checkout, a source distribution whose tests run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (
    ".github",
    "benchmarks",
    "docs",
    "examples",
    "gin",
    "instructrec_jax",
    "launch",
    "tasks",
    "tests",
)
FILES = (
    ".ci/run",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "mkdocs.yml",
)
BUILT = {".pyc", ".tmp"}


def run(words, folder):
    """Runs a command in a folder, without the PYTHONPATH of the tests."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, cwd=folder, env=plain, capture_output=True, text=True)


@pytest.mark.slow
def test_the_source_distribution_holds_every_file_and_its_tests_run(sdist):
    wanted = {Path(name) for name in FILES}
    for folder in FOLDERS:
        wanted |= {
            path.relative_to(ROOT)
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and path.suffix not in BUILT and "cache" not in str(path)
        }
    assert not [str(path) for path in sorted(wanted) if not (sdist / path).is_file()]
    tests = ["tests/test_ranking.py", "tests/test_lint_templates.py", "tests/test_ground.py"]
    code = "import instructrec_jax; print(instructrec_jax.__file__)"
    where = run([sys.executable, "-c", code], sdist)
    assert Path(where.stdout.strip()).is_relative_to(sdist)
    done = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], sdist)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_an_installed_wheel_finds_its_parts_whatever_the_working_folder_holds(installed, tmp_path):
    for name, text in {
        "gin/__init__.py": "raise ImportError('the package gin of the user')",
        "gin/runs/own.gin": "include 'gin/runs/from_scratch.gin'\n",
        "gin/wiring/train.gin": "no gin at all",
        "tasks/__init__.py": "",
        "tasks/mine.py": "from instructrec_jax.tasks.mixtures import TEMPLATES\n"
        "TEMPLATES = TEMPLATES[:3]\n",
        "instructrec_jax/__init__.py": "raise ImportError('a folder of the same name')",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    command = installed / "instructrec"
    environment = installed.parent
    code = (
        "import sys; sys.path.pop(0); from instructrec_jax.tasks import mixtures; "
        "print(mixtures.__file__)"
    )
    found = Path(run([installed / "python", "-c", code], tmp_path).stdout.strip())
    assert found.is_relative_to(environment) and found.parts[-3:-1] == ("instructrec_jax", "tasks")
    ours = run([command, "templates"], tmp_path)
    assert ours.returncode == 0, ours.stderr
    theirs = run([command, "templates", "--task_module=tasks.mine"], tmp_path)
    assert theirs.returncode == 0, theirs.stderr
    assert 0 < len(theirs.stdout.splitlines()) < len(ours.stdout.splitlines())
    done = run([command, "train", "--gin_file=gin/runs/own.gin"], tmp_path)
    assert "these gin macros have no value: DATA_DIR" in done.stderr, done.stderr


def test_an_installed_wheel_is_typed_and_says_what_it_is(installed):
    code = (
        "import importlib.metadata as m, importlib.resources as r, instructrec_jax as i\n"
        "found = m.metadata('instructrec-jax')\n"
        "assert found['Version'] == i.__version__ and found['License-Expression'] == 'Apache-2.0'\n"
        "assert found['Author'] == 'The instructrec_jax authors'\n"
        "assert (r.files(i) / 'py.typed').is_file()\n"
        "tops = {path.parts[0] for path in m.files('instructrec-jax') if path.suffix == '.py'}\n"
        "assert tops == {'instructrec_jax'}, tops\n"
    )
    done = run([installed / "python", "-c", code], "/")
    assert done.returncode == 0, done.stderr
