"""Draws the single users that the page of a report shows."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.render import render_record
from instructrec_jax.records import CandidateList, InstructionRecord
from instructrec_jax.report.results import is_repeat
from instructrec_jax.report.users import Scenario, User, Users, packed
from instructrec_jax.seeds import stable_seed
from instructrec_jax.stages.report.checks import Checks
from instructrec_jax.stages.report.exports import Ranked
from instructrec_jax.stages.report.systems import RankedExample, Run

NUM_USERS = 200  # of a scenario
_MAX_HISTORY = 20  # titles
_SEED = 0


Explanations = Mapping[tuple[str, str], Mapping[str, Any]]  # by scenario and example


def users_of(
    ranked: Sequence[Ranked],
    checks: Checks,
    *,
    explanations: Explanations | None = None,
    first: Mapping[str, Sequence[int]] | None = None,
) -> Users:
    """Returns some users of every scenario, the same in every report of it.

    Args:
      ranked: what all systems ranked in each scenario; of several runs the first counts.
      checks: makes the records again that the prompts are written from.
      explanations: what `explain` wrote.
      first: by scenario rows of examples that come before those that are drawn.
    """
    return packed(
        [
            _scenario(found, checks, explanations or {}, (first or {}).get(found.scenario, ()))
            for found in ranked
        ]
    )


def read_explanations(path: Path | str) -> Explanations:
    """Returns what `explain` wrote; of several templates of a scenario the last.

    Raises:
      UserError: if the file is none that it wrote.
    """
    try:
        lines = map(files.parse_json, filter(None, files.read_text(path).split("\n")))
        return {(line["scenario"], line["example_id"]): line for line in lines}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is no file of explanations, or is damaged ({error!r}); name what "
            "`instructrec explain --output` wrote"
        ) from None


def _scenario(
    ranked: Ranked, checks: Checks, explanations: Explanations, first: Sequence[int]
) -> Scenario:
    runs = [run for run in ranked.test if not is_repeat(run.name)]
    rows, total = drawn(runs[-1].examples)
    rows = list(dict.fromkeys([*first, *rows]))[:NUM_USERS]
    return Scenario(
        name=ranked.scenario,
        total=total,
        systems=[
            {"name": run.name, "template": run.template, "normaliser": run.normaliser}
            for run in runs
        ],
        users=users(ranked.scenario, runs, rows, checks=checks, explanations=explanations),
    )


def drawn(examples: Sequence[CandidateList]) -> tuple[list[int], int]:
    """Returns rows of examples in the order of a draw, one an event, and the number of events.

    Args:
      examples: of a scenario; of a part of them the same ones come first.
    """
    first_of = {
        (example.user_id, example.position, example.target_id): row
        for row, example in reversed(list(enumerate(examples)))
    }
    keys = {row: stable_seed(_SEED, "shown", examples[row].example_id) for row in first_of.values()}
    return sorted(keys, key=lambda row: keys[row]), len(keys)


def users(
    scenario: str,
    runs: Sequence[Run],
    rows: Sequence[int],
    *,
    checks: Checks,
    explanations: Explanations,
) -> Iterator[User]:
    """Yields the examples of some rows with what every system thought of them.

    Args:
      scenario: its name.
      runs: what the systems ranked, all of the same examples.
      rows: of these examples.
      checks: makes the records again.
      explanations: what `explain` wrote.
    """
    own = [dataclasses.replace(run, rows=run.rows[rows]) for run in runs]
    variants = {run.template: checks.variant(run.template) for run in own}
    records = checks.records(own[-1].examples)
    for record, *found in zip(records, *(run.ranked() for run in own), strict=True):
        scores = [_scores(one, record.candidate_ids) for one in found]
        yield User(
            id=record.example_id,
            user=record.user_id,
            query=_query(scenario, record),
            history=record.history[-_MAX_HISTORY:],
            candidates=record.candidates,
            target=record.candidate_ids.index(record.target_id),
            prompts={
                template: render_record(variant, record)[0]
                for template, variant in variants.items()
                if variant is not None
            },
            log_likelihoods=[own[0] for own in scores],
            values=[own[1] for own in scores],
            ranks=[own[2] for own in scores],
            explanation=_explanation(explanations.get((scenario, record.example_id)), record),
        )


def _explanation(
    found: Mapping[str, Any] | None, record: InstructionRecord
) -> Mapping[str, Any] | None:
    """Returns an explanation if it is of the record's target."""
    if found is not None and found.get("target_id") != record.target_id:
        raise UserError(
            f"example {record.example_id!r} has another target in the explanations than in the "
            "prepared data; explain again with these data"
        )
    return found


def _query(scenario: str, record: InstructionRecord) -> str:
    """Returns what was asked for, the first text where there are several."""
    texts = {
        "specific": (record.specific_intention,),
        "vague": record.vague_intention,
        "second_vague": record.second_vague_intention,
    }
    return next(iter(texts.get(scenario.partition(".")[2], ())), "")


def _scores(
    found: RankedExample, ids: Sequence[int]
) -> tuple[list[float | None], list[float | None], list[int]]:
    """Returns log-likelihoods, what ranks, and ranks of the candidates, in the record's order."""
    index_of = {item: index for index, item in enumerate(found.candidate_ids.tolist())}
    ranks = np.argsort(found.order) + 1
    order = [index_of[item] for item in ids]
    return (
        _rounded(found.log_likelihood[order]),
        _rounded(found.values[order]),
        ranks[order].tolist(),
    )


def _rounded(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]
