"""Runs every fenced block of README and the handbook, and the notebook, so that nothing rots.

A `bash` block runs in an empty folder outside the checkout; `instructrec` there is installed from a
wheel. A `python` block runs in its own process. Later blocks see the files that earlier ones
wrote: README's come first, then the pages of docs/ in the order of mkdocs.yml, then the notebook,
whose code cells are one block. What a `python` block prints has the words of the `text` block after
it, if that comes next; figures may differ. A block that cannot run here stands below a line

    <!-- not run: the reason -->

and must at least be well formed. Other languages (text, json, gin) are shown output or settings.
"""

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 900


@dataclasses.dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int
    reason: str  # why it is not run; "" if it is
    document: str = ""

    def __str__(self):
        return f"{self.document} line {self.line}"


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


def pages() -> list[str]:
    """Files of docs/ in the order of the navigation, without those that hooks.py makes."""
    found = []

    def walk(entry):
        for value in entry.values() if isinstance(entry, dict) else entry:
            if isinstance(value, str):
                found.append(value)
            else:
                walk(value)

    walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    return [name for name in found if name not in MADE]


def read_notebook(text: str) -> list[Block]:
    """Returns the code cells of a notebook as one block."""
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return [Block("python", "\n".join("".join(cell["source"]) for cell in cells), 1, "")]


def read_document(name: str) -> list[Block]:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = read_notebook(text) if name.endswith(".ipynb") else read_blocks(text)
    return [dataclasses.replace(block, document=name) for block in blocks]


MADE = {"readme.md", "contributing.md", "changelog.md"}
PAGES = pages()
NOTEBOOK = "examples/first_hour.ipynb"
DOCUMENTS = ["README.md", *(f"docs/{name}" for name in PAGES), NOTEBOOK]
BLOCKS = [block for name in DOCUMENTS for block in read_document(name)]
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
            compile(block.code, str(block), "exec")
        else:
            assert block.language in ("text", "json", "gin", ""), block


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


@pytest.mark.slow
def test_every_block_of_the_documents_runs_from_a_wheel(tmp_path, installed):
    for block, following in itertools.zip_longest(BLOCKS, BLOCKS[1:]):
        if block not in CODE or block.reason:
            continue
        done = run_block(block, tmp_path, installed)
        assert done.returncode == 0, (
            f"{block}:\n{block.code}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        if block.language == "python" and following and following.language == "text":
            assert words(done.stdout) == words(following.code), following


def test_what_python_blocks_print_is_shown_and_compared():
    pairs = itertools.pairwise(BLOCKS)
    shown = [a.document for a, b in pairs if (a.language, b.language) == ("python", "text")]
    assert {"README.md", "docs/batch_scoring.md"} <= set(shown)


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
