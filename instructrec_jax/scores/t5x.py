"""Log-likelihoods that T5X's own `infer` wrote in score mode for the `.rank` form of our tasks.

T5X writes one JSON line a candidate, `{"inputs": {...}, "score": -3.2}`, into
`<task>-score.jsonl-00000-of-00001`, and an empty file `.COMPLETED` beside it when it is whole.
`gin/t5x/score.gin` makes it write the fields that say which candidate a line is of.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.scores.parts import Scores

# What T5X has to write of each row, see `pipeline.preprocessors.one_row_per_candidate`.
FIELDS = ("example_id", "candidate_id", "candidate_num_chars", "idx", "is_correct", "targets")
CONFIG_FILE = "config.gin"
UNKNOWN = "unknown (scored by T5X)"
_FILE = re.compile(r"(?P<task>.+)-score\.jsonl-(?P<shard>\d{5})-of-(?P<shards>\d{5})")
_RANK = ".rank"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row:
    """One scored candidate."""

    place: int
    candidate_id: int
    is_correct: bool
    log_likelihood: float
    num_tokens: int
    num_chars: int


def holds_t5x_scores(folder: Path | str) -> bool:
    """Returns whether a folder is the INFER_OUTPUT_DIR of a T5X run in score mode."""
    return any(True for _ in _score_files(Path(folder)))


def read_t5x_scores(folder: Path | str) -> Scores:
    """Reads everything that T5X has scored into a folder.

    Args:
      folder: INFER_OUTPUT_DIR of `t5x.infer` with `gin/t5x/score.gin`; several tasks may lie in
        it.

    Returns:
      Scores as our own scorer writes them, examples in the order of the files, tasks by name. The
      metadata names split and checkpoint where T5X's config.gin lies beside; else the split is
      None.

    Raises:
      UserError: if a shard is missing or unfinished, a line is damaged or lacks a field, or an
        example lacks a candidate or has one twice.
    """
    folder = Path(folder)
    files = _checked_files(folder)
    found: dict[str, list[Any]] = {
        field.name: [] for field in dataclasses.fields(Scores) if field.name != "metadata"
    }
    for task in sorted(files):
        template = task.split(".", 1)[-1].removesuffix(_RANK)
        for example_id, rows in _examples(files[task]).items():
            _add(found, template, example_id, rows, where=f"{folder}, task {task}")
    for name in ("target_index", "num_ballots"):
        found[name] = np.asarray(found[name], np.int32)  # type: ignore[assignment]
    return Scores(**found, metadata=_metadata(folder))  # type: ignore[arg-type]


def _score_files(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in sorted(folder.glob("*-score.jsonl-*")):
        if match := _FILE.fullmatch(path.name):
            yield path, match


def _checked_files(folder: Path) -> dict[str, list[Path]]:
    """Returns the files of each task, in order, all of them there and whole."""
    files: dict[str, dict[int, Path]] = {}
    shards: dict[str, int] = {}
    for path, match in _score_files(folder):
        task, number = match["task"], int(match["shards"])
        if shards.setdefault(task, number) != number:
            raise UserError(
                f"{folder} holds {task} in {shards[task]} shards and in {number}; remove one set"
            )
        files.setdefault(task, {})[int(match["shard"])] = path
    for task, by_shard in files.items():
        missing = sorted(set(range(shards[task])) - by_shard.keys())
        missing += [
            n for n, p in by_shard.items() if not p.with_name(f"{p.name}.COMPLETED").exists()
        ]
        if missing:
            raise UserError(
                f"T5X has not finished scoring {task} into {folder}: shard {sorted(missing)[0]} of "
                f"{shards[task]} or its .COMPLETED file is missing; run t5x.infer again, it goes on"
            )
        if not task.endswith(_RANK):
            raise UserError(
                f"{folder} holds T5X's scores of {task}; expected a task whose name ends in "
                f"{_RANK}, which has one row a candidate, such as ml_100k.A7{_RANK}"
            )
    return {task: [by_shard[n] for n in sorted(by_shard)] for task, by_shard in files.items()}


def _examples(paths: list[Path]) -> dict[str, list[_Row]]:
    """Returns the rows of each example, in the order in which examples first appear."""
    found: dict[str, list[_Row]] = {}
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    value = json.loads(line)
                    example_id, row = _row(value["inputs"], value["score"])
                except KeyError as error:
                    raise UserError(
                        f"{path} line {number} has no field {error}; score with "
                        "gin/t5x/score.gin, which makes T5X write it"
                    ) from None
                except (ValueError, TypeError, IndexError) as error:
                    raise UserError(
                        f"{path} line {number} is no score of a candidate ({error}); remove the "
                        "file and its .COMPLETED, and run t5x.infer again"
                    ) from None
                found.setdefault(example_id, []).append(row)
    return found


def _row(fields: Mapping[str, Any], score: Any) -> tuple[str, _Row]:
    """Returns the example of a line and its row; T5X writes whole numbers as floats."""
    values = {name: fields[name] for name in FIELDS}
    return str(values["example_id"]), _Row(
        place=int(values["idx"][1]),
        candidate_id=int(values["candidate_id"]),
        is_correct=bool(values["is_correct"]),
        log_likelihood=float(score),
        num_tokens=int(np.count_nonzero(np.asarray(values["targets"], np.int64))),
        num_chars=int(values["candidate_num_chars"]),
    )


def _add(
    found: dict[str, list[Any]], template: str, example_id: str, rows: list[_Row], *, where: str
) -> None:
    """Appends one example, its candidates in their order."""
    rows = sorted(rows, key=lambda row: row.place)
    if [row.place for row in rows] != list(range(len(rows))):
        places = [row.place for row in rows]
        raise UserError(
            f"{where}: example {example_id!r} has candidates {places}; expected 0, 1, 2, ... each "
            "once: remove the task's files and score it again"
        )
    correct = [row.place for row in rows if row.is_correct]
    if len(correct) > 1:
        raise UserError(f"{where}: example {example_id!r} has {len(correct)} correct candidates")
    found["example_id"].append(example_id)
    found["template_id"].append(template)
    found["candidate_ids"].append(np.array([row.candidate_id for row in rows], np.int64))
    found["log_likelihood"].append(np.array([row.log_likelihood for row in rows], np.float32))
    found["prior_log_likelihood"].append(None)
    found["num_tokens"].append(np.array([row.num_tokens for row in rows], np.int32))
    found["num_chars"].append(np.array([row.num_chars for row in rows], np.int32))
    found["last_round"].append(np.ones(len(rows), np.int32))
    found["num_ballots"].append(1)
    found["target_index"].append(correct[0] if correct else -1)


def _metadata(folder: Path) -> dict[str, Any]:
    """Returns what T5X's resolved config tells of the run."""
    path = folder / CONFIG_FILE
    macros: dict[str, str] = {}
    if path.is_file():
        # gin breaks long lines with a backslash; values that are no strings do not matter here.
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for name, value in re.findall(r"^([\w./]+) = +['\"](.*)['\"]$", text, re.MULTILINE):
            macros[name.rsplit(".", 1)[-1]] = value
    checkpoint = macros.get("CHECKPOINT_PATH", UNKNOWN)
    step = re.search(r"(\d+)/?$", checkpoint)
    return {
        "split": macros.get("split", macros.get("SPLIT")),
        "checkpoint": checkpoint,
        "checkpoint_step": int(step[1]) if step else None,
        "teacher": UNKNOWN,
        "command": f"python -m t5x.infer, as {path} says",
    }
