"""Ranking requests from a file, read as a stream and checked field by field.

    {"id": "u7", "history": ["Halo", "Myst"], "preference": "likes puzzles", "intention": "...",
     "candidates": ["Braid", "Doom", "Ico"], "candidate_ids": [3, 9, 4], "target_index": 0,
     "exclude": [9]}

Needed are `id`, `candidates` and what the template shows; `instruction` instead of the texts is a
prompt that is whole already. Other fields are ignored, and named in a message. `row_files` says in
which forms a file may be.
"""

import array
import collections
import difflib
import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from instructrec_jax.damage import Damage, DamagedLineError
from instructrec_jax.data.titles import is_seen, model_title
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import Template, Variant, plain_text, plain_title
from instructrec_jax.instructions.token_budget import MisfitError
from instructrec_jax.progress import Progress
from instructrec_jax.records import InstructionRecord, TaskForm
from instructrec_jax.requests.row_files import FIELDS, Row, Rows, Values
from instructrec_jax.seeds import stable_seed

logger = logging.getLogger(__name__)
# The field of a file that stands for each field of an instruction record.
TEXT_FIELDS = {
    "history": "history",
    "preference": "preference",
    "vague_intention": "intention",
    "second_vague_intention": "intention",
    "specific_intention": "intention",
    "context": "context",
}
# What writes instructions that are whole already: they stand in a record as its context.
INSTRUCTION = Variant(
    Template(
        template_id="instruction",
        inputs="{context}",
        targets="{target}",
        task_form=TaskForm.MATCHING,
    )
)
_MAX_ID = 2**63 - 1
_ROWS_SHOWN = 1000  # between two lines of progress at least
_MAX_SHOWN = 12  # names of fields in a message


# Templates for texts that a file holds, the first whose texts are there.
_FITTING = {
    ("history", "intention"): "C10.specific",
    ("history", "preference"): "C10.preference",
    ("history",): "A7",
    ("intention",): "B7.specific",
    ("preference",): "B7.preference",
}


def fitting_template(file: Rows) -> str | None:
    """Returns the template that the first request of a file suits; None for whole instructions.

    Raises:
      UserError: if it holds nothing that candidates could be ranked by.
    """
    filled = file.filled()
    if not filled or "instruction" in filled:
        return None
    for texts, name in _FITTING.items():
        if filled.issuperset(texts):
            return name
    raise UserError(
        f"{file.first} has no instruction, history, preference or intention to "
        f"rank candidates by; it has {', '.join(map(repr, sorted(filled)))}"
    )


