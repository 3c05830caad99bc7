"""Single users that a page shows: what was asked, the candidates, and what each system thought."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_EXPLANATION = ("template", "num_prompts", "margin", "log_likelihood", "rank", "reasoning")
MAX_BYTES = 8_000_000  # of the users of a page, whatever their titles and prompts are


@dataclasses.dataclass(frozen=True, kw_only=True)
class User:
    """A test example.

    Attributes:
      id: of the example.
      user: id of the user; "" in product search.
      query: what was asked for; "" for nothing.
      history: titles before the target, oldest first.
      candidates: titles.
      target: its index among the candidates, from 0.
      prompts: by the name of each template that a system chose.
      log_likelihoods: [systems][candidates], natural log; None where it is not finite.
      values: the same under each system's normaliser.
      ranks: the same, 1 the best; of equal ones the target is the last.
      explanation: what each history item adds for the target, as `explain` writes it; None where
        that is not known.
    """

    id: str
    user: str
    query: str
    history: Sequence[str]
    candidates: Sequence[str]
    target: int
    prompts: Mapping[str, str]
    log_likelihoods: Sequence[Sequence[float | None]]
    values: Sequence[Sequence[float | None]]
    ranks: Sequence[Sequence[int]]
    explanation: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """Some users of a scenario.

    Attributes:
      name: of the scenario.
      total: how many test events it has.
      systems: "name", "template" and "normaliser" of each.
      users: in the order in which they are taken until a page is full.
    """

    name: str
    total: int
    systems: Sequence[Mapping[str, str]]
    users: Iterable[User]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Users:
    """What the script of a page reads.

    Attributes:
      about: a sentence on how they were taken.
      data: JSON values: "titles", and "scenarios" whose users name titles by their numbers.
    """

    about: str
    data: Mapping[str, Any]


def packed(scenarios: Sequence[Scenario], *, max_bytes: int = MAX_BYTES) -> Users:
    """Returns as many users as fit.

    Args:
      scenarios: at least one.
      max_bytes: of their JSON, in equal parts for the scenarios.
    """
    number_of: dict[str, int] = {}
    found, shown, total = [], 0, 0
    for scenario in scenarios:
        taken: list[dict[str, Any]] = []
        left = max_bytes // len(scenarios)
        for user in scenario.users:
            known = len(number_of)
            row = _row(user, number_of)
            left -= len(_json([row, list(number_of)[known:]]))
            if left < 0 and taken:
                break
            taken.append(row)
        shown, total = shown + len(taken), total + scenario.total
        found.append(
            {
                "name": scenario.name,
                "total": scenario.total,
                "systems": scenario.systems,
                "users": taken,
            }
        )
    return Users(
        about=f"{shown} of {total} test events, drawn by a seed; the command instructrec show "
        "scores shows any other. Prompts are as the templates write them, before the token budget "
        "shortens them. Rank 1 is the best; of equal candidates the target is the last.",
        data={"titles": list(number_of), "scenarios": found},
    )


def _row(user: User, number_of: dict[str, int]) -> dict[str, Any]:
    """Returns a user, titles by their numbers; new ones get the next."""

    def number(title: str) -> int:
        return number_of.setdefault(title, len(number_of))

    row = {field.name: getattr(user, field.name) for field in dataclasses.fields(user)}
    for name in ("history", "candidates"):
        row[name] = [number(title) for title in row[name]]
    if (found := row.pop("explanation")) is not None:
        kept = {name: found[name] for name in _EXPLANATION}
        items = [{**item, "title": number(item["title"])} for item in found["items"]]
        row["explanation"] = {**kept, "items": items}
    return row


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
