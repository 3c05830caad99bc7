"""What the ledger's answers give of the texts that were asked for, as rows of artefact B."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Protocol

from instructrec_jax.records import Annotation
from instructrec_jax.teacher.filters import Verdict, judge
from instructrec_jax.teacher.prompts import INTENTION, PARAPHRASE, PREFERENCE, SECOND_INTENTION
from instructrec_jax.teacher.questions import Answer, Question
from instructrec_jax.teacher.texts import INTENTIONS, PREFERENCES, Row, Table, as_table
from instructrec_jax.teacher.wanted import Wanted

UNANSWERED = "unanswered"


class Answers(Protocol):
    """What keeps answers: the ledger."""

    def answers(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Returns the answers to those questions that have one, by key."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one text.

    Attributes:
      wanted: what was asked for.
      verdict: on the last answer; "unanswered" where a question waits.
      answer: the last answer, None where there is none.
      retry: the question that is still to be asked, if the first answer is worth it.
    """

    wanted: Wanted
    verdict: Verdict
    answer: Answer | None = None
    retry: Question | None = None


def outcomes(block: Iterable[Wanted], ledger: Answers) -> Iterator[Outcome]:
    """Yields what became of each text of a block, in its order, each before its paraphrase."""
    found = list(_outcomes(list(block), ledger))
    paraphrases = {
        at: outcome.wanted.paraphrase(outcome.verdict.text)
        for at, outcome in enumerate(found)
        if outcome.wanted.is_paraphrased and outcome.verdict.text
    }
    worded = dict(zip(paraphrases, _outcomes([*paraphrases.values()], ledger), strict=True))
    for at, outcome in enumerate(found):
        yield outcome
        if at in worded:
            yield worded[at]


def _outcomes(block: list[Wanted], ledger: Answers) -> Iterator[Outcome]:
    """Yields what became of each text that was asked for from the start, or of each paraphrase."""
    first = ledger.answers(wanted.question.key for wanted in block)
    judged = [
        (wanted, judge(wanted, found)) if (found := first.get(wanted.question.key)) else None
        for wanted in block
    ]
    retries = {
        at: made[0].prompt.retry(made[0].question)
        for at, made in enumerate(judged)
        if made is not None and made[1].is_worth_a_retry and made[0].prompt.firmer
    }
    second = ledger.answers(question.key for question in retries.values())
    for at, wanted in enumerate(block):
        retry, made = retries.get(at), judged[at]
        if made is None:
            yield Outcome(wanted=wanted, verdict=Verdict(reason=UNANSWERED))
        elif retry is None:
            answer = first[wanted.question.key]
            yield Outcome(wanted=wanted, verdict=made[1], answer=answer)
        elif (again := second.get(retry.key)) is not None:
            yield Outcome(wanted=wanted, verdict=judge(wanted, again), answer=again)
        else:
            yield Outcome(wanted=wanted, verdict=Verdict(reason=UNANSWERED), retry=retry)


class Collected:
    """Rows of artefact B from outcomes, with what they count.

    Attributes:
      counts: texts asked for and written.
      drops: texts left out, by kind and reason.
      written_by: model, prompt versions and date of the last answer, by the version of a row.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()
        self.written_by: dict[str, dict[str, Any]] = {}
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        """The sha256 of all verdicts and texts so far, in order."""
        return self._digest.hexdigest()

    def tables(self, found: Iterable[Outcome]) -> dict[str, Table]:
        """Returns the rows of a block of whole users, by the name of their file.

        A preference that was left out has no row, so that the one before it serves on; a review
        that gave no intention has a row without texts. What is unanswered has no row.
        """
        rows: dict[str, list[Row]] = {PREFERENCES: [], INTENTIONS: []}
        for (user_id, position, about), group in groupby(found, _place):
            parts = list(group)
            kept: dict[str, tuple[str, ...]] = {}
            for part in parts:
                kept[part.wanted.fills] = kept.get(part.wanted.fills, ()) + self._count(part)
            texts = kept.get(PREFERENCE if about == PREFERENCES else INTENTION, ())
            second = kept.get(SECOND_INTENTION, ())
            if all(part.answer is None for part in parts) or (about == PREFERENCES and not texts):
                continue
            annotation = Annotation(texts=texts, second_texts=second, version=self._version(parts))
            rows[about].append(Row(user_id=user_id, position=position, annotation=annotation))
        for name, made in rows.items():
            having = {row.user_id for row in made if row.annotation.texts}
            self.counts[f"users_with_{name}"] += len(having)
        return {name: as_table(name, made) for name, made in rows.items()}

    def _count(self, part: Outcome) -> tuple[str, ...]:
        """Counts a text as written or left out; returns it if it was written."""
        kind, verdict = part.wanted.prompt.kind, part.verdict
        if kind == PARAPHRASE:
            self.counts["paraphrases_asked"] += 1
        self._digest.update(f"{part.wanted.question.key}\x1f{verdict}\x1e".encode())
        if verdict.reason:
            self.drops[f"{kind}s_{verdict.reason}"] += 1
            return ()
        self.counts[f"{kind}s"] += 1
        return (verdict.text,)

    def _version(self, parts: Iterable[Outcome]) -> str:
        """Returns who wrote a row, and notes the details."""
        parts = list(parts)
        model = parts[0].wanted.question.model
        prompts = [part.wanted.prompt.version for part in parts]
        version = f"{model} {' '.join(prompts)}"
        dates = [part.answer.date for part in parts if part.answer is not None]
        known = self.written_by.setdefault(
            version, {"model": model, "prompt_version": ", ".join(prompts), "date": None}
        )
        known["date"] = max([*dates, *([known["date"]] * bool(known["date"]))], default=None)
        return version


def _place(found: Outcome) -> tuple[str, int, str]:
    """Returns to which row a text belongs."""
    wanted = found.wanted
    about = PREFERENCES if wanted.fills == PREFERENCE else INTENTIONS
    return wanted.user_id, wanted.position, about
