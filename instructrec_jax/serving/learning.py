"""`instructrec feedback`: what users said of rankings, as data to train on and as figures."""

import contextlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.metrics.always_valid import (
    LEAST_USERS,
    always_valid_difference,
    users_needed,
)
from instructrec_jax.metrics.off_policy import Shown, policy_values
from instructrec_jax.metrics.statistics import POWER, Interval
from instructrec_jax.serving.feedback import DOWN, FILE_NAME, VERDICTS, FeedbackStore, Impression
from instructrec_jax.settings import Place, Share, check_arguments, is_database

logger = logging.getLogger(__name__)
INTERACTIONS, ITEMS, EXAMPLES = "interactions.jsonl", "items.jsonl", "examples.jsonl"
_FEW_USERS = 10  # resamples of so few tell nothing
_MODEL, _RANDOM = "order of the model", "random order"


def export_feedback(
    *, output_dir: str, state_dir: str | None = None, feedback: Place | None = None
) -> None:
    """Writes feedback as logs that `prepare` reads, and as requests that `score` reads.

    What was liked or taken is an interaction of its user (interactions.jsonl, items.jsonl), and an
    example: the request with the candidate as its target (examples.jsonl). Each has the probability
    with which the candidate stood where it did, so that training may weigh it.

    Args:
      output_dir: folder to write to.
      state_dir: folder of the service's tokens and feedback.
      feedback: the --feedback of the service, where it had one; in place of state_dir.

    Raises:
      UserError: if there is no feedback that could be written.
    """
    check_arguments(export_feedback, locals())
    counted = Counter[str]()
    titles: dict[str, str] = {}
    with _opened(state_dir, feedback) as store, files.atomic_directory(output_dir) as folder:
        with (
            (folder / INTERACTIONS).open("w", encoding="utf-8") as interactions,
            (folder / EXAMPLES).open("w", encoding="utf-8") as examples,
        ):
            for impression in store.impressions():
                titles |= {item.item_id: item.title for item in impression.items}
                for interaction, example in _liked(impression):
                    counted["examples"] += 1
                    examples.write(_line(example))
                    if impression.user_id is None:
                        counted["of nobody"] += 1
                    else:
                        counted["interactions"] += 1
                        interactions.write(_line(interaction))
        if not counted["examples"]:
            raise UserError(f"{store.path} holds nothing that was liked or taken; nothing to write")
        lines = (_line({"item_id": item, "title": title}) for item, title in titles.items())
        (folder / ITEMS).write_text("".join(lines), encoding="utf-8")
    logger.info(
        "%d examples, %d interactions of users, %d items; %d had no user_id and are no interaction",
        *(counted["examples"], counted["interactions"], len(titles), counted["of nobody"]),
    )


def report_feedback(*, state_dir: str | None = None, feedback: Place | None = None) -> list[str]:
    """Returns what was shown, what was said, and what other orders would have earned, in lines.

    Args:
      state_dir: folder of the service's tokens and feedback.
      feedback: the --feedback of the service, where it had one; in place of state_dir.

    Raises:
      UserError: if nothing was shown yet.
    """
    check_arguments(report_feedback, locals())
    with _opened(state_dir, feedback) as store:
        impressions, counts = list(store.impressions()), store.counts()
    if not impressions:
        raise UserError(f'{store.path} holds no rankings; ask for them with "record": true')
    num_answered = sum(any(item.verdicts for item in each.items) for each in impressions)
    lines = [
        f"rankings: {len(impressions)}, with feedback {num_answered}",
        "feedback: " + ", ".join(f"{verdict} {counts[verdict]}" for verdict in VERDICTS),
        "reward of a ranking: candidates that were liked or taken; 95% intervals over users",
        f"(none for fewer than {_FEW_USERS} users; who gave no user_id counts as a user each time)",
    ]
    by_arm: dict[tuple[str, ...], list[Impression]] = defaultdict(list)
    by_model: dict[tuple[str, ...], list[Impression]] = defaultdict(list)
    for impression in impressions:
        by_arm[impression.model, impression.template].append(impression)
        by_model[(impression.model,)].append(impression)
    for (model, template), own in sorted(by_arm.items()):
        values = policy_values(shown := _shown(own), shown.propensity)
        lines.append(f"  {model}, {template}: {len(own)} rankings, {_words(values['ips'], shown)}")
    lines += _comparisons(by_model)
    if len(by_arm) > len(by_model):
        lines += _comparisons(by_arm)
    return lines + _policy_lines([each for each in impressions if each.explored > 0])


def plan_comparison(*, rate: float, difference: float, power: Share = POWER) -> str:
    """Returns how many users a comparison of two templates or models needs.

    Args:
      rate: share of users with a reward under the first.
      difference: between the two that is to be found, such as 0.03.
      power: probability with which it is found.
    """
    check_arguments(plan_comparison, locals())
    number = users_needed(rate, difference, power=power)
    return (
        f"{number} users for each of the two, looked at once at the end; intervals that hold "
        "however often one looks need about twice as many"
    )


