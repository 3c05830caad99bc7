"""TREC run files and qrels, which trec_eval, pytrec_eval and ranx read: written and read.

A run has one line per candidate, `qid Q0 docid rank score tag`; qrels have one line per relevant
item, `qid 0 docid rel`. Here qid is the example_id and docid the item_id of candidates.parquet. A
file is named after the scenario, "sequential.run" or "personalized_search.vague.run": the format
has no field that tells it. Blanks and "%" in names are written as in a URL ("%20", "%25").

Tools sort a query by score and break ties in ways of their own, so a run that is written here has
the scores c, c - 1, ..., 1 for c candidates: every tool then sees the ranks of the report.
"""

import re
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.scores.parts import NO_QUERY, ScoredRequest, Scores

RUN, QRELS = ".run", ".qrels"
_LARGEST = float(np.finfo(np.float32).max)
_LINE = "qid Q0 docid rank score tag"


def holds_trec_runs(path: Path | str) -> bool:
    """Returns whether a path is a run file, or a folder of such."""
    return bool(_run_files(Path(path)))


def write_run(path: Path | str, ranked: Iterable[tuple[str, Sequence[int]]], *, tag: str) -> None:
    """Writes the run of one system in one scenario, whole.

    Args:
      path: ends in `file_name(scenario, RUN)`.
      ranked: the name of each example, and its item ids, best first.
      tag: name of the system.
    """
    tag = _escaped(tag)
    with files.atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for example_id, item_ids in ranked:
            qid = _escaped(example_id)
            for rank, item in enumerate(item_ids, start=1):
                out.write(f"{qid} Q0 {item} {rank} {len(item_ids) - rank + 1} {tag}\n")


def write_qrels(path: Path | str, targets: Iterable[tuple[str, int]]) -> None:
    """Writes the target of each example, by its name, as its one relevant item."""
    with files.atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        out.writelines(f"{_escaped(name)} 0 {target} 1\n" for name, target in targets)


def read_trec_scores(path: Path | str) -> Scores:
    """Reads one run file, or all of a folder, as the scores of a system.

    The order of the lines and their rank do not matter: candidates are ranked by score, and ties
    count against the target as in all scores.

    Args:
      path: a file that is named after its scenario, or a folder of such files.

    Raises:
      UserError: for the first line that cannot be used.
    """
    requests, metadata = {}, {}
    for file in _run_files(Path(path)):
        scenario = urllib.parse.unquote(file.name.removesuffix(RUN))
        family, _, query = scenario.partition(".")
        requests[scenario], tag = _read_run(file)
        told = {"family": family, "query": query or NO_QUERY}
        metadata[scenario] = {"system": tag, "split": None, **told}
    return Scores.of(requests, metadata)


def file_name(name: str, ending: str = "") -> str:
    """Returns the name of a file or folder for any text: one part of a path, not hidden."""
    return re.sub(r"^\.", "%2E", urllib.parse.quote(name, safe=" ")) + ending


def _run_files(path: Path) -> list[Path]:
    """Returns the run files at a path, by name."""
    found = sorted(path.glob(f"*{RUN}")) if path.is_dir() else [path]
    return [file for file in found if file.name.endswith(RUN)]


def _read_run(path: Path) -> tuple[list[ScoredRequest], str]:
    """Returns the queries of a file in the order in which they appear, and its first tag."""
    found: dict[str, tuple[list[np.int64], list[np.float32]]] = {}
    first_tag = ""
    for qid, item, score, tag in _lines(path):
        first_tag = first_tag or tag
        ids, scores = found.setdefault(qid, ([], []))
        ids.append(item)
        scores.append(score)
    if not found:
        raise UserError(f"{path} holds no scores; expected lines of `{_LINE}`")
    requests = [
        ScoredRequest(
            request_id=urllib.parse.unquote(qid),
            candidate_ids=np.array(ids, np.int64),
            log_likelihood=np.array(scores, np.float32),
        )
        for qid, (ids, scores) in found.items()
    ]
    return requests, urllib.parse.unquote(first_tag)


def _lines(path: Path) -> Iterator[tuple[str, np.int64, np.float32, str]]:
    """Yields query, item, score and tag of every line."""
    with files.open_input(path) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                if fields := line.decode("utf-8-sig").split():
                    qid, _, docid, _, score, tag = fields
                    if not abs(float(score)) <= _LARGEST:
                        raise ValueError(f"the score {score} is no finite number of 32 bits")
                    yield qid, np.int64(int(docid)), np.float32(score), tag
            except (ValueError, OverflowError) as error:
                raise UserError(
                    f"{path} line {number} is {line[:80]!r} ({error}); expected `{_LINE}`, where "
                    "qid and docid are an example_id and an item_id of candidates.parquet"
                ) from None


def _escaped(name: str) -> str:
    """Returns a name without blanks, which separate the fields of a line."""
    return re.sub(r"[\s%]", lambda found: urllib.parse.quote(found[0]), name)
