"""Recommendation as instruction following (InstructRec, arXiv 2305.07001) in JAX.

Importing the package imports neither jax nor tensorflow; take what you need from its parts.
"""

__version__ = "0.1.0"
