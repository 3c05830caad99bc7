"""Opens what ranks: a checkpoint, its tokenizer and, where asked for, a catalogue."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from instructrec_jax.checkpoints.ranking_config import chosen_normaliser
from instructrec_jax.checkpoints.source import Source, load_model, open_source, open_vocabulary
from instructrec_jax.data.prepared import PreparedData, read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.metrics.ranking import PMI
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.serving import qdrant
from instructrec_jax.serving.batching import Batcher, Limits
from instructrec_jax.serving.free_text import TextReader
from instructrec_jax.serving.monitoring import Figures
from instructrec_jax.serving.retrieval import CandidateSource, Retriever
from instructrec_jax.serving.state import Engine, ModelCard
from instructrec_jax.serving.text_ranker import TextRanker
from instructrec_jax.serving.vectors import EmbeddedIndex, TowerSource, TrainedMatcher, VectorIndex
from instructrec_jax.serving.warm_scorer import WarmScorer

if TYPE_CHECKING:
    from instructrec_jax.serving.service import ServeSettings

logger = logging.getLogger(__name__)
_DEFAULT_LENGTHS = {"inputs": 512, "targets": 64}  # of a model that names none


def open_engines(settings: "ServeSettings", figures: Figures) -> tuple[Engine, ...]:
    """Returns an engine for each model, the first one's first, nothing of them compiled yet.

    Args:
      settings: what they rank with.
      figures: where their batches are counted.

    Raises:
      UserError: for a mistake in settings, a model or the catalogue.
    """
    paths = (settings.model, *settings.challengers)
    retriever = _retriever(settings)
    found = tuple(
        _open_engine(path, name, settings, figures, retriever=retriever)
        for path, name in zip(paths, _names(paths), strict=True)
    )
    num_bytes = sum(engine.scorer.num_bytes for engine in found)
    names = ", ".join(engine.card.name for engine in found)
    logger.info("%s: %.1f MiB of parameters", names, num_bytes / 2**20)
    return found


def _open_engine(
    path: str,
    name: str,
    settings: "ServeSettings",
    figures: Figures,
    *,
    retriever: Retriever | None,
) -> Engine:
    """Returns the engine of one model."""
    source = open_source(path)
    card = ModelCard(
        name=name,
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
    mesh = make_mesh(MeshSettings())
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
        reader=_reader(ranker, retriever),
    )


def _reader(ranker: TextRanker, retriever: Retriever | None) -> TextReader:
    """Returns what reads free text for a model and a catalogue."""
    lengths = ranker.lengths
    reader = TextReader(ranker.vocabulary, lengths["inputs"], lengths["targets"])
    if retriever is not None:
        reader.read_catalogue(retriever)
    return reader


def _names(paths: Sequence[str]) -> list[str]:
    """Returns what models are called: their folders' names, with those above where they are alike.

    Raises:
      UserError: if one folder is named twice.
    """
    parts = [Path(path).resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"--challengers name one folder twice: {', '.join(paths)}; name other models")


def _retriever(settings: "ServeSettings") -> Retriever | None:
    """Returns an index of the catalogue."""
    if settings.prepared_dir is None:
        return None
    data, sources = read_prepared(settings.prepared_dir), list[CandidateSource]()
    if settings.matcher_dir is not None:
        matcher = TrainedMatcher(settings.matcher_dir, settings.prepared_dir, data)
        sources.append(TowerSource(matcher.vectors, matcher.rows, _index(settings, matcher, data)))
    retriever = Retriever(data, *sources)
    logger.info("%d items may be recommended", len(retriever.items))
    return retriever


def _index(settings: "ServeSettings", matcher: TrainedMatcher, data: PreparedData) -> VectorIndex:
    """Returns what finds a matcher's items: in this process, or in a server."""
    if settings.qdrant is None:
        return EmbeddedIndex(matcher.vectors.items)
    client, vectors = qdrant.connected(settings.qdrant), matcher.vectors.items
    name = qdrant.filled_collection(client, matcher.fingerprint, vectors, data.items)
    return qdrant.QdrantIndex(client, name)


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
