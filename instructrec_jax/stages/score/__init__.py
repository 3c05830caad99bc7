"""`instructrec score`: a checkpoint and ranking requests -> log-likelihoods (artefact E)."""

import dataclasses
import hashlib
import json
import logging
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from instructrec_jax import files, manifest
from instructrec_jax.checkpoints.ranking_config import chosen_normaliser
from instructrec_jax.checkpoints.source import open_for_run
from instructrec_jax.damage import FAIL, POLICIES, Damage
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.task_modules import ranking_variant
from instructrec_jax.instructions.token_budget import title_limit
from instructrec_jax.metrics.ranking import PMI, checked_normalisers
from instructrec_jax.models.t5 import T5Config
from instructrec_jax.parallel import processes
from instructrec_jax.parallel.compilation_cache import keep_compiled
from instructrec_jax.parallel.mesh import LogicalMesh, MeshSettings, make_mesh
from instructrec_jax.parallel.placement import num_batch_shares
from instructrec_jax.parallel.stopping import agreed
from instructrec_jax.progress import stop_on
from instructrec_jax.requests.request_files import INSTRUCTION
from instructrec_jax.requests.row_files import RowFile
from instructrec_jax.scores import parts
from instructrec_jax.scores.claims import STALE_SECONDS, Claims
from instructrec_jax.scoring.candidate_views import AllAtOnce, Strategy, cost_of, described
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.scoring.shapes import fit_shapes
from instructrec_jax.settings import Count, Names, OneOf, Positive, Range, check_fields, refuse
from instructrec_jax.stages.dry_run import DryRun, open_dry
from instructrec_jax.stages.run_data import RunData, dataset_of
from instructrec_jax.stages.score.ensemble import Members, open_members, score_together
from instructrec_jax.stages.score.request_sets import (
    PendingRequest,
    Rendering,
    RequestSet,
    SetReader,
    file_sets,
    task_sets,
)
from instructrec_jax.stages.score.shards import CLAIMS, score_shards
from instructrec_jax.stages.together import check_run

