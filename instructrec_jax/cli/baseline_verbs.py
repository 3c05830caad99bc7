"""The verbs by which other systems rank the candidates that models are measured on."""

from collections.abc import Mapping
from typing import Any

from instructrec_jax.cli.verb import Group, Verb, output_dir


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
BASELINE = Group(
    name="baseline",
    summary="other systems rank the same candidates",
    description=(
        "Has another system rank the candidates of a task, and writes artefact E, which `report`\n"
        "takes beside the scores of a model."
    ),
    example=LLM.example,
    verbs=(LLM,),
)
