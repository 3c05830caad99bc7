"""What every baseline ranks, and how its scores become artefact E, in a folder for each split."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from instructrec_jax import files, manifest
from instructrec_jax.baselines.recommender import Choices
from instructrec_jax.data.columnar import LEAVE_ONE_OUT, PRODUCT_SEARCH, TRAIN
from instructrec_jax.data.prepared import PreparedData, hashes_of, read_prepared
from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.instructions.builder import RecordBuilder, RecordSettings
from instructrec_jax.instructions.language import ANY_QUERY, QUERY_FIELDS, Query
from instructrec_jax.manifest import Manifest
from instructrec_jax.metrics import ranking
from instructrec_jax.records import CandidateList, InstructionRecord, TeacherTexts
from instructrec_jax.scores import parts
from instructrec_jax.scores.parts import NO_QUERY, ScoredRequest
from instructrec_jax.settings import Range, Seed, check_fields
from instructrec_jax.teacher.texts import Texts, read_texts_manifest

logger = logging.getLogger(__name__)
SEQUENTIAL, PERSONALIZED, SEARCH = "sequential", "personalized_search", "product_search"
SCENARIOS = (SEQUENTIAL, *(f"{f}.{q}" for f in (PERSONALIZED, SEARCH) for q in ANY_QUERY))
_PART_SIZE = 65_536  # rows of a file
NO_PROMPT = {"strategy": "no prompt", "sure_ranks": None}
Score = Callable[..., NDArray[np.float32] | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """What a baseline ranks, and where its scores go.

    Attributes:
      prepared_dir: artefact A.
      output_dir: folder for artefact E of both splits, in `validation` and `test`.
      texts_dir: artefact B, where a scenario's query is a teacher's text.
      scenarios: what is ranked: sequential, or a family and a kind of query, such as
        product_search.specific or personalized_search.vague.
      seed: of all draws.
    """

    prepared_dir: str
    output_dir: str
    texts_dir: str | None = None
    scenarios: Annotated[Sequence[str], Range(1)] = (SEQUENTIAL,)
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in self.scenarios:
            if name not in SCENARIOS:
                raise unknown_name("scenario", name, SCENARIOS)

    def inputs(self) -> dict[str, str]:
        """Returns the hashes of what is read."""
        prepared = hashes_of(self.prepared_dir)
        candidates = Path(self.prepared_dir) / "candidates.parquet"
        found = {"prepared": prepared[0], "candidates": files.sha256(candidates)}
        if self.texts_dir is not None:
            read_texts_manifest(self.texts_dir, prepared=prepared)
            found["texts"] = files.sha256(Path(self.texts_dir) / manifest.FILE_NAME)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """The examples of one split and scenario.

    Attributes:
      name: of the scenario, one of SCENARIOS.
      examples: the candidate lists of A; those that lack the scenario's query are left out.
      queries: what the user of each example asks for; None where nobody asks.
    """

    name: str
    examples: Sequence[CandidateList]
    queries: Sequence[str] | None

    def some(self, rows: Sequence[int]) -> "Scenario":
        """Returns some of the examples, by their numbers."""
        queries = None if self.queries is None else [self.queries[row] for row in rows]
        examples = [self.examples[row] for row in rows]
        return Scenario(name=self.name, examples=examples, queries=queries)


def has_categories(prepared_dir: str) -> bool:
    """Returns whether there are specific queries: items of artefact A that have a category."""
    return any(read_prepared(prepared_dir).search_splits)


@contextlib.contextmanager
def opened_data(asked: BaselineSettings) -> Iterator[tuple[PreparedData, TeacherTexts | None]]:
    """Opens artefact A, and B where it was named."""
    data = read_prepared(asked.prepared_dir)
    if asked.texts_dir is None:
        yield data, None
        return
    with tempfile.TemporaryDirectory() as unpacked:
        yield data, Texts(asked.texts_dir, data.histories, unpacked=unpacked)


def scenario_of(name: str, split: str, data: PreparedData, texts: TeacherTexts | None) -> Scenario:
    """Returns the examples of a scenario and split.

    Args:
      name: one of SCENARIOS.
      split: "validation" or "test".
      data: artefact A.
      texts: artefact B; None where no teacher wrote.

    Raises:
      UserError: if there are none.
    """
    family, _, query = name.partition(".")
    protocol = PRODUCT_SEARCH if family == SEARCH else LEAVE_ONE_OUT
    examples: Sequence[CandidateList] = data.evaluation(protocol, split)
    queries: list[str] | None = None
    if query:
        _check_texts(name, texts)
        asked = _queries(protocol, split, Query(query), RecordBuilder(data, _SAME, texts))
        pairs = [(e, text) for e, text in zip(examples, asked, strict=True) if text]
        examples, queries = [e for e, _ in pairs], [text for _, text in pairs]
    if not examples:
        raise UserError(f"{data.dataset} has no {split} example of {name}; leave it out")
    return Scenario(name=name, examples=examples, queries=queries)


_SAME = RecordSettings()  # those of the records of `build`, whose first text evaluation takes


def choices_of(names: Sequence[str], data: PreparedData, texts: TeacherTexts | None) -> Choices:
    """Returns what was chosen in training, and what was asked for, in each of some scenarios.

    Args:
      names: of SCENARIOS; a choice without a scenario's query is left out there.
      data: artefact A.
      texts: artefact B; None where no teacher wrote.

    Raises:
      UserError: if a scenario's queries are texts that are not there.
    """
    for name in names:
        _check_texts(name, texts)
    rows = {user: row for row, user in enumerate(data.histories.user_ids.to_pylist())}
    builder = RecordBuilder(data, dataclasses.replace(_SAME, num_train_negatives=1), texts)
    found: list[tuple[int, int, int]] = []
    queries: list[str] = []
    by_protocol = {
        PRODUCT_SEARCH: [name for name in names if name.startswith(SEARCH)],
        LEAVE_ONE_OUT: [name for name in names if not name.startswith(SEARCH)],
    }
    for protocol, own in by_protocol.items():
        kinds = [name.partition(".")[2] for name in own]
        numbers = range(builder.num_records(protocol, TRAIN) if own else 0)
        for record in builder.records(protocol, TRAIN, numbers):
            for kind in kinds:
                if (query := _query(record, kind)) or not kind:
                    found.append((rows.get(record.user_id, -1), record.position, record.target_id))
                    queries.append(query)
    columns = np.array(found, np.int32).reshape(-1, 3).T
    return Choices(
        history_rows=columns[0], positions=columns[1], item_ids=columns[2], queries=queries
    )


def _check_texts(name: str, texts: TeacherTexts | None) -> None:
    """Raises where a scenario's queries are missing."""
    query = name.partition(".")[2]
    if texts is None and query not in ("", Query.SPECIFIC):
        raise UserError(f"the queries of {name} are a teacher's texts; name their --texts_dir")


