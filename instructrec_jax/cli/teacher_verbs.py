"""The verbs by which a teacher writes texts and people audit them."""

from collections.abc import Mapping
from typing import Any

from instructrec_jax.cli.verb import Group, Verb, output_dir


def _as_text(document: Any, _: Mapping[str, Any]) -> str:
    from instructrec_jax.report import tables

    return tables.as_text(document)


def _if_finished(manifest: Any, arguments: Mapping[str, Any]) -> str:
    return output_dir(manifest, arguments) if manifest is not None else ""


def _version(version: str, _: Mapping[str, Any]) -> str:
    return version


EXTRACT = Verb(
    name="extract",
    summary="take the texts from titles and reviews by rules; this is the default",
    description=(
        "Takes from the items before each position what they show of the user's preference, and\n"
        "from a review what it tells of the intention behind the choice, by rules, offline.\n"
        "Writes Parquet files with a manifest, whole or not at all."
    ),
    example=(
        "instructrec annotate extract --dataset=ml_100k --input_dir=runs/prepared \\\n"
        "    --output_dir=runs/texts"
    ),
    function="instructrec_jax.stages.annotate:annotate",
)
PLAN = Verb(
    name="plan",
    summary="count the requests, tokens, USD and hours of `annotate run`; nothing is sent",
    description=(
        "Takes the flags of `annotate run` and shows what it would ask: requests and tokens by\n"
        "kind of text, the price with every model of a small table, hours online and through the\n"
        "Batch API. Nothing is sent, and no key is needed."
    ),
    example=(
        "instructrec annotate plan --dataset=amazon_games --input_dir=runs/games \\\n"
        "    --model=gpt-4o-mini"
    ),
    function="instructrec_jax.stages.annotate.plan:plan",
    result=_as_text,
)
RUN = Verb(
    name="run",
    summary="have a language model write the texts",
    description=(
        "Asks a language model on any OpenAI-compatible server for the texts that the ledger has\n"
        "no answer for, once more where an answer cannot be used, and writes the texts as Parquet\n"
        "files with a manifest. The key is read from the environment. Stopped or out of money, it\n"
        "loses no answer: the same command goes on."
    ),
    example=(
        "instructrec annotate run --dataset=amazon_games --input_dir=runs/games \\\n"
        "    --ledger_path=runs/teacher.sqlite --output_dir=runs/texts --model=gpt-4o-mini \\\n"
        "    --max_usd=50"
    ),
    function="instructrec_jax.stages.annotate.run:run",
    result=_if_finished,
)
EXPORT = Verb(
    name="export",
    summary="write the texts that the ledger has answers for",
    description=(
        "Judges every answer in the ledger, and writes the texts that are kept as Parquet files\n"
        "with a manifest that counts the others by reason. Sends nothing; the same ledger and\n"
        "settings give the same files. `annotate run` ends with it."
    ),
    example=(
        "instructrec annotate export --dataset=amazon_games --input_dir=runs/games \\\n"
        "    --ledger_path=runs/teacher.sqlite --output_dir=runs/texts --model=gpt-4o-mini"
    ),
    function="instructrec_jax.stages.annotate.export:export",
)
ANNOTATE = Group(
    name="annotate",
    summary="prepared data -> texts on preferences and intentions",
    description=(
        "Has a teacher write what the items before a position show of the user's preference, and\n"
        "what a review tells of the intention behind the choice. Without an ACTION, as\n"
        "with `extract`, rules take the texts from the user's own data, offline and for nothing;\n"
        "the other actions have a language model write them."
    ),
    example=EXTRACT.example.replace(" extract", ""),
    verbs=(EXTRACT, PLAN, RUN, EXPORT),
    default=EXTRACT.name,
)
SAMPLE = Verb(
    name="sample",
    summary="draw texts at random, and write a sheet for people to judge them",
    description=(
        "Draws preferences and intentions at random and writes sheet.csv, with an empty column\n"
        "for each of the paper's four yes/no questions, and sheet.html to read them by. One or\n"
        "two people write yes or no into copies of the sheet; `audit judge` has a language model\n"
        "answer too."
    ),
    example=(
        "instructrec audit sample --dataset=ml_100k --input_dir=runs/prepared \\\n"
        "    --texts_dir=runs/texts --output_dir=runs/audit"
    ),
    function="instructrec_jax.stages.audit:sample",
)
JUDGE_PLAN = Verb(
    name="plan",
    summary="count the requests, tokens, USD and hours of `audit judge`; nothing is sent",
    description=(
        "Takes the flags of `audit judge` and shows what it would ask and cost. Nothing is sent,\n"
        "and no key is needed."
    ),
    example="instructrec audit plan --sample_dir=runs/audit --model=gpt-4o-mini",
    function="instructrec_jax.stages.audit.judge:plan",
    result=_as_text,
)
JUDGE = Verb(
    name="judge",
    summary="have a language model answer the four questions too",
    description=(
        "Asks a language model on any OpenAI-compatible server the four questions on every text\n"
        "of a sample. It is sent the titles or the review that the text was made from, the text,\n"
        "and the title that was chosen next, all scrubbed of personal details. `audit report`\n"
        "shows its answers as a language model's, and how far it agrees with people."
    ),
    example=(
        "instructrec audit judge --sample_dir=runs/audit --ledger_path=runs/teacher.sqlite \\\n"
        "    --output_dir=runs/audit_judge --model=gpt-4o-mini --max_usd=1"
    ),
    function="instructrec_jax.stages.audit.judge:judge",
    result=_if_finished,
)
REPORT = Verb(
    name="report",
    summary="count the answers of people and of a language model, beside the paper's",
    description=(
        "Shows for each question the share of yes with its interval, how far each pair agrees\n"
        "(kappa), the paper's figure, and what can be measured without people. A language model\n"
        "(--judge_dir) is shown as one and never counted as a person."
    ),
    example=(
        "instructrec audit report --sample_dir=runs/audit --sheet ada.csv bob.csv \\\n"
        "    --output_dir=runs/audit_report"
    ),
    function="instructrec_jax.stages.audit.report:report",
    spelled={"sheets": "--sheet"},
    result=_as_text,
)
PUBLISH = Verb(
    name="publish",
    summary="mark audited texts as fit for training",
    description=(
        "Writes into the folder of the texts that an audit found them fit for training. `build`\n"
        "says whether the texts that it reads are. Prints the version. Texts that only a language\n"
        "model has judged need --judge_alone."
    ),
    example="instructrec audit publish --texts_dir=runs/texts --report_dir=runs/audit_report",
    function="instructrec_jax.stages.audit:publish",
    result=_version,
)
AUDIT = Group(
    name="audit",
    summary="have people judge a teacher's texts, and publish them",
    description=(
        "Has people judge a random sample of a teacher's texts by the four questions of the\n"
        "paper, and marks the texts as fit for training."
    ),
    example=SAMPLE.example,
    verbs=(SAMPLE, JUDGE_PLAN, JUDGE, REPORT, PUBLISH),
)
