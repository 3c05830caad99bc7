"""The stages of baselines that are trained, such as `baseline sasrec`: A -> checkpoints and E.

The training step, the loop, the checkpoints and the log are those of `train`. A system is any
`Recommender`: its training rows are numbered, and a batch is a function of their numbers.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from instructrec_jax import files, manifest
from instructrec_jax.baselines.recommender import Batch, Choices, Recommender, RowSource
from instructrec_jax.checkpoints import store
from instructrec_jax.checkpoints.arrays import read_checksums
from instructrec_jax.data.columnar import HELD_OUT, VALIDATION
from instructrec_jax.data.data_order import hashed, permuted
from instructrec_jax.data.prepared import PreparedData, hashes_of
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.parallel.placement import (
    check_rows,
    describe_placement,
    place_batch,
)
from instructrec_jax.seeds import stable_seed
from instructrec_jax.settings import Count, Rows, check_fields
from instructrec_jax.stages.baseline.candidate_scorer import CandidateScorer
from instructrec_jax.stages.baseline.retrieval import Retriever
from instructrec_jax.stages.baseline.scores import (
    BaselineSettings,
    Scenario,
    choices_of,
    opened_data,
    planned_scores,
    scenario_of,
    scored_requests,
    write_scores,
)
from instructrec_jax.training.guards import Guards
from instructrec_jax.training.loop import Actions, Periods, run_loop
from instructrec_jax.training.metrics_log import FILE_NAME, MetricsLog, read_metrics
from instructrec_jax.training.optimizers import describe
from instructrec_jax.training.state import TrainState, abstract_state, initial_state, shardings_of
from instructrec_jax.training.step import make_train_step

logger = logging.getLogger(__name__)
HEADLINE = "validation/ndcg@5"
_CONFIG = "config.gin"
_ORDERED_BATCHES = 64  # whose rows are found at a time: one by one, this takes as long as a step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """What is learnt and how.

    Attributes:
      name: of the system in reports (NAME).
      system: the recommender (SYSTEM).
      objective: maps (model, batch, key) to (loss, metrics) (OBJECTIVE).
      optimizer: one of `training.optimizers` (OPTIMIZER).
      mesh: how devices are shared (NUM_PARTITIONS is its `tensor`).
      batch_size: rows of a batch over all devices (BATCH_SIZE).
      patience: evaluations without a better one after which training ends (PATIENCE).
      num_validation: validation examples that are measured on the way, drawn by the seed; None: all
        (NUM_VALIDATION).
    """

    name: str
    system: Recommender
    objective: Callable
    optimizer: optax.GradientTransformation
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    batch_size: Rows
    patience: Count
    num_validation: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def train_and_score(
    *,
    learning: Learning,
    asked: BaselineSettings,
    periods: Periods,
    trained_dir: str | None = None,
    config_text: str = "",
) -> None:
    """Trains, or goes on training, then ranks both splits with the best checkpoint.

    The best one has the highest NDCG@5 on validation examples of the first scenario.

    Args:
      learning: the system and how it is trained.
      asked: what is ranked, and where checkpoints and scores go.
      periods: how long at most, and when to log, evaluate and save.
      trained_dir: output folder of an earlier run of the same system on the same histories; its
        best checkpoint ranks, and nothing is trained.
      config_text: the resolved gin config, written beside the checkpoints.

    Raises:
      UserError: for a mistake in settings or data, or a loss that is not finite.
      KeyboardInterrupt: after Ctrl-C, when the step is saved.
    """
    if jax.process_count() > 1:
        raise UserError("a baseline is trained by one process, on all of its devices")
    folder = Path(asked.output_dir)
    with opened_data(asked) as (data, texts):
        learnt_from = asked.scenarios if trained_dir is None else ()
        choices = functools.partial(choices_of, learnt_from, data, texts)
        run = _Run(learning, asked, periods, data, choices)
        planned = run.planned if trained_dir is None else run.planned_with(trained_dir)
        scenarios = {
            split: [scenario_of(name, split, data, texts) for name in asked.scenarios]
            for split in HELD_OUT
        }
        for scenario in scenarios[VALIDATION]:  # what cannot be scored is said before training
            first = scenario.some([0])
            run.rows.scoring_batch(first.examples, np.zeros((1, 1), np.int32), first.queries)
        manifest.claim(folder, planned)
        if config_text:
            files.write_text(folder / _CONFIG, config_text)
        manifest.read_manifest(folder).write_finished(folder, _CONFIG)
        if trained_dir is not None or run.train(scenarios[VALIDATION][0]):
            run.score(scenarios, trained_dir or folder)


class _Run:
    """One run: what it works with, ready to be trained and to score."""

    def __init__(
        self,
        learning: Learning,
        asked: BaselineSettings,
        periods: Periods,
        data: PreparedData,
        choices: Callable[[], Choices],
    ) -> None:
        self._learning, self._asked, self._periods = learning, asked, periods
        self._mesh, self._folder = make_mesh(learning.mesh), Path(asked.output_dir)
        check_rows(learning.batch_size, self._mesh, name="BATCH_SIZE")
        self.rows, self._data = learning.system.open(data, choices), data
        self._init = functools.partial(learning.system.init, data)
        self._abstract = abstract_state(self._init, learning.optimizer, self._mesh)
        self._scorer = CandidateScorer(self._mesh, self.rows)

    @property
    def planned(self) -> manifest.Manifest:
        """The manifest of the folder, its counts still empty."""
        learning = self._learning
        settings = {
            "system": repr(learning.system),
            "objective": repr(learning.objective),
            "optimizer": describe(learning.optimizer),
            "batch_size": learning.batch_size,
            "patience": learning.patience,
            "num_validation": learning.num_validation,
            "evaluated_every": self._periods.evaluate,
            "scenarios": list(self._asked.scenarios),
            "seed": self._asked.seed,
        }
        stage = f"baseline {learning.name}"
        return manifest.Manifest(stage=stage, inputs=self._asked.inputs(), settings=settings)

    def train(self, validation: Scenario) -> bool:
        """Trains until it no longer improves; returns whether it came to its end."""
        learning, folder, mesh = self._learning, self._folder, self._mesh
        if not self.rows.num_rows:
            raise UserError(
                f"there is nothing to learn {learning.name} from: neither a user with two training "
                "items nor, where queries are read, a query in training"
            )
        logger.info(
            "%s: %s, at most %d steps of %d of %d rows, into %s",
            learning.name,
            describe_placement(self._abstract.model, self._abstract.optimizer_state),
            self._periods.last_step,
            learning.batch_size,
            self.rows.num_rows,
            folder,
        )
        with contextlib.ExitStack() as opened:
            latest, best = self._open_stores(opened)
            state = self._start(latest)
            step = int(state.step)
            progress = _Improvement(folder, step=step, patience=learning.patience)
            log = opened.enter_context(contextlib.closing(MetricsLog(folder, first_step=step)))
            is_due = step > 0 and self._periods.is_evaluated(step) and not log.began_with(HEADLINE)
            state = run_loop(
                state,
                batches(self.rows, learning.batch_size, seed=self._asked.seed, step=step),
                train_step=make_train_step(
                    learning.objective,
                    learning.optimizer,
                    mesh=mesh,
                    shardings=shardings_of(self._abstract),
                    seed=self._asked.seed,
                ),
                periods=self._periods,
                actions=Actions(
                    place=functools.partial(place_batch, mesh=mesh),
                    save=latest.save,
                    evaluate=progress.noted(self._evaluator(validation)),
                    keep_best=_keeper(best),
                    has_converged=progress.has_ended,
                ),
                log=log,
                guards=Guards(log, max_skipped=0),
                is_evaluation_missing=is_due,
            )
        return int(state.step) >= self._periods.last_step or progress.has_ended()

    def planned_with(self, trained_dir: str) -> manifest.Manifest:
        """Returns the manifest of the folder where another run's checkpoint ranks.

        Raises:
          UserError: if that run is of another system or of other histories.
        """
        own, theirs = self.planned, manifest.read_manifest(trained_dir)
        for what, found, expected in (
            ("the output of", theirs.stage, [own.stage]),
            ("the settings", theirs.settings.get("system"), [own.settings["system"]]),
            ("prepared data", theirs.inputs.get("prepared"), hashes_of(self._asked.prepared_dir)),
        ):
            if found not in expected:
                raise UserError(
                    f"--trained_dir {trained_dir} has {what} {found!r}, expected {expected[-1]!r}; "
                    "name the folder of the same system, trained on the same histories"
                )
        inputs = {**own.inputs, "trained": files.sha256(Path(trained_dir) / manifest.FILE_NAME)}
        return dataclasses.replace(own, inputs=inputs)

    def score(self, scenarios: Mapping[str, Sequence[Scenario]], trained_dir: Path | str) -> None:
        """Ranks both splits with the best checkpoint of a run, but for a split that is done."""
        step_folder = store.resolve_checkpoint(trained_dir)
        step = store.checkpoint_step(step_folder)
        sums = {k: v for k, v in read_checksums(step_folder).items() if k.startswith(store.MODEL)}
        checkpoint = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
        name, model = self._learning.name, None
        for split, own in scenarios.items():
            settings = {"checkpoint_step": step}
            planned = planned_scores(name, split, self._asked, settings, checkpoint=checkpoint)
            if manifest.find_finished(self._folder / split, planned) is not None:
                continue
            if model is None:
                wanted = {"model": self._abstract.model}
                model = store.restore(step_folder, wanted)["model"]
                if number := getattr(self._learning.system, "num_retrieved", 0):
                    retriever = Retriever(self._data, model, self.rows, self._mesh)
                    retriever.write(self._folder, number=number)
            score = functools.partial(self._scorer, model)
            requests = {
                s.name: scored_requests(s.examples, score, queries=s.queries) or [] for s in own
            }
            told = {"system": name, "checkpoint_step": step}
            write_scores(self._folder / split, planned, requests, told)

    def _open_stores(
        self, opened: contextlib.ExitStack
    ) -> tuple[store.CheckpointStore, store.CheckpointStore]:
        """Returns the latest checkpoint and the best one."""
        latest = store.CheckpointStore(self._folder / store.LATEST, keep=1)
        opened.callback(latest.close)
        best = store.CheckpointStore(self._folder / store.BEST, keep=1, best_metric=HEADLINE)
        opened.callback(best.close)
        return latest, best

    def _start(self, latest: store.CheckpointStore) -> TrainState:
        """Returns the latest state of an interrupted run, or a random one."""
        if (step := latest.latest_step()) is not None:
            logger.info("resuming from step %d in %s", step, latest.folder)
            return latest.restore(step, self._abstract)
        optimizer, seed = self._learning.optimizer, self._asked.seed
        return initial_state(self._init, optimizer, self._mesh, seed=seed)

    def _evaluator(self, validation: Scenario) -> Callable[[Any], dict[str, float]]:
        """Returns what measures a model on validation examples."""
        drawn = _drawn(validation, self._learning.num_validation, self._asked.seed)

        def evaluate(model: Any) -> dict[str, float]:
            score = functools.partial(self._scorer, model, queries=drawn.queries)
            scored = scored_requests(drawn.examples, score) or []
            values = ranking.stack_rows([own.log_likelihood for own in scored], -np.inf)
            ranks = ranking.ranks(values, [own.target_index for own in scored])
            return {f"{VALIDATION}/{name}": v for name, v in ranking.evaluate(ranks).items()}

        return evaluate


class _Improvement:
    """Whether a run still improves, from the log of earlier attempts and what is measured now."""

    def __init__(self, folder: Path, *, step: int, patience: int) -> None:
        earlier = [line for line in read_metrics(folder / FILE_NAME) if line["step"] <= step]
        self._measured = [line[HEADLINE] for line in earlier if HEADLINE in line]
        self._patience = patience

    def noted(self, evaluate: Callable[[Any], dict[str, float]]) -> Callable[[Any], dict]:
        """Returns the evaluation, which remembers what it measures."""

        def noting(model: Any) -> dict[str, float]:
            found = evaluate(model)
            self._measured.append(found[HEADLINE])
            return found

        return noting

    def has_ended(self) -> bool:
        """Returns whether the best of all evaluations is `patience` evaluations ago."""
        if not self._measured:
            return False
        return len(self._measured) - 1 - int(np.argmax(self._measured)) >= self._patience


def batches(rows: RowSource, batch_size: int, *, seed: int, step: int) -> Iterator[Batch]:
    """Yields endless batches; that of a step depends on integers alone.

    Args:
      rows: of the data set.
      batch_size: rows of a batch.
      seed: of the order, which is another one in each epoch.
      step: number of the first batch.
    """
    key = stable_seed(seed, "rows of a baseline")
    while True:
        numbers = np.arange(step * batch_size, (step + _ORDERED_BATCHES) * batch_size)
        epochs, places = np.divmod(numbers, rows.num_rows)
        order = permuted(places, rows.num_rows, hashed(key, epochs))
        yield from map(rows.training_batch, order.reshape(_ORDERED_BATCHES, batch_size))
        step += _ORDERED_BATCHES


def _drawn(scenario: Scenario, number: int | None, seed: int) -> Scenario:
    """Returns some examples of a scenario, drawn by the seed, in their order."""
    size = len(scenario.examples)
    if number is None or number >= size:
        return scenario
    rng = np.random.default_rng(stable_seed(seed, "validation of a baseline"))
    return scenario.some(np.sort(rng.choice(size, size=number, replace=False)).tolist())


def _keeper(
    best: store.CheckpointStore,
) -> Callable[[int, TrainState, Mapping[str, float]], None]:
    """Returns what keeps an evaluated model if it is the best one so far."""

    def keep(step: int, state: TrainState, measured: Mapping[str, float]) -> None:
        best.save(step, state._replace(optimizer_state=None), measured)

    return keep
