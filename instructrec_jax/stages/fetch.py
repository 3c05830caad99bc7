"""`instructrec data fetch NAME`: a public data set into the cache folder."""

from pathlib import Path

from instructrec_jax.data import fetch as sources


def fetch(*, name: str, cache_dir: Path | str | None = None) -> Path:
    """Fetches a data set, or reuses it where it lies.

    Args:
      name: such as "ml-100k"; "ml_100k" is the same.
      cache_dir: the files go to its subfolder; without it ~/.cache/instructrec_jax.

    Returns:
      The folder to give to `prepare` as its input.

    Raises:
      UserError: on an unknown name, no network, or files that differ from the pinned ones.
    """
    return sources.fetch(name, sources.DEFAULT_CACHE_DIR if cache_dir is None else cache_dir)