def _queries(protocol: str, split: str, query: Query, builder: RecordBuilder) -> Iterator[str]:
    """Yields the query of each example, "" where it has none."""
    for record in builder.records(protocol, split, range(builder.num_records(protocol, split))):
        yield _query(record, query)


def _query(record: InstructionRecord, query: str) -> str:
    """Returns what is asked for by a kind of query, "" for nothing."""
    if not query:
        return ""
    found = getattr(record, QUERY_FIELDS[Query(query)])
    return found if isinstance(found, str) else next(iter(found), "")


def scored_requests(
    examples: Sequence[CandidateList], score: Score, **more: Any
) -> list[ScoredRequest] | None:
    """Returns the scored candidates of examples; None where a system cannot score them.

    Args:
      examples: of one scenario.
      score: maps (examples, [n, c] candidate ids with -1 at padding) to [n, c] scores, or None.
      **more: arguments of `score`.
    """
    ids = [np.array(example.candidate_ids, np.int32) for example in examples]
    values = score(examples, ranking.stack_rows(ids, -1), **more)
    if values is None:
        return None
    return [
        ScoredRequest(
            request_id=example.example_id,
            candidate_ids=own,
            log_likelihood=row[: len(own)],
            target_index=example.candidate_ids.index(example.target_id),
        )
        for example, own, row in zip(examples, ids, values, strict=True)
    ]


def planned_scores(
    name: str, split: str, asked: BaselineSettings, settings: Mapping[str, Any], **inputs: str
) -> Manifest:
    """Returns the manifest of the scores of one split.

    Args:
      name: of the system.
      split: "validation" or "test".
      asked: what is ranked.
      settings: of the system.
      **inputs: hashes of what the system reads beside A and B.
    """
    own = {"split": split, "scenarios": list(asked.scenarios), "seed": asked.seed}
    return Manifest(
        stage=f"baseline {name}",
        inputs={**asked.inputs(), **inputs},
        settings={**own, **settings},
    )


def write_scores(
    folder: Path,
    planned: Manifest,
    requests: Mapping[str, Sequence[ScoredRequest]],
    told: Mapping[str, Any],
) -> None:
    """Writes the scores of one split, whole or not at all.

    Args:
      folder: new or empty.
      planned: from `planned_scores`.
      requests: by scenario.
      told: what the files tell of the system beside that.
    """
    work = json.dumps([planned.inputs, planned.settings], sort_keys=True)
    common = {
        **planned.inputs,
        "work": hashlib.sha256(work.encode()).hexdigest(),
        "split": planned.settings["split"],
        "normaliser": "sum",
        "candidate_view": NO_PROMPT,
        "versions": planned.versions,
        **told,
    }
    with files.atomic_directory(folder) as unfinished:
        for name, scored in requests.items():
            family, _, query = name.partition(".")
            own = {**common, "family": family, "query": query or NO_QUERY}
            rows = parts.score_rows(name, scored)
            for shard in parts.shards_of(name, num_requests=len(rows), size=_PART_SIZE):
                some = rows[shard.numbers.start : shard.numbers.stop]
                parts.write_part(unfinished / shard.file_name, some, own)
        counts = {name: len(scored) for name, scored in requests.items()}
        dataclasses.replace(planned, counts=counts).write_finished(unfinished)
    shown = ", ".join(f"{number:,} examples of {name}" for name, number in counts.items())
    split = planned.settings["split"]
    logger.info("%s: ranked the %s split (%s), in %s", planned.stage, split, shown, folder)
