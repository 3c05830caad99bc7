"""`instructrec build`: prepared data -> instruction records and a vocabulary."""

import argparse

from instructrec_jax.cli.quiet import quiet_imports
from instructrec_jax.cli.verb import Verb, add_folders, given

_SETTINGS = {
    "vocabulary_path": (
        str,
        "FILE",
        "SentencePiece model to use, such as T5's (default: train one on the texts)",
    ),
    "vocab_size": (int, "N", "most pieces of a vocabulary that is trained (default 2000)"),
    "num_train_negatives": (int, "N", "negatives beside the target of a record (default 9)"),
    "max_train_positions": (int, "N", "most recent training targets of each user (default: all)"),
    "teacher": (
        str,
        "NAME",
        "who writes preferences and intentions: extractive, from titles, categories and\n"
        "reviews without any network, or none (default extractive)",
    ),
    "task_module": (str, "MODULE", "module that registers the tasks (default tasks.mixtures)"),
    "records_per_shard": (int, "N", "most records in a file (default 20000)"),
    "seed": (int, "N", "of negatives and record order (default 0)"),
}
_SWITCHES = {
    "states_time": "fill {context} with the month of the target event (default False)",
}
_EXECUTION = {
    "num_workers": (int, "N", "processes that write files (default 1)"),
    "runner": (
        str,
        "NAME",
        "write the files on Apache Beam instead: DirectRunner, DataflowRunner, FlinkRunner ...\n"
        "(needs the extra [beam]; every worker must reach both folders)",
    ),
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folders(
        parser,
        reads="folder that `instructrec prepare` wrote",
        writes="folder for instruction records; it may hold several datasets",
    )
    unset = argparse.SUPPRESS
    for name, (kind, metavar, text) in (_SETTINGS | _EXECUTION).items():
        flag = "--vocabulary" if name == "vocabulary_path" else f"--{name}"
        parser.add_argument(flag, dest=name, type=kind, metavar=metavar, default=unset, help=text)
    for name, text in _SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", default=unset, help=text)
    parser.add_argument(
        "--beam_option",
        dest="beam_options",
        action="append",
        default=unset,
        metavar="FLAG",
        help="a flag of the runner, such as --beam_option=--project=my-project; may be repeated",
    )


def _run(options: argparse.Namespace) -> None:
    with quiet_imports():
        from instructrec_jax.stages import build

    build.build(
        dataset=options.dataset,
        input_dir=options.input_dir,
        output_dir=options.output_dir,
        settings=build.BuildSettings(**given(options, *_SETTINGS, *_SWITCHES)),
        execution=build.Execution(**given(options, *_EXECUTION, "beam_options")),
    )


BUILD = Verb(
    name="build",
    summary="prepared data -> instruction records and a vocabulary",
    description=(
        "Turns prepared data into instruction records (a TFDS dataset that SeqIO reads), and\n"
        "trains a SentencePiece vocabulary on the training texts or copies the one given.\n"
        "Files that an interrupted run has finished are kept; the same command goes on."
    ),
    example=(
        "instructrec build --dataset=ml_100k --input_dir=runs/prepared \\\n"
        "    --output_dir=runs/records"
    ),
    add_arguments=_add_arguments,
    run=_run,
)
