"""Rankings that are kept before they are shown, and what is said of them."""

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from instructrec_jax.errors import UserError
from instructrec_jax.serving import bodies, feedback, tokens
from instructrec_jax.serving.gate import Call
from instructrec_jax.serving.refusals import RefusedError
from instructrec_jax.serving.state import Service

logger = logging.getLogger(__name__)
_Made = TypeVar("_Made")
# Fields of a rank request that are none of a row of a file of requests.
NOT_OF_THE_ROW = {"template", "normaliser", "top_n", "explain", "record", "user_id", "item_ids"}
NOT_OF_THE_ROW |= {"text", "turns"}


def check(call: Call, body: bodies.RankRequest) -> None:
    """Checks what a ranking that is kept needs."""
    if body.item_ids is not None and len(body.item_ids) != len(body.candidates):
        problem = f"holds {len(body.item_ids)} item_ids for {len(body.candidates)} candidates"
        raise RefusedError(422, "bad_request", problem)
    if body.record and call.token is not None and tokens.FEEDBACK not in call.token.scopes:
        problem = f"the token does not allow {tokens.FEEDBACK!r}, so no ranking is kept for it"
        raise RefusedError(403, "not_allowed", problem)


async def kept(
    service: Service,
    call: Call,
    body: bodies.RankRequest,
    *,
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
        template=answer.template or "",
        num_candidates=len(titles),
        explored=service.explored,
        request=body.model_dump(exclude=NOT_OF_THE_ROW, exclude_none=True),
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
    await _done(functools.partial(service.feedback.add, impression))
    shown = [titles[at] for at in order[: body.top_n]]
    explored = order != list(range(len(titles)))
    return answer.model_copy(
        update={"candidates": shown, "impression_id": name, "explored": explored}
    )


async def say(service: Service, call: Call, body: bodies.FeedbackRequest) -> bodies.FeedbackAnswer:
    """Keeps what somebody says of a candidate that was shown."""
    assert call.token is not None
    is_kept = await _done(
        functools.partial(
            service.feedback.say,
            body.impression_id,
            body.index,
            body.verdict,
            token=call.token.name,
        )
    )
    if not is_kept:
        problem = "this token was shown no such candidate in a ranking of that impression_id"
        raise RefusedError(404, "not_shown", problem)
    return bodies.FeedbackAnswer()


async def _done(work: Callable[[], _Made]) -> _Made:
    """Returns what work on the store of feedback makes, once it is done.

    Raises:
      RefusedError: if it cannot be done now.
    """
    try:
        return await asyncio.to_thread(work)
    except UserError as error:
        logger.error("feedback is not kept: %s", error)
        problem = "the service cannot keep it now; try again later"
        raise RefusedError(503, "not_kept", problem, retry_after=5) from None
