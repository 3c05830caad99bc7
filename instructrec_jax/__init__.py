"""Recommendation as instruction following (InstructRec, arXiv 2305.07001) in JAX.

The Python API: `from instructrec_jax import open_model, rank`, and `score_candidates`, `explain`,
`generate`. It is loaded when it is first asked for: importing the package imports neither numpy,
jax nor tensorflow.
"""

__version__ = "0.1.0"
__all__ = ["explain", "generate", "open_model", "rank", "score_candidates"]

TYPE_CHECKING = False  # type checkers and editors take it for true
if TYPE_CHECKING:
    from instructrec_jax.serving.ranking import (
        explain,
        generate,
        open_model,
        rank,
        score_candidates,
    )


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from instructrec_jax.serving import ranking

    return getattr(ranking, name)
