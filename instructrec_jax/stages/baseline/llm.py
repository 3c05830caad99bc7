"""The stage `baseline llm`: a language model ranks the candidates of some examples, zero-shot."""

import dataclasses
import hashlib
import heapq
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instructrec_jax import files, manifest
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import plain_title
from instructrec_jax.instructions.render import shows_candidates, wording_hash
from instructrec_jax.instructions.task_modules import SHIPPED
from instructrec_jax.manifest import Manifest
from instructrec_jax.progress import Progress
from instructrec_jax.report.tables import Document
from instructrec_jax.scores import parts
from instructrec_jax.scores.parts import ScoredRequest
from instructrec_jax.seeds import stable_seed
from instructrec_jax.settings import Names, check_arguments
from instructrec_jax.stages.annotate.plan import cost_sections
from instructrec_jax.stages.run_data import dataset_of, plain_data
from instructrec_jax.teacher.client import ask_all
from instructrec_jax.teacher.estimate import Volume
from instructrec_jax.teacher.ledger import Ledger
from instructrec_jax.teacher.questions import Question
from instructrec_jax.teacher.ranking import (
    BY_ANSWER,
    BY_LIKELIHOOD,
    FAIL,
    UNANSWERED,
    Instance,
    Ranking,
    RankSettings,
    instance_of,
    ranking_of,
)
from instructrec_jax.teacher.settings import BATCH, ClientSettings

if TYPE_CHECKING:
    from instructrec_jax.pipeline.registry import InstructionTask

logger = logging.getLogger(__name__)
_AT_ONCE = 256  # instances whose answers are looked up together
_PART_SIZE = 4096  # rows of a file


def rank(
    *,
    tasks: Names,
    data_dir: Path | str,
    settings: RankSettings,
    client: ClientSettings,
    output_dir: Path | str | None = None,
    ledger_path: Path | str | None = None,
    task_module: str = SHIPPED,
    plan: bool = False,
) -> Manifest | Document | None:
    """Asks a language model to rank, and writes what it says as artefact E.

    Args:
      tasks: whose instructions are sent, such as ml_100k.A7; or mixtures, which stand for all that
        rank candidates.
      data_dir: output folder of `build`.
      settings: what is asked.
      client: whom, how fast and for how much.
      output_dir: folder for artefact E, new, empty or of the same work; a plan needs none.
      ledger_path: a file on a local disk that keeps every answer; made if it is new, and may be
        that of `annotate run` on the same data. A plan needs none.
      task_module: module that registers the tasks.
      plan: show requests, tokens, USD and hours, and send nothing.

    Returns:
      The manifest; the plan where one was asked for; None where the run was asked to stop before it
      had all answers.

    Raises:
      UserError: if an input or a setting is unusable, the money ends, or a question has no answer;
        answers are kept.
    """
    check_arguments(rank, locals())
    _check_way(settings, client)
    sets = _open_sets(tasks, Path(data_dir), settings, task_module)
    folder = Path(data_dir) / dataset_of(*tasks)
    fingerprint = manifest.read_manifest(folder).inputs["prepared"]
    if plan:
        has_ledger = ledger_path is not None and Path(ledger_path).exists()
        if not has_ledger:
            return _plan(sets, settings, client, None)
        assert ledger_path is not None
        with Ledger(ledger_path, fingerprint=fingerprint) as ledger:
            return _plan(sets, settings, client, ledger)
    if output_dir is None or ledger_path is None:
        raise UserError("--output_dir and --ledger_path are needed; only --plan does without them")
    planned = _manifest(sets, folder, settings)
    if (earlier := manifest.find_finished(output_dir, planned)) is not None:
        logger.info("baseline llm: %s is up to date", output_dir)
        return earlier
    with Ledger(ledger_path, fingerprint=fingerprint) as ledger:
        questions = (q for own in sets for instance in own.instances() for q in instance.questions)
        total = sum(own.num_questions for own in sets)
        asked = ask_all(questions, ledger, client, total=total)
        if asked["stopped"]:
            return None
        return _write(sets, ledger, planned, settings, Path(output_dir))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Set:
    """The drawn examples of one task.

    Attributes:
      task: whose records are ranked.
      settings: how.
      example_ids: of those that were drawn.
      num_all: of the split.
      num_candidates: of all that were drawn together.
    """

    task: "InstructionTask"
    settings: RankSettings
    example_ids: frozenset[str]
    num_all: int
    num_candidates: int

    @property
    def template(self) -> str:
        """The name of its rows."""
        return self.task.variant.name

    @property
    def num_questions(self) -> int:
        """How many are asked."""
        more = self.num_candidates if self.settings.by == BY_LIKELIHOOD else 0
        return len(self.example_ids) + more

    def instances(self) -> Iterator[Instance]:
        """Yields the examples in file order."""
        for record in self.task.records(self.settings.split):
            if record.example_id in self.example_ids:
                yield instance_of(self.task.variant, record, self.settings)


