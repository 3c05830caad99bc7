"""Runs every fenced block of the README, so that nothing in it rots.

A `bash` block runs in an empty folder outside the checkout; `instructrec` there is installed from a
wheel. A `python` block runs in its own process. Later blocks see the files that earlier ones wrote.
What a `python` block prints has the words of the `text` block after it, if that comes next; figures
may differ. A block that cannot run here stands below a line

    <!-- not run: the reason -->

and must at least be well formed. Other languages (text, json, gin) are shown output or settings.
"""

import dataclasses
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 900


@dataclasses.dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int
    reason: str  # why it is not run; "" if it is


def read_blocks(text: str) -> list[Block]:
    """Returns the fenced blocks of a Markdown text with the markers above them."""
    blocks, lines, reason = [], text.splitlines(), ""
    index = 0
    while index < len(lines):
        marker = re.fullmatch(r"<!-- not run: (.+) -->", lines[index].strip())
        fence = re.fullmatch(r"```(\w*)", lines[index].strip())
        if marker:
            reason = marker.group(1)
        elif fence:
            start = index + 1
            index = start
            while index < len(lines) and lines[index].strip() != "```":
                index += 1
            assert index < len(lines), f"the block of line {start} is not closed"
            blocks.append(Block(fence.group(1), "\n".join(lines[start:index]), start, reason))
            reason = ""
        elif lines[index].strip():
            reason = ""  # a marker counts for the block directly below it
        index += 1
    return blocks


BLOCKS = read_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
CODE = [block for block in BLOCKS if block.language in ("bash", "python")]


def run_block(block: Block, folder: Path, tools: Path) -> subprocess.CompletedProcess:
    """Runs a block in a folder, its own process, with the programs of another first on PATH."""
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "JAX_PLATFORMS": "cpu",
    }
    environment.pop("PYTHONPATH", None)  # a user's shell has none, and one device
    compiling = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environment["XLA_FLAGS"] = " ".join(compiling)
    start = (
        [tools / "python", "-c"]
        if block.language == "python"
        else ["bash", "-euo", "pipefail", "-c"]
    )
    return subprocess.run(
        [*start, block.code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )


def test_blocks_that_cannot_run_here_are_well_formed_and_say_why():
    for block in BLOCKS:
        if block.language == "bash":
            subprocess.run(["bash", "-n", "-c", block.code], check=True)
        elif block.language == "python":
            compile(block.code, f"README.md line {block.line}", "exec")
        else:
            assert block.language in ("text", "json", "gin", ""), f"line {block.line}"


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


@pytest.mark.slow
def test_every_block_of_the_readme_runs_from_a_wheel(tmp_path, installed):
    num_shown = 0
    for block, following in itertools.zip_longest(BLOCKS, BLOCKS[1:]):
        if block not in CODE or block.reason:
            continue
        done = run_block(block, tmp_path, installed)
        assert done.returncode == 0, (
            f"README.md line {block.line}:\n{block.code}\n{done.stdout[-3000:]}"
            f"\n{done.stderr[-3000:]}"
        )
        if block.language == "python" and following and following.language == "text":
            assert words(done.stdout) == words(following.code), f"README.md line {following.line}"
            num_shown += 1
    assert num_shown == 1  # the ranked toys


SAMPLE = """
Text
```bash
echo one > file
```
<!-- not run: needs a TPU -->

```bash
false
```
<!-- not run: forgotten -->
Text between marker and block.
```python
print(open("file").read().strip() * 2)
```
```text
shown
```
"""


def test_the_mechanism_reads_languages_lines_and_reasons():
    found = [(b.language, b.line, b.reason) for b in read_blocks(SAMPLE)]
    assert found == [
        ("bash", 3, ""),
        ("bash", 8, "needs a TPU"),
        ("python", 13, ""),
        ("text", 16, ""),
    ]


def test_the_mechanism_runs_blocks_and_sees_failures(tmp_path):
    first, failing, python, _ = read_blocks(SAMPLE)
    tools = Path(sys.executable).parent
    assert run_block(first, tmp_path, tools).returncode == 0
    assert run_block(failing, tmp_path, tools).returncode != 0
    assert run_block(python, tmp_path, tools).stdout == "oneone\n"
    in_the_middle = Block("bash", "false\ntrue", 1, "")
    assert run_block(in_the_middle, tmp_path, tools).returncode != 0


def test_a_block_that_is_not_closed_is_an_error():
    with pytest.raises(AssertionError, match="line 1 is not closed"):
        read_blocks("```bash\necho")
