"""The shell scripts and gin files that users run are well formed, and find what they need."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from instructrec_jax.cli import gin_files

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", [".ci/run", *(f"launch/{n}.sh" for n in (
    "local_cpu", "gpu", "tpu_vm", "slurm", "instructrec"))])  # fmt: skip
def test_shell_scripts_are_strict_executable_and_well_formed(name):
    path = ROOT / name
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert path.stat().st_mode & 0o111, f"{name} is not executable"
    subprocess.run(["bash", "-n", str(path)], check=True)
    for number, line in enumerate(lines, start=1):
        code = line.split(" #")[0]
        if not code.startswith("#"):
            assert not re.search(r"\$[@*](?!\")", code.replace('"$@"', "")), (
                f"line {number}: quote it"
            )
            assert "`" not in code, f"line {number}: use $(...)"
            assert "\t" not in line and len(line) <= 100, f"line {number}"


@pytest.mark.parametrize("name", ["local_cpu", "gpu", "tpu_vm"])
def test_launch_scripts_hand_their_arguments_to_the_command(name, tmp_path):
    fake = tmp_path / "instructrec"
    fake.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$JAX_PLATFORMS" "$@"\n')
    fake.chmod(0o755)
    argument = "--gin.MODEL_DIR='\"a b\"'"
    done = subprocess.run(
        [ROOT / "launch" / f"{name}.sh", argument],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    platform, *words = done.stdout.splitlines()
    assert words == ["train", argument]
    assert platform == {"local_cpu": "cpu", "gpu": "cuda", "tpu_vm": "tpu"}[name]


def test_launch_scripts_find_the_command_of_the_checkout_or_say_how_to_get_it(tmp_path):
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    start = [tmp_path / "launch" / "local_cpu.sh", "--dry_run"]
    plain = {"env": {"PATH": "/usr/bin:/bin"}, "capture_output": True, "text": True}
    done = subprocess.run(start, **plain)
    assert done.returncode == 127 and "source .venv/bin/activate" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    command = tmp_path / ".venv" / "bin" / "instructrec"
    command.parent.mkdir(parents=True)
    command.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    assert subprocess.run(start, **plain).stdout.split() == ["train", "--dry_run"]


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
                owners.setdefault(Path(statement.source).parent.as_posix(), set())
    shared = {name: sorted(owners) for name, owners in by_folder.items() if len(owners) > 1}
    assert not shared, "macros that files of two kinds define, which can never go together"