def _check_way(settings: RankSettings, client: ClientSettings) -> None:
    """Raises UserError where log-probabilities are asked of the Batch API."""
    if settings.by == BY_LIKELIHOOD and client.mode == BATCH:
        raise UserError("--by=likelihood asks for completions, which --mode=batch has not here")


def _open_sets(
    tasks: Sequence[str], data_dir: Path, settings: RankSettings, task_module: str
) -> list[_Set]:
    """Returns the examples to rank, of each task that the names stand for."""
    plain_data(data_dir, *tasks, module=task_module).open(*tasks)
    from instructrec_jax.pipeline import registry  # SeqIO, which `--help` does without

    found = []
    for name in registry.evaluated_tasks(tasks, split=settings.split):
        task = registry.instruction_task(name)
        if settings.by == BY_ANSWER and not shows_candidates(task.variant):
            raise UserError(
                f"template {task.variant.name} shows no candidates, so a model cannot order them; "
                "name one that does, such as A7, or use --by=likelihood"
            )
        found.append(_drawn(task, settings))
    return found


def _drawn(task: "InstructionTask", settings: RankSettings) -> _Set:
    """Draws examples: each has a number of its own, so tasks of the same records draw the same."""
    about = (settings.seed, task.name.partition(".")[0], settings.split, "ranked by an LLM")
    numbered = (
        (stable_seed(*about, example_id), example_id, len(row["candidate_ids"]))
        for row in task.source.rows(settings.split)
        for example_id in [row["example_id"].decode()]
    )
    num_all = task.source.num_input_examples(settings.split)
    number = settings.num_instances or num_all
    chosen = heapq.nsmallest(number, numbered)
    return _Set(
        task=task,
        settings=settings,
        example_ids=frozenset(example_id for _, example_id, _ in chosen),
        num_all=num_all,
        num_candidates=sum(candidates for *_, candidates in chosen),
    )


def _plan(
    sets: Sequence[_Set], settings: RankSettings, client: ClientSettings, ledger: Ledger | None
) -> Document:
    """Returns what would be asked."""
    volumes: dict[str, Volume] = {}
    seen: set[str] = set()
    for own in sets:
        volume = volumes.setdefault(own.template, Volume())
        progress = Progress("plan", total=len(own.example_ids), unit="examples")
        for instance in progress.track(own.instances()):
            keys = [question.key for question in instance.questions]
            known = ledger.answered(keys) if ledger is not None else set()
            for question, key in zip(instance.questions, keys, strict=True):
                if key in seen:
                    volume.repeated += 1
                elif key in known:
                    volume.answered += 1
                else:
                    volume.add(question, expected_tokens=instance.expected_tokens)
                seen.add(key)
    number = sum(volume.requests for volume in volumes.values())
    drawn = ", ".join(f"{own.template} {_coverage(own)}" for own in sets)
    return Document(
        title=f"Candidates ranked by {settings.model}, {settings.split} split",
        summary=f"{number:,} requests on {drawn}; none was sent.",
        sections=cost_sections(volumes, settings.model, client),
    )


def _manifest(sets: Sequence[_Set], folder: Path, settings: RankSettings) -> Manifest:
    """Returns the manifest of the work, without what it will count."""
    records = {"records": files.sha256(folder / manifest.FILE_NAME)}
    wordings = {f"template {own.template}": wording_hash([own.task.variant]) for own in sets}
    return Manifest(
        stage="baseline llm",
        inputs={**records, **wordings},
        settings={
            **dataclasses.asdict(settings),
            "sets": [own.task.name for own in sets],
            "prompt_version": settings.prompt.version,
            "teacher": manifest.read_manifest(folder).text("teacher"),
        },
    )


