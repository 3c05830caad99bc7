"""What MkDocs does beside its own: README as a page, tables from the code, no foreign files."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from instructrec_jax.cli import t5x_lines
from instructrec_jax.scores import columns

ROOT = Path(__file__).parents[1]
# Files that are pages of the handbook.
OUTSIDE = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# A script, style, font or picture that a browser would fetch from another host.
FOREIGN = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload|icon))"
    r"[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files beside docs/ that are pages of the handbook."""
    for name, page in OUTSIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to the pages of OUTSIDE, and puts tables where a page asks for them."""
    for name, own in OUTSIDE.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(name)}", f"]({own}", markdown)
    return re.sub(r"<!-- table: (\w+) -->", lambda found: TABLES[found.group(1)](), markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuses a handbook that makes a browser ask another host for something."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        if found := FOREIGN.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path} fetches from another host: {found.group()}")


def _table(head: tuple[str, str], rows: dict[str, str]) -> str:
    """Returns a Markdown table of two columns, names in code."""
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    cells = ((name, text.replace("|", "\\|")) for name, text in rows.items())
    return "\n".join([*lines, *(f"| `{name}` | {text} |" for name, text in cells)])


def _bindings(*, is_taken: bool) -> str:
    """Returns T5X's bindings that are taken, with what they are here, or those that are not."""
    lines = [line for line in t5x_lines.LINES if line.is_taken == is_taken]
    if is_taken:
        ours = {line.theirs: " or ".join(f"`{name}`" for name in line.ours) for line in lines}
        return _table(("T5X", "here"), ours)
    return _table(("T5X", "here"), {line.theirs: line.remedy for line in lines})


TABLES = {
    "t5x_macros": lambda: _table(("T5X", "here"), t5x_lines.MACROS),
    "t5x_flags": lambda: _table(("T5X", "here"), t5x_lines.FLAGS),
    "t5x_files": lambda: _table(
        ("T5X", "here"), {theirs: f"`{ours}`" for theirs, ours in t5x_lines.FILES.items()}
    ),
    "t5x_taken": lambda: _bindings(is_taken=True),
    "t5x_others": lambda: _bindings(is_taken=False),
    "scored": lambda: _table(("column", "meaning"), columns.SCORED),
    "generated": lambda: _table(("column", "meaning"), columns.GENERATED),
    "ranked": lambda: _table(("column", "meaning"), columns.RANKED),
}
