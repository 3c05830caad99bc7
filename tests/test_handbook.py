"""The handbook: pages are found, links lead somewhere, tables agree with the code."""

import dataclasses
import json
import re

import pyarrow as pa
import pytest
import yaml
from test_documents import MADE, NOTEBOOK, PAGES, ROOT

from instructrec_jax import __version__
from instructrec_jax.data import prepared, reviews
from instructrec_jax.records import InstructionRecord
from instructrec_jax.teacher import texts

DOCS = ROOT / "docs"
# README and CONTRIBUTING are pages of the handbook too; their links lead into it.
LINKING = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{name}" for name in PAGES)]


def prose(path):
    """The text of a page without its blocks of code, whose brackets are no links."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)


def anchors(path):
    """Anchors of a page's headings, as MkDocs and code hosts name them."""
    heads = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def test_every_page_is_in_the_navigation_once_and_in_the_list_of_the_first_page():
    files = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert sorted(PAGES) == sorted(files)
    listed = set(re.findall(r"\]\((\w+\.md)\)", prose(DOCS / "index.md")))
    assert listed == files - {"index.md"} and not listed & MADE


@pytest.mark.parametrize("name", LINKING)
def test_relative_links_lead_to_files_and_headings(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.is_file(), f"{name}: {target}"
        assert not anchor or anchor in anchors(found), f"{name}: {target}"


def tables():
    """Columns and types of each table of formats.md, by the heading above it."""
    found, heading = {}, ""
    for line in (DOCS / "formats.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif row := re.match(r"\| `(\w+)` \| `?([\w<> ]+)`? \|", line):
            found.setdefault(heading, []).append(row.groups())
    return found


def as_rows(schema: pa.Schema):
    return [(field.name, re.sub(r"<\w+: ", "<", str(field.type))) for field in schema]


def test_columns_of_parquet_and_arrow_files_are_those_that_the_code_writes():
    shown = tables()
    for schemas in (prepared.SCHEMAS, texts.SCHEMAS):
        for name, schema in schemas.items():
            assert shown[f"{name}.parquet"] == as_rows(schema), name
    assert shown["reviews.arrow"] == as_rows(reviews.SCHEMA)


def test_features_of_records_are_the_fields_of_a_record():
    fields = [field.name for field in dataclasses.fields(InstructionRecord)]
    assert [name for name, _ in tables()["C: instruction records"]] == fields


def test_the_notebook_holds_no_outputs():
    cells = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    assert not [c for c in cells if c.get("outputs") or c.get("execution_count")]


def test_hooks_before_a_commit_run_what_is_installed_here():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (local,) = repos
    assert local["repo"] == "local" and {hook["language"] for hook in local["hooks"]} == {"system"}


def test_the_version_has_a_chapter_in_the_changelog():
    assert __version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
