"""Runs the checks of `report.validity` on each scenario of a report."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.baselines.chance import Chance
from instructrec_jax.data.columnar import TEST
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.builder import RecordBuilder, RecordSettings
from instructrec_jax.instructions.language import Variant
from instructrec_jax.instructions.task_modules import find_variant
from instructrec_jax.metrics import ranking
from instructrec_jax.records import CandidateList, InstructionRecord, TeacherTexts
from instructrec_jax.report import validity
from instructrec_jax.report.validity import Check, Preference
from instructrec_jax.seeds import stable_seed
from instructrec_jax.stages.report.systems import Run
from instructrec_jax.stages.run_data import LABELS, SHUFFLED

NUM_RECORDS = 500  # test examples of a scenario whose prompts and texts are looked at
_SEED = 0


class Checks:
    """What is known of the data, to check any scenario."""

    def __init__(self, data: PreparedData, texts: TeacherTexts | None, *, task_module: str) -> None:
        """Takes what records are made from.

        Args:
          data: artefact A.
          texts: artefact B; None where it was not given.
          task_module: module whose templates were scored.
        """
        self._data, self._texts, self._task_module = data, texts, task_module
        self._builder = RecordBuilder(data, RecordSettings(), texts)
        self._numbers = functools.cache(self._numbers_of)

    def variant(self, template_id: str) -> Variant | None:
        """Returns the template of an id, None where the module has none."""
        try:
            return find_variant(self._task_module, template_id)
        except UserError:
            return None

    def of(self, runs: Sequence[Run], firsts: NDArray[np.int64]) -> list[Check]:
        """Returns all checks of one scenario, those that could not be run among them.

        Args:
          runs: of the baselines and the systems, all of the same examples.
          firsts: row of the first example of each event.
        """
        examples = runs[-1].examples
        tables = {run.name: run.table for run in runs}
        example_ids = [example.example_id for example in examples]
        prepared = ranking.stack_rows([np.array(e.candidate_ids, np.int64) for e in examples], -1)
        ids = {"prepared data": prepared} | {n: own.candidate_ids for n, own in tables.items()}
        # As they were drawn: what a system has written may be in another order.
        targets = np.array([e.candidate_ids.index(e.target_id) for e in examples], np.int64)
        sizes = (prepared >= 0).sum(axis=1)
        drawn = self._drawn(examples)
        records = list(self.records(drawn))
        return [
            *validity.known_scorers(example_ids, prepared, targets),
            self._random(runs, sizes),
            validity.same_candidates(example_ids, ids),
            validity.target_indices(prepared[firsts], targets[firsts]),
            validity.histories(examples, self._data),
            self._preferences(drawn, records),
            self._label_swap(runs, records),
            _shuffled(runs, sizes, firsts),
        ]

    def _random(self, runs: Sequence[Run], sizes: NDArray[np.int64]) -> Check:
        """Checks the row of the random baseline."""
        own = [run for run in runs if run.name == Chance.name]
        if not own or own[0].scores.metadata["system"] != Chance.name:
            return validity.not_run(validity.RANDOM, f"{Chance.name!r} is another system here")
        return validity.at_chance(validity.RANDOM, own[0].ranks_and_ties()[0], sizes)

    def _drawn(self, examples: Sequence[CandidateList]) -> list[CandidateList]:
        """Returns some of the examples, the same in every report."""
        keys = [stable_seed(_SEED, "checked", example.example_id) for example in examples]
        return [examples[row] for row in np.sort(np.argsort(keys, kind="stable")[:NUM_RECORDS])]

    def records(self, examples: Sequence[CandidateList]) -> Iterator[InstructionRecord]:
        """Yields the records of examples as `build` makes them."""
        for example in examples:
            number = self._numbers(example.protocol)[example.example_id]
            yield from self._builder.records(example.protocol, TEST, range(number, number + 1))

    def _numbers_of(self, protocol: str) -> dict[str, int]:
        """Returns the numbers of the test examples of a protocol."""
        ids = self._data.evaluation(protocol, TEST).example_ids()
        return {example_id: number for number, example_id in enumerate(ids)}

    def _preferences(
        self, examples: Sequence[CandidateList], records: Sequence[InstructionRecord]
    ) -> Check:
        """Checks the texts on the users' tastes."""
        if self._texts is None:
            return validity.not_run(validity.PREFERENCES, "no --texts_dir names the texts")
        if examples[0].position < 0:
            return validity.not_run(validity.PREFERENCES, "no prompt of this scenario has a user")
        return validity.preferences(
            Preference(
                example_id=example.example_id,
                texts=record.preference,
                target=record.target,
                review=reviews[-1],
                history=record.history,
                history_reviews=reviews[:-1],
            )
            for example, record in zip(examples, records, strict=True)
            for reviews in [self._reviews(example)]
        )

    def _reviews(self, example: CandidateList) -> list[str]:
        """Returns the user's reviews up to that of the target, "" where there is none."""
        histories = self._data.histories
        if not len(histories.review_rows):
            return [""]
        number = self._numbers(example.protocol)[example.example_id]
        user = self._data.evaluation(example.protocol, TEST).columns.history_rows[number]
        begin = histories.starts[user]
        rows = histories.review_rows[begin : begin + example.position + 1].tolist()
        return [self._data.reviews[row] if row >= 0 else "" for row in rows]

    def _label_swap(self, runs: Sequence[Run], records: Sequence[InstructionRecord]) -> Check:
        """Checks the prompts of the templates by which systems ranked."""
        variants = {run.template: self.variant(run.template) for run in runs}
        known = [variant for variant in variants.values() if variant is not None]
        if not known:
            return validity.not_run(
                validity.LABEL_SWAP, f"{self._task_module} has no template of these systems"
            )
        return validity.label_swap(records, known)


def _shuffled(runs: Sequence[Run], sizes: NDArray[np.int64], firsts: NDArray[np.int64]) -> Check:
    """Checks a system that was trained on shuffled labels, where there is one."""
    own = [run for run in runs if run.scores.told(run.template).get(LABELS) == SHUFFLED]
    if not own:
        return validity.not_run(
            validity.SHUFFLED,
            "no system was trained on records of `build --shuffled_labels` and scored with them",
        )
    rank, _ = own[0].ranks_and_ties()
    return validity.at_chance(validity.SHUFFLED, rank[firsts], sizes[firsts])
