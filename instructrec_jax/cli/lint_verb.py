"""`instructrec templates`, `inspect` and `lint`: what is said, and what is wrong with it."""

import argparse

from instructrec_jax.cli.quiet import quiet_imports
from instructrec_jax.cli.verb import Verb, given

FAILED = 1
_MODULE = "module that registers the tasks (default tasks.mixtures)"


def _add_module(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task_module", default=argparse.SUPPRESS, metavar="MODULE", help=_MODULE)


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data_dir", required=True, metavar="DIR", help="folder that `instructrec build` wrote"
    )


def _templates(options: argparse.Namespace) -> None:
    with quiet_imports():
        from instructrec_jax.stages import templates

    templates.templates(**given(options, "task_module"))


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    unset = argparse.SUPPRESS
    parser.add_argument("task", metavar="TASK", help="such as ml_100k.A7 or ml_100k.all")
    _add_data_dir(parser)
    parser.add_argument("--split", default=unset, help="train, validation or test (default train)")
    for name, text in (
        ("num_examples", "examples to show (default 3)"),
        ("input_tokens", "most tokens of an instruction (default: no limit)"),
        ("target_tokens", "most tokens of an answer (default: no limit)"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", default=unset, help=text)
    _add_module(parser)


def _inspect(options: argparse.Namespace) -> None:
    with quiet_imports():
        from instructrec_jax.stages import inspect

    names = ("split", "num_examples", "input_tokens", "target_tokens", "task_module")
    inspect.inspect(options.task, data_dir=options.data_dir, **given(options, *names))


def _add_lint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="name of the dataset, such as ml_100k"
    )
    _add_data_dir(parser)
    _add_module(parser)
    unset = argparse.SUPPRESS
    for name, text in (
        ("input_tokens", "most tokens of an instruction (default 512)"),
        ("target_tokens", "most tokens of an answer (default 128)"),
        ("max_examples", "examples of each task to measure, 0 for all (default 2000)"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", default=unset, help=text)
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        default=unset,
        help="folder for lint.json and lint.md, which must be new, empty or hold the same work",
    )


def _lint(options: argparse.Namespace) -> int:
    with quiet_imports():
        from instructrec_jax.stages import lint

    report = lint.lint(
        dataset=options.dataset,
        data_dir=options.data_dir,
        **given(
            options, "task_module", "input_tokens", "target_tokens", "max_examples", "output_dir"
        ),
    )
    return FAILED if report.num_errors else 0


TEMPLATES = Verb(
    name="templates",
    summary="list the templates, one line each",
    description=(
        "Lists every template: its cell of the paper, its kind and family, whether rankings are\n"
        "evaluated with it, and what may fill its query."
    ),
    example="instructrec templates",
    add_arguments=_add_module,
    run=_templates,
)
INSPECT = Verb(
    name="inspect",
    summary="show what a task asks and what it wants to hear",
    description=(
        "Shows examples of a task or mixture as text, with their lengths in tokens and how many\n"
        "history items had to be dropped for them."
    ),
    example="instructrec inspect ml_100k.A7 --data_dir=runs/records",
    add_arguments=_add_inspect,
    run=_inspect,
)
LINT = Verb(
    name="lint",
    summary="check templates and records: coverage, token lengths, leaks",
    description=(
        "Checks the templates, and a dataset that `build` wrote: how many examples every cell of\n"
        "the paper has, how long they are in tokens and what is cut, repeated ids, leaks. Exits\n"
        "with 1 where it finds an error: a cell is empty that the data could fill, an answer is\n"
        "given away or does not fit."
    ),
    example="instructrec lint --dataset=ml_100k --data_dir=runs/records",
    add_arguments=_add_lint,
    run=_lint,
)
