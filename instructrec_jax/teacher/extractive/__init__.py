"""The offline teacher: texts taken from the user's own data by a few rules, without a model.

It stands in for the teacher of the paper (a large language model) where none has written texts. It
adds no knowledge of the world, draws nothing at random, and is silent where it is not sure. Its
name and version stand in every record that it wrote for, since figures made with it compare with
the paper's only roughly.

Preferences (P2) see the history and nothing else. Intentions (I1, I1*) come from the review of the
target: the `MAX_INTENTIONS` = 2 best sentences give one text each, in both voices. A text that
gives away the title or the brand of the target is left out and counted, and the next best takes its
place.
"""

import collections
from collections.abc import Sequence

from instructrec_jax.instructions.leaks import content_words, gives_away
from instructrec_jax.records import Item
from instructrec_jax.teacher.extractive.intentions import (
    Intention,
    complains,
    intentions_in,
    sentences,
)
from instructrec_jax.teacher.extractive.preferences import preference_texts
from instructrec_jax.teacher.texts import Intentions

MAX_INTENTIONS = 2


class ExtractiveTeacher:
    """Writes preferences and intentions by rules; a `texts.Teacher`.

    Attributes:
      name: name and version; the version changes with any rule, so that records can be told apart.
    """

    name = "extractive-3"

    def preferences(self, history: Sequence[Item]) -> tuple[str, ...]:
        """Returns three texts on the taste that a history shows.

        Args:
          history: the user's items, oldest first.

        Returns:
          Of the user, as the user, and the taste alone, each of at most 200 characters and without
          a full stop at its end; () for an empty history.
        """
        return preference_texts(history) if history else ()

    def intentions(self, review: str, target: Item) -> Intentions:
        """Returns the intentions that a review tells of.

        Args:
          review: text as its writer left it; markup and entities are cleaned.
          target: the item it is on, whose title and brand no text may give away.

        Returns:
          Up to two texts in each voice, of at most 160 characters. `rejected` counts every text
          left out as "quotes_title"; where nothing was found for another reason, one of:
          "no_sentence" (nothing to read), "too_short" (no sentence has three content words),
          "complaint" (all sentences that have complain), "no_intention" (the rest).
        """
        read = sentences(review)
        rejected: collections.Counter[str] = collections.Counter()
        best: dict[str, Intention] = {}
        for sentence in read:
            for found in intentions_in(sentence):
                if not gives_away(found.first, target.title, target.brand):
                    best.setdefault(found.first, found)
                    break
                rejected["quotes_title"] += 1
        kept = sorted(best.values(), key=lambda found: found.rank)[:MAX_INTENTIONS]
        if not kept and not rejected:
            rejected[_reason(read)] += 1
        return Intentions(
            vague=tuple(found.first for found in kept),
            second_vague=tuple(found.third for found in kept),
            rejected=dict(rejected),
        )


def _reason(read: Sequence[str]) -> str:
    """Says why a review gave nothing."""
    telling = [sentence for sentence in read if len(content_words(sentence)) >= 3]
    if not telling:
        return "too_short" if read else "no_sentence"
    return "complaint" if all(map(complains, telling)) else "no_intention"
