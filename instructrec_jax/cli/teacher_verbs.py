"""The verbs by which a teacher writes texts: rules offline, or a language model for money."""

from instructrec_jax.cli.verb import Group, Verb

EXTRACT = Verb(
    name="extract",
    summary="take the texts from titles and reviews by rules; this is the default",
    description=(
        "Takes from the items before each position what they show of the user's preference, and\n"
        "from a review what it tells of the intention behind the choice, by rules, offline.\n"
        "Writes Parquet files with a manifest, whole or not at all."
    ),
    example=(
        "instructrec annotate --dataset=ml_100k --input_dir=runs/prepared \\\n"
        "    --output_dir=runs/texts"
    ),
    function="instructrec_jax.stages.annotate:annotate",
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
        "what a review tells of the intention behind the choice. Without an ACTION, or with\n"
        "`extract`, rules take the texts from the user's own data, offline and for nothing; the\n"
        "other actions have a language model write them."
    ),
    example=EXTRACT.example,
    verbs=(EXTRACT, EXPORT),
    default=EXTRACT.name,
)
