"""`instructrec reproduce`: a table of the paper, from raw logs to a verdict on its orderings."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from instructrec_jax import files
from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.metrics.statistics import Interval
from instructrec_jax.report import paper_table, tables
from instructrec_jax.report.paper_table import OURS, PaperTable, Part, Row, paper
from instructrec_jax.report.ranking_report import badge
from instructrec_jax.report.tables import Table
from instructrec_jax.report.validity import Check
from instructrec_jax.settings import OneOf, check_fields
from instructrec_jax.stages.data import fetch, synthesize
from instructrec_jax.stages.reproduce import scales
from instructrec_jax.stages.reproduce.full import commands
from instructrec_jax.stages.reproduce.lab import Lab, NotRunError, Reported, Stages, World
from instructrec_jax.stages.reproduce.scales import CPU, FULL, SCALES, TINY
from instructrec_jax.stages.reproduce.steps import ConfiguredStage
from instructrec_jax.stages.reproduce.verdicts import verdict_of

ALL = "all"
NAME = "table"  # of the files


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceSettings:
    """At which scale a table is made, and of which data.

    Attributes:
      scale: "tiny" is an invented world with a taste planted in it; "cpu" is real data and a small
        model that is trained from nothing; "full" shows the commands for Flan-T5 XL on the paper's
        data, and runs nothing.
      input_dir: at "cpu", folder with logs of your own; without it MovieLens-100K is fetched.
      dataset: name of these logs; without it my_data.
      other_dir: at "cpu", folder with logs of another data set, which table11 tries the model on;
        without it MovieLens-100K, unless the model has learnt from that.
      output_dir: everything is written below it; without it runs/reproduce/SCALE_DATASET.
    """

    scale: Annotated[str, OneOf(SCALES)] = TINY
    input_dir: str | None = None
    dataset: str | None = None
    other_dir: str | None = None
    output_dir: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("input_dir", "dataset", "other_dir"):
            if self.scale != CPU and getattr(self, name) is not None:
                raise UserError(
                    f"--{name} belongs to --scale={CPU}: {TINY} invents its data, {FULL} is the "
                    "paper's"
                )


def reproduce(
    *,
    table: str,
    settings: ReproduceSettings,
    train: ConfiguredStage,
    score: ConfiguredStage,
    baseline: ConfiguredStage,
    plan: Callable[..., str],
) -> str:
    """Makes a table of the paper; what an earlier table of the same folder made is reused.

    Args:
      table: table5 to table11, ablation (Figure 3), biases, or all.
      settings: scale and data.
      train: runs the train stage, given gin files and macros by name.
      score: runs the score stage likewise.
      baseline: trains a baseline and ranks with it likewise.
      plan: returns what is known of a training run before it starts likewise.

    Returns:
      The tables as text, and the pages to look at.

    Raises:
      UserError: for an unknown table, or a mistake in the logs.
    """
    known = paper()["tables"]
    if table != ALL and table not in known:
        raise unknown_name("table", table, [*known, ALL])
    chosen = list(known) if table == ALL else [table]
    if settings.scale == FULL:
        return commands(chosen, plan=plan)
    stages = Stages(train=train, score=score, baseline=baseline)
    lab = _opened(settings, stages)
    texts, pages = [], []
    for name in chosen:
        made = _made(lab, name, known[name], settings)
        document = paper_table.document(made)
        with files.atomic_directory(lab.root / name / NAME) as folder:
            tables.write(folder, NAME, document, paper_table.values(made))
        pages.append(str(lab.root / name / NAME / f"{NAME}.html"))
        texts.append(f"{made.title}\n\n{tables.as_text(document)}")
    return "\n".join([*texts, *pages])


def _opened(settings: ReproduceSettings, stages: Stages) -> Lab:
    """Returns the lab of a scale and its data."""
    if settings.scale == TINY:
        root = Path(settings.output_dir or f"runs/reproduce/{TINY}")
        worlds = [
            World(recipe=scales.tiny(name), logs=functools.partial(_invented, root / name, world))
            for name, world in scales.TINY_WORLDS.items()
        ]
        return Lab(root, worlds[0], worlds[1], stages)
    main = _real(settings.dataset, settings.input_dir)
    other = None
    if settings.other_dir is not None:
        other = _real("other_data", settings.other_dir)
    elif settings.input_dir is not None:
        other = _real(None, None)
    root = Path(settings.output_dir or f"runs/reproduce/{CPU}_{main.recipe.dataset}")
    return Lab(root, main, other, stages)


def _real(dataset: str | None, folder: str | None) -> World:
    """Returns a real data set: the user's own, or MovieLens-100K where no folder is named."""
    recipe = scales.cpu(dataset, is_own=folder is not None)
    if folder is None:
        return World(recipe=recipe, logs=functools.partial(fetch, name="ml-100k"))
    return World(recipe=recipe, logs=functools.partial(Path, folder))


def _invented(folder: Path, world: Any) -> Path:
    """Returns the folder of an invented log."""
    synthesize(output_dir=folder / "logs", settings=world)
    return folder / "logs"


