"""Family B, product search: from a query alone to an item.

Those of the paper's 9 templates that need no teacher text. The specific query is the category path
of the target, as in the paper. The wordings are our own.
"""

from functools import partial

from instructrec_jax.instructions.language import Kind, Query, Template
from instructrec_jax.records import Intention, Preference, TaskForm

CONFIG = "product_search"

_TEMPLATE = partial(Template, preference=Preference.NONE, queries=(Query.SPECIFIC,))
_MATCHING = partial(
    _TEMPLATE,
    targets="{target}",
    intention=Intention.SPECIFIC,
    task_form=TaskForm.MATCHING,
)
_REVERSAL = partial(
    _TEMPLATE,
    targets="{query}",
    intention=Intention.SPECIFIC,
    task_form=TaskForm.MATCHING,
    kind=Kind.REVERSAL,
)
_RERANKING = partial(
    _TEMPLATE,
    targets="{target}",
    intention=None,
    task_form=TaskForm.RERANKING,
    is_evaluated=True,
)

TEMPLATES = (
    _MATCHING(
        template_id="B2",
        inputs="Answer this search with one fitting item: {query}.",
    ),
    _MATCHING(
        template_id="B3",
        inputs="A visitor asks for {query}. Recommend an item that meets the request.",
    ),
    _REVERSAL(
        template_id="B5",
        inputs="Someone wants {target} but cannot put the search into words. Write the query.",
    ),
    _REVERSAL(
        template_id="B6",
        inputs="Guess the brand and type words a user would enter to find {target}.",
    ),
    _RERANKING(
        template_id="B7",
        inputs="Query: {query}. Answer it with one of: {candidates}.",
    ),
    _RERANKING(
        template_id="B8",
        inputs="A user needs {query}. Which candidate serves this need best? {candidates}.",
    ),
    _RERANKING(
        template_id="B9",
        inputs="Candidates: {candidates}. Compare how relevant each is to the search {query} "
        "and name the first.",
    ),
)
