"""What the columns of score files mean, for `--help`: artefact E, `generate` and ranked files."""

from collections.abc import Mapping

SCORED = {
    "example_id": "the example or request, such as user:position",
    "template_id": "the template that wrote its instruction",
    "candidate_ids": "item ids; of requests without ids the places in their list, from 0",
    "log_likelihood": "natural log, the sum over the candidate's tokens and EOS",
    "prior_log_likelihood": "the same without the user's texts; empty without WITH_PRIOR",
    "num_tokens": "tokens of each candidate, EOS included",
    "num_chars": "characters of each candidate",
    "last_round": "the last round of groups that it took part in; later ones rank first",
    "rank": "its rank by the run's normaliser, 1 the best; equal ones share the worse",
    "num_views": "prompts that were scored",
    "target_index": "place of the target among the candidates; -1: unknown",
}
GENERATED = {
    "example_id": "the example, such as user:position",
    "target_id": "the item to be found",
    "item_ids": "for each title, best first, the items that have it",
    "log_likelihood": "of each title: natural log, the sum over its tokens and EOS",
    "rank": "of the target's title; one more than there are titles if it is none of them",
}
RANKED = {
    "id": "of the request, as text",
    "rank": "1 the best; equal ones share the worse rank",
    "candidate": "its text, as the request gives it",
    "score": "what it is ranked by: its log-likelihood under the normaliser",
    "log_likelihood": "natural log, the sum over the candidate's tokens and EOS: normaliser sum",
    "mean": "the same per token, EOS included: normaliser mean",
    "char": "the same per character: normaliser char",
    "candidate_id": "as the request gives it, else its place in the request's list, from 0",
    "is_target": "whether it is the target; empty where the request names none",
    "template": "what wrote the instruction: a template, or `instruction`: the request itself",
    "normaliser": "the one that it is ranked by",
}


def as_text(title: str, columns: Mapping[str, str]) -> str:
    """Returns lines that tell what each column means."""
    width = max(map(len, columns))
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in columns.items())])
