"""The stage `show`: rows of score files with their titles, for people and for other programs."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from instructrec_jax.data.prepared import PreparedData, read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.scores.shown import ShownCandidate, ShownExample, read_shown
from instructrec_jax.settings import Count, OneOf, check_arguments

TEXT, JSONL = "text", "jsonl"
_WIDTH = 80  # columns of a terminal
_NUM_EXAMPLES, _NUM_CANDIDATES, _NUM_HISTORY = 3, 10, 5  # shown to people


def scores(
    path: Path | str,
    *,
    num_examples: Count | None = None,
    prepared_dir: Path | str | None = None,
    template: str | None = None,
    format: Annotated[str, OneOf((TEXT, JSONL))] = TEXT,
) -> Iterator[str]:
    """Shows scored examples: the target, and the candidates best first.

    Args:
      path: a folder of `instructrec score` or `instructrec generate`, or a file of
        `instructrec score --output`.
      num_examples: how many to show; by default 3 as text, all as jsonl.
      prepared_dir: output folder of `prepare`, where titles, users and histories are looked up;
        ranked files hold the texts themselves.
      template: examples of one template alone.
      format: "text", or "jsonl", a line an example.

    Returns:
      Lines.

    Raises:
      UserError: if there are no scores, or the prepared data are not those they are of.
    """
    check_arguments(scores, locals())
    limit = num_examples or (_NUM_EXAMPLES if format == TEXT else None)
    found: Iterable[ShownExample] = itertools.islice(read_shown(path, template), limit)
    if prepared_dir is not None:
        found = _looked_up(found, read_prepared(prepared_dir), prepared_dir)
    if format == TEXT:
        return (line for example in found for line in [*_text(example), ""])
    return (json.dumps(dataclasses.asdict(example), ensure_ascii=False) for example in found)


def _looked_up(
    examples: Iterable[ShownExample], prepared: PreparedData, folder: Path | str
) -> Iterator[ShownExample]:
    """Yields examples with titles, users and histories."""
    lists = prepared.candidates
    index_of = {name: index for index, name in enumerate(lists.example_ids())}
    for example in examples:
        index = index_of.get(example.example_id)
        known = lists[index] if index is not None else None
        ids = {number for candidate in example.candidates for number in candidate.ids}
        is_same = known is not None and known.target_id == example.target_id
        if known is not None and not example.is_generated:
            is_same &= ids <= {*known.candidate_ids}
        if known is None or not is_same or max(ids) >= len(prepared.items):
            raise UserError(
                f"example {example.example_id!r} is not in {folder} (of dataset "
                f"{prepared.dataset}), or has another target or other candidates there; name the "
                "output of `instructrec prepare` that the scores are of. Requests from a file have "
                "their texts in that file: `instructrec score --output` keeps them"
            )
        row = int(lists.columns.history_rows[index])
        bought = prepared.histories[row].item_ids[: known.position] if row >= 0 else ()
        yield dataclasses.replace(
            example,
            user_id=known.user_id,
            history=tuple(prepared.items[number].title for number in bought),
            target=prepared.items[known.target_id].title,
            candidates=tuple(
                dataclasses.replace(candidate, text=prepared.items[candidate.ids[0]].title)
                for candidate in example.candidates
            ),
        )


def _text(example: ShownExample) -> Iterator[str]:
    """Yields the lines of an example."""
    what = "likeliest titles" if example.is_generated else "candidates"
    yield cut(example.example_id)
    yield cut(
        f"  template {example.template}, {len(example.candidates)} {what}, "
        f"ranked by {example.normaliser}"
    )
    if example.history:
        shown = example.history[-_NUM_HISTORY:]
        yield cut(f"  history of {len(example.history)}, the latest:")
        yield from (cut(f"    {title}") for title in shown)
    if example.target_id >= 0:
        rank = next((str(each.rank) for each in example.candidates if each.is_target), "none")
        yield cut(f"  target, rank {rank}: {example.target or f'item {example.target_id}'}")
    yield "  rank     score  log-likelihood"
    for place, candidate in enumerate(example.candidates, start=1):
        if place <= _NUM_CANDIDATES or candidate.is_target:
            yield cut(_candidate_line(candidate))
    if (number := len(example.candidates) - _NUM_CANDIDATES) > 0:
        yield f"        {number} more (--format=jsonl shows all)"


def _candidate_line(candidate: ShownCandidate) -> str:
    mark = "*" if candidate.is_target else " "
    text = candidate.text or "item " + ", ".join(map(str, candidate.ids))
    return (
        f"{mark} {candidate.rank:4d}  {candidate.score:8.4f}  {candidate.log_likelihood:14.4f}  "
        f"{text}"
    )


def cut(line: str) -> str:
    """Returns a line that fits a terminal; a title may hold anything."""
    line = " ".join(line.splitlines())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..."