logger = logging.getLogger(__name__)
SYSTEM = "instructrec"
_SAMPLE_SIZE = 512  # prompts whose sizes decide for which shapes a run is compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """One scoring run, which any number of processes may share.

    Attributes:
      checkpoint_path: a step folder, or a MODEL_DIR for its best (CHECKPOINT_PATH); or Flan-T5 or
        T5 1.1 as Hugging Face or T5X keep it, see `checkpoints.source.open_source`.
      ensemble: further checkpoints of one vocabulary (ENSEMBLE): what is written is the mean of all
        log-likelihoods.
      output_dir: where the parts go (INFER_OUTPUT_DIR).
      tasks: ranking tasks, or mixtures, which stand for all they hold of the evaluation pool. With
        `requests` they only name the dataset whose templates and vocabulary are used.
      split: "validation" or "test"; None with `requests`.
      requests: a file of requests in place of the records of the tasks, see `request_files`.
      request_templates: templates that write the instructions of `requests`, such as "A7"; none
        where the file holds whole instructions.
      on_damage: "fail" or "skip": what happens to requests that cannot be used.
      candidate_view: which candidates a prompt shows, a strategy of `scoring.candidate_views`.
      normaliser: what candidates are ranked by, a name of `metrics.ranking`; None: as the model was
        trained. All log-likelihoods are kept, so that `report` can rank by any.
      with_prior: score every candidate under a prompt that tells nothing of the user as well, for
        the normaliser "pmi".
      num_requests: how many to score of each set; None for all.
      step_tokens: tokens of instructions encoded at once on each group of devices.
      shard_size: requests in one output file; a killed process loses no more than two of them.
      stale_seconds: age after which the claim of a process on another host is dead.
      compilation_cache_dir: where compiled programs are kept for the next start; None for nowhere.
    """

    checkpoint_path: str
    output_dir: str
    tasks: Names
    split: Annotated[str, OneOf(("validation", "test"))] | None = "test"
    requests: str | None = None
    request_templates: Sequence[str] = ()
    on_damage: Annotated[str, OneOf(POLICIES)] = FAIL
    candidate_view: Strategy = dataclasses.field(default_factory=AllAtOnce)
    normaliser: str | None = None
    with_prior: bool = False
    ensemble: Sequence[str] = ()
    num_requests: Count | None = None
    step_tokens: Count = 2048
    shard_size: Annotated[int, Range(1, 1_000_000)] = 512
    stale_seconds: Positive = STALE_SECONDS
    compilation_cache_dir: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.split is None and self.requests is None:
            raise refuse(self, "split", '"validation" or "test" where no requests are named')
        if self.normaliser is not None:
            checked_normalisers([self.normaliser])
        if self.normaliser == PMI and not self.with_prior:
            raise UserError(f"NORMALISER is {PMI!r}, which needs WITH_PRIOR = True")


def score(
    *,
    model: T5Config,
    data: RunData,
    run: ScoreSettings,
    mesh: MeshSettings,
    config_text: str = "",
    dry_run: bool = False,
) -> DryRun | None:
    """Scores every candidate of every request, but for the parts that are there already.

    The same command may run in several processes, on several hosts that see the same folder; they
    share the work, and each of them may be killed or join at any time. What is written does not
    depend on them, as long as they compute alike (kind of device, versions).

    Args:
      model: sizes of the checkpoint's model (MODEL).
      data: records, tasks and vocabulary.
      run: this run.
      mesh: how devices are shared.
      config_text: the resolved gin config, written to the output folder.
      dry_run: say what would be done, and stop before anything is written.

    Returns:
      What a dry run found.

    Raises:
      UserError: for a mistake in settings, data or checkpoint.
    """
    work = run.requests or f"{', '.join(run.tasks)}, split {run.split}"
    words = {"work": work, "output_dir": run.output_dir}
    if dry_run:
        dry = open_dry(run.checkpoint_path, model, mesh, **words)
        return _dry_run(dry, model, data, run, mesh=mesh)
    with stop_on(signal.SIGTERM) as asked, agreed(asked) as stop:
        with processes.sharing_errors():
            checkpoint, device_mesh, _ = open_for_run(run.checkpoint_path, model, mesh, **words)
            members = open_members(checkpoint, run.ensemble, run.normaliser)
            shapes = members.shapes(device_mesh, dtype=model.dtype)
            normaliser, why = chosen_normaliser(run.normaliser, checkpoint.ranking)
            logger.info("candidates are ranked by %s, %s", normaliser, why)
            run = dataclasses.replace(run, normaliser=normaliser)
            opened = _open(data, run, checkpoint.tokenizer, model)
            planned = _plan(model, opened, run, members)
        folder = Path(run.output_dir)
        check_run(planned, config_text, folder)
        if processes.on_main(lambda: _is_done(folder, planned, opened.sets)):
            return None
        readers = [SetReader(own) for own in opened.sets]
        scorer = make_scorer(device_mesh, readers, step_tokens=run.step_tokens)
        keep_compiled(run.compilation_cache_dir)
        models = members.load(shapes)
        processes.on_main(lambda: _claim(folder, planned, config_text))
        processes.check_seen(folder / manifest.FILE_NAME)
        is_finished = score_shards(
            readers,
            folder,
            score=score_together(scorer, models),
            metadata=_metadata(planned, opened, run, members),
            stop=stop,
            stale_seconds=run.stale_seconds,
        )
        logger.info("steps of %d shapes were compiled", scorer.num_compiled)
        if is_finished:
            processes.on_main(lambda: _finish(folder, opened.sets))
    return None


def _dry_run(
    dry: DryRun,
    model: T5Config,
    data: RunData,
    run: ScoreSettings,
    *,
    mesh: MeshSettings,
) -> DryRun:
    """Adds what is said of the data to a dry run."""
    with dry.row("data") as say:
        opened = _open(data, run, dry.tokenizer, model)
        number = sum(own.num_requests for own in opened.sets)
        say(f"found: {number:,} requests in {run.requests or data.data_dir}")
        dry.rows["work"] = f"{number:,} requests: {dry.rows['work']}"
    if dry.checkpoint is not None and dry.would_start:
        with dry.row("checkpoint") as say:
            members = open_members(dry.checkpoint, run.ensemble, run.normaliser)
            found = dry.rows["checkpoint"]
            say(", and ".join([found, *(str(own.path) for own in members.sources[1:])]))
    if dry.checkpoint is not None and dry.would_start:
        shapes = members.shapes(make_mesh(mesh), dtype=model.dtype)
        placed = zip(members.sources, shapes, strict=True)
        dry.look_at_memory(*(source.shapes(own) for source, own in placed))
        normaliser, _ = chosen_normaliser(run.normaliser, dry.checkpoint.ranking)
        run = dataclasses.replace(run, normaliser=normaliser)
        dry.look_at_output(run.output_dir, _plan(model, opened, run, members))
    return dry


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opened:
    """The sets of a run, the hashes of what they come from, and what tells of texts and labels."""

    sets: Sequence[RequestSet]
    inputs: Mapping[str, str]
    told: Mapping[str, str]


def _open(data: RunData, run: ScoreSettings, tokenizer: Path | None, model: T5Config) -> _Opened:
    """Opens what is scored; the tokenizer is the checkpoint's, if there is one beside it."""
    dataset = dataset_of(*run.tasks)
    if run.requests and tokenizer and data.data_dir is data.vocabulary is None:
        data = dataclasses.replace(data, vocabulary=str(tokenizer))
    rendering = Rendering(
        vocabulary=data.open_vocabulary(dataset, vocab_size=model.vocab_size),
        feature_lengths=data.feature_lengths,
        shard_size=run.shard_size,
        on_damage=run.on_damage,
        candidate_view=run.candidate_view,
        with_prior=run.with_prior,
    )
    data.check_tokenizer(dataset, tokenizer)
    if run.requests is None:
        assert run.split is not None
        data.open(*run.tasks, vocab_size=model.vocab_size)
        sets = task_sets(run.tasks, split=run.split, rendering=rendering, limit=run.num_requests)
        told = {"teacher": data.teacher(dataset), **data.labels(dataset)}
        return _Opened(sets=sets, inputs=data.fingerprint(dataset), told=told)
    names = dict.fromkeys(run.request_templates)
    variants = [ranking_variant(data.module, name) for name in names] or [INSTRUCTION]
    file = RowFile(run.requests)
    sets = file_sets(file, variants, rendering=rendering, limit=run.num_requests)
    inputs = {"requests": file.fingerprint(), "vocabulary": data.vocabulary_hash(dataset)}
    return _Opened(sets=sets, inputs=inputs, told={"teacher": "as the requests say"})


