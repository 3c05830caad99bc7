"""How preference and intention hang together (paper section 2.2.3, "enforce the relatedness").

From query and choice to the history, and from the history to query and choice. C7 answers with the
last titles of the history (PAPER section 7, reading 17). The wordings are our own.
"""

from functools import partial

from instructrec_jax.instructions.language import VAGUE_QUERIES, Kind, Query, Template
from instructrec_jax.records import TaskForm

_TEMPLATE = partial(
    Template,
    family="personalized_search",
    task_form=TaskForm.MATCHING,
    kind=Kind.RELATEDNESS,
)

PERSONALIZED_SEARCH = (
    _TEMPLATE(
        template_id="C7",
        inputs="A user asked: {query}, and chose {target}. "
        "Infer the preferences behind it and estimate the last purchases.",
        targets="{history}",
        queries=(Query.PREFERENCE, *VAGUE_QUERIES),
    ),
    _TEMPLATE(
        template_id="C8",
        inputs="Past choices: {history}. Predict the next query and the purchase after it.",
        targets="Query: {query}. Purchase: {target}",
        queries=(*VAGUE_QUERIES, Query.SPECIFIC),
    ),
)
TEMPLATES = PERSONALIZED_SEARCH
