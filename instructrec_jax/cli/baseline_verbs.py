"""The verbs by which other systems rank the candidates that models are measured on."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from instructrec_jax.cli.verb import (
    Group,
    Verb,
    add_gin_flags,
    bindings_of,
    output_dir,
    print_result,
)


def _plan_or_folder(returned: Any, arguments: Mapping[str, Any]) -> str:
    if returned is None:  # stopped before it had all answers
        return ""
    if not arguments["plan"]:
        return output_dir(returned, arguments)
    from instructrec_jax.report import tables

    return tables.as_text(returned)


LLM = Verb(
    name="llm",
    summary="a language model on any OpenAI-compatible server, zero-shot",
    description=(
        "Sends the instructions of a task as `build` has them to a language model, which ranks\n"
        "the same candidates as every other system: it writes their titles, best first, or, by\n"
        "likelihood, gives the log-probability of each. An answer that names a title that is no\n"
        "candidate, one twice or not all is counted, and is a miss; nothing is asked twice. 500\n"
        "examples, drawn at random, are the paper's number. --plan shows the price. Stopped or\n"
        "out of money, it loses no answer: the same command goes on."
    ),
    example=(
        "instructrec baseline llm --task ml_100k.A7 --data_dir=runs/records \\\n"
        "    --model=gpt-4o-mini --max_usd=1 --ledger_path=runs/teacher.sqlite \\\n"
        "    --output_dir=runs/scores/llm"
    ),
    function="instructrec_jax.stages.baseline.llm:rank",
    spelled={"tasks": "--task"},
    result=_plan_or_folder,
)
_UNTRAINED = "instructrec_jax.stages.baseline.untrained"
_TRAIN = "instructrec_jax.stages.baseline.trained:train_and_score"


def _both_splits(_: Any, arguments: Mapping[str, Any]) -> str:
    return arguments["asked"].output_dir


def _untrained(name: str, summary: str, description: str) -> Verb:
    """Returns the verb of a system that is not trained."""
    return Verb(
        name=name,
        summary=summary,
        description=f"{description}\n\n{_SCENARIOS}",
        example=(
            f"instructrec baseline {name} --prepared_dir=runs/prepared \\\n"
            f"    --output_dir=runs/baselines/{name}"
        ),
        function=f"{_UNTRAINED}:{name}",
        result=_both_splits,
    )


_SCENARIOS = (
    "Ranks the validation and the test split of each scenario. `report --scores NAME=OUTPUT_DIR`\n"
    "takes both."
)
UNTRAINED = (
    _untrained(
        "popularity",
        "how often an item was chosen in training",
        "Ranks by how often an item stands in the training part of the histories.",
    ),
    _untrained(
        "cooccurrence",
        "likeness to the last items, from counts of pairs",
        "Ranks by the likeness of a candidate to the last ten items of the history (positive\n"
        "pointwise mutual information, truncated SVD) and by popularity.",
    ),
    _untrained(
        "ease",
        "a linear model of which items follow from which",
        "Ranks by EASE (Steck, WWW 2019), which is solved in closed form: memory grows with the\n"
        "square of the number of items.",
    ),
    _untrained(
        "bm25",
        "words that a candidate shares with query and history",
        "Ranks by BM25 over title, brand and category of the items. The query is what the user\n"
        "asks for, and the titles of the last ten items of the history: product search has no\n"
        "history, sequential recommendation no query.",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TrainedVerb(Verb):
    """A system that is trained as its file in gin/baselines says."""

    takes_gin = True

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds the two folders, and the flags that change what the gin file says."""
        for name, text in _FOLDERS.items():
            parser.add_argument(f"--{name}", required=True, metavar="DIR", help=text)
        for name, text in _MORE_FOLDERS.items():
            parser.add_argument(f"--{name}", metavar="DIR", default=argparse.SUPPRESS, help=text)
        parser.add_argument(
            "--scenarios",
            nargs="+",
            action="extend",
            metavar="NAME",
            default=argparse.SUPPRESS,
            help="what is ranked, and where queries are read also what is learnt from: sequential, "
            "or a family and a kind of query, such as product_search.specific or "
            "personalized_search.vague; validation is of the first one",
        )
        add_gin_flags(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Trains and scores; prints the folder."""
        from instructrec_jax.cli import gin_config

        names = (*_FOLDERS, *_MORE_FOLDERS, "scenarios")
        given = {name: getattr(options, name) for name in names if hasattr(options, name)}
        gin_config.run_with_gin(
            self.load(),
            gin_file_names=[f"gin/baselines/{self.name}.gin", *options.gin_file],
            bindings=[
                *(f"{name.upper()}={value!r}" for name, value in given.items()),
                *bindings_of(options),
            ],
            search_paths=options.gin_search_paths,
        )
        print_result(options.output_dir)
        return 0


_FOLDERS = {
    "prepared_dir": "artefact A",
    "output_dir": "folder for checkpoints, and for artefact E of both splits, in `validation` and "
    "`test`",
}
_MORE_FOLDERS = {
    "texts_dir": "artefact B, where what is asked for is a teacher's text",
    "trained_dir": "output folder of an earlier run, whose best checkpoint ranks: no training",
}


def _trained(name: str, summary: str, description: str) -> Verb:
    """Returns the verb of a system that is trained."""
    return _TrainedVerb(
        name=name,
        summary=summary,
        description=(
            f"{description}\n\n"
            "Training ends when NDCG@5 on validation no longer improves; the best checkpoint\n"
            "ranks both splits. Stopped, the same command goes on. Settings are those of\n"
            f"gin/baselines/{name}.gin, which --gin.NAME=VALUE changes."
        ),
        example=(
            f"instructrec baseline {name} --prepared_dir=runs/prepared \\\n"
            f"    --output_dir=runs/baselines/{name}"
        ),
        function=_TRAIN,
    )


TRAINED = (
    _trained(
        "sasrec",
        "attention over the items before, one negative, trained",
        "SASRec (Kang and McAuley, ICDM 2018) with the loss of its paper.",
    ),
    _trained(
        "sasrec_softmax",
        "the same with a softmax over the whole catalogue",
        "SASRec with a softmax over all items in place of one negative, which is far stronger.",
    ),
    _trained(
        "bert4rec",
        "attention on both sides finds masked items, trained",
        "BERT4Rec (Sun et al., CIKM 2019).",
    ),
    _trained(
        "matcher",
        "the two towers that hard negatives come from, trained",
        "The two-tower matcher of the paper's Table 9: user, items and titles of the history on\n"
        "one side, item and title on the other. Its best items of each user, without those of the\n"
        "user's own sequence, go into OUTPUT_DIR/retrieved, for `candidates lists`.",
    ),
)
SEARCH = (
    _trained(
        "dssm",
        "titles that are like what is asked for, trained",
        "DSSM (Huang et al., CIKM 2013), for product search: it reads no history.",
    ),
    _trained(
        "tem",
        "attention over the query and the items before, trained",
        "TEM (Bi et al., SIGIR 2020), for personalised search.",
    ),
)


_NEEDS_NO_HISTORY = ("popularity", "bm25", "dssm", "tem")
_NEEDS_QUERY = ("dssm",)


def _fitting(name: str, scenarios: Sequence[str]) -> list[str]:
    """Returns the scenarios that a system can rank."""
    return [
        scenario
        for scenario in scenarios
        if (name in _NEEDS_NO_HISTORY or not scenario.startswith("product_search"))
        and (name not in _NEEDS_QUERY or "." in scenario)
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _AllVerb(_TrainedVerb):
    """Every system that needs no server, one after another."""

    def run(self, options: argparse.Namespace) -> int:
        """Runs each verb into its own folder."""
        from instructrec_jax.stages.baseline.scores import has_categories

        given = vars(options)
        searching = SEARCH if "scenarios" in given or has_categories(options.prepared_dir) else ()
        for verb in (*UNTRAINED, *TRAINED, *searching):
            own = {**given, "output_dir": f"{options.output_dir}/{verb.name}"}
            if "trained_dir" in given:
                own["trained_dir"] = f"{options.trained_dir}/{verb.name}"
            if "scenarios" in given:
                own["scenarios"] = _fitting(verb.name, options.scenarios)
                if not own["scenarios"]:
                    continue
            verb.run(argparse.Namespace(**own))
        return 0


ALL = _AllVerb(
    name="all",
    summary="each of these that needs no server",
    description=(
        "Runs all systems that need no server, each into a folder of its name. What is there\n"
        "already is kept. Without --scenarios each ranks what it is for, dssm and tem only where\n"
        "items have categories; with them, each ranks those that it can. --trained_dir is the\n"
        "output folder of an earlier `baseline all`. --gin.NAME=VALUE changes the settings of all\n"
        "that are trained."
    ),
    example="instructrec baseline all --prepared_dir=runs/prepared --output_dir=runs/baselines",
    function=_TRAIN,
)
BASELINE = Group(
    name="baseline",
    summary="other systems rank the same candidates",
    description=(
        "Has another system rank the candidates that models are measured on, and writes artefact\n"
        "E, which `report` takes beside the scores of a model."
    ),
    example=UNTRAINED[0].example,
    verbs=(*UNTRAINED, *TRAINED, *SEARCH, ALL, LLM),
)
