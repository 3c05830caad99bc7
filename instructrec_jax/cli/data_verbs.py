"""The verbs from raw logs to instruction records, and those that show what the records say."""

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructrec_jax.cli.verb import Group, Verb, add_gin_flags, bindings_of
from instructrec_jax.errors import UserError

FOUND_ERRORS = 1


def _fetched(folder: Any, _: Mapping[str, Any]) -> str:
    return str(folder)


def _source_lines(sources: Any, _: Mapping[str, Any]) -> str:
    from instructrec_jax.stages import data

    return data.as_text(sources)


def _template_lines(lines: Any, _: Mapping[str, Any]) -> str:
    from instructrec_jax.stages import templates

    return templates.as_text(lines)


def _examples(examples: Any, arguments: Mapping[str, Any]) -> str:
    from instructrec_jax.stages import inspect

    return inspect.as_text(examples, arguments["task"])


def _findings(report: Any, arguments: Mapping[str, Any]) -> str:
    """Returns the tables, and the page to look at if one was written."""
    from instructrec_jax.report import lint_report, tables

    text, folder = tables.as_text(lint_report.document(report)), arguments["output_dir"]
    return text if folder is None else f"{text}\n{Path(folder) / 'lint.html'}"


class _InspectVerb(Verb):
    """Shows examples, on request as the gin files of a run have them read."""

    takes_gin = True

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds the flags of the stage, and those that name a run."""
        super().add_flags(parser)
        add_gin_flags(parser)

    def more_arguments(self, options: argparse.Namespace) -> dict[str, Any]:
        """Returns what reads the settings of the run, where gin files name one."""
        bindings, folder = bindings_of(options), getattr(options, "data_dir", None)
        if not options.gin_file:
            if bindings:
                raise UserError(f"--gin.{bindings[0]} needs the --gin_file of a run beside it")
            return {}
        if folder is not None:
            bindings.append(f"DATA_DIR={str(folder)!r}")
        files = {"gin_file_names": options.gin_file, "search_paths": options.gin_search_paths}
        return {"run": functools.partial(_shown_run, bindings=bindings, **files)}


def _shown_run(**given: Any) -> Any:
    """Returns the run that gin files configure, as `inspect` takes it."""
    from instructrec_jax.cli import gin_config
    from instructrec_jax.stages import inspect, run_data, train  # noqa: F401, what files name

    data = gin_config.run_with_gin(run_data.RunData, is_part=True, **given)
    bound = {
        "seed": gin_config.bound_value("train.TrainSettings.seed"),
        "num_candidates": gin_config.bound_value("train.TrainSettings.num_candidates"),
    }
    known = {name: value for name, value in bound.items() if value is not None}
    return inspect.ShownRun(data=data, **known)


def _verdict(verdict: Any, _: Mapping[str, Any]) -> str:
    from instructrec_jax.stages import verify

    return verify.as_text(verdict)


FETCH = Verb(
    name="fetch",
    summary="download a public dataset into the cache folder",
    description=(
        "Downloads a public dataset once, checks its sha256, and prints its folder. Where nobody\n"
        "has published a checksum the first download is trusted, and later ones must equal it."
    ),
    example="instructrec data fetch ml-100k",
    function="instructrec_jax.stages.data:fetch",
    spelled={"name": "NAME"},
    result=_fetched,
)
LIST = Verb(
    name="list",
    summary="show the public datasets that `data fetch` knows",
    description=(
        "Shows the public datasets that `data fetch` knows: their size, where they come from,\n"
        "whether their checksum is known, and on what terms they may be used."
    ),
    example="instructrec data list",
    function="instructrec_jax.stages.data:show",
    result=_source_lines,
)
SYNTHESIZE = Verb(
    name="synthesize",
    summary="write an invented log of any size",
    description=(
        "Writes an invented log in which users keep to a favourite kind and brand of item.\n"
        "The same flags write the same bytes. The folder is the --input_dir of `prepare`."
    ),
    example=(
        "instructrec data synthesize --output_dir=logs/invented \\\n"
        "      --num_users=1000 --num_interactions=12000"
    ),
    function="instructrec_jax.stages.data:synthesize",
)
DATA = Group(
    name="data",
    summary="obtain a public dataset, or an invented one",
    description=(
        "Obtains public datasets, or invents one of any size. The folder it prints is the\n"
        "--input_dir of `prepare`."
    ),
    example="instructrec data fetch ml-100k",
    verbs=(LIST, FETCH, SYNTHESIZE),
)
PREPARE = Verb(
    name="prepare",
    summary="raw logs -> catalogue, histories, splits, candidates",
    description=(
        "Reads raw logs of interactions and items, cleans titles, drops repeats, filters to a\n"
        "k-core, cuts histories, splits them and draws the candidates that every model shares.\n"
        "Says users=... items=... interactions=... and writes Parquet files with a manifest."
    ),
    example=(
        "instructrec prepare --dataset=ml_100k --input_dir=logs/ml-100k \\\n"
        "    --output_dir=runs/prepared"
    ),
    function="instructrec_jax.stages.prepare:prepare",
)
_CANDIDATES = "instructrec_jax.stages.candidates"
CANDIDATES = Group(
    name="candidates",
    summary="prepared data with other candidates: hard negatives, 100 of them",
    description=(
        "Copies prepared data and gives its evaluation examples other candidates; catalogue,\n"
        "histories and splits stay. Texts of `annotate` and trained baselines (--trained_dir) of\n"
        "the data before serve it too; records have to be built again."
    ),
    example=(
        "instructrec candidates uniform --prepared_dir=runs/prepared --num_candidates=100 \\\n"
        "    --output_dir=runs/hundred"
    ),
    verbs=(
        Verb(
            name="uniform",
            summary="uniform negatives, drawn again",
            description=(
                "Draws negatives uniformly again: more of them, or in product search none that\n"
                "suits the query as well as the target."
            ),
            example=(
                "instructrec candidates uniform --prepared_dir=runs/prepared \\\n"
                "    --num_candidates=100 --output_dir=runs/hundred"
            ),
            function=f"{_CANDIDATES}:uniform",
        ),
        Verb(
            name="lists",
            summary="hard negatives, from the lists of a retriever",
            description=(
                "Takes the first items of a user's list as negatives. The user's own items, the\n"
                "target and items of equal title are removed before, and counted; then the target\n"
                "is added. `baseline matcher` writes such lists into OUTPUT_DIR/retrieved."
            ),
            example=(
                "instructrec candidates lists --prepared_dir=runs/prepared \\\n"
                "    --test_file=runs/baselines/matcher/retrieved/test.tsv.gz \\\n"
                "    --output_dir=runs/hard"
            ),
            function=f"{_CANDIDATES}:lists",
        ),
    ),
)
RENAME = Verb(
    name="rename",
    summary="prepared data whose items have numbers for titles, as P5 names them",
    description=(
        "Copies prepared data and names each item by its number, such as item_17. Records of it\n"
        "are the same tasks without the words of titles. Candidates stay, so that `report` shows\n"
        "a model of them beside the others; texts of `annotate` serve both. `build\n"
        "--title_pieces=N` makes a name one token."
    ),
    example="instructrec rename --prepared_dir=runs/prepared --output_dir=runs/numbered",
    function="instructrec_jax.stages.rename:rename",
)
BUILD = Verb(
    name="build",
    summary="prepared data, texts -> instruction records and a vocabulary",
    description=(
        "Turns prepared data and the texts of a teacher into instruction records (a TFDS dataset\n"
        "that SeqIO reads), and trains a SentencePiece vocabulary on the training texts or copies\n"
        "the one given.\n"
        "Files that an interrupted run has finished are kept; the same command goes on."
    ),
    example=(
        "instructrec build --dataset=ml_100k --input_dir=runs/prepared \\\n"
        "    --texts_dir=runs/texts --output_dir=runs/records"
    ),
    function="instructrec_jax.stages.build:build",
    spelled={"vocabulary_path": "--vocabulary", "beam_options": "--beam_option"},
)
TEMPLATES = Verb(
    name="templates",
    summary="list the templates",
    description=(
        "Lists every template: its cell of the paper, its kind and family, whether rankings are\n"
        "evaluated with it, and what may fill its query."
    ),
    example="instructrec templates",
    function="instructrec_jax.stages.templates:templates",
    result=_template_lines,
)
INSPECT = _InspectVerb(
    name="inspect",
    summary="show the instructions and answers of a task",
    description=(
        "Shows examples of a task or mixture as text, with their lengths in tokens and what was\n"
        "dropped or cut. With the gin files of a run (--gin_file, --gin.NAME=VALUE) they are what\n"
        "that run reads: the first that it trains on, or those of --split that it ranks."
    ),
    example="instructrec inspect ml_100k.A7 --data_dir=runs/records",
    function="instructrec_jax.stages.inspect:inspect",
    spelled={"task": "TASK"},
    result=_examples,
)
VERIFY = Verb(
    name="verify",
    summary="check that files and checkpoints are as they were written",
    description=(
        "Compares every file that a stage wrote with the sha256 in its manifest, and every array\n"
        "of a checkpoint with its checksum, in the folder and below it. Exits with 1 where\n"
        "something is damaged or missing."
    ),
    example="instructrec verify runs",
    function="instructrec_jax.stages.verify:verify",
    spelled={"folder": "DIR"},
    result=_verdict,
    exit_code=lambda verdict: FOUND_ERRORS if verdict.damaged else 0,
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
    function="instructrec_jax.stages.lint:lint",
    result=_findings,
    exit_code=lambda report: FOUND_ERRORS if report.num_errors else 0,
)
