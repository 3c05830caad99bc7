"""How the service answers: of its state, and with rankings."""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.requests.request_files import fitting_template
from instructrec_jax.requests.row_files import SingleRow
from instructrec_jax.serving import (
    bodies,
    feedback_handlers,
    free_text_handlers,
    ranked_requests,
)
from instructrec_jax.serving.free_text_handlers import Understood
from instructrec_jax.serving.gate import Call
from instructrec_jax.serving.refusals import RefusedError
from instructrec_jax.serving.state import Engine, Service
from instructrec_jax.serving.text_ranker import Prepared

# What writes the instruction of a rerank request; the second shows no documents, so that any
# number of them fits.
RERANK_TEMPLATES = ("B7.specific", "B1.specific")
# For more items than a prompt has room for: templates that show none of them.
_WITHOUT_LIST = {
    "A7": "A1",
    "B7.specific": "B1.specific",
    "B7.preference": "B1.preference",
    "B7.second_vague": "B1.second_vague",
    "C10.specific": "C4.specific",
    "C10.preference": "C1",
    "C10.second_vague": "C2.second_vague",
}
_TEXTS = {"history", "preference", "intention", "context"}


async def health(service: Service, call: Call, body: None) -> bodies.Health:
    """Answers as long as the process works."""
    if service.is_broken:
        raise RefusedError(503, "broken", "an engine has failed; start the service again")
    return bodies.Health(status="ok")


async def readiness(service: Service, call: Call, body: None) -> bodies.Health:
    """Answers once requests can be ranked without waiting for a compiler."""
    _engine(service)
    return bodies.Health(status="ready")


async def models(service: Service, call: Call, body: None) -> bodies.Models:
    """Tells of the models."""
    _engine(service)
    served = [
        bodies.ServedModel(
            id=engine.card.name,
            created=engine.card.made,
            normaliser=engine.card.normaliser,
            input_tokens=engine.ranker.lengths["inputs"],
            target_tokens=engine.ranker.lengths["targets"],
            max_candidates=engine.card.max_candidates,
            has_catalogue=engine.retriever is not None,
            free_text=engine.reader.model.measured,
        )
        for engine in service.engines
    ]
    return bodies.Models(data=served)


async def rank(service: Service, call: Call, body: bodies.RankRequest) -> bodies.RankAnswer:
    """Ranks candidates as `instructrec score --model` does."""
    engine, template = _engine(service, body.user_id or call.request_id), body.template
    if body.text is not None or body.turns:
        return await _rank_by_text(service, engine, call, body)
    if template is None and body.instruction is None:
        texts = body.model_dump(include=_TEXTS, exclude_none=True)
        template = _template_of(engine, call, texts, body.user_id)
    return await _rank(service, engine, call, body, templates=[template])


async def _rank_by_text(
    service: Service, engine: Engine, call: Call, body: bodies.RankRequest
) -> bodies.RankAnswer:
    """Ranks the candidates that meet what a text says."""
    _check_number(engine, len(body.candidates), "candidates")
    score = functools.partial(ranked_requests.score, service, engine, call)
    found = await free_text_handlers.understood(
        engine.reader, body, score, candidates=body.candidates
    )
    if found.problem:
        return _unanswered(engine, call, body, found)
    exclude = list(body.exclude or ())
    if found.among is not None:
        kept = set(found.among.tolist())
        exclude += [text for n, text in enumerate(body.candidates) if n not in kept]
    told = {"text": None, "turns": None, "preference": None, "exclude": exclude or None}
    asked = body.model_copy(update={**told, **found.values})
    name = body.template or _template_of(engine, call, found.values, body.user_id)
    return await _rank_explicit(service, engine, call, asked, found=found, name=name)