class RequestFile:
    """A file of requests. Nothing of it is kept but 8 bytes a row while it is surveyed."""

    def __init__(self, file: Rows, variants: Sequence[Variant]) -> None:
        """Reads nothing yet.

        Args:
          file: its rows.
          variants: what the requests are rendered with; `INSTRUCTION` alone where the rows hold
            whole instructions.
        """
        self.file = file
        self.holds_instructions = list(variants) == [INSTRUCTION]
        self.needs = {TEXT_FIELDS[name] for variant in variants for name in variant.needs}
        self._repeated: dict[int, int] = {}

    def rows(self) -> Iterator[Row]:
        """Yields the rows, not yet parsed; empty lines are none."""
        return self.file.rows()

    def survey(self, damage: Damage) -> int:
        """Parses all rows once, so that a mistake in the last one shows before the first is scored.

        Args:
          damage: what happens to rows that cannot be used, those that repeat an id among them.

        Returns:
          The number of rows, usable or not.

        Raises:
          UserError: if the file is empty or cannot be read, and as `damage` says.
        """
        if ignored := [name for name in self.file.names if name not in FIELDS]:
            shown = ", ".join(map(repr, ignored[:_MAX_SHOWN]))
            logger.info("%s: fields that no request has are ignored: %s", self.file.name, shown)
        num_rows, hashes = 0, array.array("Q")
        progress = Progress(f"check {self.file.name}", total=None, unit="requests")
        for row in progress.track(self.rows(), every=_ROWS_SHOWN):
            num_rows += 1
            try:
                hashes.append(stable_seed(_RowReader(self, row).record().example_id))
            except DamagedLineError as error:
                damage.handle(error)
        if not num_rows:
            raise UserError(f"{self.file.name} is empty; expected one request a {self.file.unit}")
        values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
        if suspects := {int(value) for value in values[counts > 1]}:
            self._find_repeated(suspects, damage)
        return num_rows

    def parse(self, row: Row) -> InstructionRecord:
        """Returns the request of a row that `rows` gave, without the candidates that it excludes.

        Its candidate ids are those of the file, or else indices of the file's list; its target id
        is that of no candidate where the target is unknown.

        Raises:
          DamagedLineError: if it cannot be used.
        """
        record = _RowReader(self, row).record()
        if row[0] in self._repeated:
            raise self._repeats(row[0], record.example_id)
        return record

    def misfit(self, row: Row, error: MisfitError) -> DamagedLineError:
        """Returns what rendering says of a request that cannot become tokens, with its place."""
        return self.file.damaged(row[0], error.reason, str(error))

    def _find_repeated(self, suspects: Collection[int], damage: Damage) -> None:
        """Notes which rows repeat the id of an earlier one, of those whose hashes are suspect."""
        first: dict[str, int] = {}
        for row in self.rows():
            try:
                name = _RowReader(self, row).record().example_id
            except DamagedLineError:
                continue
            if stable_seed(name) in suspects and first.setdefault(name, row[0]) != row[0]:
                self._repeated[row[0]] = first[name]
                damage.handle(self._repeats(row[0], name))

    def _repeats(self, number: int, name: str) -> DamagedLineError:
        earlier = f"{self.file.unit} {self._repeated[number]}"
        return self.file.damaged(
            number,
            "repeated_id",
            f"request {name!r} has the id of {earlier}; give each request an id of its own",
        )


