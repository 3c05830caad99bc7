"""Family B, product search: from a query alone to an item.

Its plain templates; the others of the paper's 9 are in `task_reversal`. The specific query is the
category path of the target, as in the paper. The wordings are our own.
"""

from functools import partial

from instructrec_jax.instructions.language import ANY_QUERY, Query, Template
from instructrec_jax.records import TaskForm

_TEMPLATE = partial(Template, family="product_search", records="product_search")
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
        template_id="B1",
        inputs="Act as a search engine. Search: {query}. Give the item.",
        queries=ANY_QUERY,
    ),
    _MATCHING(
        template_id="B2",
        inputs="Answer this search with one fitting item: {query}.",
        queries=(Query.SPECIFIC,),
    ),
    _MATCHING(
        template_id="B3",
        inputs="A visitor asks for {query}. Recommend an item that meets the request.",
        queries=(Query.SPECIFIC,),
    ),
    _MATCHING(
        template_id="B4",
        inputs="A user writes: {query}. Reply with the item that helps.",
        queries=ANY_QUERY,
    ),
    _RERANKING(
        template_id="B7",
        inputs="Query: {query}.[ Context: {context}.] Answer it with one of: {candidates}.",
    ),
    _RERANKING(
        template_id="B8",
        inputs="Need: {query}.[ Context: {context}.] "
        "Which candidate serves this need best? {candidates}.",
    ),
    _RERANKING(
        template_id="B9",
        inputs="[Context: {context}. ]Candidates: {candidates}. "
        "Compare how relevant each is to the search {query} and name the first.",
    ),
)
