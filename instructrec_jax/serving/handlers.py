"""How the service answers: the model ranks, and what was shown and said is kept."""

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.instructions.token_budget import MisfitError
from instructrec_jax.scores.ranked_files import Row
from instructrec_jax.serving import bodies, feedback, tokens
from instructrec_jax.serving.batching import Batcher, BusyError, LateError
from instructrec_jax.serving.feedback import FeedbackStore
from instructrec_jax.serving.gate import Call
from instructrec_jax.serving.monitoring import Figures
from instructrec_jax.serving.refusals import RefusedError
from instructrec_jax.serving.text_ranker import Prepared, TextRanker
from instructrec_jax.teacher.scrubbing import scrub

# What writes the instruction of a rerank request; the second shows no documents, so that any
# number of them fits.
RERANK_TEMPLATES = ("B7.specific", "B1.specific")
_NOT_OF_THE_ROW = {"template", "normaliser", "top_n", "explain", "record", "user_id", "item_ids"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is told of the model.

    Attributes:
      name: of it in answers.
      made: when it was written, seconds since 1970.
      normaliser: what it ranks by unless asked otherwise.
      template: what writes the instructions; None: one that suits each request.
      max_candidates: the most that a request may hold.
    """

    name: str
    made: int
    normaliser: str
    template: str | None
    max_candidates: int


@dataclasses.dataclass(kw_only=True)
class Service:
    """What the handlers work with.

    Attributes:
      card: of the model.
      ranker: makes tokens of texts.
      batcher: scores tokens.
      figures: what is counted.
      feedback: what was shown, and what was said of it.
      explored: with which probability a ranking that is kept has a random order.
      audits_texts: whether the audit log tells texts, without personal details.
      is_ready: whether everything is compiled.
    """

    card: ModelCard
    ranker: TextRanker
    batcher: Batcher
    figures: Figures
    feedback: FeedbackStore
    explored: float = 0.0
    audits_texts: bool = False
    is_ready: bool = False


async def health(service: Service, call: Call, body: None) -> bodies.Health:
    """Answers as long as the process does."""
    return bodies.Health(status="ok")


async def readiness(service: Service, call: Call, body: None) -> bodies.Health:
    """Answers once requests can be ranked without waiting for a compiler."""
    _check_ready(service)
    return bodies.Health(status="ready")


async def models(service: Service, call: Call, body: None) -> bodies.Models:
    """Tells of the model."""
    card, lengths = service.card, service.ranker.lengths
    served = bodies.ServedModel(
        id=card.name,
        created=card.made,
        normaliser=card.normaliser,
        input_tokens=lengths["inputs"],
        target_tokens=lengths["targets"],
        max_candidates=card.max_candidates,
    )
    return bodies.Models(data=[served])


async def rank(service: Service, call: Call, body: bodies.RankRequest) -> bodies.RankAnswer:
    """Ranks candidates as `instructrec score --model` does."""
    _check_number(service, len(body.candidates), "candidates")
    _check_record(call, body)
    values = body.model_dump(exclude=_NOT_OF_THE_ROW, exclude_none=True)
    values.setdefault("id", call.request_id)
    template = body.template or (None if body.instruction else service.card.template)
    normaliser = body.normaliser or service.card.normaliser
    prepared, rows = await ranked(
        service, call, values, templates=[template], normaliser=normaliser
    )
    index_of = {number: at for at, number in enumerate(body.candidate_ids or ())}
    titles = [
        bodies.RankedTitle(
            rank=row["rank"],
            index=index_of[row["candidate_id"]] if index_of else row["candidate_id"],
            candidate=row["candidate"],
            candidate_id=row["candidate_id"],
            score=row["score"],
            log_likelihood=row["log_likelihood"],
        )
        for row in rows
    ]
    answer = bodies.RankAnswer(
        id=values["id"],
        model=service.card.name,
        template=prepared.template,
        normaliser=normaliser,
        candidates=titles[: body.top_n],
        explanation=_explanation(service, prepared) if body.explain else None,
    )
    return await _kept(service, call, body, answer, titles) if body.record else answer


async def _kept(
    service: Service,
    call: Call,
    body: bodies.RankRequest,
    answer: bodies.RankAnswer,
    titles: Sequence[bodies.RankedTitle],
) -> bodies.RankAnswer:
    """Returns a ranking that is kept before it is shown, now and then in a random order.

    Args:
      service: what keeps it.
      call: who asks.
      body: for what.
      answer: the ranking, in the order of the model.
      titles: all its candidates in that order.
    """
    name = feedback.new_impression_id()
    order = feedback.shown_order(len(titles), service.explored, name)
    item_ids = body.item_ids or body.candidates
    impression = feedback.Impression(
        impression_id=name,
        time=time.time(),
        token=call.token.name if call.token else "",
        user_id=body.user_id,
        model=answer.model,
        template=answer.template,
        num_candidates=len(titles),
        explored=service.explored,
        request=body.model_dump(exclude=_NOT_OF_THE_ROW, exclude_none=True),
        items=tuple(
            feedback.ShownItem(
                position=position,
                candidate=titles[at].index,
                item_id=item_ids[titles[at].index],
                title=titles[at].candidate,
                model_position=at + 1,
                score=titles[at].score,
            )
            for position, at in enumerate(order[: body.top_n], start=1)
        ),
    )
    await asyncio.to_thread(service.feedback.add, impression)
    shown = [titles[at] for at in order[: body.top_n]]
    explored = order != list(range(len(titles)))
    return answer.model_copy(
        update={"candidates": shown, "impression_id": name, "explored": explored}
    )


async def say(service: Service, call: Call, body: bodies.FeedbackRequest) -> bodies.FeedbackAnswer:
    """Keeps what somebody says of a candidate that was shown."""
    assert call.token is not None
    is_kept = await asyncio.to_thread(
        functools.partial(service.feedback.say, token=call.token.name),
        body.impression_id,
        body.index,
        body.verdict,
    )
    if not is_kept:
        problem = "this token was shown no such candidate in a ranking of that impression_id"
        raise RefusedError(404, "not_shown", problem)
    return bodies.FeedbackAnswer()


async def rerank(service: Service, call: Call, body: bodies.RerankRequest) -> bodies.RerankAnswer:
    """Ranks documents for a query; equal ones share a score."""
    _check_number(service, len(body.documents), "documents")
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    shares, num_tokens = await _shares(service, call, body.query, list(dict.fromkeys(texts)))
    order = sorted(range(len(texts)), key=lambda index: -shares[texts[index]])
    results = [
        bodies.RerankResult(
            index=index,
            relevance_score=shares[texts[index]],
            document=bodies.Document(text=texts[index]) if body.return_documents else None,
        )
        for index in order[: body.top_n]
    ]
    return bodies.RerankAnswer(
        id=call.request_id,
        model=service.card.name,
        results=results,
        usage={"total_tokens": num_tokens},
        meta={"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    )


async def ranked(
    service: Service,
    call: Call,
    values: Mapping[str, Any],
    *,
    templates: Sequence[str | None],
    normaliser: str,
) -> tuple[Prepared, list[Row]]:
    """Returns a request with its candidates, best first.

    Args:
      service: what ranks.
      call: is told what is ranked.
      values: by the fields of a file of requests.
      templates: what writes the instruction, None for what suits the texts; the first one with
        which it fits.
      normaliser: what is ranked by.

    Raises:
      RefusedError: if the request cannot be used, or not now.
    """
    _check_ready(service)
    call.notes["candidates"] = len(values["candidates"])
    if service.audits_texts:
        call.notes["texts"] = _scrubbed(values)
    try:
        with service.batcher.taken():
            service.figures.taken.set(service.batcher.num_taken)
            prepared = await asyncio.to_thread(_prepared, service.ranker, values, templates)
            log_likelihood = await service.batcher.score(prepared.tokens)
    except BusyError as busy:
        problem = "too many requests are waiting; try again later"
        raise RefusedError(429, "busy", problem, retry_after=busy.retry_after) from None
    except LateError:
        seconds = service.batcher.limits.deadline_seconds
        problem = f"it was not ranked within {seconds:g} seconds; ask for less, or later"
        raise RefusedError(503, "late", problem, retry_after=1) from None
    finally:
        service.figures.taken.set(service.batcher.num_taken)
    service.figures.candidates.inc(len(log_likelihood))
    return prepared, service.ranker.ranked(prepared, log_likelihood, normaliser=normaliser)


def _prepared(
    ranker: TextRanker, values: Mapping[str, Any], templates: Sequence[str | None]
) -> Prepared:
    """Returns a request as tokens.

    Raises:
      RefusedError: if it cannot be used.
    """
    *first, last = templates
    try:
        for template in first:
            with contextlib.suppress(MisfitError):
                return ranker.prepare(values, template=template)
        return ranker.prepare(values, template=last)
    except UserError as error:
        raise RefusedError(422, "unusable", str(error)) from None


async def _shares(
    service: Service, call: Call, query: str, texts: list[str]
) -> tuple[dict[str, float], int]:
    """Returns the share of each document in the probability of all, and how many tokens it took."""
    if len(texts) == 1:
        return {texts[0]: 1.0}, 0
    values = {"id": call.request_id, "intention": query, "candidates": texts}
    prepared, rows = await ranked(
        service,
        call,
        values,
        templates=RERANK_TEMPLATES,
        normaliser=service.card.normaliser,
    )
    scores = np.array([row["score"] for row in rows], np.float64)
    weights = np.exp(scores - scores.max())
    found = zip((row["candidate"] for row in rows), weights / weights.sum(), strict=True)
    request = prepared.tokens
    return dict(found), len(request.instruction) + sum(map(len, request.candidates))


def _check_ready(service: Service) -> None:
    if not service.is_ready:
        problem = "the model is being compiled; try again later"
        raise RefusedError(503, "starting", problem, retry_after=5)


def _check_number(service: Service, number: int, what: str) -> None:
    if number > (most := service.card.max_candidates):
        problem = f"holds {number} {what}; at most {most} are taken: send the best of a retriever"
        raise RefusedError(422, f"too_many_{what}", problem)


def _check_record(call: Call, body: bodies.RankRequest) -> None:
    """Checks what a ranking that is kept needs."""
    if body.item_ids is not None and len(body.item_ids) != len(body.candidates):
        problem = f"holds {len(body.item_ids)} item_ids for {len(body.candidates)} candidates"
        raise RefusedError(422, "bad_request", problem)
    if body.record and call.token is not None and tokens.FEEDBACK not in call.token.scopes:
        problem = f"the token does not allow {tokens.FEEDBACK!r}, so no ranking is kept for it"
        raise RefusedError(403, "not_allowed", problem)


def _explanation(service: Service, prepared: Prepared) -> bodies.Explanation:
    return bodies.Explanation(
        instruction=service.ranker.instruction_text(prepared),
        num_history_hidden=prepared.num_history_hidden,
        num_titles_cut=prepared.num_titles_cut,
        num_tokens=len(prepared.tokens.instruction),
    )


def _scrubbed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the texts of a request without personal details."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(each) for each in value]
        return scrub(value) if isinstance(value, str) else value

    return {name: clean(value) for name, value in values.items() if name != "id"}
