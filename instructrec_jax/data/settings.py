"""What a user may decide of the preparation of a log, and of an invented one."""

import dataclasses
from typing import Annotated

from instructrec_jax import damage
from instructrec_jax.errors import UserError
from instructrec_jax.settings import (
    MAX_CANDIDATES,
    Count,
    Natural,
    NotNegative,
    OneOf,
    Range,
    Seed,
    Share,
    check_fields,
    refuse,
)

MIN_HISTORY = 3  # one item to learn from, the validation target, the test target
REFUSE, CATEGORY_ASIN = "refuse", "category_asin"
FALLBACKS = (REFUSE, CATEGORY_ASIN)
RANDOM_TIES, FILE_TIES = "random", "file"
TIE_ORDERS = (RANDOM_TIES, FILE_TIES)
ANY_ITEM, OTHER_CATEGORY = "any", "other_category"
SEARCH_NEGATIVES = (ANY_ITEM, OTHER_CATEGORY)
# The settings that name a column, by the name it has in the plain format.
FIELDS = {
    "user_id": "user_field",
    "item_id": "item_field",
    "timestamp": "time_field",
    "title": "title_field",
}
SYNTHETIC_FORMATS = ("plain", "jsonl", "recbole", "amazon_2018")
MAX_SIZE = 10**9  # users, items or events of an invented log
MAX_DRAWS = 100
Size = Annotated[int, Range(1, MAX_SIZE)]
KINDS = ("Lamps", "Kettles", "Kites", "Drums", "Boots", "Tents")  # of invented items


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """What decides the output beside the log itself.

    Attributes:
      seed: of the product-search split, of the candidates and of the order of ties.
      tie_order: order of a user's events of equal time: "random" takes a seeded hash of user and
        item, "file" keeps the order of the file, for logs that were written in order.
      k_core: events that each user and item must keep; without it 5 for logs, 1 for sequences that
        were ordered and filtered before.
      max_history: most recent items kept of each user.
      num_candidates: candidates of an evaluation example, the target among them.
      test_draws: candidate lists of each test event, each with its own negatives. Where users are
        few, the luck of one draw shows: on MovieLens co-occurrence has HR@1 .559 in the first draw
        and .531 on average over all.
      search_negatives: negatives of product search: "any" item, as in the paper, or those of
        "other_category" than the target's, all of which answer a query for a category.
      max_title_chars: longer titles are cut between words.
      max_review_chars: longer reviews are cut between words.
      allow_fewer_candidates: a small catalogue gives smaller candidate sets instead of an error.
      on_damage: what a damaged line or a cut file leads to: "fail" refuses the log, "skip" leaves
        such lines out.
      max_damaged: most lines that "skip" leaves out.
      title_fallback: what becomes of items that cannot be told apart by their titles: "refuse", or
        "category_asin" to name them by category and raw id.
      max_same_title_share: largest share of the items that may have no title or another item's.
      user_field: column of the users' ids, where it has another name than the format's own, such as
        session_id; RecBole's atomic files without the type.
      item_field: likewise the items' ids, in the events and in the file of items.
      time_field: likewise the time.
      title_field: likewise the items' titles.
    """

    seed: Seed = 0
    tie_order: Annotated[str, OneOf(TIE_ORDERS)] = RANDOM_TIES
    k_core: Count | None = None
    max_history: Annotated[int, Range(MIN_HISTORY)] = 20
    num_candidates: Annotated[int, Range(2, MAX_CANDIDATES)] = 10
    test_draws: Annotated[int, Range(1, MAX_DRAWS)] = 1
    search_negatives: Annotated[str, OneOf(SEARCH_NEGATIVES)] = ANY_ITEM
    max_title_chars: Count = 200
    max_review_chars: Count = 2000
    allow_fewer_candidates: bool = False
    on_damage: Annotated[str, OneOf(damage.POLICIES)] = damage.FAIL
    max_damaged: Natural = damage.DEFAULT_MAX_DAMAGED
    title_fallback: Annotated[str, OneOf(FALLBACKS)] = REFUSE
    max_same_title_share: Share = 0.5
    user_field: str | None = None
    item_field: str | None = None
    time_field: str | None = None
    title_field: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def fields(self) -> dict[str, str]:
        """The user's names of columns, by the names that the plain format has."""
        named = {name: getattr(self, flag) for name, flag in FIELDS.items()}
        return {name: given for name, given in named.items() if given is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticSettings:
    """What decides an invented log.

    Attributes:
      num_users: users, at least 1.
      num_interactions: events, exactly so many, at least one per user.
      num_items: size of the catalogue; without it one item in 100 events, at least 60.
      seed: of everything; the same settings write the same bytes.
      zipf_exponent: the item of popularity rank r is chosen in proportion to r ** -zipf_exponent.
      favourite_share: how often a user keeps to the favourite kind.
      format: "plain", "jsonl", "recbole" or "amazon_2018".
      is_gzip: compress the files.
      has_reviews: give events of "amazon_2018" a review that tells an intention.
    """

    num_users: Size
    num_interactions: Size
    num_items: Annotated[int, Range(len(KINDS), MAX_SIZE)] | None = None
    seed: Seed = 0
    zipf_exponent: NotNegative = 1.0
    favourite_share: Share = 0.8
    format: Annotated[str, OneOf(SYNTHETIC_FORMATS)] = "plain"
    is_gzip: bool = False
    has_reviews: bool = False

    @property
    def catalogue_size(self) -> int:
        """The number of items."""
        return self.num_items or max(60, self.num_interactions // 100)

    def __post_init__(self) -> None:
        check_fields(self)
        most = self.num_users * self.catalogue_size
        if not self.num_users <= self.num_interactions <= most:
            raise refuse(
                self,
                "num_interactions",
                f"{self.num_users} to {most}: each of {self.num_users} users takes one item at "
                f"least, and none of the {self.catalogue_size} items twice",
            )
        if self.has_reviews and self.format != "amazon_2018":
            raise UserError(f"the format {self.format!r} has no reviews; use amazon_2018 for them")
