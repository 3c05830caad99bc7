"""Task reversal: input and output change places (paper section 2.2.3, "turn the task around").

The output query of B5 and B6 is the specific one; C9 answers with the last titles of the history
(PAPER section 7, readings 15-17). The wordings are our own.
"""

from functools import partial

from instructrec_jax.instructions.language import VAGUE_QUERIES, Kind, Query, Template
from instructrec_jax.records import TaskForm

_TEMPLATE = partial(Template, task_form=TaskForm.MATCHING, kind=Kind.REVERSAL)
_SEQUENTIAL = partial(_TEMPLATE, family="sequential")
_PRODUCT = partial(_TEMPLATE, family="product_search", records="product_search")
_PERSONALIZED = partial(_TEMPLATE, family="personalized_search")

SEQUENTIAL = (
    _SEQUENTIAL(
        template_id="A14",
        inputs="Find what these items have in common: {history}. "
        "Which overall preference do they show?",
        targets="{preference}",
    ),
    _SEQUENTIAL(
        template_id="A15",
        inputs="What a person does follows a taste. Done so far: {history}. Infer the taste.",
        targets="{preference}",
    ),
)
PRODUCT_SEARCH = (
    _PRODUCT(
        template_id="B5",
        inputs="Someone wants {target} but cannot put the search into words. Write the query.",
        targets="{query}",
        queries=(Query.SPECIFIC,),
    ),
    _PRODUCT(
        template_id="B6",
        inputs="Guess the brand and type words a user would enter to find {target}.",
        targets="{query}",
        queries=(Query.SPECIFIC,),
    ),
)
PERSONALIZED_SEARCH = (
    _PERSONALIZED(
        template_id="C5",
        inputs="A user who chose {history} now wants {target} but does not know how to ask. "
        "Write a query in line with this taste.",
        targets="{query}",
        queries=(*VAGUE_QUERIES, Query.SPECIFIC),
    ),
    _PERSONALIZED(
        template_id="C6",
        inputs="After {history} a user chose {target}. Which preferences led there?",
        targets="{preference}",
    ),
    _PERSONALIZED(
        template_id="C9",
        inputs="A user asks: {query}. Guess the last purchases and the next one.",
        targets="Last: {history}. Next: {target}",
        queries=(Query.PREFERENCE, *VAGUE_QUERIES),
    ),
)
TEMPLATES = (*SEQUENTIAL, *PRODUCT_SEARCH, *PERSONALIZED_SEARCH)
