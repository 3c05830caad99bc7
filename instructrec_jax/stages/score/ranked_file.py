"""`instructrec score --model`: a model and a file of requests -> a file of ranked candidates.

All that the gin way is told comes from the model. The rows are read, rendered and scored as there,
so log-likelihoods and ranks are the same. One process does the work, a shard at a time.
"""

import contextlib
import dataclasses
import functools
import logging
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

from instructrec_jax.checkpoints.ranking_config import chosen_normaliser
from instructrec_jax.checkpoints.source import Source, open_source, open_vocabulary
from instructrec_jax.damage import FAIL, POLICIES, Damage
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import Query, Slot, Variant, slots_of
from instructrec_jax.instructions.task_modules import SHIPPED, ranking_variant
from instructrec_jax.metrics.ranking import PMI, checked_normalisers
from instructrec_jax.parallel.compilation_cache import COMPILATION_CACHE_DIR, keep_compiled
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.progress import Progress, StopAskedError, stop_on
from instructrec_jax.requests.request_files import INSTRUCTION, TEXT_FIELDS, fitting_template
from instructrec_jax.requests.row_files import ENDINGS, RowFile, ending_of
from instructrec_jax.scores import parts
from instructrec_jax.scores.ranked_files import (
    STDOUT,
    Row,
    check_output,
    ranked_rows,
    ranked_writer,
)
from instructrec_jax.settings import Count, OneOf, check_fields
from instructrec_jax.stages.score import ScoreSettings, make_scorer
from instructrec_jax.stages.score.ensemble import open_members, score_together
from instructrec_jax.stages.score.request_sets import (
    PendingRequest,
    Rendering,
    RequestSet,
    SetReader,
    file_sets,
)
from instructrec_jax.stages.score.shards import ReadAhead, ScoreRequests, decide

logger = logging.getLogger(__name__)
Ready = tuple[list[PendingRequest], Damage]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedFile:
    """What is ranked by what.

    Attributes:
      model: a MODEL_DIR, or Flan-T5 or T5 1.1 as Hugging Face or T5X keep it.
      ensemble: further models of one vocabulary: candidates are ranked by the mean of what all
        models rank them by.
      input: the requests: *.jsonl, *.csv, *.tsv (these also .gz) or *.parquet; - for JSONL from
        the standard input.
      output: the file of ranked candidates, with one of the same endings; - for JSONL to the
        standard output. It must not be there yet.
      template: what writes the instructions, such as A7 (`instructrec templates` shows all);
        without it what suits the first request, which is said. Rows that hold a whole
        `instruction` need none.
      normaliser: "sum", "mean" or "char"; by default as the model was trained.
      dtype: of computing, "float32" or "bfloat16".
      on_damage: "fail" or "skip": what happens to requests that cannot be used.
      input_tokens: most tokens of an instruction; by default as the model was trained.
      target_tokens: most tokens of a candidate, likewise; longer ones are cut.
      vocabulary: the SentencePiece model, where none lies beside the model.
      task_module: module that declares the templates.
    """

    model: str
    input: str
    output: str
    ensemble: Sequence[str] = ()
    template: str | None = None
    normaliser: str | None = None
    dtype: Annotated[str, OneOf(("float32", "bfloat16"))] = "float32"
    on_damage: Annotated[str, OneOf(POLICIES)] = FAIL
    input_tokens: Count | None = None
    target_tokens: Count | None = None
    vocabulary: str | None = None
    task_module: str = SHIPPED

    def __post_init__(self) -> None:
        check_fields(self)
        if self.normaliser is not None:
            checked_normalisers([self.normaliser])


def rank_file(run: RankedFile) -> None:
    """Ranks the candidates of every request of a file, and writes them best first.

    Args:
      run: what is ranked by what.

    Raises:
      UserError: for a mistake in settings, requests or model.
    """
    ending = ".jsonl"
    if run.output != STDOUT:
        ending = ending_of(run.output, ENDINGS, "the output")
        check_output(run.output)
    source = open_source(run.model)
    members = open_members(source, run.ensemble, run.normaliser)
    requests = _open_requests(run, source)
    normaliser, why = chosen_normaliser(run.normaliser, source.ranking)
    if normaliser == PMI:
        raise UserError(
            f"the normaliser is {PMI!r}, {why}, which needs a second prompt for each request: take "
            "the gin way with WITH_PRIOR, or name another --normaliser"
        )
    logger.info("%s (%s) ranks by %s, %s", source.path, source.kind, normaliser, why)
    mesh, reader = make_mesh(MeshSettings()), SetReader(requests)
    scorer = make_scorer(mesh, [reader], step_tokens=ScoreSettings.step_tokens)
    keep_compiled(COMPILATION_CACHE_DIR)
    score = score_together(scorer, members.load(members.shapes(mesh, dtype=run.dtype)))
    if run.output != STDOUT:
        logger.info("%s appears when all is scored; nothing is kept of less", run.output)
    counted = Counter[str]()
    with stop_on(signal.SIGTERM) as stop, ranked_writer(run.output, ending) as write:
        try:
            with stop.interrupts():
                rank = functools.partial(_ranked, reader, normaliser)
                for rows in _shards(reader, score, rank, counted):
                    write(rows)
        except StopAskedError:
            raise UserError(
                f"stopped on SIGTERM after {counted['requests']} of {requests.num_requests} "
                f"requests; {run.output} was not written: run the same command again"
            ) from None
    _say_counts(run.output, counted)


