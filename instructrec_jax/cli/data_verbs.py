"""`instructrec data` and `prepare`: from public or own logs to prepared data."""

import argparse
from typing import Any

from instructrec_jax.cli.verb import Verb, add_folders, given

_FOLDER = "DIR"


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
    _add_synthesize(actions)


def _add_synthesize(actions: Any) -> None:
    synthesize = actions.add_parser(
        "synthesize",
        help="write an invented log of any size",
        description=(
            "Writes an invented log in which users keep to a favourite kind and brand of item.\n"
            "The same flags write the same bytes. The folder is the --input_dir of `prepare`."
        ),
        epilog=(
            "example:\n  instructrec data synthesize --output_dir=logs/invented \\\n"
            "      --num_users=1000 --num_interactions=12000"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    synthesize.add_argument(
        "--output_dir", required=True, metavar=_FOLDER, help="folder to write, new or empty"
    )
    unset = argparse.SUPPRESS
    for name, kind, text in (
        ("num_users", int, "users"),
        ("num_interactions", int, "interactions, exactly so many"),
        ("num_items", int, "items (default one in 100 interactions)"),
        ("seed", int, "of everything (default 0)"),
        ("zipf_exponent", float, "how steeply popularity falls with rank (default 1.0)"),
        ("favourite_share", float, "how often users keep to their favourite kind (default 0.8)"),
        ("format", str, "plain, jsonl, recbole or amazon_2018 (default plain)"),
    ):
        is_required = name in ("num_users", "num_interactions")
        synthesize.add_argument(
            f"--{name}", type=kind, required=is_required, default=unset, help=text
        )
    for name, text in (
        ("is_gzip", "compress the files"),
        ("has_reviews", "give events a review that tells a wish (amazon_2018 only)"),
    ):
        synthesize.add_argument(f"--{name}", action="store_true", default=unset, help=text)


def _obtain(options: argparse.Namespace) -> None:
    """Fetches or synthesizes; the last line printed is the folder."""
    if options.action == "fetch":
        from instructrec_jax.stages import fetch

        print(fetch.fetch(name=options.name, cache_dir=options.cache_dir))
        return
    from instructrec_jax.data.settings import SyntheticSettings
    from instructrec_jax.stages import synthesize

    names = ("num_users", "num_interactions", "num_items", "seed", "zipf_exponent")
    more = ("favourite_share", "format", "is_gzip", "has_reviews")
    settings = SyntheticSettings(**given(options, *names, *more))
    synthesize.synthesize(output_dir=options.output_dir, settings=settings)
    print(options.output_dir)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    add_folders(
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
    from instructrec_jax.data.settings import PrepareSettings
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
        settings=PrepareSettings(**given(options, *names)),
    )


DATA = Verb(
    name="data",
    summary="obtain a public dataset, or an invented one",
    description=(
        "Obtains public datasets, or invents one of any size. The folder it names is the\n"
        "--input_dir of `prepare`."
    ),
    example="instructrec data fetch ml-100k",
    add_arguments=_add_fetch,
    run=_obtain,
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
