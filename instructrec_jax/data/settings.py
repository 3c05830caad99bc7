"""What a user may decide of the preparation of a log, and of an invented one."""

import dataclasses

from instructrec_jax import damage
from instructrec_jax.errors import UserError

MIN_HISTORY = 3  # one item to learn from, the validation target, the test target
REFUSE, CATEGORY_ASIN = "refuse", "category_asin"
FALLBACKS = (REFUSE, CATEGORY_ASIN)
RANDOM_TIES, FILE_TIES = "random", "file"
TIE_ORDERS = (RANDOM_TIES, FILE_TIES)
SYNTHETIC_FORMATS = ("plain", "jsonl", "recbole", "amazon_2018")
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
      max_title_chars: longer titles are cut between words.
      max_review_chars: longer reviews are cut between words.
      allow_fewer_candidates: a small catalogue gives smaller candidate sets instead of an error.
      on_damage: what a damaged line or a cut file leads to: "fail" refuses the log, "skip" leaves
        such lines out.
      max_damaged: most lines that "skip" leaves out.
      title_fallback: what becomes of items that cannot be told apart by their titles: "refuse", or
        "category_asin" to name them by category and raw id.
      max_same_title_share: largest share of the items that may have no title or another item's.
    """

    seed: int = 0
    tie_order: str = RANDOM_TIES
    k_core: int | None = None
    max_history: int = 20
    num_candidates: int = 10
    max_title_chars: int = 200
    max_review_chars: int = 2000
    allow_fewer_candidates: bool = False
    on_damage: str = damage.FAIL
    max_damaged: int = damage.DEFAULT_MAX_DAMAGED
    title_fallback: str = REFUSE
    max_same_title_share: float = 0.5

    def check(self) -> None:
        """Raises UserError if a value is out of range."""
        lowest = {
            "k_core": 1,
            "max_history": MIN_HISTORY,
            "num_candidates": 2,
            "max_title_chars": 1,
            "max_review_chars": 1,
            "max_damaged": 0,
        }
        for name, bound in lowest.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UserError(f"--{name} is {value}, expected at least {bound}")
        for name, choices in (
            ("on_damage", damage.POLICIES),
            ("title_fallback", FALLBACKS),
            ("tie_order", TIE_ORDERS),
        ):
            if getattr(self, name) not in choices:
                value = getattr(self, name)
                raise UserError(f"--{name} is {value!r}, expected {' or '.join(choices)}")
        if not 0.0 <= self.max_same_title_share <= 1.0:
            value = self.max_same_title_share
            raise UserError(f"--max_same_title_share is {value}, expected a share from 0 to 1")


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

    num_users: int
    num_interactions: int
    num_items: int | None = None
    seed: int = 0
    zipf_exponent: float = 1.0
    favourite_share: float = 0.8
    format: str = "plain"
    is_gzip: bool = False
    has_reviews: bool = False

    @property
    def catalogue_size(self) -> int:
        """The number of items."""
        return self.num_items or max(60, self.num_interactions // 100)

    def check(self) -> None:
        """Raises UserError if a value is out of range."""
        for name, bound in (("num_users", 1), ("num_items", len(KINDS)), ("zipf_exponent", 0)):
            value = getattr(self, name)
            if value is not None and not bound <= value < float("inf"):
                raise UserError(f"--{name} is {value}, expected at least {bound}")
        most = self.num_users * self.catalogue_size
        if not self.num_users <= self.num_interactions <= most:
            raise UserError(
                f"--num_interactions is {self.num_interactions}, expected {self.num_users} to "
                f"{most}: each of {self.num_users} users takes one item at least, and none of the "
                f"{self.catalogue_size} items twice"
            )
        if not 0 <= self.favourite_share <= 1:
            raise UserError(f"--favourite_share is {self.favourite_share}, expected 0 to 1")
        if self.format not in SYNTHETIC_FORMATS:
            raise UserError(f"--format is {self.format!r}, expected {', '.join(SYNTHETIC_FORMATS)}")
        if self.has_reviews and self.format != "amazon_2018":
            raise UserError(f"the format {self.format!r} has no reviews; use amazon_2018 for them")
