"""Two templates of the toy data set, and small records by hand: what `lint` is tried on."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from instructrec_jax.instructions.coverage import aspects_of
from instructrec_jax.instructions.language import Query, Template
from instructrec_jax.manifest import Manifest
from instructrec_jax.pipeline import record_store
from instructrec_jax.pipeline.registry import register_templates
from instructrec_jax.records import InstructionRecord, TaskForm
from instructrec_jax.stages.lint.leaks import check_records

LEAVE_ONE_OUT = "leave_one_out"
TEMPLATES = (
    Template(
        template_id="L1",
        inputs="Past choices: {history}.[ Taste: {preference}.] Next of: {candidates}?",
        targets="{target}",
        task_form=TaskForm.RERANKING,
        family="lint",
        is_evaluated=True,
    ),
    Template(
        template_id="L2",
        inputs="Wanted: {query}. Give the item.",
        targets="{target}",
        task_form=TaskForm.MATCHING,
        family="lint",
        queries=(Query.VAGUE, Query.SPECIFIC),
    ),
)
RECORD = InstructionRecord(
    example_id="u0:2",
    user_id="u0",
    position=2,
    history=("Copper kettle", "Silver kite"),
    preference=("likes kettles",),
    vague_intention=("something for tea",),
    second_vague_intention=("The user wants something for tea",),
    specific_intention="Bazaar, Kettles",
    teacher="hand-1",
    target_id=4,
    target="Braku Dole Kettle",
    candidate_ids=(3, 4),
    candidates=("Zimo Drum", "Braku Dole Kettle"),
)
Records = Mapping[tuple[str, str], Iterable[InstructionRecord]]


def register(dataset: str) -> None:
    """Registers both templates."""
    register_templates(dataset, TEMPLATES)


def numbered(number: int, **changes) -> InstructionRecord:
    """Returns a record of a user of its own, with a target and wishes of its own."""
    name = "".join(chr(ord("k") + int(digit)) for digit in str(number))
    fields = {
        "example_id": f"u{number}:2",
        "user_id": f"u{number}",
        "vague_intention": (f"something {name}o for tea",),
        "second_vague_intention": (f"The user wants something {name}o for tea",),
        "target_id": number,
        "target": f"Braku Dole {name.title()}a",
        "candidate_ids": (1000, number),
        "candidates": ("Zimo Drum", f"Braku Dole {name.title()}a"),
    }
    return dataclasses.replace(RECORD, **{**fields, **changes})


def write_dataset(
    data_dir: Path, records: Records, *, teacher: str = "hand-1", vocabulary: Path | None = None
) -> None:
    """Writes a data set "own" as `build` does."""
    counts: collections.Counter[str] = collections.Counter()
    sizes: dict[str, dict[str, list[record_store.ShardSize]]] = {}
    for (config, split), members in records.items():
        folder = data_dir / "own" / config / record_store.VERSION
        path = record_store.shard_path(folder, dataset="own", split=split, index=0, num_shards=1)
        members = list(members)
        sizes.setdefault(config, {})[split] = [record_store.write_shard(path, members)]
        for record in members:
            counts[f"{config}/{split}"] += 1
            counts[f"{config}/{split}/{aspects_of(record)}"] += 1
    for config, of_config in sizes.items():
        folder = data_dir / "own" / config / record_store.VERSION
        record_store.write_metadata(folder, dataset="own", shards=of_config)
    if vocabulary is not None:
        target = data_dir / "own" / "vocabulary" / "sentencepiece.model"
        target.parent.mkdir()
        target.write_bytes(vocabulary.read_bytes())
    settings = {"dataset": "own", "teacher": teacher}
    Manifest(stage="build", inputs={}, settings=settings, counts=dict(counts)).write(
        data_dir / "own"
    )


def check_splits(tmp_path, **splits):
    """Returns what is found in records by split, 2 held-out ones among them unless given."""
    held_out = {"validation": [numbered(20)], "test": [numbered(30)]}
    records = {(LEAVE_ONE_OUT, split): members for split, members in {**held_out, **splits}.items()}
    write_dataset(tmp_path, records)
    record_store.use_data_dir(tmp_path)
    return check_records("own")
