"""Which question is asked next: the stream, what the ledger holds already, and the money."""

import collections
import itertools
import logging
import time
from collections.abc import Callable, Iterable

from instructrec_jax.errors import UserError
from instructrec_jax.progress import Progress
from instructrec_jax.teacher.ledger import Ledger, Verdict
from instructrec_jax.teacher.prices import Price, price_of
from instructrec_jax.teacher.questions import Answer, Question
from instructrec_jax.teacher.settings import BATCH, ClientSettings

logger = logging.getLogger(__name__)
_AHEAD = 1000  # questions taken from the stream at a time
_SECONDS_ELSEWHERE = 1.0  # before a question that another run is asking is looked at again
_FAILURES_IN_A_ROW = 20  # questions without an answer, after which the run gives up
_EMPTY_IN_A_ROW = 50  # paid answers without room for any text, likewise


class Claiming:
    """The questions of one run, until each is answered. Used by one thread at a time.

    Attributes:
      ledger: where claims and answers are entered.
      counts: what came of the questions.
      problem: what ends the run; None: nothing does.
    """

    def __init__(
        self,
        questions: Iterable[Question],
        ledger: Ledger,
        settings: ClientSettings,
        progress: Progress,
    ) -> None:
        self.ledger, self.counts = ledger, collections.Counter[str]()
        self.problem: Exception | None = None
        self._questions, self._settings, self._progress = iter(questions), settings, progress
        self._waiting: collections.deque[Question] = collections.deque()
        self._elsewhere: collections.deque[Question] = collections.deque()
        self._look_elsewhere_at = 0.0
        self._is_read = False
        self._prices: dict[str, Price | None] = {}
        self._failures_in_a_row = self._empty_in_a_row = 0

    @property
    def is_over(self) -> bool:
        """Whether no question is left that could be claimed, now or later."""
        return self._is_read and not self._waiting and not self._elsewhere

    def take(self, number: int) -> list[Question]:
        """Returns up to so many questions that had no answer a moment ago; [] for none right now.

        Reads at most a thousand of the stream, so that signals are seen in between.
        """
        self._look_elsewhere()
        if len(self._waiting) < number and not self._is_read and self.problem is None:
            try:
                some = list(itertools.islice(self._questions, _AHEAD))
            except Exception as error:  # what was answered is entered all the same
                self.problem, some = error, []
            self._is_read = len(some) < _AHEAD
            answered = self.ledger.answered([question.key for question in some])
            self._skip(sum(question.key in answered for question in some))
            self._waiting.extend(q for q in some if q.key not in answered)
        return [self._waiting.popleft() for _ in range(min(number, len(self._waiting)))]

    def put_back(self, questions: Iterable[Question]) -> None:
        """Puts questions before all others."""
        self._waiting.extendleft(reversed(list(questions)))

    def exchange(
        self,
        enter: Callable[[], None],
        wanted: list[Question],
        *,
        in_flight: int,
        part: str | None = None,
    ) -> list[Question]:
        """Enters what is done and claims what is wanted, safely on disk; returns what is ours.

        Args:
          enter: enters what is done in the ledger.
          wanted: from `take`.
          in_flight: requests still under way, whose ends may leave money.
          part: the batch that will hold what is claimed.
        """
        priced = [(q, usd) for q in wanted if (usd := self._worst_usd(q)) is not None]

        def work() -> list[Verdict]:
            enter()
            return [
                self.ledger.claim(q, worst_usd=usd, max_usd=self._settings.max_usd, part=part)
                for q, usd in priced
            ]

        verdicts = self.ledger.write(work)
        by_verdict: dict[Verdict, list[Question]] = collections.defaultdict(list)
        for (question, _), verdict in zip(priced, verdicts, strict=True):
            by_verdict[verdict].append(question)
        claimed = by_verdict[Verdict.CLAIMED]
        self._skip(len(by_verdict[Verdict.ANSWERED]) + len(by_verdict[Verdict.REPEATED]))
        self._set_aside(by_verdict[Verdict.ELSEWHERE])
        self.counts["in_batches"] += len(by_verdict[Verdict.IN_BATCH])
        if too_dear := by_verdict[Verdict.TOO_DEAR]:
            self.put_back(too_dear)
            if not claimed and not in_flight:
                self.problem = self.problem or self._no_money()
        if by_verdict[Verdict.DISK_FULL]:
            self.problem = self.problem or self.ledger.disk_full()
        return claimed

    def enter_answer(self, answer: Answer) -> None:
        """Counts and shows an answer that is in the ledger."""
        self.counts["answered"] += 1
        self._failures_in_a_row = 0
        is_empty = answer.finish_reason == "length" and not answer.text.strip()
        self._empty_in_a_row = self._empty_in_a_row + 1 if is_empty else 0
        if self._empty_in_a_row >= _EMPTY_IN_A_ROW and self.problem is None:
            self.problem = UserError(
                f"the last {self._empty_in_a_row} answers ended at their most tokens before any "
                "text, as those of a model do that reasons first; run again with a larger "
                "--max_tokens, such as 2000, or with another model: such answers are paid for too"
            )
        self._progress.advance(1, f"{self.ledger.spent():.2f} USD")

    def enter_failure(self, reason: str, said: str) -> None:
        """Counts a question that will get no answer in this run."""
        if not self.counts[f"failed: {reason}"]:
            logger.warning("a question got no answer: %s (%s)", reason, said[:200])
        self.counts["failed"] += 1
        self.counts[f"failed: {reason}"] += 1
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW and self.problem is None:
            self.problem = UserError(
                f"the last {self._failures_in_a_row} questions got no answer from "
                f"{self._settings.base_url}: {reason} ({said[:200]}); mend that and run the same "
                "command again: it goes on from there"
            )

    def price(self, model: str) -> Price | None:
        """Returns the price of a model, None where none is known, which is told once.

        Raises:
          UserError: if none is known and money is limited.
        """
        if model not in self._prices:
            found = price_of(model, self._settings.prices)
            if found is None and self._settings.max_usd is not None:
                raise UserError(
                    f"no price is known for model {model!r}, so max_usd cannot be kept; name a "
                    f'JSON file with --prices: {{"{model}": {{"input_usd": 0.15, '
                    '"output_usd": 0.6}}, USD per million tokens'
                )
            if found is None:
                logger.warning("no price is known for model %r: its cost is not counted", model)
            self._prices[model] = found
        return self._prices[model]

    def _worst_usd(self, question: Question) -> float | None:
        """Returns the most that a question can cost; None where the run must end."""
        try:
            price = self.price(question.model)
        except UserError as error:
            self.problem = self.problem or error
            return None
        is_batch = self._settings.mode == BATCH
        return 0.0 if price is None else price.worst_usd(question, is_batch=is_batch)

    def _skip(self, number: int) -> None:
        """Counts questions that are no work: answered or asked already."""
        self.counts["answered_before"] += number
        self._progress.done += number

    def _set_aside(self, questions: list[Question]) -> None:
        if questions and not self._elsewhere:
            logger.info("another run is asking some of the questions; they are left to it")
            self._look_elsewhere_at = time.monotonic() + _SECONDS_ELSEWHERE
        self._elsewhere.extend(questions)

    def _look_elsewhere(self) -> None:
        """Looks again at what other runs were asking: once they are answered, or nobody does."""
        if self._elsewhere and time.monotonic() > self._look_elsewhere_at:
            answered = self.ledger.answered([question.key for question in self._elsewhere])
            self._skip(sum(question.key in answered for question in self._elsewhere))
            left = [q for q in self._elsewhere if q.key not in answered]
            self._elsewhere.clear()
            self._look_elsewhere_at = time.monotonic() + _SECONDS_ELSEWHERE
            self.put_back(left)

    def _no_money(self) -> UserError:
        total = self._progress.total
        of_all = "" if total is None else f" of {total:,}"
        return UserError(
            f"max_usd={self._settings.max_usd} is reached: {self.ledger.spent():.4f} USD are spent "
            f"and the next question may cost more than is left; {self._progress.done:,}{of_all} "
            "answers are in the ledger; raise max_usd and run the same command again to go on"
        )
