"""Conditions in a text, such as "kites by Fenwick from 2014", and the items that meet them.

Found by rules: a category where the text names what is wanted ("a red kite for ..."), a brand
after "by" or "from", a year of the title's "(2014)" and a price with its currency. A condition on
what a catalogue does not have, as prices, is told and not applied.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.data.titles import path_labels
from instructrec_jax.instructions.leaks import is_content, words
from instructrec_jax.records import Item

CATEGORY, BRAND, YEAR, PRICE = "category", "brand", "year", "price"
Mask: TypeAlias = NDArray[np.bool_]
Words: TypeAlias = tuple[str, ...]
_MOST_WORDS = 6  # of a label
_LEAST_YEARS = 0.5  # of the titles have a year, or years tell nothing
_TITLE_YEAR = re.compile(r"\(((?:18|19|20)\d\d)\)")
_TOKEN = re.compile(r"[^\W_]+(?:['\u2019.&-][^\W_]+)*")
# What is wanted stands after the first of these, ...
_INTENTION = re.compile(
    r"\b(?:want(?:s|ed)?|needs?|(?:look|search|shop|hunt)(?:ing)? for|would like|'d like"
    r"|(?:show|find|give|get|buy|bring|recommend|suggest)(?: (?:me|us|them|the user))?)\b",
    re.IGNORECASE,
)
# ... and before the first of these.
_HEAD_END = re.compile(
    r"\b(?:for|with|to|that|which|who|whom|like|from|by|under|below|over|above|before|after|since"
    r"|while|when|because|as|in|on|about|between|without|except|but|than|not|no)\b|[,;:(]",
    re.IGNORECASE,
)
_NOT = re.compile(
    r"\b(?:no|not|without|except(?: for)?|excluding|but|never)"
    r"(?: (?:any|an?|the|more|by|from))*\s*$",
    re.IGNORECASE,
)
_BY = re.compile(r"\b(?:by|from)\s+(?:the\s+)?$", re.IGNORECASE)
_ALTERNATIVE = re.compile(r"\s*(?:,|or|and|,\s*or|,\s*and|/|&)\s*(?:by\s+)?", re.IGNORECASE)
_SIGN = "[$\u20ac\u00a3]"
_UNIT = rf"(?:dollars?|bucks|usd|euros?|eur|pounds?|gbp|{_SIGN})(?!\w)"
_NUMBER = (
    rf"(?:(?P<sign{{n}}>{_SIGN})\s?)?(?P<number{{n}}>\d{{{{1,7}}}}(?:\.\d\d?)?)"
    rf"(?:\s?(?P<unit{{n}}>{_UNIT}))?"
)
_AT_MOST = (
    r"under|below|less than|cheaper than|at most|up to|no more than|not more than|max(?:imum)?"
)
_AT_LEAST = r"over|above|more than|at least|from"
_PRICE = re.compile(
    rf"\b(?:(?P<most>{_AT_MOST})|(?P<least>{_AT_LEAST})|between)\s+{_NUMBER.format(n=1)}"
    rf"(?:\s+(?:and|to)\s+{_NUMBER.format(n=2)})?",
    re.IGNORECASE,
)
_YEAR = re.compile(
    r"\b(?:(?P<since>since|newer than|after|later than)|(?P<until>before|older than|until)"
    r"|between|from|in|of)\s+(?:the\s+)?(?:years?\s+)?(?P<first>(?:18|19|20)\d\d)(?P<decade>'?s)?\b"
    r"(?:\s*(?:and|to|-|\u2013)\s*(?P<last>(?:18|19|20)\d\d)\b)?",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filter:
    """A condition on items.

    Attributes:
      field: "category", "brand", "year" or "price".
      said: the part of the text that says it.
      values: labels of which an item has to have one; () for numbers.
      least, most: bounds of a number, both included.
      is_excluded: whether an item must not meet it.
    """

    field: str
    said: str
    values: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    is_excluded: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Applied:
    """A condition with what it did.

    Attributes:
      condition: the filter.
      num_removed: items that it left out of those that earlier ones left.
      num_unknown: items that stay though nobody knows whether they meet it.
      problem: why it was not applied; "" where it was.
    """

    condition: Filter
    num_removed: int = 0
    num_unknown: int = 0
    problem: str = ""


class CatalogueFields:
    """What items can be told apart by; threads may share it."""

    def __init__(self, items: Sequence[Item]) -> None:
        """Indexes items by their labels and years.

        Args:
          items: [n].
        """
        self.num_items = len(items)
        having: dict[str, dict[str, list[int]]] = {CATEGORY: {}, BRAND: {}}
        for index, item in enumerate(items):
            for label in dict.fromkeys(path_labels(item.category)):
                having[CATEGORY].setdefault(label, []).append(index)
            if item.brand:
                having[BRAND].setdefault(item.brand, []).append(index)
        self._having = {
            field: {label: np.array(ids, np.int64) for label, ids in own.items()}
            for field, own in having.items()
        }
        years = [_TITLE_YEAR.findall(item.title)[-1:] for item in items]
        self._years = np.array([int(found[0]) if found else 0 for found in years], np.int32)
        self._labels = {
            field: _by_words(label for label, ids in own.items() if len(ids) < self.num_items)
            for field, own in self._having.items()
        }

    def named_in(self, text: str) -> list[Filter]:
        """Returns the conditions that a text on something wanted names, as they stand in it."""
        numbers = [*_prices(text), *_years(text)]
        tokens = [(words(found[0]), *found.span()) for found in _TOKEN.finditer(text)]
        intention = _INTENTION.search(text)
        begin = intention.end() if intention else 0
        end_of_head = _HEAD_END.search(text, begin)
        end = end_of_head.start() if end_of_head else len(text)
        found: list[tuple[Filter, int, int]] = []
        at = 0
        while at < len(tokens):
            field = self._field_of(text[: tokens[at][1]], tokens[at][1] in range(begin, end), found)
            match = self._label_at(text, tokens, at, field) if field else None
            if match is None:
                at += 1
                continue
            condition, at = match
            span = (tokens[at - 1][2] - len(condition.said), tokens[at - 1][2])
            _add_or_join(found, condition, text, *span)
        return [*(condition for condition, _, _ in found), *numbers]

    def names_a_label(self, text: str) -> bool:
        """Returns whether a category or a brand stands anywhere in a text."""
        spelt = [each for found in _TOKEN.finditer(text) for each in words(found[0])]
        return any(
            tuple(spelt[at : at + size]) in labels
            for labels in self._labels.values()
            for at in range(len(spelt))
            for size in range(1, _MOST_WORDS + 1)
        )

    def allowed(
        self, conditions: Sequence[Filter], *, keeps_unknown: bool = False
    ) -> tuple[Mask, list[Applied]]:
        """Returns which items meet conditions, bool [n], and what each condition did.

        Args:
          conditions: all of which an item has to meet.
          keeps_unknown: whether an item of which nothing is known stays.
        """
        mask, applied = np.ones(self.num_items, np.bool_), []
        for condition in conditions:
            known, meets = self._meeting(condition)
            if problem := self._lacks(condition.field, int(known.sum())):
                applied.append(Applied(condition=condition, problem=problem))
                continue
            own = (meets ^ condition.is_excluded) & known
            if keeps_unknown or condition.is_excluded:
                own |= ~known
            applied.append(
                Applied(
                    condition=condition,
                    num_removed=int((mask & ~own).sum()),
                    num_unknown=int((mask & own & ~known).sum()),
                )
            )
            mask &= own
        return mask, applied

    def _lacks(self, field: str, num_known: int) -> str:
        """Returns why a field cannot tell items apart, "" where it can."""
        if num_known == 0:
            return f"no item has a {field} that is known"
        # An item without a brand is none of a brand; one whose title names no year is of some year.
        if field == YEAR and num_known < _LEAST_YEARS * self.num_items:
            return f"only {num_known} of {self.num_items} items have a year that is known"
        return ""

    def _meeting(self, condition: Filter) -> tuple[Mask, Mask]:
        """Returns of which items a condition's field is known, and which meet it, bool [n]."""
        known, meets = np.zeros((2, self.num_items), np.bool_)
        if condition.field == YEAR:
            known = self._years > 0
            least = -np.inf if condition.least is None else condition.least
            most = np.inf if condition.most is None else condition.most
            meets = known & (self._years >= least) & (self._years <= most)
        elif condition.field in self._having:
            for label, ids in self._having[condition.field].items():
                known[ids] = True
                if label in condition.values:
                    meets[ids] = True
        return known, meets

    def _field_of(
        self, before: str, is_wanted: bool, found: Sequence[tuple[Filter, int, int]]
    ) -> str:
        """Returns which field a label after a text may be of, "" for none."""
        last = found[-1] if found else None
        if last and last[0].field == BRAND and _ALTERNATIVE.fullmatch(before[last[2] :]):
            return BRAND
        return BRAND if _BY.search(before) else CATEGORY if is_wanted or _NOT.search(before) else ""

    def _label_at(
        self, text: str, tokens: Sequence[tuple[list[str], int, int]], at: int, field: str
    ) -> tuple[Filter, int] | None:
        """Returns the longest label that begins at a word as a condition, and the word after it."""
        begin = tokens[at][1]
        for size in range(min(_MOST_WORDS, len(tokens) - at), 0, -1):
            spelt = tuple(each for word, _, _ in tokens[at : at + size] for each in word)
            if labels := self._labels[field].get(spelt):
                condition = Filter(
                    field=field,
                    said=text[begin : tokens[at + size - 1][2]],
                    values=labels,
                    is_excluded=_NOT.search(text[:begin]) is not None,
                )
                return condition, at + size
        return None


