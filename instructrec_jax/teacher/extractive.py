"""The offline teacher: texts taken from the user's own data by rules, without a model.

It stands in for the teacher of the paper (a large language model) where none has written texts yet.
It adds no knowledge of the world, draws nothing at random, and its name and version stand in every
record that it wrote for, since figures made with it compare with the paper's only roughly.

Preferences (P2): three texts, see `preferences` and, for what counts as recurring, `taste`. They
see the history and nothing else, so a title of the target can stand in one only if the history
shares its words.

Intentions (I1, I1*), from the review of the target:

1. The review is cut into clean sentences (`sentences`), of which each tells wishes by rules with
   weights (`wish_rules`). The `MAX_INTENTIONS` = 2 best sentences by weight, the earlier first
   among equals, give one text each; two show most reviews' wish and its detail, later ones repeat.
2. Where no rule finds a wish, the plain sentence that describes best gives one, if it has three
   content words or more (`MIN_CONTENT`; "great album" has two and could be said of anything) and
   praises; a plain tale ("it stood by the window") gives none.
3. A text has at most 160 characters (`MAX_CHARS`): two lines of a prompt, twice the paper's mean.
   It is cut where a part of the sentence ends, else between words.
4. The same wishes in the third person are the second rendering, in the same order.
5. A text that gives the title away by `quotation.quotes_title` is left out and counted, and the
   next best wish of the sentence, then the next sentence, takes its place.
6. Complaints are no wishes: "the sound is weak" says what somebody did not get.
7. Names are no wishes either, outside "I like ..." and "I am a fan of ...": a wish with more than
   `MAX_NAMES` = 2 capitalised words (1 in a description) is on songs or people, and is passed over.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from instructrec_jax.records import Item
from instructrec_jax.teacher.phrases import complains
from instructrec_jax.teacher.preferences import preference_texts
from instructrec_jax.teacher.quotation import quotes_title
from instructrec_jax.teacher.sentences import sentences
from instructrec_jax.teacher.taste import TasteReader
from instructrec_jax.teacher.texts import Intentions
from instructrec_jax.teacher.wish_rules import MIN_CONTENT
from instructrec_jax.teacher.wishes import Wish, plain_wish, wishes
from instructrec_jax.teacher.words import content_words

MAX_INTENTIONS = 2


class ExtractiveTeacher:
    """Writes preferences and intentions by rules; a `texts.Teacher`.

    The same input gives the same texts in every process. It keeps what it has worked out of up to
    2^18 items; use one in each thread.

    Attributes:
      name: name and version; the version changes with any rule, so that records can be told apart.
    """

    name = "extractive-1"

    def __init__(self) -> None:
        self._reader = TasteReader()

    def preferences(self, history: Sequence[Item]) -> tuple[str, ...]:
        """Returns three texts on the taste that a history shows.

        Example, of a history of three items by one brand in one category:
          ("The user nearly always chooses Harps, often by Fenwick, to judge by the 3 choices so
          far", "I nearly always go for Harps, I like what comes from Fenwick, as my 3 choices so
          far show", "nearly always Harps, much of it by Fenwick, to judge by 3 choices so far").

        Args:
          history: the user's items, oldest first; only their titles, categories and brands are
          read.

        Returns:
          Of the user, as the user, and the taste alone, each of at most 200 characters and without
          a full stop at its end; () for an empty history.
        """
        return preference_texts(self._reader.read(history)) if history else ()

    def intentions(self, review: str, target: Item) -> Intentions:
        """Returns the wishes that a review tells of, by the rules at the head of this module.

        Example:
          ("I bought this for my son's birthday. He loves it.", item) ->
          vague ("I want something for my son's birthday",),
          second_vague ("The user wants something for their son's birthday",).

        Args:
          review: text as its writer left it; markup and entities are cleaned.
          target: the item it is on, whose title no text may give away.

        Returns:
          Up to two texts in each voice, of at most 160 characters. `rejected` counts every text
          left out as "quotes_title"; where nothing was found for another reason, one of:
          "no_sentence" (nothing to read), "too_short" (no sentence has three content words),
          "complaint" (all sentences that have complain), "no_wish" (the rest: plain sentences that
          praise nothing).
        """
        spoken = sentences(review)
        rejected: Counter[str] = Counter()
        found = _accepted((wishes(sentence) for sentence in spoken), target, rejected)
        if not found:
            plain = [wish for sentence in spoken if (wish := plain_wish(sentence))]
            plain.sort(key=lambda wish: (-wish.weight, -len(wish.first)))
            found = _accepted((iter((wish,)) for wish in plain), target, rejected)[:1]
        if not found and not rejected:
            rejected[_reason(spoken)] += 1
        return Intentions(
            vague=tuple(wish.first for wish in found),
            second_vague=tuple(wish.third for wish in found),
            rejected=dict(rejected),
        )


def _accepted(told: Iterable[Iterator[Wish]], target: Item, rejected: Counter[str]) -> list[Wish]:
    """Returns the best wish of each of the best sentences; counts what gives the title away."""
    queue: list[tuple[float, int, Wish, Iterator[Wish]]] = []
    for place, of_sentence in enumerate(told):
        if wish := next(of_sentence, None):
            queue.append((-wish.weight, place, wish, of_sentence))
    heapq.heapify(queue)
    found: dict[str, Wish] = {}
    while queue and len(found) < MAX_INTENTIONS:
        _, place, wish, of_sentence = heapq.heappop(queue)
        if not quotes_title(wish.first, target.title) and not quotes_title(
            wish.third, target.title
        ):
            found.setdefault(wish.first, wish)
            continue
        rejected["quotes_title"] += 1
        if other := next(of_sentence, None):
            heapq.heappush(queue, (-other.weight, place, other, of_sentence))
    return list(found.values())


def _reason(spoken: Sequence[str]) -> str:
    """Says why a review gave nothing."""
    telling = [text for text in spoken if len(content_words(text)) >= MIN_CONTENT]
    if not telling:
        return "too_short" if spoken else "no_sentence"
    return "complaint" if all(complains(text) for text in telling) else "no_wish"
