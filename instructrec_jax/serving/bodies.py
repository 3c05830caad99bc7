"""What requests and answers of the service hold: the source of its OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_ID = 200  # characters
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
Whole = Annotated[int, Field(ge=-(2**63) + 1, le=2**63 - 1)]
FreeText = Annotated[str, Field(min_length=1, max_length=4000)]


class _Strict(BaseModel):
    """A body whose fields are all known, each of its own type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Asked(_Strict):
    """What somebody asks in their own words."""

    text: FreeText | None = Field(
        default=None,
        description="free text, in place of `intention`: what is liked or wanted, by whom, without "
        "what; the answer tells how it was understood",
    )
    turns: list[FreeText] | None = Field(
        default=None, max_length=100, description="what the same person wrote before, oldest first"
    )


class RankRequest(_Asked):
    """Candidates, and what they are ranked by: the fields of `instructrec score --input`."""

    candidates: list[str] = Field(description="texts such as titles, two at least, no two equal")
    instruction: str | None = Field(
        default=None, description="a whole prompt, in place of the texts below"
    )
    history: list[str] | None = Field(default=None, description="titles, oldest first")
    preference: str | list[str] | None = Field(
        default=None, description="lasting preference in words"
    )
    intention: str | list[str] | None = Field(
        default=None, description="what is wanted now, in words"
    )
    context: str | None = Field(default=None, description="time or place")
    id: Id | None = Field(default=None, description="is repeated in the answer")
    candidate_ids: list[Whole] | None = Field(default=None, description="numbers of the candidates")
    item_ids: list[Id] | None = Field(
        default=None, description="the catalogue's names of the candidates, for feedback"
    )
    exclude: list[str | Whole] | None = Field(default=None, description="candidates to leave out")
    template: Id | None = Field(
        default=None, description="such as A7; by default one that suits the texts"
    )
    normaliser: Literal["sum", "mean", "char"] | None = Field(
        default=None, description="what is ranked by; by default as the model was trained"
    )
    top_n: int | None = Field(default=None, ge=1, description="how many to return; by default all")
    explain: bool = Field(default=False, description="tell what the model read")
    record: bool = Field(
        default=False,
        description="keep the ranking, so that feedback on it may follow (scope feedback)",
    )
    user_id: Id | None = Field(default=None, description="whose ranking is kept")


class RecommendRequest(_Asked):
    """What is liked or wanted; the candidates come from the catalogue of the service."""

    history: list[str] | None = Field(default=None, description="titles, oldest first")
    preference: str | list[str] | None = Field(
        default=None, description="lasting preference in words"
    )
    intention: str | list[str] | None = Field(
        default=None, description="what is wanted now, in words"
    )
    context: str | None = Field(default=None, description="time or place")
    labels: list[Id] | None = Field(
        default=None, description="categories and brands that every item has to have"
    )
    exclude: list[str] | None = Field(default=None, description="titles to leave out")
    num_candidates: int = Field(default=20, ge=2, description="how many the model ranks")
    top_n: int = Field(default=10, ge=1, description="how many to return")
    explain: bool = Field(default=False, description="tell what the model read")
    record: bool = Field(default=False, description="as in /v1/rank")
    user_id: Id | None = Field(
        default=None, description="for whom: the matcher knows those that it was trained on"
    )


class RankedTitle(BaseModel):
    """A candidate with its place in the ranking."""

    rank: int = Field(description="1 is best; equal ones share the worst rank of theirs")
    index: int = Field(description="among the candidates of the request")
    candidate: str
    candidate_id: int
    item_id: str | None = Field(default=None, description="as the catalogue names it")
    score: float = Field(description="what it is ranked by")
    log_likelihood: float = Field(description="natural log, sum over its tokens")


class Explanation(BaseModel):
    """What the model read."""

    instruction: str
    num_history_hidden: int = Field(description="items of the history that there was no room for")
    num_titles_cut: int
    num_tokens: int = Field(description="of the instruction")


class ReadSentence(BaseModel):
    """A sentence of free text."""

    text: str
    intent: Literal["P2", "I0", "I1", "I2"] | None = Field(
        default=None,
        description="P2 a lasting preference, I0 nothing asked, I1 a vague intention, I2 a "
        "specific one",
    )
    decided_by: Literal["model", "rule"] | None = None
    why: str | None = None


class ReadCondition(BaseModel):
    """A condition of free text on what may be ranked."""

    field: Literal["category", "brand", "year", "price"]
    said: str
    values: list[str] = Field(description="labels of which an item has to have one")
    least: float | None = None
    most: float | None = None
    is_excluded: bool = Field(description="whether items must not meet it")
    is_applied: bool
    problem: str | None = Field(default=None, description="why it was not applied")
    num_removed: int = Field(description="items that it left out of those that were left before")
    num_unknown: int = Field(description="items that stay though nobody knows whether they meet it")


class Resolved(BaseModel):
    """How free text was understood; by `request` and `template` the same ranking is made again."""

    cell: str | None = Field(default=None, description='of the paper, such as "<P1,I1,T3>"')
    template: str | None = None
    request: dict[str, Any] | None = Field(
        default=None, description="a row for `instructrec score --input`"
    )
    sentences: list[ReadSentence]
    conditions: list[ReadCondition]
    num_turns_dropped: int = Field(description="earlier turns that there was no room for")
    notes: list[str]


class RankAnswer(BaseModel):
    """The candidates, best first."""

    id: str
    model: str
    template: str | None = Field(default=None, description="absent where nothing was ranked")
    normaliser: str
    candidates: list[RankedTitle]
    explanation: Explanation | None = None
    tell_me_more: str | None = Field(
        default=None, description="why nothing is ranked by this text, and what to say instead"
    )
    resolved: Resolved | None = Field(default=None, description="how `text` was understood")
    impression_id: str | None = Field(default=None, description="names this ranking in feedback")
    explored: bool | None = Field(
        default=None, description="whether the order of this ranking was drawn at random"
    )


class FeedbackRequest(_Strict):
    """What somebody says of a candidate of a ranking that was asked for with `record`."""

    impression_id: Id
    index: int = Field(ge=0, le=2**31 - 1, description="of the candidate, as the ranking told it")
    verdict: Literal["up", "down", "taken"] = Field(description="the last one counts")


class FeedbackAnswer(BaseModel):
    """What was said is safe on disk."""

    status: Literal["kept"] = "kept"


class Document(BaseModel):
    """A document of a rerank request."""

    text: str


class RerankRequest(BaseModel):
    """Documents for a query, as clients of Cohere, Jina and vLLM send them; more is ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    query: str = Field(min_length=1)
    documents: list[str | Document] = Field(min_length=1)
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = False
    model: str | None = None


class RerankResult(BaseModel):
    """A document with its relevance."""

    index: int
    relevance_score: float = Field(description="0 to 1: share of the probability of all documents")
    document: Document | None = None


class RerankAnswer(BaseModel):
    """The documents, most relevant first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: dict[str, int]
    meta: dict[str, Any]


class ServedModel(BaseModel):
    """A model of the service."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "instructrec"
    normaliser: str
    input_tokens: int
    target_tokens: int
    max_candidates: int
    has_catalogue: bool = Field(description="whether /v1/recommend is there")
    free_text: str = Field(description="whether the model or rules read free text, and why")


class Models(BaseModel):
    """The models of the service."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


class Health(BaseModel):
    """Whether the service is there, or ready."""

    status: str


class Problem(BaseModel):
    """Why a request was refused."""

    code: str
    message: str


class Refusal(BaseModel):
    """The answer to a request that was refused."""

    error: Problem