def without_numbers(text: str, applied: Sequence[Applied]) -> str:
    """Returns a text without its conditions on numbers that were applied; words stay.

    A model knows words of categories and brands, and tells nothing by "under 20 dollars".
    """
    for each in applied:
        if each.condition.field in (YEAR, PRICE) and not each.problem:
            text = text.replace(each.condition.said, " ")
    return " ".join(text.split()).strip(" ,;")


def merged(older: Sequence[Filter], newer: Sequence[Filter]) -> list[Filter]:
    """Returns the conditions of an earlier and a later text: of one field the later ones count."""
    fields = {(each.field, each.is_excluded) for each in newer}
    kept = [each for each in older if (each.field, each.is_excluded) not in fields]
    return [*kept, *newer]


def _add_or_join(
    found: list[tuple[Filter, int, int]], condition: Filter, text: str, begin: int, end: int
) -> None:
    """Adds a condition; as an alternative of the last one where "or", "and" or a comma joins it."""
    if found:
        last, start, stop = found[-1]
        is_same = (last.field, last.is_excluded) == (condition.field, condition.is_excluded)
        if is_same and _ALTERNATIVE.fullmatch(text[stop:begin]):
            values = tuple(dict.fromkeys((*last.values, *condition.values)))
            found[-1] = (
                dataclasses.replace(last, values=values, said=text[start:end]),
                start,
                end,
            )
            return
    found.append((condition, begin, end))


