"""The verbs of the service: who may use it, and running it."""

from collections.abc import Mapping
from typing import Any

from instructrec_jax.cli.verb import Group, Verb


def _returned(found: Any, _: Mapping[str, Any]) -> str:
    return found if isinstance(found, str) else "\n".join(found or ())


TOKEN = Group(
    name="token",
    summary="who may use the service",
    description="Makes, lists and revokes the tokens of `serve`; only hashes of them are kept.",
    example="instructrec token make --state_dir=runs/service --name=shop",
    verbs=(
        Verb(
            name="make",
            summary="makes a token and prints it, once",
            description="Makes a token and prints it. Keep it: only its hash is stored.",
            example="instructrec token make --state_dir=runs/service --name=shop",
            function="instructrec_jax.serving.tokens:make_token",
            result=_returned,
        ),
        Verb(
            name="list",
            summary="names, scopes, rates and last days",
            description="Lists the tokens of a service by their names.",
            example="instructrec token list --state_dir=runs/service",
            function="instructrec_jax.serving.tokens:list_tokens",
            result=_returned,
        ),
        Verb(
            name="revoke",
            summary="removes a token",
            description="Removes a token. A running service refuses it from then on.",
            example="instructrec token revoke --state_dir=runs/service --name=shop",
            function="instructrec_jax.serving.tokens:revoke_token",
            result=_returned,
        ),
    ),
)
FEEDBACK = Group(
    name="feedback",
    summary="what users said of served rankings",
    description="Turns the feedback of a service into data to train on, and into figures.",
    example="instructrec feedback report --state_dir=runs/service",
    verbs=(
        Verb(
            name="export",
            summary="feedback -> logs for `prepare`, requests for `score`",
            description=(
                "Writes what was liked or taken as interactions.jsonl and items.jsonl, which\n"
                "`prepare` reads, and as examples.jsonl, requests with their targets; each with\n"
                "the probability with which the candidate was shown where it was."
            ),
            example=(
                "instructrec feedback export --state_dir=runs/service \\\n"
                "    --output_dir=logs/feedback"
            ),
            function="instructrec_jax.serving.learning:export_feedback",
        ),
        Verb(
            name="report",
            summary="counts, and what other orders would have earned",
            description=(
                "Counts rankings and feedback, and says what a ranking earned by model and\n"
                "template, and how these differ, with intervals that hold however often one\n"
                "looks. Where `serve --explore` drew orders at random, also what the order of\n"
                "the model and a random one earn, by IPS and SNIPS, with intervals."
            ),
            example="instructrec feedback report --state_dir=runs/service",
            function="instructrec_jax.serving.learning:report_feedback",
            result=_returned,
        ),
        Verb(
            name="plan",
            summary="how many users a comparison of templates needs",
            description="Says how many users show a difference between two templates or models.",
            example="instructrec feedback plan --rate=0.3 --difference=0.03",
            function="instructrec_jax.serving.learning:plan_comparison",
            result=_returned,
        ),
    ),
)
SERVE = Verb(
    name="serve",
    summary="a model as a service over HTTP",
    description=(
        "Ranks over HTTP: POST /v1/rank takes the fields of `instructrec score --input` and gives\n"
        "the same numbers, POST /v1/rerank what clients of Cohere and Jina send. /openapi.json\n"
        "tells all, /healthz, /readyz and /metrics how it is. All but the first two need a token.\n"
        "SIGTERM or Ctrl-C stops it once it has answered what it has taken."
    ),
    example="instructrec serve --model=runs/model --state_dir=runs/service",
    function="instructrec_jax.serving.service:serve",
    result=_returned,
)