def _comparisons(by_arm: Mapping[tuple[str, ...], Sequence[Impression]]) -> list[str]:
    """Returns how models, or models with templates, differ from the one that was shown most."""
    if len(by_arm) < 2:
        return []
    lines = []
    for what, value in _MEASURES.items():
        users = {arm: _of_users(own, value) for arm, own in by_arm.items()}
        most = max(users, key=lambda arm: (len(users[arm]), arm))
        how = f"minus that of {', '.join(most)} (intervals that hold however often one looks):"
        lines.append(f"{what}, {how}")
        for arm, own in sorted(users.items()):
            if arm == most:
                continue
            if min(len(own), len(users[most])) < LEAST_USERS:
                told = f"fewer than {LEAST_USERS} users, too early to say"
            else:
                found = always_valid_difference(own, users[most])
                told = f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
                if value is _dislike and found.low > 0:
                    told += ", surely more: take it back"
            lines.append(f"  {', '.join(arm)}: {len(own)} users, {told}")
    return lines


def _of_users(
    impressions: Sequence[Impression], value: Callable[[Impression], float]
) -> list[float]:
    """Returns the mean of each user's rankings; who is not named is a user each time."""
    found = defaultdict(list)
    for number, own in enumerate(impressions):
        found[own.user_id or f"\0{number}"].append(value(own))
    return [float(np.mean(values)) for values in found.values()]


def _reward(impression: Impression) -> float:
    return sum(item.reward for item in impression.items)


def _dislike(impression: Impression) -> float:
    return float(any(item.verdicts[-1:] == (DOWN,) for item in impression.items))


# A way of ranking that earns more may still annoy more; the second is there to notice that.
_MEASURES: Mapping[str, Callable[[Impression], float]] = {
    "reward of a user's rankings": _reward,
    "guardrail: share of a user's rankings with something disliked last": _dislike,
}


def _policy_lines(impressions: Sequence[Impression]) -> list[str]:
    """Returns what orders would have earned, from rankings whose order might have been random."""
    if not impressions:
        return ["other orders: unknown, since no order was drawn at random (serve --explore=0.1)"]
    shown, lines = _shown(impressions), ["other orders, by IPS and by SNIPS:"]
    pairs = [(own, item) for own in impressions for item in own.items]
    policies = {
        _MODEL: [float(item.position == item.model_position) for _, item in pairs],
        _RANDOM: [1 / own.num_candidates for own, _ in pairs],
    }
    for name, probability in policies.items():
        values = policy_values(shown, probability)
        lines.append(f"  {name}: {_words(values['ips'], shown)}; {_words(values['snips'], shown)}")
    return lines


def _shown(impressions: Sequence[Impression]) -> Shown:
    """Returns rankings as rows; those without a user are of users of their own."""
    rows = [
        (item.reward, own.propensity(item), number, own.user_id or f"\0{number}")
        for number, own in enumerate(impressions)
        for item in own.items
    ]
    reward, propensity, impression, user = zip(*rows, strict=True)
    return Shown(
        reward=np.array(reward),
        propensity=np.array(propensity),
        impression=np.array(impression),
        group=np.unique(user, return_inverse=True)[1],
    )


def _liked(impression: Impression) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yields an interaction and an example for each candidate that was liked or taken."""
    for item in impression.items:
        if not item.reward:
            continue
        how = {
            "propensity": impression.propensity(item),
            "position": item.position,
            "impression_id": impression.impression_id,
            "verdict": item.verdicts[-1],
        }
        interaction = {
            "user_id": impression.user_id,
            "item_id": item.item_id,
            "timestamp": int(impression.time),
        }
        name = f"{impression.impression_id}:{item.candidate}"
        own = {**impression.request, "id": name, "target_index": item.candidate}
        yield interaction | how, own | {"template": impression.template} | how


@contextlib.contextmanager
def _opened(state_dir: str | None, feedback: str | None) -> Iterator[FeedbackStore]:
    """Yields the feedback of a service."""
    if (state_dir is None) == (feedback is None):
        raise UserError("name --state_dir of `serve`, or its --feedback where it had one")
    place = feedback or str(Path(state_dir or "") / FILE_NAME)
    if not is_database(place) and not Path(place).is_file():
        found = feedback or state_dir
        raise UserError(f"{found} holds no feedback; name --state_dir or --feedback of `serve`")
    store = FeedbackStore(place)
    try:
        yield store
    finally:
        store.close()


def _words(interval: Interval, shown: Shown) -> str:
    if len(np.unique(shown.group)) < _FEW_USERS:
        return f"{interval.estimate:.3f}"
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _line(fields: Any) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"
