"""Scores of other systems as artefact E: T5X's `infer`, TREC run files, and plain JSON lines.

T5X writes one JSON line per candidate in score mode, `{"inputs": {...}, "score": -3.2}`, into
`<task>-score.jsonl-00000-of-00001`, and an empty file `.COMPLETED` beside it when it is whole.
`gin/t5x/score.gin` makes it write the fields that say which candidate a line is of.

Any other system can write one JSON line per example:

    {"example_id": "17:4", "family": "sequential", "candidate_ids": [5, 2], "scores": [0.7, -1.5]}

`example_id` and `candidate_ids` are those of candidates.parquet, the candidates in any order;
`family` is what the system does, "sequential", "product_search", "personalized_search" or a family
of your own; `query` ("preference", "vague", "specific", ...) belongs to it where there is one;
`template` tells ways of scoring apart, among which validation chooses. Higher scores are better.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.scores.parts import NO_QUERY, ScoredRequest, Scores, read_scores
from instructrec_jax.scores.trec import holds_trec_runs, read_trec_scores

# What T5X has to write of each row, see `pipeline.preprocessors.one_row_per_candidate`.
T5X_FIELDS = (
    *("example_id", "candidate_id", "candidate_num_chars", "idx", "is_correct", "targets"),
    *("family", "query"),
)
_T5X_COLUMNS = (
    *(("candidate_ids", np.int64), ("log_likelihood", np.float32)),
    *(("num_tokens", np.int32), ("num_chars", np.int32)),
)
PLAIN_FIELDS = {"example_id", "candidate_ids", "scores", "family", "query", "template"}
CONFIG_FILE = "config.gin"
UNKNOWN = "unknown (scored by T5X)"
_FILE = re.compile(r"(?P<task>.+)-score\.jsonl-(?P<shard>\d{5})-of-(?P<shards>\d{5})")
_RANK = ".rank"


_Sets = dict[str, list[ScoredRequest]]  # by template


_Row = dict[str, Any]  # one candidate that T5X scored


def read_any_scores(path: Path | str) -> Scores:
    """Reads scores, whichever system wrote them.

    Args:
      path: a folder of `instructrec score`, of T5X or of TREC run files, one such file, or a file
        of JSON lines.

    Raises:
      UserError: if they cannot be used.
    """
    path = Path(path)
    if holds_trec_runs(path):
        return read_trec_scores(path)
    if path.is_file():
        return read_plain_scores(path)
    return read_t5x_scores(path) if holds_t5x_scores(path) else read_scores(path)


def holds_t5x_scores(folder: Path | str) -> bool:
    """Returns whether a folder is the INFER_OUTPUT_DIR of a T5X run in score mode."""
    return any(True for _ in _score_files(Path(folder)))


def read_t5x_scores(folder: Path | str) -> Scores:
    """Reads everything that T5X has scored into a folder.

    Args:
      folder: INFER_OUTPUT_DIR of `t5x.infer` with `gin/t5x/score.gin`; it may hold several tasks.

    Returns:
      Scores as our own scorer writes them, examples in the order of the files, tasks by name. The
      metadata name split and checkpoint where T5X's config.gin lies beside; else the split is
      None.

    Raises:
      UserError: if a shard is missing or unfinished, a line is damaged or lacks a field, or an
        example lacks a candidate or has one twice.
    """
    folder = Path(folder)
    files = _checked_files(folder)
    run = _t5x_metadata(folder)
    requests: _Sets = {}
    metadata = {}
    for task in sorted(files):
        template = task.split(".", 1)[-1].removesuffix(_RANK)
        examples = _examples(files[task])
        requests[template] = [
            _request(example_id, rows, where=f"{folder}, task {task}")
            for example_id, rows in examples.items()
        ]
        found = {row["scenario"] for rows in examples.values() for row in rows} or {("", NO_QUERY)}
        (family, query), *others = found
        if others:
            raise UserError(
                f"{folder}: task {task} has rows of {sorted(found)}; expected one family"
            )
        metadata[template] = {**run, "family": family, "query": query}
    return Scores.of(requests, metadata)


def read_plain_scores(path: Path | str) -> Scores:
    """Reads a file of JSON lines, one per example, of any system: see the head of this module.

    Raises:
      UserError: for the first line that cannot be used.
    """
    path = Path(path)
    requests: _Sets = {}
    metadata: dict[str, dict[str, Any]] = {}
    remedy = "write it as `instructrec report --help` shows (TREC runs are named SCENARIO.run)"
    for number, found in _json_lines(path, _plain_line, remedy):
        told, request = found
        scenario = {name: told.get(name, NO_QUERY) for name in ("family", "query")}
        template = told.get("template", ".".join(scenario.values()).removesuffix(f".{NO_QUERY}"))
        earlier = metadata.setdefault(template, {"system": path.stem, "split": None, **scenario})
        if earlier.items() & scenario.items() != scenario.items():
            raise UserError(
                f"{path} line {number}: template {template!r} is of {scenario} here and of another "
                "family or query before; give each its own template"
            )
        requests.setdefault(template, []).append(request)
    if not requests:
        raise UserError(f"{path} holds no scores; expected one JSON line per example")
    return Scores.of(requests, metadata)


def _json_lines(path: Path, parse: Callable[[Any], Any], remedy: str) -> Iterator[tuple[int, Any]]:
    """Yields (line number, what `parse` makes of the line), or names the line that is damaged."""
    with files.open_input(path) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield number, parse(files.parse_json(line))
            except KeyError as error:
                raise UserError(f"{path} line {number} has no field {error}; {remedy}") from None
            except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
                raise UserError(f"{path} line {number} is no score ({error}); {remedy}") from None


def _plain_line(told: Mapping[str, Any]) -> tuple[Mapping[str, Any], ScoredRequest]:
    """Returns a line and its scores."""
    if unknown := told.keys() - PLAIN_FIELDS:
        raise ValueError(f"unknown fields {sorted(unknown)}, expected {sorted(PLAIN_FIELDS)}")
    for name in ("family", "query", "template"):
        if not isinstance(told.get(name, ""), str):
            raise ValueError(f"{name} is {told[name]!r}, expected a text")
    ids, scores = np.array(told["candidate_ids"], np.int64), np.array(told["scores"], np.float32)
    if ids.ndim != 1 or ids.shape != scores.shape or not len(ids):
        raise ValueError(f"{ids.size} candidate_ids and {scores.size} scores, expected as many")
    request_id = str(told["example_id"])
    told["family"]  # a line without it is damaged
    return told, ScoredRequest(request_id=request_id, candidate_ids=ids, log_likelihood=scores)


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
                f"{_RANK}, which has one row per candidate, such as ml_100k.A7{_RANK}"
            )
    return {task: [by_shard[n] for n in sorted(by_shard)] for task, by_shard in files.items()}


def _examples(paths: list[Path]) -> dict[str, list[_Row]]:
    """Returns the rows of each example, in the order in which examples first appear."""
    found: dict[str, list[_Row]] = {}
    remedy = "score with gin/t5x/score.gin: remove the file and its .COMPLETED, and run t5x.infer"
    for path in paths:
        for _, (example_id, row) in _json_lines(path, _t5x_line, remedy):
            found.setdefault(example_id, []).append(row)
    return found


def _t5x_line(told: Mapping[str, Any]) -> tuple[str, _Row]:
    """Returns the example of a line and its row; T5X writes whole numbers as floats."""
    values = {name: told["inputs"][name] for name in T5X_FIELDS}
    return str(values["example_id"]), {
        "index": int(values["idx"][1]),
        "candidate_ids": int(values["candidate_id"]),
        "is_correct": bool(values["is_correct"]),
        "log_likelihood": float(told["score"]),
        "num_tokens": int(np.count_nonzero(np.asarray(values["targets"], np.int64))),
        "num_chars": int(values["candidate_num_chars"]),
        "scenario": (str(values["family"]), str(values["query"])),
    }


def _request(example_id: str, rows: list[_Row], *, where: str) -> ScoredRequest:
    """Returns one example, its candidates in their order."""
    rows = sorted(rows, key=lambda row: row["index"])
    indices = [row["index"] for row in rows]
    if indices != list(range(len(rows))):
        raise UserError(
            f"{where}: example {example_id!r} has candidates {indices}; expected 0, 1, 2, ... each "
            "once: remove the task's files and score it again"
        )
    correct = [row["index"] for row in rows if row["is_correct"]]
    if len(correct) > 1:
        raise UserError(f"{where}: example {example_id!r} has {len(correct)} correct candidates")
    found: dict[str, Any] = {"target_index": correct[0] if correct else -1}
    found |= {name: np.array([row[name] for row in rows], kind) for name, kind in _T5X_COLUMNS}
    return ScoredRequest(request_id=example_id, **found)


def _t5x_metadata(folder: Path) -> dict[str, Any]:
    """Returns what T5X's resolved config tells of the run."""
    path = folder / CONFIG_FILE
    macros: dict[str, str] = {}
    if path.is_file():
        # gin breaks long lines with a backslash; values that are no strings do not matter here.
        text = files.read_text(path).replace("\\\n", " ")
        for name, value in re.findall(r"^([\w./]+) = +['\"](.*)['\"]$", text, re.MULTILINE):
            macros[name.rsplit(".", 1)[-1]] = value
    checkpoint = macros.get("CHECKPOINT_PATH", UNKNOWN)
    step = re.search(r"(\d+)/?$", checkpoint)
    return {
        "system": "t5x",
        "candidate_view": {"strategy": "AllAtOnce", "sure_ranks": None},
        "split": macros.get("split", macros.get("SPLIT")),
        "checkpoint": checkpoint,
        "checkpoint_step": int(step[1]) if step else None,
        "teacher": UNKNOWN,
        "command": f"python -m t5x.infer, as {path} says",
    }