class _RowReader:
    """One row that is being parsed."""

    def __init__(self, requests: RequestFile, row: Row) -> None:
        self._requests, self._row = requests, row
        self._id: str | None = None

    def fail(self, reason: str, problem: str) -> NoReturn:
        """Raises the error that says where and what."""
        request = "" if self._id is None else f"request {self._id!r}: "
        raise self._requests.file.damaged(self._row[0], reason, f"{request}{problem}")

    def record(self) -> InstructionRecord:
        """Returns the request."""
        values = self._requests.file.values(self._row)
        self._id = request_id = self._as_id(values.get("id"))
        titles = self._titles(values.get("candidates"))
        ids, target = self._ids(values, titles), self._target(values, len(titles))
        kept = self._kept(values, titles, ids, target)
        texts = self._texts(values)
        return InstructionRecord(
            example_id=request_id,
            user_id="",
            position=-1,
            target_id=ids[target] if target >= 0 else min(ids) - 1,
            target=titles[target] if target >= 0 else "",
            candidate_ids=tuple(ids[index] for index in kept),
            candidates=tuple(titles[index] for index in kept),
            **texts,
        )

    def _as_id(self, value: Any) -> str:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        text = str(value) if is_whole else value
        if not isinstance(text, str) or not text.strip():
            self.fail("bad_id", f"id is {value!r}, expected text or a whole number")
        self._check_encodable("id", text)
        return text

    def _titles(self, value: Any) -> list[str]:
        """Returns the candidates: two at least, none empty, no two the same to a model."""
        titles = self._list("candidates", value)
        if len(titles) < 2:
            self.fail("few_candidates", f"has {len(titles)} candidates, expected at least 2")
        for index, title in enumerate(titles):
            if not is_seen(title):
                self.fail("empty_title", f"candidate {index} has an empty title, {title!r}")
        read = collections.Counter(model_title(plain_title(title)) for title in titles)
        ((title, number),) = read.most_common(1)
        if number > 1:
            self.fail(
                "equal_titles",
                f"{number} candidates have the title {title!r}; a model cannot tell them apart",
            )
        return titles

    def _ids(self, values: Values, titles: Sequence[str]) -> Sequence[int]:
        """Returns the ids of the candidates, by default their indices."""
        ids = values.get("candidate_ids")
        if ids is None:
            return range(len(titles))
        if not isinstance(ids, list) or not all(_is_whole(part) for part in ids):
            self.fail("bad_candidate_ids", f"candidate_ids is {ids!r}, expected whole numbers")
        if len(ids) != len(titles) or len(set(ids)) != len(ids):
            self.fail(
                "bad_candidate_ids",
                f"has {len(set(ids))} different candidate_ids and {len(titles)} candidates",
            )
        return ids

    def _target(self, values: Values, number: int) -> int:
        """Returns the index of the target, -1 where it is unknown."""
        target = values.get("target_index")
        if target is None:
            return -1
        if not _is_whole(target) or not -1 <= target < number:
            self.fail(
                "bad_target_index",
                f"target_index is {target!r}, expected the index of a candidate, 0 .. "
                f"{number - 1}, or -1 for unknown",
            )
        return target

    def _kept(
        self, values: Values, titles: Sequence[str], ids: Sequence[int], target: int
    ) -> list[int]:
        """Returns the indices of the candidates that are not excluded, by title or id."""
        excluded = values.get("exclude") or []
        if not isinstance(excluded, list) or not all(
            isinstance(part, str) or _is_whole(part) for part in excluded
        ):
            self.fail("bad_exclude", f"exclude is {excluded!r}, expected titles or candidate_ids")
        out = set(excluded)
        kept = [n for n in range(len(titles)) if ids[n] not in out and titles[n] not in out]
        if len(kept) < 2:
            self.fail("few_candidates", f"excludes all but {len(kept)} of its candidates")
        if target >= 0 and target not in kept:
            self.fail("bad_exclude", f"excludes its own target {titles[target]!r}")
        return kept

    def _texts(self, values: Values) -> dict[str, Any]:
        """Returns the texts of the record."""
        given = values.get("instruction")
        if self._requests.holds_instructions:
            if not isinstance(given, str) or not plain_text(given):
                self.fail(
                    "no_instruction",
                    f"instruction is {given!r}, expected a text; rows that hold history, "
                    "preference or intention need a template (REQUEST_TEMPLATES, --template)",
                )
            self._check_encodable("instruction", given)
            return {"history": (), "context": given}
        if given is not None:
            self.fail(
                "no_template_needed",
                "has an instruction, and a template is named that writes one (REQUEST_TEMPLATES, "
                "--template); leave out either",
            )
        found = {name: self._one_or_more(name, values.get(name)) for name in TEXT_FIELDS.values()}
        for name in sorted(self._requests.needs):
            if not "".join(found[name]):
                self.fail(f"no_{name}", f"has no {name}, which a template of the run shows")
        record: dict[str, Any] = {field: found[name] for field, name in TEXT_FIELDS.items()}
        for single in ("specific_intention", "context"):
            record[single] = "".join(record[single][:1])
        return record

    def _one_or_more(self, name: str, value: Any) -> tuple[str, ...]:
        """Returns the texts of a field that may be missing, one text or a list of them."""
        if value is None:
            return ()
        return (*self._list(name, [value] if isinstance(value, str) else value),)

    def _list(self, name: str, value: Any) -> list[str]:
        """Returns a list of texts."""
        if value is None:
            names = self._requests.file.names
            near = difflib.get_close_matches(name, [n for n in names if n not in FIELDS], n=1)
            hint = f": is it {near[0]!r}? Name it {name!r}" if near else ""
            self.fail(f"no_{name}", f"has no {name}{hint}")
        if not isinstance(value, list):
            self.fail(f"bad_{name}", f"{name} is {value!r}, expected a list of texts")
        for part in value:
            if not isinstance(part, str):
                self.fail(f"bad_{name}", f"{name} holds {part!r}, expected texts only")
            self._check_encodable(name, part)
        return value

    def _check_encodable(self, name: str, text: str) -> None:
        """Raises where a text holds half a character, which JSON can spell."""
        if text.isascii():
            return
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self.fail("not_unicode", f"{name} {text!r} is no Unicode text ({error.reason})")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_ID
