"""The audit of a teacher's texts: the sheet that people fill in, and the paper's four questions.

The paper had one person answer four yes/no questions on 100 preferences and 100 intentions (its
section 2.2.3, Table 3). A sheet is a CSV file: one text a row, with what it was written from and
the item that the user chose next, and an empty column for each question. Rows bear a salted hash in
place of the user's id. The same texts stand in `sample.json`, which nobody edits.
"""

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from instructrec_jax import files
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import Manifest, check_files, read_manifest
from instructrec_jax.records import History
from instructrec_jax.seeds import stable_seed
from instructrec_jax.teacher.texts import INTENTIONS, PREFERENCES, SCHEMAS

SAMPLE, REPORT, JUDGE = "audit sample", "audit report", "audit judge"  # the stages
SHEET, TEXTS, JUDGED = "sheet.csv", "sample.json", "judged.json"  # files of these
Answers: TypeAlias = Mapping[str, Mapping[str, bool | None]]  # by row and question
QUESTIONS: Mapping[str, str] = {
    "grounded": "Does all of it come from what the user chose or wrote?",
    "world_knowledge": "Does it add fitting knowledge of the world?",
    "reflects_user": "Does it say what this user likes (preference) or wanted (intention)?",
    "fits_target": "Does it fit the item that the user chose next?",
}
# Shares of yes in the paper's Table 3, one annotator, 100 texts each.
PAPER = {
    PREFERENCES: {
        "grounded": 0.93,
        "world_knowledge": 0.87,
        "reflects_user": 0.88,
        "fits_target": 0.48,
    },
    INTENTIONS: {
        "grounded": 0.90,
        "world_knowledge": 0.22,
        "reflects_user": 0.69,
        "fits_target": 0.69,
    },
}
_ANSWERS = {"yes": True, "y": True, "1": True, "no": False, "n": False, "0": False, "": None}
_ID_CHARS = 12
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets would compute such a cell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One text under audit.

    Attributes:
      number: of its row, a salted hash of user and position.
      kind: "preferences" or "intentions".
      made_from: the titles before the position, or the review.
      text: what the teacher wrote.
      target: title of the item at the position.
      target_id: its number.
    """

    number: str
    kind: str
    made_from: str
    text: str
    target: str
    target_id: int


COLUMNS = ("number", "kind", "made_from", "text", "target")  # of the sheet, before the answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """What `audit sample` drew.

    Attributes:
      manifest: of the sample.
      examples: the texts, in the order of the sheet.
      proxies: what was measured without people, by the kind of text.
    """

    manifest: Manifest
    examples: Sequence[Example]
    proxies: Mapping[str, Mapping[str, float]]

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds of the texts by the number of their row."""
        return {example.number: example.kind for example in self.examples}


def read_sample(folder: Path | str) -> Sample:
    """Reads what `audit sample` drew.

    Raises:
      UserError: if the folder holds something else or is damaged.
    """
    found = read_manifest(folder)
    if found.stage != SAMPLE:
        raise UserError(f"{folder} holds no sample of an audit; run `instructrec {SAMPLE}`")
    check_files(folder)
    remedy = f"run `instructrec {SAMPLE}` into a new folder"
    plain = files.read_json(Path(folder) / TEXTS, dict, remedy=remedy)
    if "examples" not in plain:
        raise UserError(f"{folder} is the sample of an earlier version; {remedy}")
    examples = [Example(**example) for example in plain["examples"]]
    return Sample(manifest=found, examples=examples, proxies=plain["proxies"])


def as_json(examples: Sequence[Example], proxies: Mapping[str, Mapping[str, float]]) -> str:
    """Returns what `read_sample` reads."""
    plain = [dataclasses.asdict(example) for example in examples]
    return json.dumps({"examples": plain, "proxies": proxies}, indent=1) + "\n"


