"""`instructrec show --example ID`: one test example as systems ranked it, for people."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.instructions.task_modules import SHIPPED
from instructrec_jax.report.users import User
from instructrec_jax.stages.explain import explanation_lines
from instructrec_jax.stages.report.choice import entries_by_scenario
from instructrec_jax.stages.report.given import opened
from instructrec_jax.stages.report.systems import Run, both_splits, known_lists, read_system
from instructrec_jax.stages.report.users import read_explanations, users
from instructrec_jax.stages.show import cut

_WIDTH, _NUM_HISTORY = 78, 10
_TOO_LONG = 24  # characters of a system's name in a column's head


def example(
    *,
    example: str,
    prepared_dir: Path | str,
    scores: Mapping[str, Sequence[Path | str]],
    texts_dir: Path | str | None = None,
    explanations: Path | str | None = None,
    task_module: str = SHIPPED,
) -> Iterator[str]:
    """Shows what was asked, the candidates, and what every system thought of them.

    Args:
      example: id of a test example, such as 196:18.
      prepared_dir: artefact A.
      scores: of systems, as a report takes them; each ranks by the template and normaliser that it
        chooses on validation.
      texts_dir: artefact B that the records were built with, for prompts with its texts.
      explanations: a file that `explain` wrote.
      task_module: module whose templates were scored.

    Returns:
      Lines.

    Raises:
      UserError: if no system scored the example, or scores cannot be used.
    """
    told = {} if explanations is None else read_explanations(explanations)
    lines: list[str] = []
    with opened(prepared_dir, texts_dir, task_module=task_module) as given:
        known = known_lists(given.data)
        systems = [read_system(name, both_splits(own), known) for name, own in scores.items()]
        for scenario, entries in entries_by_scenario(systems, None).items():
            runs: list[Run] = []
            for entry in entries:
                ids = [own.example_id for own in entry.examples]
                if example in ids:
                    row = np.array([ids.index(example)])
                    runs.append(entry.run(entry.system.test, row))
            if runs:
                found = users(scenario, runs, [0], checks=given.checks, explanations=told)
                lines += [line for user in found for line in _text(scenario, runs, user)]
    if not lines:
        raise UserError(
            f"no system scored example {example!r}; expected the id of a test example of "
            f"{prepared_dir}, such as 196:18 (USER:POSITION of candidates.parquet)"
        )
    return iter(lines)


def _text(scenario: str, runs: Sequence[Run], user: User) -> Iterator[str]:
    """Yields the lines of an example in a scenario."""
    target = user.candidates[user.target]
    yield cut(f"{user.id}, {scenario}" + (f", user {user.user}" if user.user else ""))
    yield cut(f"  target: {target}")
    if user.query:
        yield cut(f"  asked for: {user.query}")
    if user.history:
        shown = user.history[-_NUM_HISTORY:]
        yield f"  history, the latest {len(shown)}:"
        yield from (cut(f"    {title}") for title in shown)
    for template, prompt in user.prompts.items():
        yield cut(f"  prompt by template {template}:")
        yield from textwrap.wrap(prompt, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    for number, run in enumerate(runs):
        where = f"  {run.name}: template {run.template}, ranked by {run.normaliser}, target at rank"
        yield cut(f"{where} {user.ranks[number][user.target]}")
    yield from map(cut, _table(runs, user))
    if user.explanation is not None:
        yield ""
        yield from map(cut, explanation_lines(user.explanation))
    yield ""


def _table(runs: Sequence[Run], user: User) -> Iterator[str]:
    """Yields the candidates, the last system's best first, with rank and value by each system."""
    names = [run.name[:_TOO_LONG] for run in runs]
    widths = [max(len(name), 13) for name in names]
    yield "  " + "  ".join(f"{n:>{w}}" for n, w in zip(names, widths, strict=True)) + "  candidate"
    for index in np.argsort(user.ranks[-1]).tolist():
        cells = [
            f"{f'{ranks[index]:3d}{_shown(values[index])}':>{width}}"
            for ranks, values, width in zip(user.ranks, user.values, widths, strict=True)
        ]
        mark = "*" if index == user.target else " "
        yield f"{mark} {'  '.join(cells)}  {user.candidates[index]}"


def _shown(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{value:10.3f}"
