"""What makes the figures of a scenario less telling than they look."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.metrics.ranking import METRIC_NAMES
from instructrec_jax.records import CandidateList, TeacherTexts

FEW_EXAMPLES = 50
_ITEMS_PER_CANDIDATE = 10  # a smaller catalogue is too small for the number of candidates
_MAX_SHARE = 0.05  # of equal histories or repeated texts, without a warning
_SIGMAS = 4  # standard errors below chance that are no accident


def certain_hits(examples: Sequence[CandidateList]) -> dict[str, int]:
    """Returns by metric in how many examples any scorer has HR@K 1; metrics with none are left out.

    Args:
      examples: those with at most K candidates count.
    """
    sizes = np.array([len(example.candidate_ids) for example in examples])
    counts = {name: int((sizes <= int(name.split("@")[1])).sum()) for name in METRIC_NAMES}
    return {name: number for name, number in counts.items() if number}


def caveats(examples: Sequence[CandidateList], data: PreparedData) -> list[str]:
    """Returns warnings on the examples of a scenario, each a sentence.

    Args:
      examples: the test examples that all systems scored.
      data: artefact A, which they belong to.
    """
    found = []
    number = len(examples)
    if number < FEW_EXAMPLES:
        found.append(
            f"only {number} examples: one of them moves HR@K by {1 / number:.3f}; below "
            f"{FEW_EXAMPLES} few differences can be told from chance"
        )
    most = max(len(example.candidate_ids) for example in examples)
    if len(data.items) < _ITEMS_PER_CANDIDATE * most:
        found.append(
            f"the catalogue has {len(data.items)} items for lists of up to {most} candidates: the "
            "negatives are nearly the same in all lists"
        )
    fewer = {name: n for name, n in certain_hits(examples).items() if name.startswith("hr")}
    if fewer:
        listed = ", ".join(f"{name.upper()} in {n}" for name, n in fewer.items())
        found.append(
            f"K is at or above the number of candidates, where any scorer hits, for {listed} of "
            f"{number} examples"
        )
    equal = _num_equal_histories(examples, data)
    if equal > _MAX_SHARE * number:
        found.append(
            f"{equal} of {number} users have the items of another user's history: their examples "
            "are not independent, and intervals are too narrow"
        )
    return found


def favoured_negatives(
    rank: NDArray[np.integer], num_tied: NDArray[np.integer], sizes: NDArray[np.integer]
) -> str | None:
    """Returns what to say where popularity ranks below chance: its reverse ranks above.

    So it is in the lists of a retriever, whose negatives are what such systems like. A system that
    was trained on lists of that kind may have learnt no more than to reverse one.

    Args:
      rank: [n] the target's by popularity, ties against it, of independent examples.
      num_tied: [n] other candidates that are equal to it.
      sizes: [n] candidates.
    """
    hits, reversed_hits = (
        np.where(num_better == 0, 1 / (1 + num_tied), 0.0)
        for num_better in (rank - 1 - num_tied, sizes - rank)
    )
    below = 1 / sizes - hits
    if below.mean() <= _SIGMAS * below.std() / len(rank) ** 0.5:
        return None
    return (
        f"popularity has HR@1 {hits.mean():.3f}, below chance, and its reverse "
        f"{reversed_hits.mean():.3f}: the negatives are what recommenders like; a system that was "
        "trained on such lists may only have learnt to reverse one, so look at it on uniform "
        "negatives too"
    )


def repeated_intentions(data: PreparedData, texts: TeacherTexts) -> Mapping[str, str]:
    """Returns by query what to say of test intentions that are also texts of training positions.

    Args:
      data: artefact A.
      texts: artefact B on it.

    Returns:
      Sentences for "vague" and "second_vague", where more than a few texts are repeated.
    """
    training: dict[str, set[str]] = {"vague": set(), "second_vague": set()}
    test: dict[str, list[str]] = {"vague": [], "second_vague": []}
    lengths = np.diff(data.histories.starts).tolist()
    for user, length in enumerate(lengths):
        for position in (*range(length - 2), length - 1):
            found = texts.intentions(user, position)
            for query, own in (("vague", found.texts), ("second_vague", found.second_texts)):
                if position == length - 1:
                    test[query] += own
                else:
                    training[query].update(own)
    counts = {query: sum(text in training[query] for text in test[query]) for query in test}
    return {
        query: f"{counts[query]} of {len(own)} intention texts of test positions are also texts of "
        "training positions"
        for query, own in test.items()
        if counts[query] > _MAX_SHARE * len(own)
    }


def _num_equal_histories(examples: Sequence[CandidateList], data: PreparedData) -> int:
    """Returns how many examples have the history items of another one, in whatever order."""
    history_of = {history.user_id: history.item_ids for history in data.histories}
    keys = Counter(
        frozenset(history_of[example.user_id][: example.position])
        for example in examples
        if example.position >= 0
    )
    return sum(number for number in keys.values() if number > 1)
