"""The shell scripts and gin files that users run are well formed, and find what they need."""

import subprocess
import sys
from pathlib import Path

import pytest

from instructrec_jax.cli import gin_files

ROOT = Path(__file__).parents[1]


# Another script sources this one.
SOURCED = ROOT / "launch" / "shared.sh"
SCRIPTS = sorted({ROOT / ".ci" / "run", *(ROOT / "launch").glob("*.sh")} - {SOURCED})


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_strict_and_executable(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert path.stat().st_mode & 0o111, f"{path} is not executable"
    for number, line in enumerate(lines, start=1):
        assert "\t" not in line and len(line) <= 100, f"line {number}"


def test_shellcheck_finds_nothing_in_shell_scripts():
    check = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [check, "--external-sources", *SCRIPTS, SOURCED], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Those for T5X's own programs include files of T5X: see test_t5x_gin.py.
GIN_FILES = sorted(p for p in (ROOT / "gin").rglob("*.gin") if p.parent.name != "t5x")


@pytest.mark.parametrize("path", GIN_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_gin_file_is_well_formed_and_says_what_it_is(path):
    assert path.read_text().startswith("#"), "the file's head says what it is for"
    *_, text = gin_files.read_files([path])
    assert text.statements, "the file defines nothing"


def test_shipped_gin_files_give_each_macro_one_owner():
    by_folder: dict[str, dict[str, set[str]]] = {}
    for path in GIN_FILES:
        if not {"overlays", "presets"}.isdisjoint(path.parts):
            continue
        for statement in gin_files.read_files([path])[-1].statements:
            if statement.is_macro and not statement.is_required:
                owners = by_folder.setdefault(statement.key, {})
                folder = Path(statement.source).parent.as_posix()
                folder = folder.replace("gin/baselines", "gin/runs")  # a baseline is a whole run
                owners.setdefault(folder, set())
    shared = {name: sorted(owners) for name, owners in by_folder.items() if len(owners) > 1}
    assert not shared, "macros that files of two kinds define, which can never go together"