def _made(lab: Lab, name: str, given: Mapping[str, Any], settings: ReproduceSettings) -> PaperTable:
    """Runs all parts of a table, and judges its orderings."""
    parts, reports = [], {}
    for part in given["sections"]:
        try:
            reported = lab.part(name, part)
        except NotRunError as reason:
            parts.append(_not_run(part, str(reason)))
            continue
        reports[part["name"]] = reported.folder
        parts.append(_part(part, reported))
    facts: dict[str, Any] = {"scale": settings.scale, "paper": paper()["source"]}
    remarks = list(given.get("remarks", ()))
    counts = dict(given.get("counts", {}))
    if counts:
        own = lab.counts()
        same = [dataset for dataset, of_paper in counts.items() if of_paper == own]
        remarks += [f"the counts here are exactly the paper's of {dataset}" for dataset in same]
        counts = {f"{dataset} (paper)": of_paper for dataset, of_paper in counts.items()}
        counts[lab.name] = own
    return PaperTable(
        title=given["title"],
        parts=parts,
        verdicts=[verdict_of(o, given["sections"], reports) for o in given["orderings"]],
        remarks=remarks,
        counts=counts,
        facts=facts,
    )


def _not_run(part: Mapping[str, Any], reason: str) -> Part:
    """Returns a part with the paper's figures alone."""
    rows = [
        Row(
            system=row["system"],
            name=row["system"],
            paper=row["figures"],
            is_baseline=row["system"] != OURS,
        )
        for row in part["paper"]
    ]
    return Part(name=part["name"], label=part["label"], about=f"not run: {reason}", rows=rows)


def _part(part: Mapping[str, Any], reported: Reported) -> Part:
    """Returns a part as the report of its systems has it: baselines, the paper's rows, models."""
    values, draws = reported.values, reported.values["protocol"]["num_draws"]
    protocol, own = values["protocol"], {row.get("ours") for row in part["paper"]}
    fused = [part["fuse"].partition("=")[0]] if "fuse" in part else []
    models = [*part["models"], *fused]
    tuned = [name for name in models if "checkpoint" not in paper()["models"].get(name, {})]
    others = [name for name in values["test"] if name not in own]
    remarks = {
        name: _told(values["chosen"][name], is_fused=name in fused)
        for name in models
        if name in values["chosen"]
    }
    remarks |= {name: f"not run: {why}" for name, why in reported.missing.items()}

    def row(name: str, paper_row: Mapping[str, Any] | None = None) -> Row:
        of_paper = paper_row or {"system": name, "figures": None}
        reason = f"not run: {of_paper['not_run']}" if "not_run" in of_paper else ""
        return Row(
            system=of_paper["system"],
            name=name,
            paper=of_paper["figures"],
            ours=_intervals(values["test"].get(name)),
            remark=remarks.get(name, reason),
            is_baseline=name not in tuned and of_paper["system"] != OURS,
        )

    return Part(
        name=part["name"],
        label=part["label"],
        about=f"{protocol['dataset']}, n={protocol['num_examples']}, "
        f"{protocol['num_candidates']} candidates" + (f" in {draws} draws" if draws != "1" else ""),
        rows=[
            *(row(name) for name in others if name not in models),
            *(row(of.get("ours", of["system"]), of) for of in part["paper"]),
            *(row(name) for name in others if name in models),
            *(row(name) for name in reported.missing if name not in own),
        ],
        validity=badge([Check(**check) for check in values["validity"]]),
        details=[*(_details(values, part) if part.get("details") else []), *reported.details],
    )


def _intervals(found: Mapping[str, Any] | None) -> dict[str, Interval] | None:
    """Returns the metrics of a system as a report's JSON has them."""
    return None if found is None else {name: Interval(**value) for name, value in found.items()}


def _told(chosen: Mapping[str, Any], *, is_fused: bool) -> str:
    """Returns what a model ranks by; a fused one has weights in place of a template."""
    what = "" if is_fused else "template "
    return f"{what}{chosen['template_id']}, normaliser {chosen['normaliser']}"


def _details(values: Mapping[str, Any], part: Mapping[str, Any]) -> Sequence[Table]:
    """Returns HR@1 by the target's place among the candidates, and by template."""
    found = []
    for name in part["models"]:
        if bias := values["position_bias"].get(name):
            rows = bias["rows"]
            places = [
                f"{r['first']}-{r['last']}" if r["first"] < r["last"] else f"{r['first']}"
                for r in rows
            ]
            rates = ["" if r["hit_rate"] is None else f"{r['hit_rate']:.3f}" for r in rows]
            note = f"{name}: HR@1 by the target's index in the prompt (p {bias['p_value']:.2g})"
            found.append(Table(note=note, header=places, rows=[rates]))
        normaliser = values["chosen"][name]["normaliser"]
        by_template = {
            choice["template_id"]: f"{choice['metrics']['hr@1']:.3f}"
            for choice in values["validation"][name]
            if choice["normaliser"] == normaliser
        }
        note = f"{name}: HR@1 on validation by template, the same request in other words"
        found.append(Table(note=note, header=list(by_template), rows=[list(by_template.values())]))
    return found
