"""A small invented data set with planted taste, for the tests of every stage."""

from pathlib import Path

from instructrec_jax.data.settings import SyntheticSettings
from instructrec_jax.data.synthetic import write_log


def write_logs(
    folder: Path | str, *, num_users: int, num_items: int, seed: int, format: str = "tsv"
) -> Path:
    """Writes interactions and items in which users keep to a favourite kind of item.

    With at least 40 users and at most as many items nearly everything survives the 5-core.

    Args:
      folder: where the files go; made if missing.
      num_users: at least 1.
      num_items: at least 12.
      seed: the same seed writes the same bytes.
      format: "tsv", "jsonl", "recbole" or "amazon_2018".

    Returns:
      The folder.
    """
    settings = SyntheticSettings(
        num_users=num_users,
        num_interactions=min(12, num_items // 3) * num_users,
        num_items=num_items,
        seed=seed,
        zipf_exponent=0.5,
        favourite_share=0.8,
        format={"tsv": "plain"}.get(format, format),
    )
    write_log(folder, settings)
    return Path(folder)
