"""A model card: the README.md that stands beside weights, as Hugging Face's hub shows it."""

from collections.abc import Iterator, Mapping
from typing import Any

from instructrec_jax.metrics.ranking import METRIC_NAMES
from instructrec_jax.report.tables import markdown_code

FILE_NAME = "README.md"
_HEAD = """---
library_name: transformers
tags:
- recommendation
- ranking
- instruction-tuning
- t5
---

# A model that ranks titles

T5 1.1, which reads a recommendation instruction (InstructRec, arXiv 2305.07001) and ranks
candidates by the log-likelihood of their titles, EOS included.
"""
_USE = """
## Use

`instructrec score --model=FOLDER --input=requests.jsonl --output=ranked.jsonl`, or in Python
`instructrec_jax.open_model(FOLDER)`; in `transformers` it is a `T5ForConditionalGeneration`.
"""
_LIMITS = """
## Limits

* It ranks candidates that it is given, and knows items by their titles alone.
* Figures are of the data set and the candidates above; sampled ones are easier than a catalogue.
* It repeats what the logs show: popularity, the taste of active users, the wording of the texts.
* Nothing here tests fairness, safety or private data in what it generates.
* The licence is not stated here: it follows from the data and from the weights training began with.
"""
_OWN = ("template", "normaliser", "teacher", "candidate_view")  # what a report says of a system


def model_card(
    *,
    facts: Mapping[str, Any],
    training: Mapping[str, Any],
    validation: Mapping[str, float],
    scenarios: Mapping[str, Any],
    system: str = "",
) -> str:
    """Returns the card as Markdown.

    Args:
      facts: of the weights, by name.
      training: settings of the run; {} where the checkpoint does not tell.
      validation: metrics of this step, by name.
      scenarios: those of a report.json in which the model was scored; {} without one.
      system: the name of the model in the report.
    """
    told = {
        "trained on": training.get("mixture"),
        "rows of a batch": training.get("batch_size"),
        "loss": training.get("objective"),
        "optimizer": training.get("optimizer", {}).get("name"),
        "started from pretrained weights": training and bool(training["initial_checkpoint_path"]),
        "tokens and items": training.get("feature_lengths"),
        "seed": training.get("seed"),
    }
    parts = [
        _HEAD,
        *_listed("Weights", facts),
        _USE,
        *_listed("Data and training", told if training else {"run": "not known"}),
        "\n## Figures\n",
        *_figures(scenarios, system),
        *_validation(validation),
    ]
    if not scenarios and not validation:
        parts.append(
            "\nNone are known: `convert --report_dir` names a report on this checkpoint.\n"
        )
    return "".join([*parts, _LIMITS])


def _listed(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n## {title}\n\n"
    for name, value in values.items():
        if value is not None:
            yield f"* {name}: {markdown_code(value)}\n"


def _figures(scenarios: Mapping[str, Any], system: str) -> Iterator[str]:
    """Yields the test figures of every scenario, beside the baselines of the report."""
    for name, scenario in scenarios.items():
        protocol = scenario["protocol"]
        yield (
            f"\n### {name}, test\n\n{protocol['num_examples']} examples of "
            f"{markdown_code(protocol['dataset'])} with {protocol['num_candidates']} candidates "
            f"(sha256 {protocol['candidates_sha256'][:12]}...), ties {protocol['ties']}. Mean and "
            f"interval ({protocol['interval']}). Template and normaliser: {protocol['choice']}.\n\n"
        )
        own = protocol["systems"][system]
        told = [f"{name} {markdown_code(own[name])}" for name in _OWN if own.get(name)]
        yield f"This model: {', '.join(told)}.\n\n"
        yield f"| system | {' | '.join(metric.upper() for metric in METRIC_NAMES)} |\n"
        yield "| --- " * (len(METRIC_NAMES) + 1) + "|\n"
        for row, metrics in scenario["test"].items():
            shown = "this model" if row == system else markdown_code(row)
            cells = (_interval(**metrics[metric]) for metric in METRIC_NAMES)
            yield f"| {shown} | {' | '.join(cells)} |\n"


def _interval(*, estimate: float | None, low: float | None, high: float | None) -> str:
    """Returns a cell; a report has null where a number is not finite."""
    shown = ["none" if value is None else f"{value:.3f}" for value in (estimate, low, high)]
    return "{} [{}, {}]".format(*shown)


def _validation(metrics: Mapping[str, float]) -> Iterator[str]:
    """Yields what the run measured at this step, by which the checkpoint may have been chosen."""
    if metrics:
        yield "\n### validation, during training\n\n"
        for name, value in metrics.items():
            yield f"* {name}: {value:.3f}\n"
