"""How requests in somebody's own words become explicit ones, and how the answers tell it."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.serving import bodies
from instructrec_jax.serving.filters import Applied
from instructrec_jax.serving.free_text import (
    NOTHING_TO_RANK_BY,
    Part,
    Reading,
    TextReader,
    ask_more,
)
from instructrec_jax.serving.refusals import RefusedError

Score = Callable[[Sequence[TokenRequest]], Awaitable[Sequence[NDArray[np.floating]]]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Understood:
    """An explicit request that says what a text says.

    Attributes:
      reading: the text's sentences and conditions.
      applied: what the conditions did.
      among: indices of the items of the catalogue, or of the candidates, that meet them; None where
        there are no conditions.
      values: history, preference and intention.
      template: what writes the instruction.
      problem: why nothing can be ranked; "" where it can.
    """

    reading: Reading
    applied: Sequence[Applied] = ()
    among: NDArray[np.int64] | None = None
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    template: str = ""
    problem: str = ""


async def understood(
    reader: TextReader,
    body: bodies.RankRequest | bodies.RecommendRequest,
    score: Score,
    *,
    candidates: Sequence[str] = (),
) -> Understood:
    """Returns what a body with free text asks for.

    Args:
      reader: of the model and the catalogue.
      body: with a text.
      score: gives log-likelihoods, where the model is asked.
      candidates: titles of the request; () where the catalogue gives them.

    Raises:
      RefusedError: if the body says the same in another way too.
    """
    for name in ("intention", "instruction"):
        if getattr(body, name, None):
            problem = f"holds text and {name}; leave out either: text is read into an intention"
            raise RefusedError(422, "bad_request", problem)
    if body.text is None:
        raise RefusedError(422, "bad_request", "holds turns and no text, which they lead to")
    reading = await asyncio.to_thread(reader.begin, body.turns or (), body.text)
    if reading.problem:
        return Understood(reading=reading, problem=reading.problem)
    guesses = []
    if reader.model.threshold is not None:
        found = await score(reader.model.requests([part.text for part in reading.parts]))
        guesses = list(reader.model.guesses(found))
    return await asyncio.to_thread(_resolved, reader, body, reading, guesses, candidates)


def _resolved(
    reader: TextReader,
    body: bodies.RankRequest | bodies.RecommendRequest,
    reading: Reading,
    guesses: Sequence[Any],
    candidates: Sequence[str],
) -> Understood:
    """Returns what sentences ask for, once the model has told what it thinks of them."""
    reading = reader.finish(reading, guesses, candidates)
    if reading.problem:
        return Understood(reading=reading, problem=reading.problem)
    fields = reader.fields_of(candidates) if candidates else reader.fields
    applied, among, problem = list[Applied](), None, ""
    if reading.conditions and fields is not None:
        mask, applied = fields.allowed(reading.conditions, keeps_unknown=bool(candidates))
        among = np.flatnonzero(mask)
        if len(among) < 2:
            what = "candidates" if candidates else "items of the catalogue"
            problem = ask_more(
                f"{len(among)} of the {len(mask)} {what} meet all of "
                + ", ".join(f"\u201c{each.condition.said}\u201d" for each in applied)
            )
    preference = [body.preference] if isinstance(body.preference, str) else body.preference or []
    values, template = reading.values(body.history or (), preference, applied)
    if body.context:
        values["context"] = body.context
    if not template and not problem:
        problem = NOTHING_TO_RANK_BY
    return Understood(
        reading=reading,
        applied=applied,
        among=among,
        values=values,
        template=template,
        problem=problem,
    )


def told(found: Understood, *, cell: str | None, answer: bodies.RankAnswer) -> bodies.RankAnswer:
    """Returns an answer that tells how the text was understood.

    Args:
      found: what was understood.
      cell: of the template that was used, None where nothing was ranked.
      answer: the ranking, whose `resolved` holds the explicit request.
    """
    return answer.model_copy(
        update={
            "resolved": bodies.Resolved(
                cell=cell,
                template=answer.template,
                request=answer.resolved.request if answer.resolved else None,
                sentences=[_sentence(part) for part in found.reading.parts],
                conditions=[_condition(each) for each in found.applied],
                num_turns_dropped=found.reading.num_turns_dropped,
                notes=list(found.reading.notes),
            )
        }
    )


def _sentence(part: Part) -> bodies.ReadSentence:
    guess = part.guess
    told_of = {} if guess is None else {**vars(guess), "intent": guess.intent or None}
    return bodies.ReadSentence.model_validate({"text": part.text, **told_of})


def _condition(applied: Applied) -> bodies.ReadCondition:
    values = {**vars(applied.condition), **vars(applied)}
    return bodies.ReadCondition.model_validate(
        {
            **values,
            "values": list(applied.condition.values),
            "is_applied": not applied.problem,
            "problem": applied.problem or None,
        }
    )
