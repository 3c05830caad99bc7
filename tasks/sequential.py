"""Family A, sequential recommendation: from what a user chose to what comes next.

Its plain templates; the others of the paper's 17 are in `chain_of_thought` and `task_reversal`. The
clause with the preference is the paper's "(P2)". The wordings are our own.
"""

from functools import partial

from instructrec_jax.instructions.language import Template
from instructrec_jax.records import TaskForm

_TEMPLATE = partial(Template, family="sequential")
_MATCHING = partial(_TEMPLATE, targets="{target}", task_form=TaskForm.MATCHING)
_RERANKING = partial(_TEMPLATE, targets="{target}", task_form=TaskForm.RERANKING, is_evaluated=True)
_POINTWISE = partial(_TEMPLATE, targets="{answer}", task_form=TaskForm.POINTWISE)

TEMPLATES = (
    _MATCHING(
        template_id="A1",
        inputs="A user picked these items, oldest first: {history}. What comes next?",
    ),
    _MATCHING(
        template_id="A2",
        inputs="Profile of a user. Taste: {preference}. Choices so far: {history}. "
        "Recommend the item that suits this profile.",
    ),
    _MATCHING(
        template_id="A4",
        inputs="Items chosen so far: {history}.[ Stated taste: {preference}.] "
        "Predict the next item.",
    ),
    _MATCHING(
        template_id="A5",
        inputs="Here is what a user picked: {history}.[ The user says: {preference}.] "
        "Find what these items share, then recommend one more.",
    ),
    _MATCHING(
        template_id="A6",
        inputs="Study this list of past choices to learn the taste behind it: {history}."
        "[ In the user's words: {preference}.] Which item do you recommend?",
    ),
    _RERANKING(
        template_id="A7",
        inputs="Past choices in order: {history}.[ Taste: {preference}.][ Context: {context}.] "
        "Options: {candidates}. Weigh each option against this taste and name the best.",
    ),
    _RERANKING(
        template_id="A8",
        inputs="The items a user clicked show a taste: {history}.[ It reads: {preference}.]"
        "[ Context: {context}.] Choose one of: {candidates}.",
    ),
    _RERANKING(
        template_id="A9",
        inputs="[About the user: {preference}. ][Context: {context}. ]"
        "So far the user took: {history}. Which of these comes next: {candidates}?",
    ),
    _RERANKING(
        template_id="A10",
        inputs="Pick the item to recommend after {history}.[ Known taste: {preference}.]"
        "[ Context: {context}.] Candidates: {candidates}.",
    ),
    _POINTWISE(
        template_id="A11",
        inputs="Past choices: {history}.[ Taste: {preference}.] "
        "Would this user take {candidate} next? Answer yes or no.",
    ),
    _POINTWISE(
        template_id="A12",
        inputs="A user clicked {history}.[ The user's taste: {preference}.] "
        "Will the next click be on {candidate}?",
    ),
    _RERANKING(
        template_id="A13",
        inputs="[Taste of the user: {preference}. ][Context: {context}. ]History: {history}. "
        "Candidates: {candidates}. Which one agrees with the user's taste?",
    ),
    _MATCHING(
        template_id="A16",
        inputs="You recommend items and know one thing of the user: {preference}. Name an item.",
    ),
    _MATCHING(
        template_id="A17",
        inputs="Taste as stated: {preference}. Predict what this user takes next.",
    ),
)
