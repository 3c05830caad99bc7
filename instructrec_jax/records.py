"""The records that stages exchange, and the enums of the paper's instruction format.

Source: InstructRec (arXiv 2305.07001) section 2: an instruction is a preference, an intention
and a task form, and items are represented by their title alone.
"""

import dataclasses
import enum
from typing import Protocol


class Preference(enum.Enum):
    """What is known of the user's lasting taste (paper section 2.1)."""

    NONE = "P0"
    IMPLICIT = "P1"
    EXPLICIT = "P2"


class Intention(enum.Enum):
    """How clearly the user says what is wanted now (paper section 2.1)."""

    NONE = "I0"
    VAGUE = "I1"
    SPECIFIC = "I2"


class TaskForm(enum.Enum):
    """What the model is asked to do with the candidates (paper section 2.1)."""

    POINTWISE = "T0"
    PAIRWISE = "T1"
    MATCHING = "T2"
    RERANKING = "T3"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One entry of the catalogue.

    Attributes:
      item_id: dense index, 0 .. number of items - 1.
      raw_id: the id in the raw log.
      title: cleaned title, the only text the model ever sees of an item.
      category: path from broad to narrow, comma separated; the specific intention (I2). May be "".
        `data.titles.path_labels` takes it apart.
      brand: maker, author or artist; only a teacher reads it. May be "".
    """

    item_id: int
    raw_id: str
    title: str
    category: str = ""
    brand: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """One user's items, oldest first, cut to the most recent ones; the last is the test target.

    Attributes:
      user_id: as in the raw log.
      item_ids: [n].
      times: [n] whole seconds since 1970; () where the log has no such times.
      review_rows: [n] where the user's reviews of the items stand, -1 for none; () where the log
        has no reviews.
    """

    user_id: str
    item_ids: tuple[int, ...]
    times: tuple[int, ...] = ()
    review_rows: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidateList:
    """The frozen candidates of one evaluation example, shared by every model.

    Attributes:
      example_id: "<user_id>:<position>" or "item:<item_id>"; "#2" follows where it is the second
        list of the same event, and so on.
      protocol: "leave_one_out" or "product_search".
      split: "validation" or "test".
      user_id: "" in product search.
      position: index of the target in the user's history; -1 in product search.
      target_id: the item to be found.
      candidate_ids: the target among its negatives, in seeded order.
    """

    example_id: str
    protocol: str
    split: str
    user_id: str
    position: int
    target_id: int
    candidate_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructionRecord:
    """One line of artefact C: everything that any template may say about one example.

    Attributes:
      example_id: stable over reruns.
      user_id: "" in product search.
      position: index of the target in the user's history; -1 in product search.
      history: titles before the target, oldest first; () in product search.
      preference: teacher texts on the user's taste (P2), any number, from the history alone.
      vague_intention: teacher texts on the intention behind the choice (I1), any number.
      second_vague_intention: another rendering of the same intentions (I1*), any number.
      specific_intention: category path of the target (I2); "" where unknown or withheld.
      context: time or place of the request; "" unless asked for.
      teacher: name and version of who wrote the texts; "" if nobody did.
      target_id: the item to be found.
      target: its title.
      candidate_ids: the target among its negatives.
      candidates: their titles, in the same order.
    """

    example_id: str
    user_id: str
    position: int
    history: tuple[str, ...]
    preference: tuple[str, ...] = ()
    vague_intention: tuple[str, ...] = ()
    second_vague_intention: tuple[str, ...] = ()
    specific_intention: str = ""
    context: str = ""
    teacher: str = ""
    target_id: int
    target: str
    candidate_ids: tuple[int, ...]
    candidates: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotation:
    """What a teacher wrote on one position of a user (artefact B).

    Attributes:
      texts: preferences, or intentions in the user's own voice; () where the teacher was silent.
      second_texts: the same intentions seen from outside; () for preferences.
      version: who wrote them, such as "extractive-2"; "" if nobody did.
    """

    texts: tuple[str, ...] = ()
    second_texts: tuple[str, ...] = ()
    version: str = ""


class TeacherTexts(Protocol):
    """The texts of artefact B, by user index and position in the user's history."""

    def preference(self, user: int, position: int) -> Annotation:
        """Returns texts on the taste that the items before a position show."""
        ...

    def intentions(self, user: int, position: int) -> Annotation:
        """Returns texts on the intention behind the choice at a position."""
        ...
