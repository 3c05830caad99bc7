"""`instructrec annotate` and `build`: prepared data -> texts -> instruction records."""

import argparse

from instructrec_jax.cli.quiet import quiet_imports
from instructrec_jax.cli.verb import Verb, add_folders, given

_ANNOTATE_SETTINGS = {
    "teacher": (
        str,
        "NAME",
        "who writes: extractive takes texts from titles, categories and reviews by rules\n"
        "(default extractive)",
    ),
    "max_positions": (int, "N", "positions of each user that get texts (default: all)"),
}
_SETTINGS = {
    "vocabulary_path": (
        str,
        "FILE",
        "SentencePiece model to use, such as T5's (default: train one on the texts)",
    ),
    "vocab_size": (int, "N", "most pieces of a vocabulary that is trained (default 2000)"),
    "num_train_negatives": (int, "N", "negatives beside the target of a record (default 9)"),
    "max_train_positions": (int, "N", "most recent training targets of each user (default: all)"),
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


def _add_annotate(parser: argparse.ArgumentParser) -> None:
    add_folders(
        parser,
        reads="folder that `instructrec prepare` wrote",
        writes="folder for the texts, which must be new, empty or hold the same work",
    )
    workers = {"num_workers": (int, "N", "processes that write texts (default 1)")}
    for name, (kind, metavar, text) in (_ANNOTATE_SETTINGS | workers).items():
        parser.add_argument(
            f"--{name}", type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text
        )


def _annotate(options: argparse.Namespace) -> None:
    from instructrec_jax.stages import annotate

    annotate.annotate(
        dataset=options.dataset,
        input_dir=options.input_dir,
        output_dir=options.output_dir,
        settings=annotate.AnnotateSettings(**given(options, *_ANNOTATE_SETTINGS)),
        **given(options, "num_workers"),
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folders(
        parser,
        reads="folder that `instructrec prepare` wrote",
        writes="folder for instruction records; it may hold several datasets",
    )
    unset = argparse.SUPPRESS
    parser.add_argument(
        "--texts_dir",
        metavar="DIR",
        help="folder that `instructrec annotate` wrote (default: none, so that no record has a\n"
        "preference or a vague intention)",
    )
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
        texts_dir=options.texts_dir,
        settings=build.BuildSettings(**given(options, *_SETTINGS, *_SWITCHES)),
        execution=build.Execution(**given(options, *_EXECUTION, "beam_options")),
    )


ANNOTATE = Verb(
    name="annotate",
    summary="prepared data -> texts on preferences and intentions",
    description=(
        "Has a teacher write what the items before each position show of the user's preference,\n"
        "and what a review tells of the intention behind the choice. Writes Parquet files with a\n"
        "manifest, whole or not at all."
    ),
    example=(
        "instructrec annotate --dataset=ml_100k --input_dir=runs/prepared \\\n"
        "    --output_dir=runs/texts"
    ),
    add_arguments=_add_annotate,
    run=_annotate,
)
BUILD = Verb(
    name="build",
    summary="prepared data, texts -> instruction records and a vocabulary",
    description=(
        "Turns prepared data and the texts of a teacher into instruction records (a TFDS dataset\n"
        "that SeqIO reads), and trains a SentencePiece vocabulary on the training texts or copies\n"
        "the one given. "
        "Files that an interrupted run has finished are kept; the same command goes on."
    ),
    example=(
        "instructrec build --dataset=ml_100k --input_dir=runs/prepared \\\n"
        "    --texts_dir=runs/texts --output_dir=runs/records"
    ),
    add_arguments=_add_arguments,
    run=_run,
)
