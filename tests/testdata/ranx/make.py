"""Writes ranx.json: invented scores, and what ranx 0.3.21 makes of them, example by example.

ranx compiles for 20 seconds at every start, so the tests read its figures. Made again by:

    python -m venv /tmp/ranx && /tmp/ranx/bin/pip install ranx==0.3.21
    /tmp/ranx/bin/python tests/testdata/ranx/make.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ranx import Qrels, Run, evaluate

NAMES = {
    f"{ours}@{k}": f"{theirs}@{k}"
    for ours, theirs in (("hr", "hit_rate"), ("ndcg", "ndcg"))
    for k in (1, 3, 5)
}
del NAMES["ndcg@1"]


def figures(scores: list[list[float]], targets: list[int]) -> dict[str, list[float]]:
    """Returns every metric of every example, as ranx computes it."""
    qrels = Qrels({f"{q:03}": {str(target): 1} for q, target in enumerate(targets)})
    run = Run({f"{q:03}": {str(i): v for i, v in enumerate(own)} for q, own in enumerate(scores)})
    found = evaluate(qrels, run, list(NAMES.values()), return_mean=False)
    return {name: [float(value) for value in found[own]] for name, own in NAMES.items()}


def placed(scores: list[float], target: int, place: int) -> list[float]:
    """Returns scores without ties: the target has `place` of its equals above it."""
    equal = [i for i, value in enumerate(scores) if value == scores[target] and i != target]
    moved = list(scores)
    for number, index in enumerate(equal):
        moved[index] += 0.01 * (number + 1) * (1 if number < place else -1)
    return moved


def main() -> None:
    """Draws the scores, half of them with ties, and writes all."""
    generator = np.random.default_rng(2026)
    scores, targets = [], []
    for number in range(60):
        size = int(generator.integers(2, 13))
        own = generator.normal(size=size) if number % 2 else generator.integers(0, 4, size)
        scores.append([float(np.float32(value)) for value in own])
        targets.append(int(generator.integers(size)))
    tied = [own.count(own[t]) - 1 for own, t in zip(scores, targets, strict=True)]
    orders = [
        figures(
            [
                placed(own, t, min(place, n))
                for own, t, n in zip(scores, targets, tied, strict=True)
            ],
            targets,
        )
        for place in range(max(tied) + 1)
    ]
    found = {
        "made_by": f"tests/testdata/ranx/make.py, ranx {version('ranx')}",
        "scores": scores,
        "target_index": targets,
        "ties_against_the_target": orders[-1],
        "every_order_alike": {
            name: [
                float(np.mean([orders[place][name][q] for place in range(n + 1)]))
                for q, n in enumerate(tied)
            ]
            for name in NAMES
        },
    }
    Path(__file__).with_name("ranx.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
