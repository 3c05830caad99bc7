"""`instructrec data fetch`, `prepare`, `build` and `inspect`: from raw logs to instructions."""

import argparse
from typing import Any

from instructrec_jax.cli.quiet import quiet_imports
from instructrec_jax.cli.verb import Verb

_FOLDER = "DIR"


def _add_folders(parser: argparse.ArgumentParser, *, reads: str, writes: str) -> None:
    """Adds the three flags that every data verb takes."""
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="name of the dataset, such as ml_100k"
    )
    parser.add_argument("--input_dir", required=True, metavar=_FOLDER, help=reads)
    parser.add_argument("--output_dir", required=True, metavar=_FOLDER, help=writes)


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns those options that the user gave; the others keep the settings' own defaults."""
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    fetch = actions.add_parser(
        "fetch",
        help="download a public dataset into the cache folder",
        description="Downloads a public dataset once, checks its sha256, and names its folder.",
        epilog="example:\n  instructrec data fetch ml-100k",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    fetch.add_argument("name", metavar="NAME", help="such as ml-100k")
    fetch.add_argument(
        "--cache_dir", metavar=_FOLDER, help="cache folder (default ~/.cache/instructrec_jax)"
    )


def _fetch(options: argparse.Namespace) -> None:
    from instructrec_jax.stages import fetch

    print(fetch.fetch(name=options.name, cache_dir=options.cache_dir))


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    _add_folders(
        parser,
        reads="folder with the raw logs: RecBole atomic files, TSV, JSONL or Amazon reviews",
        writes="folder to write, which must be new, empty or hold the same work",
    )
    unset = argparse.SUPPRESS
    parser.add_argument("--seed", type=int, default=unset, help="of splits, candidates (default 0)")
    parser.add_argument(
        "--k_core",
        type=int,
        default=unset,
        help="events that every user and item must keep (default 5; 1 for ordered sequences)",
    )
    parser.add_argument(
        "--max_history",
        type=int,
        default=unset,
        help="most recent items kept of each user (default 20)",
    )
    parser.add_argument(
        "--num_candidates",
        type=int,
        default=unset,
        help="candidates of an evaluation example, target included (default 10)",
    )
    parser.add_argument(
        "--max_title_chars", type=int, default=unset, help="longest title kept whole (default 200)"
    )
    parser.add_argument(
        "--allow_fewer_candidates",
        action="store_true",
        default=unset,
        help="let a small catalogue give smaller candidate sets instead of an error",
    )
    parser.add_argument(
        "--max_review_chars",
        type=int,
        default=unset,
        help="longest review kept whole (default 2000)",
    )
    parser.add_argument(
        "--on_damage",
        default=unset,
        metavar="POLICY",
        help="fail or skip: what a damaged line or a cut file leads to (default fail)",
    )
    parser.add_argument(
        "--max_damaged", type=int, default=unset, help="most lines that skip bears (default 1000)"
    )
    parser.add_argument(
        "--title_fallback",
        default=unset,
        metavar="NAMES",
        help="refuse or category_asin: what becomes of items without a title of their own, where "
        "they are too many (default refuse)",
    )
    parser.add_argument(
        "--max_same_title_share",
        type=float,
        default=unset,
        help="share of items that may have no title or another item's (default 0.5)",
    )


def _prepare(options: argparse.Namespace) -> None:
    from instructrec_jax.data.preparation import PrepareSettings
    from instructrec_jax.stages import prepare

    names = (
        *("seed", "k_core", "max_history", "num_candidates", "max_title_chars"),
        *("allow_fewer_candidates", "max_review_chars", "on_damage", "max_damaged"),
        *("title_fallback", "max_same_title_share"),
    )
    prepare.prepare(
        dataset=options.dataset,
        input_dir=options.input_dir,
        output_dir=options.output_dir,
        settings=PrepareSettings(**_given(options, *names)),
    )


def _add_build(parser: argparse.ArgumentParser) -> None:
    _add_folders(
        parser,
        reads="folder that `instructrec prepare` wrote",
        writes="folder for instruction records; it may hold several datasets",
    )
    unset = argparse.SUPPRESS
    parser.add_argument(
        "--vocabulary",
        dest="vocabulary_path",
        default=unset,
        metavar="FILE",
        help="SentencePiece model to use, such as T5's (default: train one on the titles)",
    )
    parser.add_argument(
        "--vocab_size",
        type=int,
        default=unset,
        help="pieces of a vocabulary that is trained (default 2000)",
    )
    parser.add_argument(
        "--vocab_size_is_limit",
        action="store_true",
        default=unset,
        help="take fewer pieces where the texts cannot give so many (default False: an error)",
    )
    parser.add_argument(
        "--num_train_negatives",
        type=int,
        default=unset,
        help="negatives beside the target of a training record (default 9)",
    )
    parser.add_argument(
        "--max_train_positions",
        type=int,
        default=unset,
        help="most recent training targets of each user (default: all)",
    )
    parser.add_argument(
        "--task_module",
        default=unset,
        metavar="MODULE",
        help="module that registers the tasks (default tasks.mixtures)",
    )
    parser.add_argument(
        "--seed", type=int, default=unset, help="of negatives and record order (default 0)"
    )


def _build(options: argparse.Namespace) -> None:
    with quiet_imports():
        from instructrec_jax.stages import build

    names = ("vocabulary_path", "vocab_size", "vocab_size_is_limit", "num_train_negatives")
    build.build(
        dataset=options.dataset,
        input_dir=options.input_dir,
        output_dir=options.output_dir,
        settings=build.BuildSettings(
            **_given(options, *names, "max_train_positions", "task_module", "seed")
        ),
    )


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="such as ml_100k.A7 or ml_100k.all")
    parser.add_argument(
        "--data_dir", required=True, metavar=_FOLDER, help="folder that `instructrec build` wrote"
    )
    unset = argparse.SUPPRESS
    parser.add_argument("--split", default=unset, help="train, validation or test (default train)")
    parser.add_argument(
        "--num_examples", type=int, default=unset, help="examples to show (default 3)"
    )
    parser.add_argument(
        "--module",
        default=unset,
        metavar="MODULE",
        help="module that registers the tasks (default tasks.mixtures)",
    )


