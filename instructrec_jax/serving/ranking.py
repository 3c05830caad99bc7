"""Scores, ranks and generates texts: what `from instructrec_jax import open_model, rank` gives."""

import dataclasses
import functools
import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from instructrec_jax.checkpoints.ranking_config import DEFAULT_NORMALISER, chosen_normaliser
from instructrec_jax.checkpoints.source import load_model, open_source, open_vocabulary
from instructrec_jax.errors import UserError
from instructrec_jax.generation.catalogue_trie import build_trie
from instructrec_jax.instructions.language import plain_text, plain_title
from instructrec_jax.instructions.render import join_titles
from instructrec_jax.metrics.ranking import normalise
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.mesh import LogicalMesh, MeshSettings, abstract_model, make_mesh
from instructrec_jax.parallel.placement import num_batch_shares
from instructrec_jax.scoring.leave_one_out import (
    Explained,
    Prompts,
    leave_one_out,
    with_likeness,
)
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.settings import check_arguments
from instructrec_jax.tokenizer import SentencePieceModel, tokens_of

logger = logging.getLogger(__name__)
_GENERATED_AT_ONCE = 8  # instructions
_TEXT_FOR_TEXTS = (
    "instructions, titles and the candidates of each instruction are sequences of texts, and a "
    "text was given in place of one"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingModel:
    """A model on its devices, with its tokenizer and its scorer.

    Attributes:
      model: the parameters.
      vocabulary: the SentencePiece model.
      mesh: the devices.
      scorer: scores tokens on the mesh.
      normaliser: what `rank` ranks by unless told otherwise: as the model was trained.
    """

    model: T5
    vocabulary: SentencePieceModel
    mesh: LogicalMesh
    scorer: Scorer
    normaliser: str = DEFAULT_NORMALISER


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedCandidate:
    """A candidate with what it was ranked by.

    Attributes:
      candidate: its text, as it was given.
      index: its index among the candidates that were given.
      log_likelihood: natural log of its probability, the sum over its tokens and EOS.
      value: what it was ranked by.
    """

    candidate: str
    index: int
    log_likelihood: float
    value: float


def open_model(
    checkpoint_path: Path | str,
    *,
    vocabulary: Path | str | None = None,
    dtype: str = "float32",
    mesh: MeshSettings | None = None,
) -> RankingModel:
    """Returns a checkpoint ready to score texts.

    Args:
      checkpoint_path: a MODEL_DIR, or Flan-T5 or T5 1.1 as Hugging Face or T5X keep it.
      vocabulary: the path of its SentencePiece model; None: the one in the checkpoint's folder.
      dtype: compute type, "float32" or "bfloat16".
      mesh: how many devices each mesh axis has; None: all of them split the requests.

    Raises:
      UserError: if there is no checkpoint or no vocabulary, or they do not fit each other.
    """
    check_arguments(open_model, locals())
    source = open_source(checkpoint_path)
    pieces = open_vocabulary(source, vocabulary)
    config = dataclasses.replace(source.config, dtype=dtype)
    device_mesh = make_mesh(mesh or MeshSettings())
    model = load_model(source, abstract_model(config.init, device_mesh))
    normaliser, why = chosen_normaliser(None, source.ranking)
    logger.info("%s ranks by %s, %s", source.path, normaliser, why)
    return RankingModel(
        model=model,
        vocabulary=pieces,
        mesh=device_mesh,
        scorer=Scorer(device_mesh),
        normaliser=normaliser,
    )


def score_candidates(
    model: RankingModel, instructions: Sequence[str], candidates: Sequence[Sequence[str]]
) -> list[np.ndarray]:
    """Returns the log-likelihood of every candidate under its instruction.

    Texts become tokens as in `instructrec score` with requests that hold whole instructions, and
    the numbers are the same. The first call compiles, which takes seconds; many instructions in one
    call cost far less than one by one.

    Args:
      model: from `open_model`.
      instructions: n texts.
      candidates: n sequences of texts, such as titles; they may differ in number.

    Returns:
      n arrays float32 [c]: natural log, the sum over the candidate's tokens including EOS.

    Raises:
      UserError: if the numbers differ, or a request has no candidates or an empty text.

    Example:
      `score_candidates(model, ["What next after: Red Kite?"], [["Blue Kite", "Moon Doll"]])`
      may give `[array([-7.1, -9.4])]`.
    """
    return model.scorer(model.model, _requests(model, instructions, candidates))


def rank(
    model: RankingModel,
    instructions: Sequence[str],
    candidates: Sequence[Sequence[str]],
    *,
    normaliser: str | None = None,
) -> list[list[RankedCandidate]]:
    """Returns the candidates of each instruction, best first; equal ones stay in their order.

    Args:
      model: from `open_model`.
      instructions: n texts.
      candidates: n sequences of texts.
      normaliser: "sum", "mean" over a candidate's tokens, or "char", the mean over its characters;
        None: as the model was trained.

    Raises:
      UserError: as `score_candidates`, or if no normaliser has that name.
    """
    requests = _requests(model, instructions, candidates)
    found = model.scorer(model.model, requests)
    name = model.normaliser if normaliser is None else normaliser
    ranked = []
    for texts, request, log_likelihood in zip(candidates, requests, found, strict=True):
        num_tokens = np.array([len(tokens) for tokens in request.candidates], np.int32)
        num_chars = np.array([len(plain_title(text)) for text in texts], np.int32)
        values = normalise(log_likelihood, num_tokens, name, num_chars=num_chars)
        ranked.append(
            [
                RankedCandidate(
                    candidate=texts[index],
                    index=int(index),
                    log_likelihood=float(log_likelihood[index]),
                    value=float(values[index]),
                )
                for index in np.argsort(-values, kind="stable")
            ]
        )
    return ranked


def explain(
    model: RankingModel,
    wording: str,
    histories: Sequence[Sequence[str]],
    candidates: Sequence[Sequence[str]],
    *,
    chosen: Sequence[int] | None = None,
    normaliser: str | None = None,
) -> list[Explained]:
    """Returns what each history item adds for a candidate of each request.

    The candidate's log-likelihood and its margin over the others are compared with those of the
    same request without the item: n + 1 prompts for a history of n items, all in one call.

    Args:
      model: from `open_model`.
      wording: an instruction in which "{history}" stands for the titles of a history.
      histories: for each request titles, oldest first.
      candidates: for each request two texts or more.
      chosen: for each request the index of the candidate to explain; None: the one ranked first.
      normaliser: as for `rank`.

    Raises:
      UserError: as `rank`, or if the wording has no place for the history.

    Example:
      `explain(model, "What next after: {history}?", [["Red Kite"]], [["Blue Kite", "Moon Doll"]])`
      gives one `Explained` for "Blue Kite"; its `telling` items are those that add most first.
    """
    if "{history}" not in wording:
        raise UserError(f"wording is {wording!r}; expected a text with {{history}} in it")
    if isinstance(candidates, str) or any(isinstance(titles, str) for titles in histories):
        raise UserError(f"{_TEXT_FOR_TEXTS}; write [text]")
    prompts = []
    for number, (history, texts) in enumerate(zip(histories, candidates, strict=True)):
        shown = [history, *([*history[:n], *history[n + 1 :]] for n in range(len(history)))]
        written = [wording.replace("{history}", join_titles(titles)) for titles in shown]
        whole, *without = _requests(model, written, [texts] * len(written))
        prompts.append(
            Prompts(
                whole=whole,
                without=without,
                history=history,
                num_chars=[len(plain_title(text)) for text in texts],
                chosen=None if chosen is None else chosen[number],
            )
        )
    name = model.normaliser if normaliser is None else normaliser
    found = leave_one_out(functools.partial(model.scorer, model.model), prompts, normaliser=name)
    return [
        with_likeness(
            model.model,
            why,
            [tokens_of(model.vocabulary, plain_title(title))[:-1] for title in own.history],
            own.whole.candidates[why.index][:-1],
        )
        for own, why in zip(prompts, found, strict=True)
    ]


def generate(
    model: RankingModel,
    instructions: Sequence[str],
    titles: Sequence[str],
    *,
    num_titles: int = 10,
    num_beams: int | None = None,
    excluded: Sequence[Collection[int]] | None = None,
) -> list[list[RankedCandidate]]:
    """Returns the likeliest titles of a catalogue under each instruction, best first.

    Nothing but titles of the catalogue is found; equal titles are one, the first of them. The
    prefix tree of all is made at each call: many instructions in one call cost less.

    Args:
      model: from `open_model`.
      instructions: n texts.
      titles: the catalogue.
      num_titles: how many to return.
      num_beams: prefixes kept per step, at least `num_titles`; None: four times as many. More are
        slower and miss fewer likely titles.
      excluded: for each instruction indices of titles that are not to be returned, such as those
        of the history; other titles of the same text are not returned either.

    Returns:
      n lists of `num_titles`, by log-likelihood, which is their `value` too.

    Raises:
      UserError: if a title has no tokens, or fewer than `num_titles` are left.

    Example:
      `generate(model, ["What next after: Red Kite?"], ["Blue Kite", "Moon Doll"], num_titles=1)`
      may give a list with one list that holds the Blue Kite.
    """
    from instructrec_jax.generation import beam_search  # it writes Parquet, which ranking does not

    if isinstance(instructions, str) or isinstance(titles, str):
        raise UserError(f"{_TEXT_FOR_TEXTS}; write [text]")
    trie = build_trie([tokens_of(model.vocabulary, plain_title(title)) for title in titles])
    hidden = None
    if excluded is not None:
        hidden = [trie.same_titles(_known(own, titles)) for own in excluded]
    num_shares = num_batch_shares(model.mesh)
    found = beam_search.generate_from_catalogue(
        model.model,
        [tokens_of(model.vocabulary, plain_text(text)) for text in instructions],
        trie,
        num_titles=num_titles,
        num_beams=num_beams,
        excluded=hidden,
        batch_size=num_shares * math.ceil(_GENERATED_AT_ONCE / num_shares),
        mesh=model.mesh,
    )
    return [
        [
            RankedCandidate(
                candidate=titles[ids[0]], index=int(ids[0]), log_likelihood=value, value=value
            )
            for ids, value in zip(own.item_ids, own.log_likelihood.tolist(), strict=True)
        ]
        for own in found
    ]


def _known(excluded: Collection[int], titles: Sequence[str]) -> Collection[int]:
    """Returns indices if they are those of titles."""
    for index in excluded:
        if not 0 <= index < len(titles):
            raise UserError(
                f"excluded index {index} is none of the {len(titles)} titles; expected 0 to "
                f"{len(titles) - 1}"
            )
    return excluded


def _requests(
    model: RankingModel, instructions: Sequence[str], candidates: Sequence[Sequence[str]]
) -> list[TokenRequest]:
    """Returns texts as tokens."""
    if isinstance(instructions, str) or any(isinstance(texts, str) for texts in candidates):
        raise UserError(f"{_TEXT_FOR_TEXTS}; write [text]")
    if len(instructions) != len(candidates):
        raise UserError(
            f"{len(instructions)} instructions and candidates for {len(candidates)}; expected one "
            "sequence of candidates for each instruction"
        )
    return [
        TokenRequest(
            request_id=f"number {index}",
            instruction=tokens_of(model.vocabulary, plain_text(instruction)),
            candidates=[tokens_of(model.vocabulary, plain_title(text)) for text in texts],
        )
        for index, (instruction, texts) in enumerate(zip(instructions, candidates, strict=True))
    ]