def _plan(
    model: T5Config, opened: _Opened, run: ScoreSettings, members: Members
) -> manifest.Manifest:
    """Returns the manifest of the run, its counts still empty."""
    inputs = {"checkpoint": members.fingerprint(), **opened.inputs}
    for own in opened.sets:
        inputs[f"template {own.template}"] = own.wording_hash()
    settings = {
        "model": dataclasses.asdict(model),
        "sets": [own.name for own in opened.sets],
        "split": run.split if run.requests is None else None,
        "feature_lengths": dict(opened.sets[0].rendering.feature_lengths),
        "num_requests": run.num_requests,
        "step_tokens": run.step_tokens,
        "shard_size": run.shard_size,
        "candidate_view": described(run.candidate_view),
        "with_prior": run.with_prior,
        "normaliser": run.normaliser,
        **members.told(),
    }
    return manifest.Manifest(stage="score", inputs=inputs, settings=settings)


def _metadata(
    planned: manifest.Manifest, opened: _Opened, run: ScoreSettings, members: Members
) -> dict[str, dict[str, Any]]:
    """Returns what the parts of each template tell; the same in every process of a run."""
    work = json.dumps([planned.inputs, planned.settings], sort_keys=True)
    common = {
        **{name: found for name, found in planned.inputs.items() if " " not in name},
        "system": SYSTEM,
        "work": hashlib.sha256(work.encode()).hexdigest(),
        "split": planned.settings["split"],
        "normaliser": run.normaliser,
        "candidate_view": planned.settings["candidate_view"],
        "feature_lengths": planned.settings["feature_lengths"],
        **opened.told,
        "checkpoint_step": members.sources[0].step,
        **members.told(),
        "versions": planned.versions,
    }
    return {
        own.template: {
            **common,
            "family": own.variant.template.family,
            "query": str(own.variant.query or parts.NO_QUERY),
            "template": planned.inputs[f"template {own.template}"],
        }
        for own in opened.sets
    }


