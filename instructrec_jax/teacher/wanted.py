"""Which texts are asked of a language model: positions of each user, and the question on each.

The paper has three preferences and two intentions a user (its Table 2: 151,638 and 101,092 texts
on 50,546 users) and does not say on which positions. The setting "paper" asks for the preferences
that the items before the last training target, the validation target and the test target show, and
for the intentions behind the test target and one more: the last training target, or the validation
target for one user in `VALIDATION_EVERY`. A template is chosen on few validation examples as well
as on many, and training needs the rest.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Annotated

import numpy as np

from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.records import History, Item
from instructrec_jax.seeds import stable_seed
from instructrec_jax.settings import Count, OneOf, Range, Seed, check_fields
from instructrec_jax.teacher.prompts import (
    INTENTION,
    PREFERENCE,
    SECOND_INTENTION,
    Prompt,
    read_prompt,
)
from instructrec_jax.teacher.questions import Question
from instructrec_jax.teacher.scrubbing import scrub

PAPER, ALL = "paper", "all"
VALIDATION_EVERY = 10
USERS_A_BLOCK = 512  # whose questions are made at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class WantedSettings:
    """What decides the questions beside the prepared data.

    Attributes:
      model: of the server, as it names it.
      positions: "paper" asks for three preferences and two intentions a user, "all" for a text on
        every position.
      second_intentions: ask for a second rendering of each intention too (I1*).
      no_review_text: send no review, and so ask for no intention.
      max_users: users that get texts, drawn by the seed; without it all.
      temperature: of sampling.
      seed: of the draws.
    """

    model: str
    positions: Annotated[str, OneOf((PAPER, ALL))] = PAPER
    second_intentions: bool = False
    no_review_text: bool = False
    max_users: Count | None = None
    temperature: Annotated[float, Range(0, 2)] = 1.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the kinds of text that are asked for."""
        kinds = [PREFERENCE]
        if not self.no_review_text:
            kinds += [INTENTION, *([SECOND_INTENTION] * self.second_intentions)]
        return tuple(map(read_prompt, kinds))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """One text that is asked for.

    Attributes:
      prompt: by which it is asked.
      user_id: as in the raw log; no question holds it.
      position: in the user's history.
      lines: scrubbed titles, or the one scrubbed review, that the question shows.
      question: the first question.
      target: the item at the position, which the teacher is not shown.
    """

    prompt: Prompt
    user_id: str
    position: int
    lines: tuple[str, ...]
    question: Question
    target: Item


class WantedTexts:
    """All texts that are asked for, block by block of users, in the order of users and positions.

    Attributes:
      counts: of the walk under way or just ended: users, texts by kind, and what was scrubbed.
    """

    def __init__(self, data: PreparedData, settings: WantedSettings) -> None:
        self._data, self._settings = data, settings
        self._titles: dict[int, str] = {}
        self.counts: Counter[str] = Counter()
        self._scrubbed: Counter[str] = Counter()

    @property
    def num_blocks(self) -> int:
        """The number of blocks."""
        return -(-len(self._users()) // USERS_A_BLOCK)

    def total(self) -> int:
        """Returns how many texts are asked for, without their questions being made."""
        number, kinds = 0, len(self._settings.prompts) - 1
        for user in self._users().tolist():
            history = self._data.histories[user]
            number += len(self._preference_positions(len(history.item_ids)))
            if kinds:
                rows = (history.review_rows[at] for at in self._intention_positions(history))
                number += kinds * sum(row >= 0 for row in rows)
        return number

    def __iter__(self) -> Iterator[list[Wanted]]:
        """Yields the texts of the users of each block."""
        self.counts, self._scrubbed = Counter(), Counter()
        self._titles.clear()
        users = self._users()
        for begin in range(0, len(users), USERS_A_BLOCK):
            block: list[Wanted] = []
            for user in users[begin : begin + USERS_A_BLOCK].tolist():
                block += self._of_user(self._data.histories[user])
            self.counts["users"] += min(USERS_A_BLOCK, len(users) - begin)
            self.counts.update(f"{wanted.prompt.kind}s_asked" for wanted in block)
            yield block
        self.counts.update({f"scrubbed/{name}": n for name, n in self._scrubbed.items()})

    def _users(self) -> np.ndarray:
        """Returns the indices of the users that get texts, ascending."""
        number, most = len(self._data.histories), self._settings.max_users
        if most is None or most >= number:
            return np.arange(number)
        seed = stable_seed(self._settings.seed, self._data.dataset, "users of the teacher")
        return np.sort(np.random.default_rng(seed).choice(number, size=most, replace=False))

    def _of_user(self, history: History) -> Iterator[Wanted]:
        """Yields the texts of a user: preferences, then the intentions of each review."""
        about, *behind = self._settings.prompts
        for position in self._preference_positions(len(history.item_ids)):
            titles = tuple(map(self._title, history.item_ids[:position]))
            yield self._wanted(about, history, position, titles)
        for position in self._intention_positions(history) if behind else ():
            if history.review_rows[position] < 0:
                self.counts["positions_without_review"] += 1
                continue
            review = scrub(self._data.reviews[history.review_rows[position]], self._scrubbed)
            for prompt in behind:
                yield self._wanted(prompt, history, position, (review,))

    def _wanted(
        self, prompt: Prompt, history: History, position: int, lines: tuple[str, ...]
    ) -> Wanted:
        settings = self._settings
        return Wanted(
            prompt=prompt,
            user_id=history.user_id,
            position=position,
            lines=lines,
            question=prompt.question(lines, model=settings.model, temperature=settings.temperature),
            target=self._data.items[history.item_ids[position]],
        )

    def _preference_positions(self, length: int) -> list[int]:
        """Returns positions that have items before them."""
        first = 1 if self._settings.positions == ALL else max(1, length - 3)
        return list(range(first, length))

    def _intention_positions(self, history: History) -> list[int]:
        """Returns positions whose review is read, if there is one."""
        length = len(history.review_rows)
        if not length:
            return []
        if self._settings.positions == ALL:
            return list(range(length))
        draw = stable_seed(self._settings.seed, self._data.dataset, "intention", history.user_id)
        return [length - (2 if draw % VALIDATION_EVERY == 0 else 3), length - 1]

    def _title(self, item_id: int) -> str:
        """Returns the title of an item, scrubbed; each is counted once."""
        if item_id not in self._titles:
            self._titles[item_id] = scrub(self._data.items[item_id].title, self._scrubbed)
        return self._titles[item_id]
