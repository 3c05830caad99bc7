"""Which answers of a language model are kept as texts, and which are asked for once more.

An answer is judged by what the teacher was shown and what it wrote. In this order it is left out
where it

* was cut at the most tokens ("cut"; "no_room" where they ended before any text, as with a model
  that reasons first), or is no such JSON as was asked for ("malformed");
* declines, or speaks of itself ("refusal"), or says nothing ("empty");
* has over `MAX_WORDS` words or `MAX_CHARS` characters ("over_long"), under `MIN_WORDS` ("short");
* is not English ("other_language"): fewer than 9 of 10 letters are of a to z, or none of its words
  is one of the commonest, such as "the" or "for";
* holds an address, a number or a name that points to a person ("personal_phone" and so on);
* repeats `COPIED_RUN` words of the review in a row ("copies_review").

For these reasons a question is asked once more, with a firmer wording. Three are no reason to ask
again. No wording makes more room ("no_room"); the setting max_tokens does. The teacher may say that
a review tells of no intention ("silent"). And an intention that
gives the title or the brand of the target away ("quotes_title") is left out for good: the teacher
was not shown the title, so a retry would let the label choose among answers. A preference is not
compared with any title: what it was made from is the history alone, whatever comes next.
"""

import dataclasses
import re
from collections.abc import Sequence

from instructrec_jax import files
from instructrec_jax.data.titles import clean_text
from instructrec_jax.instructions.leaks import STOP_WORDS, gives_away, words
from instructrec_jax.teacher.prompts import PREFERENCE
from instructrec_jax.teacher.questions import Answer
from instructrec_jax.teacher.scrubbing import personal_pattern
from instructrec_jax.teacher.wanted import Wanted

MIN_WORDS, MAX_WORDS, MAX_CHARS = 3, 60, 400
COPIED_RUN = 8
SILENT, QUOTES_TITLE, NO_ROOM = "silent", "quotes_title", "no_room"
FINAL = frozenset(
    {"", SILENT, QUOTES_TITLE, NO_ROOM}
)  # verdicts after which nothing is asked again
_MIN_LATIN_SHARE = 0.9
REFUSAL = re.compile(
    r"\b(?:as an ai|language model|i(?: am|'m) (?:not able|unable|sorry)"
    r"|unable to (?:assist|comply)|can(?:not|'t| not) (?:assist|comply|fulfil|help with|provide"
    r"|determine|infer|identify))"
    r"|^(?:sure|certainly|of course|okay|sorry|here(?:'s| is| are))\b[,!: ]",
    re.IGNORECASE,
)
_QUOTES = "\"'\u201c\u201d\u2018\u2019` "


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of an answer.

    Attributes:
      text: that is kept; "" where none is.
      reason: why none is; "" where one is.
    """

    text: str = ""
    reason: str = ""

    @property
    def is_worth_a_retry(self) -> bool:
        """Whether the question is asked once more."""
        return self.reason not in FINAL


def judge(wanted: Wanted, answer: Answer) -> Verdict:
    """Returns the text of an answer, or why it gives none.

    Args:
      wanted: what was asked for.
      answer: as the server gave it.
    """
    if answer.finish_reason in ("content_filter", "refusal"):
        return Verdict(reason="refusal")
    if answer.finish_reason == "length":
        return Verdict(reason="cut" if answer.text.strip() else NO_ROOM)
    found = text_in(answer.text)
    if found is None:
        return Verdict(reason="malformed")
    text, is_json = found
    if not text and is_json and wanted.fills != PREFERENCE:
        return Verdict(reason=SILENT)
    if reason := _fault(text, () if wanted.prompt.kind == PREFERENCE else wanted.lines):
        return Verdict(reason=reason)
    target = wanted.target
    if wanted.fills != PREFERENCE and gives_away(text, target.title, target.brand):
        return Verdict(reason=QUOTES_TITLE)
    return Verdict(text=text)


def text_in(raw: str) -> tuple[str, bool] | None:
    """Returns the text that an answer holds and whether it came as JSON; None for half JSON.

    Servers without structured output may put JSON between other words, or answer in plain text,
    which is taken as it is.
    """
    plain = raw.strip()
    is_json = (begin := plain.find("{")) >= 0
    if is_json:
        try:
            found = files.parse_json(plain[begin : plain.rfind("}") + 1])
        except ValueError:
            return None
        plain = found.get("text")
        if not isinstance(plain, str):
            return None
    text = clean_text(plain).strip(_QUOTES)
    return text.rstrip(".").rstrip() if text.count(".") <= 1 else text, is_json


def _fault(text: str, shown: Sequence[str]) -> str:
    """Returns what is wrong with a text by itself or beside the review that it is made from."""
    spoken = words(text)
    if not spoken:
        return "empty"
    if REFUSAL.search(text):
        return "refusal"
    if len(text) > MAX_CHARS or len(text.split()) > MAX_WORDS:
        return "over_long"
    if not _is_english(text, spoken):
        return "other_language"
    if len(spoken) < MIN_WORDS:
        return "short"
    if found := personal_pattern(text):
        return f"personal_{found}"
    return "copies_review" if any(_copies(spoken, words(line)) for line in shown) else ""


def _is_english(text: str, spoken: Sequence[str]) -> bool:
    letters = [sign for sign in text if sign.isalpha()]
    latin = sum(sign.isascii() for sign in letters)
    return latin >= _MIN_LATIN_SHARE * len(letters) and not STOP_WORDS.isdisjoint(spoken)


def _copies(spoken: Sequence[str], read: Sequence[str]) -> bool:
    """Returns whether `COPIED_RUN` words in a row stand in both."""

    def runs(found: Sequence[str]) -> set[tuple[str, ...]]:
        return {tuple(found[i : i + COPIED_RUN]) for i in range(len(found) - COPIED_RUN + 1)}

    return not runs(spoken).isdisjoint(runs(read))
