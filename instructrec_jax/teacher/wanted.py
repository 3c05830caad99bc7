"""Which texts are asked of a language model: positions of each user, and the question on each.

The paper has three preferences and two intentions a user (its Table 2: 151,638 and 101,092 texts
on 50,546 users) and does not say on which positions. The setting "paper" asks for

* the preferences that the items before the last training target, the validation target and the
  test target show;
* the intention behind the test target (I1);
* one more intention: behind the validation target for `VALIDATION_TENTHS` of the users, since a
  template is chosen on few examples as well as on many; behind the last training target for the
  others, `SECOND_TENTHS` of all users in the second rendering (I1*), which the paper trains on.

Further renderings may be asked for, at training targets alone: "paraphrase" words each text once
more, "back_translation" has a model say what somebody may want whom the target would please. They
stand after the other texts of their row; training draws among all, evaluation takes the first.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np

from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.records import History, Item
from instructrec_jax.seeds import stable_seed
from instructrec_jax.settings import Count, OneOf, Range, Seed, check_fields
from instructrec_jax.teacher.prompts import (
    BACK_TRANSLATION,
    INTENTION,
    PARAPHRASE,
    PREFERENCE,
    SECOND_INTENTION,
    Prompt,
    read_prompt,
)
from instructrec_jax.teacher.questions import Question
from instructrec_jax.teacher.scrubbing import scrub

PAPER, ALL = "paper", "all"
VALIDATION_TENTHS, SECOND_TENTHS = 1, 3  # of 10 users
USERS_A_BLOCK = 512  # whose questions are made at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class WantedSettings:
    """What decides the questions beside the prepared data.

    Attributes:
      model: of the server, as it names it.
      positions: "paper" asks for three preferences and two intentions a user, "all" for a text on
        every position.
      second_intentions: ask for a second rendering (I1*) of each intention too; without it "paper"
        has it for three users in ten in place of the first, "all" not at all.
      no_review_text: send no review, and so ask for no intention.
      max_users: users that get texts, drawn by the seed; without it all.
      temperature: of sampling.
      max_tokens: most tokens of an answer, hidden reasoning included; without it the prompt's 120
        to 160, too few for a model that reasons. Another number makes other questions, which are
        asked anew.
      augment: further renderings for training: "paraphrase", "back_translation" or both.
      seed: of the draws.
    """

    model: str
    positions: Annotated[str, OneOf((PAPER, ALL))] = PAPER
    second_intentions: bool = False
    no_review_text: bool = False
    max_users: Count | None = None
    temperature: Annotated[float, Range(0, 2)] = 1.0
    max_tokens: Count | None = None
    augment: Sequence[Annotated[str, OneOf((PARAPHRASE, BACK_TRANSLATION))]] = ()
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the kinds of text that are asked for."""
        kinds = [PREFERENCE]
        if not self.no_review_text:
            has_second = self.second_intentions or self.positions == PAPER
            kinds += [INTENTION, *([SECOND_INTENTION] * has_second)]
        return tuple(map(read_prompt, [*kinds, *sorted(set(self.augment))]))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """One text that is asked for.

    Attributes:
      prompt: by which it is asked.
      user_id: as in the raw log; no question holds it.
      position: in the user's history.
      lines: scrubbed titles, or the one scrubbed review, that the question shows.
      question: the first question.
      target: the item at the position, which the teacher is not shown but in a back-translation.
      fills: the kind of text that it is in a row: preference, intention or second intention.
      is_paraphrased: whether another wording of it is asked for.
    """

    prompt: Prompt
    user_id: str
    position: int
    lines: tuple[str, ...]
    question: Question
    target: Item
    fills: str
    is_paraphrased: bool = False

    def paraphrase(self, text: str) -> "Wanted":
        """Returns another wording of what was written, as a text that is asked for."""
        lines, prompt = (scrub(text),), read_prompt(PARAPHRASE)
        question = prompt.question(
            {"sentence": lines},
            model=self.question.model,
            temperature=self.question.temperature,
            max_tokens=max(self.question.max_tokens, prompt.max_tokens),
        )
        return dataclasses.replace(
            self, prompt=prompt, lines=lines, question=question, is_paraphrased=False
        )


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
        number = 0
        for user in self._users().tolist():
            history = self._data.histories[user]
            number += len(self._preference_positions(len(history.item_ids)))
            for position, kinds in self._intention_places(history):
                number += len(kinds) * (history.review_rows[position] >= 0)
            number += len(self._back_translated(len(history.item_ids)))
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
        for position in self._preference_positions(len(history.item_ids)):
            titles = tuple(map(self._title, history.item_ids[:position]))
            yield self._wanted(PREFERENCE, history, position, titles)
        reviewed = dict(self._intention_places(history))
        back_translated = self._back_translated(len(history.item_ids))
        for position in sorted({*reviewed, *back_translated}):
            if position in reviewed:
                yield from self._of_review(history, position, reviewed[position])
            if position in back_translated:
                item = self._data.items[history.item_ids[position]]
                lines = [
                    scrub(text, self._scrubbed) for text in (item.title, item.category) if text
                ]
                yield self._wanted(BACK_TRANSLATION, history, position, tuple(lines))

    def _of_review(
        self, history: History, position: int, kinds: tuple[str, ...]
    ) -> Iterator[Wanted]:
        """Yields the intentions of a review, if there is one."""
        if history.review_rows[position] < 0:
            self.counts["positions_without_review"] += 1
            return
        review = scrub(self._data.reviews[history.review_rows[position]], self._scrubbed)
        for kind in kinds:
            yield self._wanted(kind, history, position, (review,))

    def _wanted(self, kind: str, history: History, position: int, lines: tuple[str, ...]) -> Wanted:
        settings, prompt = self._settings, read_prompt(kind)
        (slot,) = prompt.slots
        question = prompt.question(
            {slot: lines},
            model=settings.model,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
        )
        return Wanted(
            prompt=prompt,
            user_id=history.user_id,
            position=position,
            lines=lines,
            question=question,
            target=self._data.items[history.item_ids[position]],
            fills=INTENTION if kind == BACK_TRANSLATION else kind,
            is_paraphrased=PARAPHRASE in settings.augment
            and kind != BACK_TRANSLATION
            and position < len(history.item_ids) - 2,
        )

    def _back_translated(self, length: int) -> range:
        """Returns the training targets that a request is made from, if any is asked for."""
        if BACK_TRANSLATION not in self._settings.augment:
            return range(0)
        first = 0 if self._settings.positions == ALL else max(length - 3, 0)
        return range(first, max(length - 2, 0))

    def _preference_positions(self, length: int) -> list[int]:
        """Returns positions that have items before them."""
        first = 1 if self._settings.positions == ALL else max(1, length - 3)
        return list(range(first, length))

    def _intention_places(self, history: History) -> list[tuple[int, tuple[str, ...]]]:
        """Returns positions whose review is read, if there is one, with the kinds of text."""
        settings, length = self._settings, len(history.review_rows)
        if not length or settings.no_review_text:
            return []
        both = (INTENTION, SECOND_INTENTION)
        kinds = both if settings.second_intentions else (INTENTION,)
        if settings.positions == ALL:
            return [(position, kinds) for position in range(length)]
        about = (settings.seed, self._data.dataset, "intention", history.user_id)
        tenth = stable_seed(*about) % 10
        if tenth < VALIDATION_TENTHS:
            return [(length - 2, kinds), (length - 1, kinds)]
        is_second = tenth < VALIDATION_TENTHS + SECOND_TENTHS and not settings.second_intentions
        return [(length - 3, (SECOND_INTENTION,) if is_second else kinds), (length - 1, kinds)]

    def _title(self, item_id: int) -> str:
        """Returns the title of an item, scrubbed; each is counted once."""
        if item_id not in self._titles:
            self._titles[item_id] = scrub(self._data.items[item_id].title, self._scrubbed)
        return self._titles[item_id]