def draw(
    data: PreparedData, texts_dir: Path | str, kind: str, *, number: int, seed: int
) -> list[Example]:
    """Returns texts drawn at random, one a row of artefact B, in random order.

    Args:
      data: what the texts were written on.
      texts_dir: output folder of `annotate`.
      kind: "preferences" or "intentions".
      number: how many; fewer where there are fewer.
      seed: of the draw.
    """
    path = Path(texts_dir) / f"{kind}.parquet"
    table = pq.read_table(path, columns=[*SCHEMAS[kind].names[:3]])
    table = table.filter(pc.greater(pc.list_value_length(table["texts"]), 0))
    generator = np.random.default_rng(stable_seed(seed, data.dataset, "audit", kind))
    chosen = table.take(generator.permutation(len(table))[:number])
    users = pc.index_in(chosen["user_id"], value_set=data.histories.user_ids).to_pylist()
    return [
        _example(data, data.histories[user], kind, row["position"], row["texts"], seed=seed)
        for user, row in zip(users, chosen.to_pylist(), strict=True)
    ]


def _example(
    data: PreparedData,
    history: History,
    kind: str,
    position: int,
    texts: Sequence[str],
    *,
    seed: int,
) -> Example:
    place = (seed, data.dataset, "audit", kind, history.user_id, position)
    salted = hashlib.sha256("\x1f".join(map(str, place)).encode()).hexdigest()
    if kind == PREFERENCES:
        read = "; ".join(data.items[item].title for item in history.item_ids[:position])
    else:
        read = data.reviews[history.review_rows[position]]
    return Example(
        number=salted[:_ID_CHARS],
        kind=kind,
        made_from=read,
        text=texts[stable_seed(*place) % len(texts)],
        target=data.items[history.item_ids[position]].title,
        target_id=history.item_ids[position],
    )


def as_csv(examples: Iterable[Example]) -> str:
    """Returns the sheet, its columns of answers empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*COLUMNS, *QUESTIONS])
    for example in examples:
        cells = [getattr(example, name) for name in COLUMNS]
        plain = [f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in cells]
        writer.writerow([*plain, *[""] * len(QUESTIONS)])
    return stream.getvalue()


def read_sheet(path: Path | str, numbers: Mapping[str, str]) -> Answers:
    """Returns the answers of a sheet: by row and question True, False, or None for no answer.

    Args:
      path: the CSV file that somebody filled in; ";" and tabs may part its cells too.
      numbers: the kinds of the rows that it must have, by their number.

    Raises:
      UserError: if a row is missing, double or of another sheet, or an answer is no yes or no.
    """
    text = files.read_text(path)
    header = text.partition("\n")[0]
    stream = io.StringIO(text, newline="")
    reader = csv.DictReader(stream, delimiter=max(",;\t", key=header.count))
    try:
        return _answers_in(reader, path, numbers)
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} is no CSV: {error}") from None


def _answers_in(
    reader: "csv.DictReader[str]", path: Path | str, numbers: Mapping[str, str]
) -> dict[str, dict[str, bool | None]]:
    """Returns the answers of the rows, checked."""
    missing = [name for name in ("number", *QUESTIONS) if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}; fill in the sheet.csv of the sample")
    found: dict[str, dict[str, bool | None]] = {}
    for row in reader:
        number = (row["number"] or "").strip()
        if number not in numbers or number in found:
            problem = "stands there twice" if number in found else "is not of this sample"
            raise UserError(f"{path} line {reader.line_num}: the row {number!r} {problem}")
        found[number] = {}
        for name in QUESTIONS:
            said = (row[name] or "").strip().lower()
            if said not in _ANSWERS:
                raise UserError(
                    f"{path} line {reader.line_num}: {name} is {row[name]!r}; expected yes or no"
                )
            found[number][name] = _ANSWERS[said]
    if lost := numbers.keys() - found.keys():
        raise UserError(f"{path} lacks {len(lost)} rows of the sample, such as {min(lost)!r}")
    return found
