"""Several checkpoints that score together: the mean of their log-likelihoods.

The mean of log-likelihoods is the log of the geometric mean of probabilities. Every normaliser is
linear in log-likelihoods, so that what candidates are ranked by is the mean of what each model
ranks them by; and dividing each model's probabilities by their sum over the candidates adds the
same to all of them and changes no rank.
"""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from instructrec_jax.checkpoints.source import Source, load_model, open_source
from instructrec_jax.errors import UserError
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.mesh import LogicalMesh, abstract_model
from instructrec_jax.parallel.placement import describe_placement
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.stages.score.shards import ScoreRequests
from instructrec_jax.tokenizer import pieces

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Members:
    """The checkpoints that score together, at least one.

    Attributes:
      sources: the first one's vocabulary, lengths and normaliser are those of all.
    """

    sources: Sequence[Source]

    @functools.cached_property
    def fingerprints(self) -> list[str]:
        """The sha256 of each."""
        return [source.fingerprint() for source in self.sources]

    def fingerprint(self) -> str:
        """Returns a sha256 of all of them; of a single one its own."""
        first, *others = self.fingerprints
        return hashlib.sha256("".join(self.fingerprints).encode()).hexdigest() if others else first

    def told(self) -> dict[str, Any]:
        """Returns what tells of several; {} of a single one."""
        return {"ensemble": self.fingerprints} if len(self.sources) > 1 else {}

    def shapes(self, mesh: LogicalMesh, *, dtype: str) -> list[T5]:
        """Returns the shapes of their models, each in its own size, as they are placed."""
        configs = [dataclasses.replace(source.config, dtype=dtype) for source in self.sources]
        return [abstract_model(config.init, mesh) for config in configs]

    def load(self, shapes: Sequence[T5]) -> list[T5]:
        """Returns their models, placed as their shapes say."""
        models = [load_model(*each) for each in zip(self.sources, shapes, strict=True)]
        for source, model in list(zip(self.sources, models, strict=True))[1:]:
            logger.info("and %s: %s", source.path, describe_placement(model))
        return models


def open_members(first: Source, others: Sequence[str], normaliser: str | None = None) -> Members:
    """Opens the checkpoints that score together with a first one.

    Args:
      first: the first.
      others: paths of the others.
      normaliser: the user's choice; None: as they were trained, all alike.

    Raises:
      UserError: if one is missing, means other words by its tokens, is there twice, or was trained
        to be ranked by another normaliser.
    """
    sources = [first, *map(open_source, others)]
    for source in sources[1:]:
        _check_tokens(first, source)
        told = [None if own.ranking is None else own.ranking.normaliser for own in (first, source)]
        if normaliser is None and told[0] != told[1]:
            raise UserError(
                f"{source.path} was trained to be ranked by {told[1] or 'nobody knows what'} and "
                f"{first.path} by {told[0] or 'nobody knows what'}; name the normaliser"
            )
    members = Members(sources=sources)
    if len(sources) > 1 and len(set(members.fingerprints)) < len(sources):
        paths = ", ".join(str(source.path) for source in sources)
        raise UserError(f"one checkpoint is twice among {paths}; name each once")
    return members


def _check_tokens(first: Source, other: Source) -> None:
    """Raises where two checkpoints are of different vocabularies."""
    if first.tokenizer is not None and other.tokenizer is not None:
        ours, theirs = pieces(first.tokenizer), pieces(other.tokenizer)
        if theirs[: len(ours)] == ours[: len(theirs)]:
            return
    elif first.config.vocab_size == other.config.vocab_size:
        return
    raise UserError(
        f"{other.path} has another vocabulary than {first.path}: its ids would mean other words; "
        "only models of one vocabulary score together, others by `instructrec report --fuse`"
    )


def score_together(scorer: Scorer, models: Sequence[T5]) -> ScoreRequests:
    """Returns what gives the mean log-likelihoods of requests.

    Args:
      scorer: scores with one model after another.
      models: at least one; of a single one its own numbers, to the bit.
    """

    def score(requests: Sequence[TokenRequest]) -> list[np.ndarray]:
        found = [scorer(model, requests) for model in models]
        if len(found) == 1:
            return found[0]
        return [
            np.asarray(np.mean(np.stack(own), axis=0, dtype=np.float64), np.float32)
            for own in zip(*found, strict=True)
        ]

    return score