async def _rank_explicit(
    service: Service,
    engine: Engine,
    call: Call,
    asked: bodies.RankRequest,
    *,
    found: Understood,
    name: str | None,
) -> bodies.RankAnswer:
    """Returns the answer to what a text says, with how it was understood."""
    templates = _with_fallback(name or found.template)
    answer = await _rank(service, engine, call, asked, templates=templates)
    row = asked.model_dump(exclude=feedback_handlers.NOT_OF_THE_ROW, exclude_none=True)
    resolved = bodies.Resolved.model_construct(request={"id": answer.id, **row})
    cell = engine.ranker.cell(answer.template or "")
    answer = answer.model_copy(update={"resolved": resolved})
    return free_text_handlers.told(found, cell=cell, answer=answer)


def _unanswered(
    engine: Engine,
    call: Call,
    body: bodies.RankRequest | bodies.RecommendRequest,
    found: Understood,
) -> bodies.RankAnswer:
    """Returns an answer that ranks nothing, and asks for more."""
    answer = bodies.RankAnswer(
        id=getattr(body, "id", None) or call.request_id,
        model=engine.card.name,
        normaliser=getattr(body, "normaliser", None) or engine.card.normaliser,
        candidates=[],
        tell_me_more=found.problem,
    )
    return free_text_handlers.told(found, cell=None, answer=answer)


async def recommend(
    service: Service, call: Call, body: bodies.RecommendRequest
) -> bodies.RankAnswer:
    """Ranks the items of the catalogue that suit a request."""
    engine = _engine(service, body.user_id or call.request_id)
    if engine.retriever is None:
        problem = "the service has no catalogue; it is started with --prepared_dir then"
        raise RefusedError(404, "no_catalogue", problem)
    found = None
    if body.text is not None or body.turns:
        score = functools.partial(ranked_requests.score, service, engine, call)
        found = await free_text_handlers.understood(engine.reader, body, score)
        if found.problem:
            return _unanswered(engine, call, body, found)
        texts = dict(found.values)
    else:
        texts = body.model_dump(include=_TEXTS, exclude_none=True)
    if not any(texts.get(name) for name in ("history", "preference", "intention")):
        problem = "say what is wanted or liked: a text, an intention, a preference or a history"
        raise RefusedError(422, "unusable", problem)
    try:
        name = _template_of(engine, call, texts, body.user_id)
        if found is None:
            name = name or fitting_template(SingleRow(texts))
        items = await asyncio.to_thread(
            functools.partial(
                engine.retriever.find,
                number=min(body.num_candidates, engine.card.max_candidates),
                exclude=body.exclude or (),
                labels=body.labels or (),
                user_id=body.user_id,
                among=None if found is None else found.among,
            ),
            " ".join([*_listed(texts.get("intention")), *_listed(texts.get("preference"))]),
            body.history or (),
        )
    except UserError as error:
        raise RefusedError(422, "unusable", str(error)) from None
    asked = bodies.RankRequest(
        candidates=[item.title for item in items],
        candidate_ids=[item.item_id for item in items],
        item_ids=[item.raw_id for item in items],
        **texts,
        **body.model_dump(include={"top_n", "explain", "record", "user_id"}),
    )
    if found is not None:
        return await _rank_explicit(service, engine, call, asked, found=found, name=name)
    assert name is not None
    return await _rank(service, engine, call, asked, templates=_with_fallback(name))


def _with_fallback(name: str) -> list[str | None]:
    """Returns a template, and the one without a list of candidates that stands in for it."""
    return [name, *([_WITHOUT_LIST[name]] if name in _WITHOUT_LIST else [])]


