"""A language model ranks the candidates of an instruction, zero-shot: questions and their answers.

The paper's GPT-3.5 rows. A model is shown an instruction as a template renders it, scrubbed and as
a block of data, and ranks its candidates in one of two ways:

* "answer": it writes their titles, best first. An answer counts only if it names every candidate
  once and nothing else; any other is a miss, whatever the target is: all candidates are ranked as
  equal, which counts against the target. Nothing is asked twice.
* "likelihood": each candidate's title follows the instruction, and its log-probability is asked.
  A line break ends the title, as EOS does for our own models.

No question depends on which candidate is the target.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np

from instructrec_jax import files
from instructrec_jax.instructions.language import LIST_SEPARATOR, Variant, plain_title
from instructrec_jax.instructions.render import render_record
from instructrec_jax.records import InstructionRecord
from instructrec_jax.settings import Count, Natural, OneOf, Range, Seed, check_fields
from instructrec_jax.teacher.filters import NO_ROOM, REFUSAL
from instructrec_jax.teacher.likelihoods import log_likelihood
from instructrec_jax.teacher.prompts import LIKELIHOOD, RANKING, Prompt, read_prompt
from instructrec_jax.teacher.questions import Answer, Question
from instructrec_jax.teacher.scrubbing import scrub

BY_ANSWER, BY_LIKELIHOOD = "answer", "likelihood"
FAIL, MISS = "fail", "miss"
PAPER_INSTANCES = 500
UNANSWERED = "unanswered"
_TITLE_TOKENS = 8  # around a title, in JSON
_ITEM_MARK = re.compile(r"\s*(?:\d{1,4}[.):]|[-*\u2022])\s+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankSettings:
    """What decides the questions beside the records.

    Attributes:
      model: of the server, as it names it.
      by: "answer": the model writes the titles in its order; "likelihood": each title is scored by
        its log-probability, where the server gives it (completions with echo and logprobs).
      split: "validation" or "test".
      num_instances: examples of each task, drawn by the seed; 0 for all.
      temperature: of sampling.
      max_tokens: of an answer; by default as many as the titles can take. A model that reasons
        before it answers needs some thousands.
      unanswered: what becomes of a question that the server gave no answer to: "fail", or "miss",
        which counts it as an answer that is of no use.
      seed: of the draw.
    """

    model: str
    by: Annotated[str, OneOf((BY_ANSWER, BY_LIKELIHOOD))] = BY_ANSWER
    split: Annotated[str, OneOf(("validation", "test"))] = "test"
    num_instances: Natural = PAPER_INSTANCES
    temperature: Annotated[float, Range(0, 2)] = 0.0
    max_tokens: Count | None = None
    unanswered: Annotated[str, OneOf((FAIL, MISS))] = FAIL
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def prompt(self) -> Prompt:
        """The prompt around every instruction."""
        return read_prompt(RANKING if self.by == BY_ANSWER else LIKELIHOOD)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instance:
    """One example whose candidates are ranked.

    Attributes:
      record: the example.
      titles: [c] of its candidates, as the question shows them.
      questions: the one question; by likelihood the instruction alone, then with each title.
    """

    record: InstructionRecord
    titles: tuple[str, ...]
    questions: tuple[Question, ...]

    @property
    def expected_tokens(self) -> int:
        """The usual tokens of an answer, for estimates."""
        if len(self.questions) > 1:
            return 1
        return sum(len(title) // 4 + 3 for title in self.titles)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranking:
    """What the answers say of the candidates of an instance.

    Attributes:
      values: float32 [c], higher is better: minus the rank, or the log-likelihood.
      num_tokens: int32 [c]; None where the model has written the order.
      reason: why the answer gives no order, and all candidates are equal; "" where it does.
    """

    values: np.ndarray
    num_tokens: np.ndarray | None = None
    reason: str = ""


def instance_of(variant: Variant, record: InstructionRecord, settings: RankSettings) -> Instance:
    """Returns an example with its questions.

    Args:
      variant: renders the instruction.
      record: the example; every text of it is scrubbed first.
      settings: how it is asked.
    """
    record = _scrubbed(record)
    titles = tuple(map(plain_title, record.candidates))
    instruction, _ = render_record(variant, record)
    prompt, is_answer = settings.prompt, settings.by == BY_ANSWER
    needed = sum(len(title.encode()) // 2 + _TITLE_TOKENS for title in titles)
    question = prompt.question(
        {"request": [scrub(instruction)]},
        model=settings.model,
        temperature=settings.temperature,
        max_tokens=(settings.max_tokens or prompt.max_tokens + needed) if is_answer else None,
    )
    if is_answer:
        return Instance(record=record, titles=titles, questions=(question,))
    ends = ["", *(f" {title}\n" for title in titles)]
    questions = [dataclasses.replace(question, continuation=end) for end in ends]
    return Instance(record=record, titles=titles, questions=tuple(questions))


def ranking_of(instance: Instance, answers: Mapping[str, Answer]) -> Ranking:
    """Returns what the answers say.

    Args:
      instance: the example.
      answers: by key of the question; some may be missing.
    """
    found = [answers.get(question.key) for question in instance.questions]
    given = [answer for answer in found if answer is not None]
    if len(given) < len(found):
        return _miss(instance, UNANSWERED)
    prompt, *with_titles = given
    if not with_titles:
        order, reason = _order_in(prompt, instance.titles)
        if reason:
            return _miss(instance, reason)
        # Of equal titles nobody can tell which is meant: both have the later place.
        place = {title: rank for rank, title in enumerate(order, start=1)}
        values = [-place[_key(title)] for title in instance.titles]
        return Ranking(values=np.array(values, np.float32))
    scored = [log_likelihood(prompt, answer) for answer in with_titles]
    sums = [each[0] for each in scored if each is not None]
    if len(sums) < len(scored):
        return _miss(instance, "no_tokens")
    num_tokens = np.array([each[1] for each in scored if each is not None], np.int32)
    return Ranking(values=np.array(sums, np.float32), num_tokens=num_tokens)


def _miss(instance: Instance, reason: str) -> Ranking:
    """Returns a ranking in which all candidates are equal, by any normaliser."""
    number = len(instance.titles)
    if len(instance.questions) == 1:
        return Ranking(values=np.full(number, -number, np.float32), reason=reason)
    ones = np.ones(number, np.int32)
    return Ranking(values=np.zeros(number, np.float32), num_tokens=ones, reason=reason)


def _order_in(answer: Answer, titles: Sequence[str]) -> tuple[list[str], str]:
    """Returns the keys of the titles that an answer names, in order, or why it is of no use."""
    if answer.finish_reason in ("refusal", "content_filter"):
        return [], "refusal"
    if answer.finish_reason == "length":
        return [], "cut" if answer.text.strip() else NO_ROOM
    wanted = Counter(map(_key, titles))
    named = _titles_in(answer.text, wanted)
    if named is None:
        return [], "malformed"
    found = Counter(named)
    if found.keys() - wanted.keys():
        return [], "refusal" if REFUSAL.search(answer.text) else "unknown_title"
    if any(found[title] > number for title, number in wanted.items()):
        return [], "repeated_title"
    return named, "" if found == wanted else "missing_title"


def _titles_in(text: str, wanted: Mapping[str, int]) -> list[str] | None:
    """Returns the keys of what an answer lists, as JSON or in plain text; None for half JSON."""
    begin = text.find("{")
    if begin >= 0:
        try:
            listed = files.parse_json(text[begin : text.rfind("}") + 1])["ranking"]
        except (ValueError, KeyError, TypeError):
            listed = None
        if isinstance(listed, list) and all(isinstance(title, str) for title in listed):
            return list(map(_key, listed))
        if text.lstrip().startswith(("{", "```")):
            return None
    lines = [part for line in text.splitlines() for part in line.split(LIST_SEPARATOR)]
    return [
        key if (key := _key(line)) in wanted else _key(_ITEM_MARK.sub("", line, count=1))
        for line in lines
        if line.strip()
    ]


def _key(title: str) -> str:
    """Returns what two spellings of a title share: its words, whatever the case and the blanks."""
    return plain_title(scrub(title)).strip("\"'` ").casefold()


def _scrubbed(record: InstructionRecord) -> InstructionRecord:
    """Returns a record whose texts may stand in a prompt."""

    def clean(texts: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(scrub, texts))

    return dataclasses.replace(
        record,
        history=clean(record.history),
        candidates=clean(record.candidates),
        target=scrub(record.target),
        preference=clean(record.preference),
        vague_intention=clean(record.vague_intention),
        second_vague_intention=clean(record.second_vague_intention),
        specific_intention=scrub(record.specific_intention),
        context=scrub(record.context),
    )
