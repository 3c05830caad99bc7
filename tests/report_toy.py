"""An invented data set with scores of systems on it, and a report of them."""

import dataclasses
import json

import columns
import numpy as np

from instructrec_jax.data import prepared
from instructrec_jax.manifest import Manifest
from instructrec_jax.records import CandidateList, History, Item
from instructrec_jax.scores import parts
from instructrec_jax.scores.parts import part_name
from instructrec_jax.stages import report as stage
from instructrec_jax.stages.report.choice import ChoiceSettings
from instructrec_jax.stages.report.given import Beside

NUM_USERS, NUM_ITEMS = 60, 40
ALL_AT_ONCE = {"strategy": "AllAtOnce", "sure_ranks": None}


def candidate_list(user: int, split: str, items: tuple[int, ...]) -> CandidateList:
    position = len(items) - (1 if split == "test" else 2)
    generator = np.random.default_rng([user, position])
    others = [item for item in generator.permutation(NUM_ITEMS).tolist() if item not in items]
    ids = [items[position], *others[:9]]
    generator.shuffle(ids)
    return CandidateList(
        example_id=f"{user}:{position}",
        protocol="leave_one_out",
        split=split,
        user_id=str(user),
        position=position,
        target_id=items[position],
        candidate_ids=tuple(ids),
    )


def search_list(item: int, split: str) -> CandidateList:
    found = candidate_list(item, split, (item, item))
    return dataclasses.replace(
        found,
        example_id=f"item:{item}",
        protocol="product_search",
        user_id="",
        position=-1,
        target_id=item,
    )


def make_data() -> prepared.PreparedData:
    generator = np.random.default_rng(0)
    histories = columns.histories(
        [
            History(
                user_id=str(user), item_ids=tuple(generator.permutation(NUM_ITEMS)[:8].tolist())
            )
            for user in range(NUM_USERS)
        ]
    )
    leave_one_out = [
        candidate_list(int(history.user_id), split, history.item_ids)
        for history in histories
        for split in ("validation", "test")
    ]
    search = [search_list(item, "validation") for item in range(0, 10)]
    search += [search_list(item, "test") for item in range(10, 20)]
    return prepared.PreparedData(
        dataset="toy",
        items=tuple(
            Item(item_id=i, raw_id=str(i), title=f"title {i}", category="c")
            for i in range(NUM_ITEMS)
        ),
        search_splits=("validation",) * 10 + ("test",) * 10 + ("train",) * (NUM_ITEMS - 20),
        histories=histories,
        seen_items=columns.item_sets(sorted(h.item_ids) for h in histories),
        candidates=columns.candidates(leave_one_out + search, histories),
    )


def score_rows(template: str, examples, *, bonus: float) -> list[dict]:
    """Noise, and for the target a bonus: the larger it is the better the template."""
    rows = []
    for example in examples:
        ids = example.candidate_ids
        target = ids.index(example.target_id)
        values = np.random.default_rng([len(template), *ids]).normal(size=len(ids)) - 5
        values[target] += bonus
        rows.append(
            {
                "example_id": example.example_id,
                "template_id": template,
                "candidate_ids": list(ids),
                "log_likelihood": values.astype(np.float32).tolist(),
                "num_tokens": [3] * len(ids),
                "num_chars": [9] * len(ids),
                "last_round": [1] * len(ids),
                "num_views": 1,
                "target_index": target,
            }
        )
    return rows


def scenario(template):
    """The family and the query of a template, as its registration names them."""
    template, _, query = template.partition(".")
    families = {"B": "product_search", "C": "personalized_search"}
    return {"family": families.get(template[0], "sequential"), "query": query or "none"}


def write_scores(folder, data, split, bonuses, *, step=30, change=None, **told):
    folder.mkdir()
    total = 0
    for template, bonus in bonuses.items():
        protocol = "product_search" if template.startswith("B") else "leave_one_out"
        examples = [e for e in data.candidates if (e.protocol, e.split) == (protocol, split)]
        rows = score_rows(template, examples, bonus=bonus)
        if change:
            change(rows)
        total += len(rows)
        metadata = {
            **scenario(template),
            "system": "instructrec",
            "candidate_view": ALL_AT_ONCE,
            "checkpoint_step": step,
            "checkpoint": f"hash of {step}",
            "split": split,
            "teacher": "hand-1",
            **told,
        }
        parts.write_part(folder / part_name(template, 0), rows, metadata)
    Manifest(stage="score", inputs={}, settings={}, counts={"rows": total}).write(folder)


VALIDATION = {"A7": 0.5, "A9": 2.5, "B7.specific": 0.2, "C10.specific": 3.0}
TEST = {"A7": 4.0, "A9": 2.5, "B7.specific": 0.2, "C10.specific": 3.0}


def make_folders(root):
    data = make_data()
    (root / "prepared").mkdir()
    columns.write_prepared(root / "prepared", data)
    Manifest(stage="prepare", inputs={}, settings={"dataset": "toy"}).write(root / "prepared")
    write_scores(root / "validation", data, "validation", VALIDATION)
    write_scores(root / "test", data, "test", TEST)
    lines = [{"step": s, "loss": 5 / (s + 1), "time": 1.5 * s} for s in range(60)]
    lines += [
        {"step": s, "validation/ndcg@5": s / 100, "validation/hr@1": s / 200} for s in (20, 40)
    ]
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def model(folders, *, test):
    """The model's scores, those of the test split from elsewhere."""
    return {"model": (folders / "validation", test)}


def run(folders, output, **changes):
    arguments = {
        "dataset": "toy",
        "prepared_dir": folders / "prepared",
        "scores": {"model": (folders / "validation", folders / "test")},
        "output_dir": output,
    }
    beside = {"metrics_file": str(folders / "metrics.jsonl")}
    beside_names = ("metrics_file", "texts_dir", "explanations")
    beside |= {name: changes.pop(name) for name in beside_names if name in changes}
    choice = ChoiceSettings(
        normalisers=changes.pop("normalisers", ("sum", "mean")), fuse=changes.pop("fuse", ())
    )
    beside = Beside(**beside)
    return stage.report(**(arguments | changes), beside=beside, choice=choice)
