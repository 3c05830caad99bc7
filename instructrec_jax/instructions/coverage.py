"""Which records can be said in which templates, from counts that `build` leaves in its manifest.

Records are counted by the aspects they have texts for, so the number of examples of any template,
one of tomorrow included, is a sum of counts and needs no pass over the records.
"""

from collections.abc import Collection, Mapping

from instructrec_jax.records import InstructionRecord

ASPECTS = (
    "history",
    "preference",
    "vague_intention",
    "second_vague_intention",
    "specific_intention",
    "context",
)
_NONE = "none"


def aspects_of(record: InstructionRecord) -> str:
    """Returns the aspects that a record has texts for.

    Example:
      "history+preference"; "none" for a record of a title alone.
    """
    return "+".join(name for name in ASPECTS if getattr(record, name)) or _NONE


def count_name(config: str, split: str, aspects: str) -> str:
    """Returns the name under which records with exactly these aspects are counted."""
    return f"{config}/{split}/{aspects}"


def num_renderable(
    counts: Mapping[str, int], *, config: str, split: str, needs: Collection[str]
) -> int:
    """Returns how many records have a text for every needed aspect.

    Args:
      counts: of the manifest of `build`.
      config: "leave_one_out" or "product_search".
      split: "train", "validation" or "test".
      needs: names of ASPECTS, such as `language.Variant.needs`.
    """
    start = count_name(config, split, "")
    return sum(
        number
        for name, number in counts.items()
        if name.startswith(start) and set(needs) <= set(name.removeprefix(start).split("+"))
    )
