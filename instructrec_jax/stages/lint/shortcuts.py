"""Rules that know nothing of titles or tastes: `lint` measures what each alone gets of the test."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from instructrec_jax.data.columnar import CONFIGS, TEST, TRAIN
from instructrec_jax.instructions.lint import Finding, Severity
from instructrec_jax.metrics import ranking
from instructrec_jax.pipeline.record_store import Columns, column_batches
from instructrec_jax.report.lint_report import Shortcut

_FIELDS = ("user_id", "target_id", "candidate_ids", "candidates")
_DEVIATIONS = 4.0  # above chance, in standard errors; by accident 3 of 100,000 rules have as much


def find_shortcuts(dataset: str) -> list[Shortcut]:
    """Returns what each rule gets of the test records of a dataset of the data_dir in use."""
    found = []
    for config in CONFIGS:
        lists = _TestLists(dataset, config)
        if lists.num_lists:
            chance = float((1 / lists.is_there.sum(axis=1)).mean())
            for rule, values in lists.rules():
                masked = np.where(lists.is_there, values, -np.inf)
                rank, num_tied = ranking.ranks_and_ties(masked, lists.target_index)
                hits = ranking.expected_per_example(rank, num_tied)["hr@1"]
                found.append(
                    Shortcut(
                        config=config,
                        rule=rule,
                        num_examples=lists.num_lists,
                        hit_rate=float(hits.mean()),
                        chance=chance,
                    )
                )
    return found


def shortcut_findings(shortcuts: Sequence[Shortcut]) -> list[Finding]:
    """Returns a warning for each rule that ranks the target first more often than chance does."""
    findings = []
    for own in shortcuts:
        error = (own.chance * (1 - own.chance) / own.num_examples) ** 0.5
        if own.hit_rate > own.chance + _DEVIATIONS * error:
            findings.append(
                Finding(
                    severity=Severity.WARNING,
                    subject=own.config,
                    message=f"the rule '{own.rule}' alone has HR@1 {own.hit_rate:.3f} on "
                    f"{own.num_examples} test records, where chance is {own.chance:.3f}",
                )
            )
    return findings


class _TestLists:
    """The candidate lists of a config's test records, and what training shows of their items."""

    def __init__(self, dataset: str, config: str) -> None:
        """Reads the test records, then counts over the training records."""
        users, ids, targets, titles = [], [], [], []
        for batch in column_batches(dataset, config, TEST, _FIELDS):
            for user, target, candidates, names in zip(*(batch[n] for n in _FIELDS), strict=True):
                if target in candidates:
                    users.append(user)
                    ids.append(np.array(candidates, dtype=np.int64))
                    targets.append(ids[-1].tolist().index(target))
                    titles.append(np.argsort(np.argsort(np.array(names, dtype=object))))
        self.num_lists = len(users)
        self.target_index = np.array(targets, dtype=np.int64)
        self._ids = ranking.stack_rows(ids, -1)
        self._title_order = ranking.stack_rows(titles, 0)
        self.is_there = self._ids >= 0
        if self.num_lists:
            self._count(dataset, config, users)

    def rules(self) -> Iterator[tuple[str, npt.NDArray]]:
        """Yields each rule with its value of every candidate, the best one highest."""
        place = np.broadcast_to(np.arange(self._ids.shape[1]), self._ids.shape)
        for name, order in (
            ("item id", self._ids),
            ("place in the list", place),
            ("title by alphabet", self._title_order),
        ):
            yield f"first {name}", -order
            yield f"last {name}", order
        yield "least often a training negative", -self._times_negative
        yield "not trained on", ~self._is_trained_on

    def _count(self, dataset: str, config: str, users: Sequence[bytes]) -> None:
        """Counts how often a candidate is a training negative, of the same user if there is one.

        Only pairs of a test record are held, so that any number of training records can be read.
        """
        number_of = {user: number for number, user in enumerate(dict.fromkeys(users))}
        num_items = int(self._ids.max()) + 1
        of_list = np.array([number_of[user] for user in users], dtype=np.int64)
        pairs = np.where(self.is_there, of_list[:, None] * num_items + self._ids, -1)
        wanted, places = np.unique(pairs, return_inverse=True)
        counts = np.zeros(len(wanted), dtype=np.int64)
        is_trained_on = np.zeros(num_items, dtype=np.bool_)
        for batch in column_batches(dataset, config, TRAIN, _FIELDS[:3]):
            user, target, item = _flat(batch, number_of)
            is_known = item < num_items
            is_trained_on[item[is_known]] = True
            is_known &= (user >= 0) & (item != target)
            found = user[is_known] * num_items + item[is_known]
            index = np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)
            counts += np.bincount(index[wanted[index] == found], minlength=len(wanted))
        self._times_negative = counts[places].reshape(pairs.shape)
        self._is_trained_on = is_trained_on[self._ids]


def _flat(
    batch: Columns, number_of: dict[bytes, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns user number (-1 if unknown), target and item of every candidate of a batch."""
    lengths = [len(ids) for ids in batch["candidate_ids"]]
    users = np.array([number_of.get(user, -1) for user in batch["user_id"]], dtype=np.int64)
    targets = np.array(batch["target_id"], dtype=np.int64)
    items = np.array([item for ids in batch["candidate_ids"] for item in ids], dtype=np.int64)
    return np.repeat(users, lengths), np.repeat(targets, lengths), items