def _is_done(folder: Path, planned: manifest.Manifest, sets: Sequence[RequestSet]) -> bool:
    """Whether an earlier run has done all of this; its files are checked."""
    earlier = manifest.find_same_work(folder, planned)
    if earlier is not None and earlier.files:
        manifest.check_files(folder, may_lack=True)
    if earlier is None or not _is_finished(earlier, sets, folder):
        return False
    logger.info("nothing left to do: %s holds all of it", folder)
    shutil.rmtree(folder / CLAIMS, ignore_errors=True)
    return True


def _claim(folder: Path, planned: manifest.Manifest, config_text: str) -> None:
    """Makes the folder of the run, only now: a mistake leaves none behind."""
    if manifest.find_same_work(folder, planned) is None:
        planned.write(folder)
        manifest.find_same_work(folder, planned)  # another run may have been as quick
        if config_text:
            files.write_text(folder / "config.gin", config_text)


def _is_finished(earlier: manifest.Manifest, sets: Sequence[RequestSet], folder: Path) -> bool:
    """Whether all rows that an earlier run counted are there still."""
    if not earlier.counts:
        return False
    shards = [shard for own in sets for shard in own.shards()]
    there = [shard for shard in shards if parts.is_written(folder, shard)]
    return parts.count_rows(folder, there)[0] == sum(earlier.counts.values())


def _finish(folder: Path, sets: Sequence[RequestSet]) -> None:
    """Counts what all processes have written, and tidies up, unless another one is at it."""
    with Claims(folder / CLAIMS) as claims:
        if not claims.take(manifest.FILE_NAME):
            return
        files.remove_leftovers(folder)
        found = manifest.read_manifest(folder)
        if not found.counts:
            counts, damage = {}, Damage()
            for own in sets:
                counts[own.name], left_out = parts.count_rows(folder, own.shards())
                damage.add(left_out)
            found = dataclasses.replace(found, counts=counts, drops=damage.counts)
            found = dataclasses.replace(found, damage=damage.examples)
        found.write_finished(folder, "*.parquet", "config.gin")
        shutil.rmtree(folder / CLAIMS, ignore_errors=True)


def make_scorer(mesh: LogicalMesh, readers: Sequence[SetReader], *, step_tokens: int) -> Scorer:
    """Returns the scorer of a run, for shapes that every process finds alike."""
    size = max(_SAMPLE_SIZE // len(readers), 1)
    requests = [request for reader in readers for request in reader.first(size)]
    if not requests:
        switch = readers[0].set.rendering.switch
        raise UserError(f"none of the first requests can be used; {switch}=fail says why")
    _log_cost(requests, readers[0].set.rendering)
    sample = [prompt for request in requests for prompt in request.prompts]
    shapes = fit_shapes(sample, max_tokens=step_tokens, num_groups=num_batch_shares(mesh))
    return Scorer(mesh, shapes)


def _log_cost(requests: Sequence[PendingRequest], rendering: Rendering) -> None:
    """Says what it takes to compare the candidates of a request, by the largest of the first."""
    if num_cut := sum(request.num_titles_cut > 0 for request in requests):
        logger.info(
            "%d of the first %d requests show titles that are cut at %d tokens",
            *(num_cut, len(requests), title_limit(rendering.feature_lengths)),
        )
    number = max(len(request.candidates) for request in requests)
    cost = cost_of(rendering.candidate_view, number)
    if cost.num_views > 1 or rendering.with_prior:
        logger.info(
            "%s: for %d candidates %d prompts in %d rounds, %d candidates scored%s",
            rendering.candidate_view,
            number,
            *(cost.num_views, cost.num_rounds, cost.num_shown),
            ", and as much again for the prior" if rendering.with_prior else "",
        )
