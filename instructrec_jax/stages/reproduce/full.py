"""The commands by which tables are made at the paper's size, which nothing here runs."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec_jax.report.paper_table import paper
from instructrec_jax.stages.reproduce.lab import HARD, HUNDRED, MAIN, OTHER, OTHER_CATEGORIES
from instructrec_jax.stages.reproduce.steps import TRAINED, UNTRAINED, evaluation_pool

_GAMES, _CDS, _ROOT, _BACKBONE = "amazon_games", "amazon_cds", "runs/full", "flan-t5-xl"
_MODEL, _MIXTURE, _TUNE = (
    "gin/models/flan_t5_xl.gin",
    "gin/mixtures/amazon_games.gin",
    "gin/runs/finetune.gin",
)
_PRESET, _TOPOLOGY, _STEPS = "gin/presets/xl_v5e_8x8.gin", "v5e:8x8", 20_000
_LISTS = f"{_ROOT}/{MAIN}/baselines/sequential/matcher/retrieved"
# Other candidates for the events of MAIN, by the arguments of `instructrec candidates`.
_DRAWS = {
    HUNDRED: "uniform --num_candidates=100",
    OTHER_CATEGORIES: "uniform --search_negatives=other_category",
    HARD: f"lists --test_file={_LISTS}/test.tsv.gz --validation_file={_LISTS}/validation.tsv.gz",
}


def commands(names: Sequence[str], *, plan: Callable[..., str]) -> str:
    """Returns a shell script that makes tables at the paper's size, and what its training takes.

    Args:
      names: of the tables.
      plan: returns what is known of a training run, given gin files and macros.
    """
    sections = [part for name in names for part in paper()["tables"][name]["sections"]]
    kinds = list(dict.fromkeys([MAIN, *(part["data"] for part in sections)]))
    mixtures = list(dict.fromkeys(_mixture(model) for part in sections for model in part["models"]))
    lines = [
        f"# {', '.join(names)} with Flan-T5 XL on the paper's data: a script to read first.",
        "# logs/games and logs/cds hold Amazon Reviews 2018 (Video Games, CDs and Vinyl), and",
        "# flan-t5-xl the public checkpoint with its spiece.model. The extractive teacher stands",
        "# in for GPT-3.5; `instructrec annotate run` has a language model write the texts.",
    ]
    for kind in kinds:
        lines += _data(kind)
    if sections:
        lines += ["", f"# Training, {_STEPS:,} steps on {_TOPOLOGY} (gin/presets has others):"]
        lines += [_train(mixture) for mixture in mixtures if mixture]
    for part in sections:
        lines += _part(part)
    text = "\n".join(lines) + "\n"
    if not sections:
        return text
    files = [_MODEL, _MIXTURE, _TUNE, _PRESET]
    told = plan(files, TRAIN_STEPS_RELATIVE=_STEPS, topology=_TOPOLOGY)
    return text + "\n".join(["", *(f"# {line}" for line in told.splitlines())]) + "\n"


def _mixture(model: str) -> str:
    """Returns what a model is tuned on, "" where it is not."""
    found = paper()["models"][model]
    return "" if "checkpoint" in found else found.get("mixture", "all")


def _data(kind: str) -> Iterator[str]:
    """Yields the commands from raw logs to records."""
    name, folder = (_CDS, "cds") if kind == OTHER else (_GAMES, "games")
    root = f"{_ROOT}/{kind}"
    yield f"\n# Data, {kind}:"
    texts = f"{_ROOT}/{MAIN}/texts"
    if kind in _DRAWS:
        if kind == HARD:
            yield (
                f"instructrec baseline matcher --prepared_dir={_ROOT}/{MAIN}/prepared "
                f"--output_dir={Path(_LISTS).parent}"
            )
        yield (
            f"instructrec candidates {_DRAWS[kind]} --prepared_dir={_ROOT}/{MAIN}/prepared "
            f"--output_dir={root}/prepared"
        )
    else:
        texts = f"{root}/texts"
        yield (
            f"instructrec prepare --dataset={name} --input_dir=logs/{folder} "
            f"--output_dir={root}/prepared"
        )
        yield (
            f"instructrec annotate --dataset={name} --input_dir={root}/prepared "
            f"--output_dir={texts}"
        )
    yield (
        f"instructrec build --dataset={name} --input_dir={root}/prepared --texts_dir={texts} "
        f"--output_dir={root}/records --vocabulary=flan-t5-xl/spiece.model "
        "--max_train_positions=1"
    )


def _train(mixture: str) -> str:
    """Returns the command that trains on a mixture."""
    macros = {
        "DATA_DIR": f"{_ROOT}/{MAIN}/records",
        "MODEL_DIR": f"{_ROOT}/models/{mixture}",
        "MIXTURE_OR_TASK_NAME": f"{_GAMES}.{mixture}",
        "INITIAL_CHECKPOINT_PATH": _BACKBONE,
        "TRAIN_STEPS_RELATIVE": _STEPS,
    }
    return f"launch/tpu_pod.sh train {_gin([_MODEL, _MIXTURE, _TUNE, _PRESET], macros)}"


def _part(part: Mapping[str, Any]) -> Iterator[str]:
    """Yields the commands that score, rank by baselines and report a part of a table."""
    kind, scenario = part["data"], part["scenario"]
    name, root = (_CDS if kind == OTHER else _GAMES), f"{_ROOT}/{kind}"
    yield f"\n# {part['name']}, {part['label']}:"
    given = []
    for model in part["models"]:
        folder, mixture = f"{root}/scores/{scenario}/{model}", _mixture(model)
        for split in ("validation", "test"):
            macros = {
                "DATA_DIR": f"{root}/records",
                "CHECKPOINT_PATH": f"{_ROOT}/models/{mixture}" if mixture else _BACKBONE,
                "MIXTURE_OR_TASK_NAME": f"{name}.all",
                "SCORE_TASKS": [f"{name}.{task.name}" for task in evaluation_pool(scenario)],
                "SPLIT": split,
                "INFER_OUTPUT_DIR": f"{folder}/{split}",
                **paper()["models"][model].get("view", {}),
            }
            files = [_MODEL, _MIXTURE, "gin/runs/score.gin"]
            yield f"instructrec score {_gin(files, macros)}"
        given.append(f"{model}={folder}")
    for system in part["baselines"]:
        if system not in (*UNTRAINED, *TRAINED):
            continue
        folder = f"{root}/baselines/{scenario}/{system}"
        line = (
            f"instructrec baseline {system} --prepared_dir={root}/prepared --output_dir={folder} "
            f"--texts_dir={_ROOT}/{kind if kind == OTHER else MAIN}/texts --scenarios {scenario}"
        )
        if system in TRAINED and kind not in (MAIN, OTHER):
            line += f" --trained_dir={_ROOT}/{MAIN}/baselines/{scenario}/{system}"
        yield line
        given.append(f"{system}={folder}")
    yield (
        f"instructrec report --dataset={name} --prepared_dir={root}/prepared "
        + "".join(f"--scores {system} " for system in given)
        + f"--output_dir={root}/reports/{part['name'].replace(' ', '_')}"
    )


def _gin(files: Sequence[str], macros: Mapping[str, Any]) -> str:
    """Returns the flags of gin files and macros; a text that begins with @ is a reference."""
    flags = [f"--gin_file={name}" for name in files]
    for name, value in macros.items():
        is_reference = isinstance(value, str) and value.startswith("@")
        flags.append(shlex.quote(f"--gin.{name}={value if is_reference else repr(value)}"))
    return " ".join(flags)
