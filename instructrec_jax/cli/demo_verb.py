"""`instructrec demo`: all stages, from raw logs to the report, with a small model."""

import argparse
import functools

from instructrec_jax.cli.quiet import quiet_imports
from instructrec_jax.cli.verb import Verb


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--smoke", action="store_true", help="a slice and a few steps: does everything run?"
    )
    parser.add_argument(
        "--data_dir",
        metavar="DIR",
        help="folder with your own logs (TSV or JSONL); MovieLens-100K is fetched if not given",
    )
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="name for your own data (default: ml_100k, or my_data with --data_dir)",
    )
    parser.add_argument(
        "--output_dir",
        default="runs/demo",
        metavar="DIR",
        help="folder for everything that is written (default runs/demo)",
    )


def _run(options: argparse.Namespace) -> None:
    with quiet_imports():
        from instructrec_jax.cli import gin_config
        from instructrec_jax.stages import demo, score, train

    demo.demo(
        output_dir=options.output_dir,
        data_dir=options.data_dir,
        dataset=options.dataset,
        is_smoke=options.smoke,
        train=functools.partial(gin_config.run_with_macros, train.train),
        score=functools.partial(gin_config.run_with_macros, score.score),
    )


DEMO = Verb(
    name="demo",
    summary="everything at once, on MovieLens-100K or your own data",
    description=(
        "Runs every stage with a small model trained from scratch, saying what each did and where\n"
        "it wrote. A second run reuses what is valid. Ends with the table and report.json."
    ),
    example="instructrec demo --smoke --output_dir=runs/smoke",
    add_arguments=_add_arguments,
    run=_run,
)
