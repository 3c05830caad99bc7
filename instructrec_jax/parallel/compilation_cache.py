"""Compiled programs, kept on disk between starts."""

import logging
import os
from pathlib import Path

import jax

logger = logging.getLogger(__name__)
COMPILATION_CACHE_DIR = "~/.cache/instructrec_jax/compiled"  # that of gin/runs/score.gin
_MIN_COMPILE_SECONDS = 0.1  # of programs that are worth keeping


def keep_compiled(folder: str | None) -> None:
    """Has JAX keep what it compiles, so that the next start need not compile it again."""
    if folder is None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    path = Path(folder).expanduser()
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
    # Programs name source files and XLA's own cache: without the folders of this machine.
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    logger.info("compiled programs are kept in %s", path)