def _open_requests(run: RankedFile, source: Source) -> RequestSet:
    """Returns the requests of the file under one template, every row checked."""
    ranking = source.ranking
    lengths = dict(ranking.feature_lengths) if ranking else {}
    lengths.pop("candidates", None)  # every candidate of a request is ranked
    given = {"inputs": run.input_tokens, "targets": run.target_tokens}
    lengths |= {side: number for side, number in given.items() if number is not None}
    file = RowFile(run.input)
    name = run.template or fitting_template(file)
    variant = ranking_variant(run.task_module, name) if name else INSTRUCTION
    rendering = Rendering(
        vocabulary=open_vocabulary(source, run.vocabulary),
        feature_lengths=lengths,
        shard_size=ScoreSettings.shard_size,
        on_damage=run.on_damage,
        switch="--on_damage",
    )
    (requests,) = file_sets(file, [variant], rendering=rendering, limit=None)
    why = "as asked" if run.template else "which suits the first one"
    says = f"template {name}, {why}" if name else "which hold their whole instructions"
    logger.info("%s: %d requests, %s", file.name, requests.num_requests, says)
    shown = ", ".join(f"{name} {number}" for name, number in lengths.items())
    logger.info("lengths in tokens or items: %s", shown or "no limit, as the model names none")
    hidden = {*TEXT_FIELDS.values()} - _shown_fields(variant, lengths)
    for field, count in sorted(file.num_filled(hidden if name else ()).items()):
        logger.warning(
            "template %s does not show the %s of %d of %d requests; --template names another",
            name,
            field,
            count,
            requests.num_requests,
        )
    return requests


def _shown_fields(variant: Variant, lengths: dict[str, int]) -> set[str]:
    """Returns the fields of a request that a template shows."""
    slots = slots_of(variant.template.input_segments)
    found = {str(slot) for slot in (Slot.HISTORY, Slot.CONTEXT) if slot in slots}
    states = variant.may_state_preference and lengths.get("preference")
    if states or variant.query is Query.PREFERENCE or "preference" in variant.needs:
        found.add("preference")
    if variant.query not in (None, Query.PREFERENCE):
        found.add("intention")
    return found


def _shards(
    reader: SetReader,
    score: ScoreRequests,
    rank: Callable[[PendingRequest, parts.ScoredRequest], list[Row]],
    counted: Counter[str],
) -> Iterator[list[list[Row]]]:
    """Yields the rows of shard after shard; the next one is read while one is scored."""
    shows_history = Slot.HISTORY in slots_of(reader.set.variant.template.input_segments)

    def read(_: object) -> Iterator[Ready]:
        return map(reader.read, reader.set.shards())

    progress = Progress("score", total=reader.set.num_requests, unit="requests")
    with progress, contextlib.closing(ReadAhead(read)) as ahead:
        while (ready := ahead.next()) is not None:
            requests, damage = ready
            decided = decide(requests, score=score, render=lambda _: [])
            rows = list(map(rank, requests, decided))
            counted.update(requests=len(rows), candidates=sum(map(len, rows)))
            counted["left out"] += sum(damage.counts.values())
            counted["titles"] += sum(request.num_titles_cut for request in requests)
            if shows_history:
                counted["history"] += sum(map(functools.partial(_num_hidden, reader), requests))
            counted["tied"] += sum(request.has_equal_candidates for request in requests)
            yield rows
            progress.advance(len(rows) + sum(damage.counts.values()))


def _ranked(
    reader: SetReader, normaliser: str, request: PendingRequest, scored: parts.ScoredRequest
) -> list[Row]:
    """Returns the rows of a request, with the texts that its file gives."""
    (row,) = parts.score_rows(reader.set.template, [scored], normaliser=normaliser)
    given = reader.set.requests.parse(request.row)
    titles = dict(zip(given.candidate_ids, given.candidates, strict=True))
    return ranked_rows(row, titles, normaliser=normaliser)


def _num_hidden(reader: SetReader, request: PendingRequest) -> int:
    """Returns how many history items of a request its prompt does not show."""
    num_given = len(reader.set.requests.parse(request.row).history)
    return num_given - len(request.record.history) + request.num_history_dropped


def _say_counts(output: str, counted: Counter[str]) -> None:
    """Says what was written, and what was left out of it or cut."""
    where = "the standard output" if output == STDOUT else Path(output)
    logger.info(
        "%d candidates of %d requests are ranked in %s",
        *(counted["candidates"], counted["requests"], where),
    )
    told = {
        "left out": "%d requests were left out, because they cannot be used",
        "history": "%d of the oldest history items are not shown: there is no room for them",
        "titles": "%d titles are cut, because they are longer than the lengths allow",
        "tied": "%d requests hold candidates of equal tokens: no model tells these apart",
    }
    for name, text in told.items():
        if counted[name]:
            logger.info(text, counted[name])
