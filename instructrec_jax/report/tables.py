"""One model of a report, tables in sections, and its renderers; `report.page` is that of HTML."""

import dataclasses
import enum
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as TextTable

from instructrec_jax.report import page
from instructrec_jax.report.charts import Chart
from instructrec_jax.report.users import Users

WIDTH = 100  # columns of a terminal or a log


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of texts under a header.

    Attributes:
      note: a sentence above the table; "" for none.
      header: names of the columns.
      rows: as many texts each.
      footnotes: lines below the table.
      title: of the table on a page; "" for none.
      charts: pictures of its figures on a page.
    """

    note: str = ""
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    footnotes: Sequence[str] = ()
    title: str = ""
    charts: Sequence[Chart] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Tables under a title.

    Attributes:
      title: of the section.
      tables: shown everywhere.
      lines: shown in text alone, in place of the details.
      details: tables that text leaves out; a page shows those without pictures when asked.
      facts: what the numbers depend on, by name; text leaves them out.
      tally: on a page, how many checks ended how, by the word for it.
    """

    title: str
    tables: Sequence[Table]
    lines: Sequence[str] = ()
    details: Sequence[Table] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tally: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def all_tables(self) -> list[Table]:
        """The tables, then the details."""
        return [*self.tables, *self.details]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A report.

    Attributes:
      title: of the report.
      sections: in order.
      messages: (kind, message) pairs, such as ("error", "A7: ...").
      summary: the verdict in one line, "" for none; it comes first, and the messages with it.
      facts: as for a section.
      pictures: file names beside the report, by title; a page has its own.
      users: single users to look through on a page.
    """

    title: str
    sections: Sequence[Section]
    messages: Sequence[tuple[str, str]] = ()
    summary: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pictures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    users: Users | None = None


def figure(value: float | None, sign: str = "", *, digits: int = 3) -> str:
    """Returns such as ".484", and "1.00", which is as wide; a dash for None.

    Args:
      value: a metric, or a difference of two.
      sign: "+" shows that of all values.
      digits: decimals of what is below 1.
    """
    if value is None:
        return "-"
    if abs(value) < 1 - 10**-digits / 2:
        return f"{value:{sign}.{digits}f}".replace("0.", ".", 1)
    return f"{value:{sign}.{digits - 1}f}"


def as_text(document: Document) -> str:
    """Returns plain text that fits 100 columns and needs no terminal."""
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, color_system=None, force_terminal=False)

    def show(*lines: str) -> None:
        for line in filter(None, lines):
            console.print(line, highlight=False, markup=False)

    messages = [f"{kind} {message}" for kind, message in document.messages]
    if document.summary:
        show(document.summary, *messages)
        console.print()
    for section in document.sections:
        if not section.tables and not section.lines:
            continue
        show(section.title)
        for table in section.tables:
            show(table.note)
            console.print(_text_table(table))
            show(*table.footnotes)
        show(*section.lines)
        console.print()
    if not document.summary:
        show(*messages)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).rstrip() + "\n"


def as_markdown(document: Document) -> str:
    """Returns Markdown with all details."""
    lines = [f"# {document.title}", ""]
    if document.summary:
        lines += [document.summary, ""]
    if document.messages:
        lines += [*(f"* **{kind}** {message}" for kind, message in document.messages), ""]
    for section in document.sections:
        lines += [f"## {section.title}", ""]
        for table in section.all_tables:
            lines += [table.note, ""] if table.note else []
            lines += ["| " + " | ".join(table.header) + " |", "|" + " --- |" * len(table.header)]
            lines += ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in table.rows]
            lines += ["", *(line for note in table.footnotes for line in (note, ""))]
        lines += _markdown_facts(section.facts)
    for title, name in document.pictures.items():
        lines += [f"## {title.capitalize()}", "", f"![{title}]({name})", ""]
    return "\n".join([*lines, *_markdown_facts(document.facts)])


def as_json(values: Any) -> str:
    """Returns the values behind a report as JSON; records become objects.

    Args:
      values: JSON values, dataclasses and enums in any nesting. A number that JSON cannot say, such
        as the effect size of differences that are all equal, becomes null.
    """
    plain = _without_infinity(json.loads(json.dumps(values, default=_plain)))
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _without_infinity(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_infinity(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_without_infinity(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown_code(value: Any) -> str:
    """Returns a value as a line of code in Markdown, which nothing in it can end."""
    return "`" + " ".join(str(value).replace("`", "'").split()) + "`"


def write(folder: Path, name: str, document: Document, values: Any) -> None:
    """Writes NAME.json, NAME.md, NAME.html and NAME.txt into a folder.

    Args:
      folder: where; it exists.
      name: of the files, without the ending.
      document: what people read.
      values: what programs read.
    """
    texts = {
        "json": as_json(values),
        "md": as_markdown(document),
        "html": page.as_html(document),
        "txt": as_text(document),
    }
    for ending, text in texts.items():
        (folder / f"{name}.{ending}").write_text(text, encoding="utf-8")


def _text_table(table: Table) -> TextTable:
    """Returns a table for a terminal; numbers stand to the right."""
    found = TextTable(box=box.ASCII2, show_edge=False, pad_edge=False)
    for column, name in enumerate(table.header):
        is_number = all(_is_number(row[column]) for row in table.rows)
        found.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in table.rows:
        found.add_row(*row)
    return found


def _is_number(text: str) -> bool:
    """Returns whether a column of such texts is aligned to the right."""
    return not text.strip("0123456789./%<>") or text.startswith("no ")


def _markdown_cell(text: str) -> str:
    """Returns a cell for Markdown, which takes a cell of the paper for HTML and | for an end."""
    text = text.replace("|", "\\|")
    return f"`{text}`" if text.startswith("<P") else text


def _markdown_facts(facts: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a protocol."""
    return ["Protocol:", "", *(f"* {k}: `{v}`" for k, v in facts.items()), ""] if facts else []


def _plain(value: Any) -> Any:
    """Returns what JSON has no form for as something that it has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