def _by_words(labels: Iterator[str]) -> Mapping[Words, tuple[str, ...]]:
    """Returns labels by their words as `leaks.words` spells them; those of stop words alone go."""
    found: dict[Words, list[str]] = {}
    for label in labels:
        spelt = tuple(words(label))
        if any(map(is_content, spelt)) and len(spelt) <= _MOST_WORDS:
            found.setdefault(spelt, []).append(label)
    return {spelt: tuple(own) for spelt, own in found.items()}


def _prices(text: str) -> Iterator[Filter]:
    """Yields the conditions on prices; a number without a currency is none."""
    for found in _PRICE.finditer(text):
        has_unit = any(found[f"{part}{n}"] for part in ("sign", "unit") for n in (1, 2))
        if not has_unit:
            continue
        first, second = float(found["number1"]), found["number2"]
        if second is not None:
            yield Filter(field=PRICE, said=found[0], least=first, most=float(second))
        elif found["most"]:
            yield Filter(field=PRICE, said=found[0], most=first)
        elif found["least"]:
            yield Filter(field=PRICE, said=found[0], least=first)


def _years(text: str) -> Iterator[Filter]:
    """Yields the conditions on years."""
    for found in _YEAR.finditer(text):
        first = int(found["first"])
        last = first + 9 if found["decade"] else first
        if found["last"]:
            last = int(found["last"])
        if found["since"]:
            is_after = not found["since"].lower().startswith("since")
            yield Filter(field=YEAR, said=found[0], least=last + 1 if is_after else first)
        elif found["until"]:
            yield Filter(field=YEAR, said=found[0], most=first - 1)
        else:
            yield Filter(field=YEAR, said=found[0], least=first, most=last)