def _write(
    sets: Sequence[_Set],
    ledger: Ledger,
    planned: Manifest,
    settings: RankSettings,
    output_dir: Path,
) -> Manifest:
    """Writes artefact E from the ledger, whole or not at all."""
    counts: dict[str, int] = {}
    drops: Counter[str] = Counter()
    with files.atomic_directory(output_dir) as folder:
        for own in sets:
            read = _Read()
            rows = list(read.rows(own, ledger))
            if missing := read.reasons[UNANSWERED]:
                _check_answered(missing, len(rows), settings)
            told = _metadata(own, planned, read, settings)
            for shard in parts.shards_of(own.template, num_requests=len(rows), size=_PART_SIZE):
                some = rows[shard.numbers.start : shard.numbers.stop]
                parts.write_part(folder / shard.file_name, some, told)
            counts[own.task.name] = len(rows)
            drops.update({f"{own.template} {why}": n for why, n in read.reasons.items()})
            logger.info(
                "baseline llm: %s ranked %s; answers of no use, counted as misses: %s",
                *(settings.model, f"{own.template}, {_coverage(own)}", told["unusable"] or "none"),
            )
        finished = dataclasses.replace(planned, counts=counts, drops=dict(sorted(drops.items())))
        finished.write_finished(folder)
    logger.info("baseline llm: wrote %s", output_dir)
    return finished


class _Read:
    """Reads the answers on a set.

    Attributes:
      reasons: of those that give no order.
      models: as the server names them.
      dates: on which they came.
    """

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.models: set[str] = set()
        self.dates: set[str] = set()

    def rows(self, own: _Set, ledger: Ledger) -> Iterator[dict[str, Any]]:
        """Yields rows of artefact E, in file order."""
        waiting: list[Instance] = []
        for instance in own.instances():
            waiting.append(instance)
            if len(waiting) == _AT_ONCE:
                yield from self._some(own, waiting, ledger)
                waiting = []
        yield from self._some(own, waiting, ledger)

    def _some(
        self, own: _Set, instances: Sequence[Instance], ledger: Ledger
    ) -> list[dict[str, Any]]:
        asked: list[Question] = [q for instance in instances for q in instance.questions]
        answers = ledger.answers(question.key for question in asked)
        self.models |= {answer.model for answer in answers.values()}
        self.dates |= {answer.date for answer in answers.values()}
        scored = []
        for instance in instances:
            found = ranking_of(instance, answers)
            if found.reason:
                self.reasons[found.reason] += 1
            scored.append(_scored(instance, found))
        return parts.score_rows(own.template, scored, normaliser=_normaliser(own.settings))


def _scored(instance: Instance, found: Ranking) -> ScoredRequest:
    """Returns a row of artefact E."""
    record = instance.record
    chars = None
    if found.num_tokens is not None:
        chars = np.array([len(plain_title(title)) for title in record.candidates], np.int32)
    return ScoredRequest(
        request_id=record.example_id,
        candidate_ids=np.array(record.candidate_ids, np.int64),
        log_likelihood=found.values,
        num_tokens=found.num_tokens,
        num_chars=chars,
        target_index=record.candidate_ids.index(record.target_id),
    )


def _check_answered(missing: int, number: int, settings: RankSettings) -> None:
    """Raises UserError where examples without an answer are not to be counted as misses."""
    if settings.unanswered == FAIL:
        raise UserError(
            f"{missing} of {number} examples have no answer; run the same command again, which "
            "asks for them, or count them as misses: --unanswered=miss"
        )


def _normaliser(settings: RankSettings) -> str:
    """Returns what candidates are ranked by: written orders have no tokens to count."""
    return "sum" if settings.by == BY_ANSWER else "mean"


def _coverage(own: _Set) -> str:
    """Returns such as "500 of 943 examples"."""
    return f"{len(own.example_ids):,} of {own.num_all:,} examples"


def _metadata(
    own: _Set, planned: Manifest, read: _Read, settings: RankSettings
) -> Mapping[str, Any]:
    """Returns what the parts of a set tell of where they come from."""
    work = json.dumps([planned.inputs, planned.settings], sort_keys=True)
    variant = own.task.variant
    return {
        "system": " ".join(sorted(read.models)) or settings.model,
        "family": variant.template.family,
        "query": str(variant.query or parts.NO_QUERY),
        "template": wording_hash([variant]),
        "work": hashlib.sha256(work.encode()).hexdigest(),
        "split": settings.split,
        "normaliser": _normaliser(settings),
        "candidate_view": {"strategy": "AllAtOnce", "sure_ranks": None},
        "teacher": planned.settings["teacher"],
        "prompt_version": settings.prompt.version,
        "by": settings.by,
        "date": max(read.dates, default=None),
        "instances": f"{_coverage(own)}, drawn with seed {settings.seed}",
        "unusable": ", ".join(f"{why} {n}" for why, n in sorted(read.reasons.items())),
        "versions": planned.versions,
    }
