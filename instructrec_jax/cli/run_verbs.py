"""`instructrec train`, `eval`, `score`, `generate`: stages whose every argument comes from gin."""

import argparse
import importlib
from collections.abc import Callable

from instructrec_jax.cli.quiet import quiet_imports
from instructrec_jax.cli.verb import Verb
from instructrec_jax.errors import UserError

_GIN_HELP = (
    "Configured by gin files: one for the model's size, one for the task mixture, one for the\n"
    "kind of run. Files are found as named, in the checkout and where the package was installed.\n"
    "--gin.NAME=VALUE sets a macro (MODEL_DIR) or a binding (with a dot), above all files;\n"
    "strings need quotes that the shell leaves in place: --gin.MODEL_DIR='\"runs/a\"'."
)


def _add_gin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="gin file; may be given several times",
    )
    parser.add_argument(
        "--gin.NAME",
        dest="_documented_only",
        metavar="VALUE",
        help="value of a macro or binding; may be given for several names",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the resolved config and what would be done, and stop",
    )


def _check_files(options: argparse.Namespace) -> None:
    """Raises where no gin file was named."""
    if not options.gin_file:
        raise UserError(
            f"`instructrec {options.verb}` needs at least one --gin_file; "
            f"see `instructrec {options.verb} --help`"
        )


def _runner(stage: str) -> Callable[[argparse.Namespace], None]:
    """Returns what runs `stages.<stage>.<stage>`, imported only then, as gin files configure it."""

    def run(options: argparse.Namespace) -> None:
        _check_files(options)
        with quiet_imports():
            from instructrec_jax.cli import gin_config

            module = importlib.import_module(f"instructrec_jax.stages.{stage}")
        gin_config.run_with_gin(
            getattr(module, stage),
            gin_file_names=options.gin_file,
            bindings=options.bindings,
            dry_run=options.dry_run,
        )

    return run


TRAIN = Verb(
    name="train",
    summary="instruction records -> checkpoints",
    description=(
        "Fine-tunes a model, or goes on where an interrupted run of the same MODEL_DIR stopped.\n"
        f"Writes checkpoints, metrics and the resolved config to MODEL_DIR.\n\n{_GIN_HELP}"
    ),
    example=(
        "instructrec train --gin_file=gin/models/t5_tiny.gin \\\n"
        "    --gin_file=gin/mixtures/ml_100k.gin --gin_file=gin/runs/finetune.gin \\\n"
        "    --gin.DATA_DIR='\"runs/records\"' --gin.MODEL_DIR='\"runs/model\"'"
    ),
    add_arguments=_add_gin,
    run=_runner("train"),
    takes_gin=True,
)
EVAL = Verb(
    name="eval",
    summary="checkpoint -> HR and NDCG on validation",
    description=(
        "Measures a checkpoint on the ranking tasks of a task or mixture, as training does.\n"
        f"Writes metrics.json to EVAL_OUTPUT_DIR.\n\n{_GIN_HELP}"
    ),
    example=(
        "instructrec eval --gin_file=gin/models/t5_tiny.gin \\\n"
        "    --gin_file=gin/mixtures/ml_100k.gin --gin_file=gin/runs/eval.gin \\\n"
        "    --gin.DATA_DIR='\"runs/records\"' --gin.CHECKPOINT_PATH='\"runs/model\"' \\\n"
        "    --gin.EVAL_OUTPUT_DIR='\"runs/eval\"'"
    ),
    add_arguments=_add_gin,
    run=_runner("evaluate"),
    takes_gin=True,
)
SCORE = Verb(
    name="score",
    summary="checkpoint -> log-likelihoods of every candidate",
    description=(
        "Scores all candidates of every example of a task (gin/runs/score.gin), or of every\n"
        "request of a file (gin/runs/score_requests.gin), but for the parts that are there\n"
        "already. Several processes with the same command share the work.\n"
        f"Writes Parquet files to INFER_OUTPUT_DIR.\n\n{_GIN_HELP}"
    ),
    example=(
        "instructrec score --gin_file=gin/models/t5_tiny.gin \\\n"
        "    --gin_file=gin/mixtures/ml_100k.gin --gin_file=gin/runs/score.gin \\\n"
        "    --gin.DATA_DIR='\"runs/records\"' --gin.CHECKPOINT_PATH='\"runs/model\"' \\\n"
        "    --gin.INFER_OUTPUT_DIR='\"runs/scores\"'"
    ),
    add_arguments=_add_gin,
    run=_runner("score"),
    takes_gin=True,
)
GENERATE = Verb(
    name="generate",
    summary="checkpoint -> the likeliest titles of the whole catalogue",
    description=(
        "Finds the likeliest titles of the catalogue under each instruction that asks for an item\n"
        "without candidates, by beam search, and measures HR and NDCG over the whole catalogue.\n"
        f"Writes Parquet files and metrics.json to INFER_OUTPUT_DIR.\n\n{_GIN_HELP}"
    ),
    example=(
        "instructrec generate --gin_file=gin/models/t5_tiny.gin \\\n"
        "    --gin_file=gin/mixtures/ml_100k.gin --gin_file=gin/runs/generate.gin \\\n"
        "    --gin.MIXTURE_OR_TASK_NAME='\"ml_100k.A1\"' --gin.DATA_DIR='\"runs/records\"' \\\n"
        "    --gin.PREPARED_DIR='\"runs/prepared\"' --gin.CHECKPOINT_PATH='\"runs/model\"' \\\n"
        "    --gin.INFER_OUTPUT_DIR='\"runs/generated\"'"
    ),
    add_arguments=_add_gin,
    run=_runner("generate"),
    takes_gin=True,
)
