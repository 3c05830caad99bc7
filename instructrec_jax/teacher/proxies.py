"""What can be measured of a teacher's texts without people."""

import itertools
from collections.abc import Sequence

import numpy as np

from instructrec_jax.instructions.leaks import GENERIC_WORDS, content_words, words
from instructrec_jax.metrics.bm25 import BM25
from instructrec_jax.records import Item
from instructrec_jax.teacher.audit import Example

_ALIGNED = 2000  # texts that are compared with every item


def proxies(examples: Sequence[Example], items: Sequence[Item]) -> dict[str, float]:
    """Returns what can be measured without people, as shares of the texts of one kind.

    Args:
      examples: of one kind, at least one, in random order.
      items: the catalogue.

    Returns:
      "shares_words_with_source": a telling word of the text stands in the titles or the review;
      "shares_words_with_target": likewise in the title of the target; "with_another_target": in the
      title of another text's target, which is what chance gives; "target_above_others": the share
      of the other items that the target is above where BM25 searches the catalogue's titles,
      brands and categories with the text, equal ones by half, 0.5 by chance; "duplicates": the
      same words as another text; "distinct_bigrams": pairs of words that are not seen before, a
      measure of diversity; "mean_words": words of a text.
    """
    told = [_telling(example.text) for example in examples]
    read = [set(_telling(example.made_from)) for example in examples]
    targets = [set(_telling(example.target)) for example in examples]
    spoken = [tuple(words(example.text)) for example in examples]
    bigrams = [pair for text in spoken for pair in itertools.pairwise(text)]
    documents = [_telling(f"{item.title} {item.brand} {item.category}") for item in items]
    aligned = examples[:_ALIGNED]
    return {
        "shares_words_with_source": _share_overlap(told, read),
        "shares_words_with_target": _share_overlap(told, targets),
        "with_another_target": _share_overlap(told, [*targets[1:], targets[0]]),
        "target_above_others": share_above_others(
            told[:_ALIGNED], [example.target_id for example in aligned], documents
        ),
        "duplicates": 1 - len(set(spoken)) / len(spoken),
        "distinct_bigrams": len(set(bigrams)) / max(1, len(bigrams)),
        "mean_words": sum(len(example.text.split()) for example in examples) / len(examples),
    }


def share_above_others(
    queries: Sequence[Sequence[str]], targets: Sequence[int], documents: Sequence[Sequence[str]]
) -> float:
    """Returns the mean share of the other documents that a query's target is above, by BM25.

    Args:
      queries: words of each, at least one query.
      targets: index of the document that each query should find.
      documents: words of each, at least two documents.

    Example:
      A query for "red lamp" whose target "red lamp" is above "red kettle" and "blue cup": 1.0.
    """
    index = BM25(documents)
    shares = []
    for query, target in zip(queries, targets, strict=True):
        scores = index.scores([*dict.fromkeys(query)])
        below, equal = (scores < scores[target]).sum(), (scores == scores[target]).sum() - 1
        shares.append((below + equal / 2) / (len(documents) - 1))
    return float(np.mean(shares))


def _telling(text: str) -> list[str]:
    """Returns the words of a text that tell something of an item."""
    return [word for word in content_words(text) if word not in GENERIC_WORDS]


def _share_overlap(texts: Sequence[Sequence[str]], others: Sequence[set[str]]) -> float:
    pairs = zip(texts, others, strict=True)
    return sum(not other.isdisjoint(text) for text, other in pairs) / len(texts)
