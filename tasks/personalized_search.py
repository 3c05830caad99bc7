"""Family C, personalised search: from a query and what a user chose before to an item.

Those of the paper's 13 templates that need no teacher text. The wordings are our own.
"""

from functools import partial

from instructrec_jax.instructions.language import Kind, Query, Template
from instructrec_jax.records import Intention, Preference, TaskForm

CONFIG = "leave_one_out"

_TEMPLATE = partial(Template, preference=Preference.IMPLICIT, queries=(Query.SPECIFIC,))
_RERANKING = partial(
    _TEMPLATE,
    targets="{target}",
    intention=None,
    task_form=TaskForm.RERANKING,
    is_evaluated=True,
)

TEMPLATES = (
    _TEMPLATE(
        template_id="C4",
        inputs="Search: {query}. Past choices of the user: {history}. "
        "Name an item that answers the search and suits this taste.",
        targets="{target}",
        intention=Intention.SPECIFIC,
        task_form=TaskForm.MATCHING,
    ),
    _TEMPLATE(
        template_id="C5",
        inputs="A user who chose {history} now wants {target} but does not know how to ask. "
        "Write a query in line with this taste.",
        targets="{query}",
        intention=None,
        task_form=TaskForm.MATCHING,
        kind=Kind.REVERSAL,
    ),
    _RERANKING(
        template_id="C10",
        inputs="Query: {query}. History: {history}.[ Taste: {preference}.] "
        "Candidates: {candidates}. Choose the one that fits both query and taste.",
    ),
    _RERANKING(
        template_id="C11",
        inputs="A user searches for {query} and earlier took {history}."
        "[ The user likes {preference}.] Best match among: {candidates}.",
    ),
    _RERANKING(
        template_id="C12",
        inputs="A keen shopper picked {history}.[ Taste: {preference}.] "
        "Now the shopper wants {query}. Choose from these suggestions: {candidates}.",
    ),
    _RERANKING(
        template_id="C13",
        inputs="Read the user's taste from {history}.[ It is described as {preference}.] "
        "The user now searches for {query}. Suitable candidate: {candidates}?",
    ),
)
