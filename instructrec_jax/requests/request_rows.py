"""What one row of a file of requests says, checked field by field.

    {"id": "u7", "history": ["Halo", "Myst"], "preference": "likes puzzles", "intention": "...",
     "candidates": ["Braid", "Doom", "Ico"], "candidate_ids": [3, 9, 4], "target_index": 0,
     "exclude": [9]}

Needed are `id`, `candidates` and what the template shows; `instruction` instead of the texts is a
prompt that is whole already. Other fields are passed over.
"""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from instructrec_jax.damage import DamagedLineError
from instructrec_jax.instructions.language import plain_text, plain_title
from instructrec_jax.records import InstructionRecord

# The field of a file that stands for each field of an instruction record.
TEXT_FIELDS = {
    "history": "history",
    "preference": "preference",
    "vague_intention": "intention",
    "second_vague_intention": "intention",
    "specific_intention": "intention",
    "context": "context",
}
FIELDS = (
    *("id", "instruction", *dict.fromkeys(TEXT_FIELDS.values())),
    *("candidates", "candidate_ids", "target_index", "exclude"),
)
_MAX_ID = 2**63 - 1

Row = bytes | Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileRequest:
    """A request as its row tells it; the candidates that it excludes are left out.

    Attributes:
      record: what templates say of it. An instruction that is whole already stands as its
        specific intention; `candidate_ids` are places among the candidates, `target_id` is the
        place of the target, or -1.
      candidate_ids: int64 [c], as the file gives them, or else places in the file's list.
    """

    record: InstructionRecord
    candidate_ids: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowParser:
    """Parses the rows of one file.

    Attributes:
      path: the file, for messages.
      unit: what its rows are called, "line" or "row".
      needs: fields of the file that the templates cannot do without; None where the rows hold
        whole instructions.
    """

    path: Path
    unit: str
    needs: frozenset[str] | None

    def parse(self, number: int, row: Row) -> FileRequest:
        """Returns the request of a row.

        Args:
          number: of the line or row, from 1, for messages.
          row: a line of JSON, or values by name.

        Raises:
          DamagedLineError: if it cannot be used.
        """
        return _Reading(self, number).request(row)


class _Reading:
    """One row that is being parsed."""

    def __init__(self, parser: RowParser, number: int) -> None:
        self._parser, self._number = parser, number
        self._id: str | None = None

    def fail(self, reason: str, problem: str) -> NoReturn:
        """Raises the error that says where and what."""
        parser = self._parser
        place = f"{parser.unit} {self._number}"
        request = "" if self._id is None else f"request {self._id!r}: "
        raise DamagedLineError(
            f"{parser.path} {place}: {request}{problem}",
            reason=reason,
            place=f"{parser.path.name} {place}",
        )

    def request(self, row: Row) -> FileRequest:
        """Returns the request."""
        values = self._json(row) if isinstance(row, bytes) else row
        self._id = request_id = self._as_id(values.get("id"))
        titles = self._titles(values.get("candidates"))
        ids, target = self._ids(values, titles), self._target(values, len(titles))
        kept = self._kept(values, titles, ids, target)
        texts = self._texts(values)
        target = kept.index(target) if target >= 0 else -1
        candidates = tuple(titles[place] for place in kept)
        return FileRequest(
            record=InstructionRecord(
                example_id=request_id,
                user_id="",
                position=-1,
                target_id=target,
                target=candidates[target] if target >= 0 else "",
                candidate_ids=tuple(range(len(kept))),
                candidates=candidates,
                **texts,
            ),
            candidate_ids=np.array([ids[place] for place in kept], np.int64),
        )

    def _json(self, line: bytes) -> Mapping[str, Any]:
        try:
            found = json.loads(line)
        except UnicodeDecodeError as error:
            self.fail("not_utf8", f"not UTF-8 ({error.reason}); convert the file")
        except (ValueError, RecursionError) as error:
            self.fail("not_json", f"not JSON ({error}); the line is half-written or damaged")
        if not isinstance(found, dict):
            self.fail("not_json", f"holds {type(found).__name__}, expected an object with names")
        return found

    def _as_id(self, value: Any) -> str:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        text = str(value) if is_whole else value
        if not isinstance(text, str) or not text.strip():
            self.fail("bad_id", f"id is {value!r}, expected text or a whole number")
        self._check_encodable("id", text)
        return text

    def _titles(self, value: Any) -> list[str]:
        """Returns the candidates, of which there are two at least, none empty, no two alike."""
        titles = self._list("candidates", value)
        if len(titles) < 2:
            self.fail("few_candidates", f"has {len(titles)} candidates, expected at least 2")
        spelled = [plain_title(title) for title in titles]
        if "" in spelled:
            self.fail("empty_title", f"candidate {spelled.index('')} has an empty title")
        if len(set(spelled)) < len(spelled):
            ((title, number),) = collections.Counter(spelled).most_common(1)
            self.fail(
                "equal_titles",
                f"{number} candidates have the title {title!r}; a model cannot tell them apart",
            )
        return titles

    def _ids(self, values: Mapping[str, Any], titles: Sequence[str]) -> Sequence[int]:
        """Returns the ids of the candidates, by default their places."""
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

    def _target(self, values: Mapping[str, Any], number: int) -> int:
        """Returns the place of the target, -1 where it is unknown."""
        target = values.get("target_index")
        if target is None:
            return -1
        if not _is_whole(target) or not -1 <= target < number:
            self.fail(
                "bad_target_index",
                f"target_index is {target!r}, expected the place of a candidate, 0 .. "
                f"{number - 1}, or -1 for unknown",
            )
        return target

    def _kept(
        self, values: Mapping[str, Any], titles: Sequence[str], ids: Sequence[int], target: int
    ) -> list[int]:
        """Returns the places of the candidates that are not excluded, by title or id."""
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

    def _texts(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the texts of the record."""
        needs = self._parser.needs
        given = values.get("instruction")
        if needs is None:
            if not isinstance(given, str) or not plain_text(given):
                self.fail(
                    "no_instruction",
                    f"instruction is {given!r}, expected a text; rows that hold history, "
                    "preference or intention need REQUEST_TEMPLATES",
                )
            self._check_encodable("instruction", given)
            return {"history": (), "specific_intention": given}
        if given is not None:
            self.fail(
                "no_template_needed",
                "has an instruction and REQUEST_TEMPLATES says to write one; leave out either",
            )
        found = {name: self._one_or_more(name, values.get(name)) for name in TEXT_FIELDS.values()}
        for name in sorted(needs):
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
            self.fail(f"no_{name}", f"has no {name}")
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
