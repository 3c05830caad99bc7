"""What somebody wants who writes a text: P2, I0, I1 or I2 of the paper (section 2.1).

A model that is good at it decides by its own likelihoods: a few statements stand for each intent,
and that intent is taken whose statements make the text likeliest. All of them read the same text,
so its length and its words decide nothing, and the likelihood after an empty statement is taken
off. Whether a model is good at it is measured when it is opened, on the check texts of
`intents.json`; where it is not, or is not sure, the rules of `intent_by_rule` decide; where they
are not sure either, nobody does.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.instructions.language import plain_text
from instructrec_jax.instructions.leaks import content_words, words
from instructrec_jax.records import Intention, Preference
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.serving.filters import CatalogueFields
from instructrec_jax.tokenizer import EOS_ID, SentencePieceModel, tokens_of

PREFERENCE, NOTHING = Preference.EXPLICIT.value, Intention.NONE.value
VAGUE, SPECIFIC = Intention.VAGUE.value, Intention.SPECIFIC.value
INTENTS = (PREFERENCE, NOTHING, VAGUE, SPECIFIC)
# A model decides where nine of ten check texts that it is sure of are right, half of all at least.
MIN_RIGHT, MIN_ANSWERED = 0.9, 0.5
_DATA: Mapping[str, Any] = json.loads(
    Path(__file__).with_name("intents.json").read_text(encoding="utf-8")
)
CHECKS: Sequence[tuple[str, str]] = [(i, text) for i in INTENTS for text in _DATA["checks"][i]]
_ASK_NOTHING = frozenset(_DATA["words_that_ask_nothing"].split())
_VAGUE_THINGS = frozenset(_DATA["vague_things"].split())
_OFTEN = "mostly|usually|always|nearly always|often|generally|normally|typically|sometimes|never"
_SUBJECT = r"(?:i|we|the user|they|he|she)"
_TASTE = re.compile(
    rf"\b{_SUBJECT}(?:'m| am| is| are|'ve| have| has)?(?: (?:really|just|also|so|{_OFTEN}|do|don't"
    r"|doesn't|does|not))* (?:liked?|likes|loves?|loved|enjoys?|prefers?|adores?|collects?|hates?"
    r"|dislikes?|into|fond of|an? (?:big |huge )?(?:fan|lover|collector) of|look(?:s)? out for)\b"
    rf"|\b{_SUBJECT}(?: have| has)? (?:{_OFTEN}) \w+|\b{_SUBJECT} (?:have|has) (?:so far )?chosen\b"
    rf"|^(?:{_OFTEN})\b|\bso far\b|\bfavou?rites?\b|\bagain and again\b|\bmuch of it (?:by|for)\b"
    r"|\b\d+ choices\b",
    re.IGNORECASE,
)
_INTENTION = re.compile(
    r"\b(?:wants?|wanted|needs?|(?:look|search|shop|hunt)(?:s|ing)? for|would (?:like|love)"
    r"|i'd (?:like|love)|show (?:me|us)|find (?:me|us)|give (?:me|us)|recommend|suggest|wish(?:es)?"
    r"|in the mood for)\b",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guess:
    """What a text is.

    Attributes:
      intent: "P2", "I0", "I1" or "I2"; "" where nobody is sure.
      decided_by: "model" or "rule".
      why: in words.
    """

    intent: str
    decided_by: str
    why: str


def intent_by_rule(
    text: str, fields: CatalogueFields | None, known_words: Collection[str]
) -> Guess:
    """Returns what a text is by the first rule that holds.

    1. It tells what somebody likes or mostly does, and no intention: P2.
    2. It asks for a category or brand of the catalogue: I2.
    3. Its words ask for nothing in particular, such as "surprise me": I0.
    4. It wants a thing without a name, such as "something" or "a gift": I1.
    5. All words that tell something stand in titles, categories or brands, or a category or a
       brand stands somewhere: I2.
    6. It says an intention: I1.

    Args:
      text: one sentence.
      fields: of the catalogue; None where there is none.
      known_words: content words of the titles, categories and brands that may be ranked.
    """

    def found(intent: str, why: str) -> Guess:
        return Guess(intent=intent, decided_by="rule", why=why)

    is_intention = _INTENTION.search(text) is not None
    if _TASTE.search(text) and not is_intention:
        return found(PREFERENCE, "it says what is liked or mostly chosen")
    if fields is not None and (named := [c for c in fields.named_in(text) if c.values]):
        return found(SPECIFIC, f"{named[0].said!r} is a {named[0].field} of the catalogue")
    spoken = [token.lower().replace("\u2019", "'") for token in _TOKEN.findall(text)]
    if spoken and _ASK_NOTHING.issuperset(spoken):
        return found(NOTHING, "its words ask for nothing in particular")
    if thing := next((word for word in spoken if word in _VAGUE_THINGS), ""):
        return found(VAGUE, f"it wants {thing!r} and gives it no name")
    intention_words = {spelt for match in _INTENTION.findall(text) for spelt in words(match)}
    telling = [word for word in content_words(text) if word not in intention_words]
    if telling and all(word in known_words for word in telling):
        return found(SPECIFIC, "its words stand in titles that may be ranked")
    if fields is not None and fields.names_a_label(text):
        return found(SPECIFIC, "it names a category or a brand of the catalogue")
    if is_intention:
        return found(VAGUE, "it says an intention and names nothing that may be ranked")
    return found("", "it is neither a preference nor an intention, and its words stand in no title")


class IntentModel:
    """Reads intents from likelihoods; threads may share it.

    Attributes:
      threshold: nats by which the best intent has to lead the next one; None: the model is not
        good enough, and is not asked.
      measured: in words, what `calibrate` found.
    """

    def __init__(self, vocabulary: SentencePieceModel, max_tokens: int) -> None:
        """Makes one that is not asked until it is calibrated.

        Args:
          vocabulary: the SentencePiece model.
          max_tokens: of a text, EOS included; longer ones are cut.
        """
        self._vocabulary, self._max_tokens = vocabulary, max_tokens
        self._prompts = [(i, text) for i in INTENTS for text in _DATA["statements"][i]]
        self.threshold: float | None = None
        self.measured = "not measured"

    def requests(self, texts: Sequence[str]) -> list[TokenRequest]:
        """Returns what to score: each statement, then the empty one, with all texts."""
        candidates = [self._tokens(text) for text in texts]
        return [
            TokenRequest(
                request_id=f"intent {number}",
                instruction=tokens_of(self._vocabulary, plain_text(statement)),
                candidates=candidates,
            )
            for number, statement in enumerate([*(s for _, s in self._prompts), _DATA["empty"]])
        ]

    def gains(self, log_likelihood: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
        """Returns [texts, intents] nats by which an intent makes a text likelier than no statement.

        Args:
          log_likelihood: of `requests`, float32 [texts] each; of an intent's statements the best
            one counts.
        """
        found = np.asarray(log_likelihood, np.float64)
        gains = found[:-1] - found[-1]
        owners = np.array([intent for intent, _ in self._prompts])
        return np.stack([gains[owners == intent].max(axis=0) for intent in INTENTS], axis=1)

    def calibrate(self, log_likelihood: Sequence[NDArray[np.floating]]) -> None:
        """Decides whether the model is asked, and how sure it has to be.

        Args:
          log_likelihood: of the requests of the texts of `CHECKS`.
        """
        gains = self.gains(log_likelihood)
        truth = np.array([INTENTS.index(intent) for intent, _ in CHECKS])
        right, lead = gains.argmax(axis=1) == truth, _lead(gains)
        accuracy = np.mean([right[truth == index].mean() for index in range(len(INTENTS))])
        self.threshold = None
        for bound in np.sort(lead):  # the lowest first
            sure = lead >= bound
            if sure.mean() < MIN_ANSWERED:
                break
            if right[sure].mean() >= MIN_RIGHT:
                self.threshold = float(bound)
                break
        self.measured = (
            f"the model tells {accuracy:.2f} of {len(CHECKS)} check texts right (chance 0.25); "
            + ("rules read free text" if self.threshold is None else "it reads free text")
        )

    def guesses(self, log_likelihood: Sequence[NDArray[np.floating]]) -> Iterator[Guess]:
        """Yields what each text is, without an intent where the model is not sure."""
        gains = self.gains(log_likelihood)
        for own, lead in zip(gains, _lead(gains), strict=True):
            is_sure = self.threshold is not None and lead >= self.threshold
            yield Guess(
                intent=INTENTS[own.argmax()] if is_sure else "",
                decided_by="model",
                why=f"its statements make the text likelier by {lead:.2f} nats than any others",
            )

    def _tokens(self, text: str) -> NDArray[np.int32]:
        tokens = tokens_of(self._vocabulary, plain_text(text))[:-1][: self._max_tokens - 1]
        return np.array([*tokens, EOS_ID], np.int32)


def _lead(gains: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns [texts] by how much the best intent leads the next one."""
    first, second = np.sort(gains, axis=1)[:, :-3:-1].T
    return first - second


def words_of(texts: Collection[str]) -> frozenset[str]:
    """Returns the content words of some texts."""
    return frozenset(word for text in texts for word in content_words(text))
