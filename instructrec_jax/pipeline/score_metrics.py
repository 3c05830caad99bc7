"""HR and NDCG as SeqIO score metrics over the rank classification form of a task.

Source: InstructRec section 4.1. The numbers are those of `metrics.ranking`, whatever path led to
the log-likelihoods.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking


def candidate_label(value: Any, example: Mapping[str, Any], is_target: bool = False) -> Any:
    """Returns what the metric must know of a row: its example, its candidate, whether it is right.

    A SeqIO postprocessor: for targets it returns `(example, candidate, is_correct)`; model output
    passes unchanged.
    """
    if not is_target:
        return value
    example_index, candidate = (int(place) for place in np.asarray(example["idx"]))
    return example_index, candidate, bool(example["is_correct"])


def hit_rate_and_ndcg(
    targets: Sequence[tuple[int, int, bool]], scores: Sequence[float]
) -> dict[str, float]:
    """Returns HR@1,3,5 and NDCG@3,5 from one log-likelihood a row.

    Args:
      targets: `(example, candidate, is_correct)` of every row, in any order.
      scores: log-likelihood of every row.

    Raises:
      UserError: if a row occurs twice, or an example has no correct candidate or several.

    Example:
      targets `[(0, 0, False), (0, 1, True)]` with scores `[-2.0, -1.0]` give HR@1 = 1.
    """
    rows = np.asarray([target[:2] for target in targets], dtype=np.int64).reshape(-1, 2)
    is_correct = np.asarray([target[2] for target in targets], dtype=bool)
    if len(np.unique(rows, axis=0)) != len(rows):
        raise UserError("a candidate was scored twice; score every row of the task once")
    _, example = np.unique(rows[:, 0], return_inverse=True)
    num_examples = int(example.max()) + 1 if len(rows) else 0
    num_correct = np.bincount(example[is_correct], minlength=num_examples)
    if not (num_correct == 1).all():
        raise UserError("every example needs exactly one correct candidate; the task's rows differ")
    log_likelihood = np.full((num_examples, int(rows[:, 1].max(initial=-1)) + 1), -np.inf)
    log_likelihood[example, rows[:, 1]] = np.asarray(scores, dtype=np.float64)
    positive = np.zeros(num_examples, dtype=np.int64)
    positive[example[is_correct]] = rows[is_correct, 1]
    return ranking.evaluate(ranking.ranks(log_likelihood, positive))
