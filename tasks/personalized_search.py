"""Family C, personalised search: from a query and what a user chose before to an item.

Its plain templates; the others of the paper's 13 are in `task_reversal` and `relatedness`. C10-C13
take every kind of query, so that the three columns of the paper's Table 7 share one pool (PAPER
section 3). The wordings are our own.
"""

from functools import partial

from instructrec_jax.instructions.language import ANY_QUERY, VAGUE_QUERIES, Query, Template
from instructrec_jax.records import TaskForm

_TEMPLATE = partial(Template, family="personalized_search")
_MATCHING = partial(_TEMPLATE, targets="{target}", task_form=TaskForm.MATCHING)
_RERANKING = partial(
    _TEMPLATE,
    targets="{target}",
    task_form=TaskForm.RERANKING,
    queries=ANY_QUERY,
    is_evaluated=True,
)

TEMPLATES = (
    _MATCHING(
        template_id="C1",
        inputs="Search with what is known of the user. History: {history}. Taste: {preference}. "
        "Give a product that fits both.",
    ),
    _MATCHING(
        template_id="C2",
        inputs="Past choices: {history}. Wanted now: {query}. Give the item.",
        queries=VAGUE_QUERIES,
    ),
    _MATCHING(
        template_id="C3",
        inputs="As a shopping guide you know the recent purchases, {history}, "
        "and the wish: {query}. Which item has the wished qualities?",
        queries=VAGUE_QUERIES,
    ),
    _MATCHING(
        template_id="C4",
        inputs="Search: {query}. Past choices of the user: {history}. "
        "Name an item that answers the search and suits this taste.",
        queries=(Query.SPECIFIC,),
    ),
    _RERANKING(
        template_id="C10",
        inputs="Query: {query}. History: {history}.[ Taste: {preference}.][ Context: {context}.] "
        "Candidates: {candidates}. Choose the one that fits both query and taste.",
    ),
    _RERANKING(
        template_id="C11",
        inputs="A user searches: {query}, and earlier took {history}."
        "[ The user's taste: {preference}.][ Context: {context}.] Best match among: {candidates}.",
    ),
    _RERANKING(
        template_id="C12",
        inputs="A keen shopper picked {history}.[ Taste: {preference}.][ Context: {context}.] "
        "The wish now: {query}. Choose from these suggestions: {candidates}.",
    ),
    _RERANKING(
        template_id="C13",
        inputs="Read the user's taste from {history}.[ It is described so: {preference}.]"
        "[ Context: {context}.] The search now: {query}. Suitable candidate: {candidates}?",
    ),
)
