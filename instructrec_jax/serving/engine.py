"""Opens what ranks: a checkpoint, its tokenizer and, where asked for, a catalogue."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from instructrec_jax.checkpoints.ranking_config import chosen_normaliser
from instructrec_jax.checkpoints.source import Source, load_model, open_source, open_vocabulary
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.metrics.ranking import PMI
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.serving.batching import Batcher, Limits
from instructrec_jax.serving.monitoring import Figures
from instructrec_jax.serving.retrieval import Retriever
from instructrec_jax.serving.state import Engine, ModelCard
from instructrec_jax.serving.text_ranker import TextRanker
from instructrec_jax.serving.warm_scorer import WarmScorer

if TYPE_CHECKING:
    from instructrec_jax.serving.service import ServeSettings

logger = logging.getLogger(__name__)
_DEFAULT_LENGTHS = {"inputs": 512, "targets": 64}  # of a model that names none


def open_engine(settings: "ServeSettings", figures: Figures) -> Engine:
    """Returns an engine, nothing of it compiled yet.

    Args:
      settings: what it ranks with.
      figures: where its batches are counted.

    Raises:
      UserError: for a mistake in settings, model or catalogue.
    """
    source = open_source(settings.model)
    card = ModelCard(
        name=Path(settings.model).resolve().name,
        made=int(source.path.stat().st_mtime),
        normaliser=_normaliser(settings, source),
        templates=tuple(settings.template),
        max_candidates=settings.max_candidates,
    )
    ranker = TextRanker(
        open_vocabulary(source, settings.vocabulary),
        _lengths(settings, source),
        task_module=settings.task_module,
    )
    for template in settings.template:
        ranker.check_template(template)
    retriever, mesh = _retriever(settings.prepared_dir), make_mesh(MeshSettings())
    config = dataclasses.replace(source.config, dtype=settings.dtype)
    model = load_model(source, abstract_model(config.init, mesh))
    scorer = WarmScorer(model, mesh, ranker.lengths)
    limits = Limits(
        max_waiting=settings.max_waiting,
        max_batch=settings.max_batch,
        batch_seconds=settings.batch_milliseconds / 1000,
        deadline_seconds=settings.deadline_seconds,
    )
    batcher = Batcher(scorer, fits=scorer.fits, limits=limits, observe=figures.observe_batch)
    return Engine(
        card=card,
        # Of other projects' checkpoints all bytes are read for it.
        fingerprint=f"{source.fingerprint()} {settings.dtype}"
        if settings.cached_candidates
        else "",
        ranker=ranker,
        scorer=scorer,
        batcher=batcher,
        retriever=retriever,
    )


def _retriever(prepared_dir: str | None) -> Retriever | None:
    """Returns an index of the catalogue."""
    if prepared_dir is None:
        return None
    retriever = Retriever(read_prepared(prepared_dir))
    logger.info("%d items may be recommended", len(retriever.items))
    return retriever


def _normaliser(settings: "ServeSettings", source: Source) -> str:
    """Returns what is ranked by."""
    normaliser, why = chosen_normaliser(settings.normaliser, source.ranking)
    if normaliser == PMI:
        raise UserError(
            f"the normaliser is {PMI!r}, {why}, which needs a second prompt for each request; name "
            "another --normaliser"
        )
    logger.info("%s (%s) ranks by %s, %s", source.path, source.kind, normaliser, why)
    return normaliser


def _lengths(settings: "ServeSettings", source: Source) -> dict[str, int]:
    """Returns the feature lengths of requests."""
    lengths = dict(source.ranking.feature_lengths) if source.ranking else {}
    given = {"inputs": settings.input_tokens, "targets": settings.target_tokens}
    lengths |= {side: number for side, number in given.items() if number is not None}
    for side, number in _DEFAULT_LENGTHS.items():
        if side not in lengths:
            logger.info("the model names no length of %s: %d tokens are read", side, number)
            lengths[side] = number
    return lengths