async def _rank(
    service: Service,
    engine: Engine,
    call: Call,
    body: bodies.RankRequest,
    *,
    templates: Sequence[str | None],
) -> bodies.RankAnswer:
    """Ranks candidates by the first template with which they fit."""
    _check_number(engine, len(body.candidates), "candidates")
    feedback_handlers.check(call, body)
    values = body.model_dump(exclude=feedback_handlers.NOT_OF_THE_ROW, exclude_none=True)
    values.setdefault("id", call.request_id)
    normaliser = body.normaliser or engine.card.normaliser
    prepared, rows = await ranked_requests.ranked(
        service, engine, call, values, templates=templates, normaliser=normaliser
    )
    numbers = body.candidate_ids or range(len(body.candidates))
    index_of = {number: at for at, number in enumerate(numbers)}
    item_id_of = dict(zip(numbers, body.item_ids or (), strict=False))
    titles = [
        bodies.RankedTitle(
            rank=row["rank"],
            index=index_of[row["candidate_id"]],
            candidate=row["candidate"],
            candidate_id=row["candidate_id"],
            item_id=item_id_of.get(row["candidate_id"]),
            score=row["score"],
            log_likelihood=row["log_likelihood"],
        )
        for row in rows
    ]
    answer = bodies.RankAnswer(
        id=values["id"],
        model=engine.card.name,
        template=prepared.template,
        normaliser=normaliser,
        candidates=titles[: body.top_n],
        explanation=_explanation(engine, prepared) if body.explain else None,
    )
    return (
        await feedback_handlers.kept(service, call, body, answer=answer, titles=titles)
        if body.record
        else answer
    )


async def rerank(service: Service, call: Call, body: bodies.RerankRequest) -> bodies.RerankAnswer:
    """Ranks documents for a query; equal ones share a score."""
    engine = _engine(service)
    _check_number(engine, len(body.documents), "documents")
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    shares, num_tokens = await _shares(
        service, engine, call, body.query, list(dict.fromkeys(texts))
    )
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
        model=engine.card.name,
        results=results,
        usage={"total_tokens": num_tokens},
        meta={"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    )


async def _shares(
    service: Service, engine: Engine, call: Call, query: str, texts: list[str]
) -> tuple[dict[str, float], int]:
    """Returns the share of each document in the probability of all, and how many tokens it took."""
    if len(texts) == 1:
        return {texts[0]: 1.0}, 0
    values = {"id": call.request_id, "intention": query, "candidates": texts}
    prepared, rows = await ranked_requests.ranked(
        service,
        engine,
        call,
        values,
        templates=RERANK_TEMPLATES,
        normaliser=engine.card.normaliser,
    )
    scores = np.array([row["score"] for row in rows], np.float64)
    weights = np.exp(scores - scores.max())
    found = zip((row["candidate"] for row in rows), weights / weights.sum(), strict=True)
    request = prepared.tokens
    return dict(found), len(request.instruction) + sum(map(len, request.candidates))


def _template_of(
    engine: Engine, call: Call, texts: Mapping[str, Any], user_id: str | None
) -> str | None:
    """Returns the template of a user, None where the service was given none that suits."""
    return engine.ranker.chosen_template(engine.card.templates, texts, user_id or call.request_id)


def _engine(service: Service, unit: str | None = None) -> Engine:
    """Returns what ranks by now: for a unit its own model, else the first one."""
    found = service.engine_of(unit) if unit else next(iter(service.engines), None)
    if found is None:
        problem = "the model is being compiled; try again later"
        raise RefusedError(503, "starting", problem, retry_after=5)
    return found


def _check_number(engine: Engine, number: int, what: str) -> None:
    if number > (most := engine.card.max_candidates):
        problem = f"holds {number} {what}; at most {most} are taken: send the best of a retriever"
        raise RefusedError(422, f"too_many_{what}", problem)


def _listed(texts: str | list[str] | None) -> list[str]:
    return [texts] if isinstance(texts, str) else texts or []


def _explanation(engine: Engine, prepared: Prepared) -> bodies.Explanation:
    return bodies.Explanation(
        instruction=engine.ranker.instruction_text(prepared),
        num_history_hidden=prepared.num_history_hidden,
        num_titles_cut=prepared.num_titles_cut,
        num_tokens=len(prepared.tokens.instruction),
    )