def _inspect(options: argparse.Namespace) -> None:
    with quiet_imports():
        from instructrec_jax.stages import inspect

    inspect.inspect(
        task=options.task,
        data_dir=options.data_dir,
        **_given(options, "split", "num_examples", "module"),
    )


DATA = Verb(
    name="data",
    summary="obtain a public dataset",
    description="Obtains public datasets. The folder it names is the --input_dir of `prepare`.",
    example="instructrec data fetch ml-100k",
    add_arguments=_add_fetch,
    run=_fetch,
)
PREPARE = Verb(
    name="prepare",
    summary="raw logs -> catalogue, histories, splits, candidates",
    description=(
        "Reads raw logs of interactions and items, cleans titles, drops repeats, filters to a\n"
        "k-core, cuts histories, splits them and draws the candidates that every model shares.\n"
        "Prints users=... items=... interactions=... and writes Parquet files with a manifest."
    ),
    example=(
        "instructrec prepare --dataset=ml_100k --input_dir=logs/ml-100k \\\n"
        "    --output_dir=runs/prepared"
    ),
    add_arguments=_add_prepare,
    run=_prepare,
)
BUILD = Verb(
    name="build",
    summary="prepared data -> instruction records and a vocabulary",
    description=(
        "Turns prepared data into instruction records (a TFDS dataset that SeqIO reads), and\n"
        "trains a SentencePiece vocabulary on the training texts or copies the one given."
    ),
    example=(
        "instructrec build --dataset=ml_100k --input_dir=runs/prepared \\\n"
        "    --output_dir=runs/records"
    ),
    add_arguments=_add_build,
    run=_build,
)
INSPECT = Verb(
    name="inspect",
    summary="show what a task asks and what it wants to hear",
    description="Shows examples of a task or mixture as text, with their lengths in tokens.",
    example="instructrec inspect ml_100k.A7 --data_dir=runs/records",
    add_arguments=_add_inspect,
    run=_inspect,
)
