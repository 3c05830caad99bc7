"""`instructrec explain`: a model and A -> what each history item of test examples adds (JSONL)."""

import dataclasses
import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax import files
from instructrec_jax.checkpoints.ranking_config import chosen_normaliser
from instructrec_jax.checkpoints.source import Source, load_model, open_source, open_vocabulary
from instructrec_jax.data.columnar import LEAVE_ONE_OUT, TEST
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.errors import UserError
from instructrec_jax.generation.free_text import write_texts
from instructrec_jax.instructions.language import Slot, Variant, plain_title, slots_of
from instructrec_jax.instructions.task_modules import SHIPPED, find_variant
from instructrec_jax.instructions.token_budget import TokenRenderer, arrange
from instructrec_jax.metrics.ranking import PMI
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.progress import Progress
from instructrec_jax.records import CandidateList, InstructionRecord
from instructrec_jax.scores.parts import NO_QUERY
from instructrec_jax.scoring.leave_one_out import (
    HistoryItem,
    Prompts,
    Score,
    leave_one_out,
    with_likeness,
)
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.settings import Count, Names, check_fields
from instructrec_jax.stages.report.given import opened
from instructrec_jax.stages.report.users import drawn
from instructrec_jax.stages.score import ranking_variant
from instructrec_jax.stages.show import cut
from instructrec_jax.tokenizer import SentencePieceModel

logger = logging.getLogger(__name__)
_AT_ONCE = 16  # examples that are scored in one call
_MAX_WRITTEN = 64  # tokens of a chain of thought
_SHOWN_ITEMS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """What is explained, by which model.

    Attributes:
      model: a MODEL_DIR, or another model that `score --model` takes.
      prepared_dir: artefact A, whose test examples are explained.
      output: a file *.jsonl to write, which `report --explanations` shows on its page.
      templates: by which the model ranks; each shows a history, such as A7 or C10.specific.
      examples: ids of test examples, such as 196:18; by default those that come first on the page
        of a report.
      num_examples: how many of these.
      texts_dir: artefact B, for templates that show its texts.
      reasoning: a chain-of-thought template, such as A3, whose answer the model then writes too.
      task_module: module that declares the templates.
    """

    model: str
    prepared_dir: str
    output: str
    templates: Names = ("A7",)
    examples: Sequence[str] = ()
    num_examples: Count = 20
    texts_dir: str | None = None
    reasoning: str | None = None
    task_module: str = SHIPPED

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Model:
    """What ranks, opened."""

    model: T5
    score: Score
    words: SentencePieceModel
    lengths: Mapping[str, int]
    normaliser: str

    def renderer(self, variant: Variant) -> TokenRenderer:
        """Returns what turns records into tokens as a template words them."""
        return TokenRenderer(
            variant=variant,
            vocabulary=self.words,
            feature_lengths=self.lengths,
            task=variant.name,
        )


def explain(asked: ExplainSettings) -> list[dict[str, Any]]:
    """Writes why the targets of test examples have their ranks; returns the lines.

    The target's log-likelihood, and its margin over the other candidates, are compared with those
    without each history item: history + 1 prompts for each example and template, and one more for a
    chain of thought.

    Args:
      asked: what is explained, by which model.

    Raises:
      UserError: if the model, a template or an example cannot be used, or the file is there.
    """
    output = Path(asked.output)
    if output.suffix != ".jsonl":
        raise UserError(f"--output is {asked.output}; expected the name of a file *.jsonl")
    if output.exists():
        raise UserError(f"{output} is there already; remove it, or name another --output")
    variants = [_variant(asked.task_module, name) for name in asked.templates]
    reasoning = asked.reasoning and find_variant(asked.task_module, asked.reasoning)
    model = _opened(open_source(asked.model))
    with opened(asked.prepared_dir, asked.texts_dir, task_module=asked.task_module) as given:
        examples = _examples(given.data, asked)
        records = list(given.checks.records(examples))
    lines: list[dict[str, Any]] = []
    progress = Progress("explain", total=len(records) * len(variants), unit="examples")
    with progress:
        for variant in variants:
            for begin in range(0, len(records), _AT_ONCE):
                part = records[begin : begin + _AT_ONCE]
                lines += _lines(model, variant, part, reasoning or None)
                progress.advance(len(part))
    files.write_text(output, "".join(f"{json.dumps(o, ensure_ascii=False)}\n" for o in lines))
    return lines


def _variant(module: str, name: str) -> Variant:
    """Returns a template that ranks candidates by a history."""
    variant = ranking_variant(module, name)
    if Slot.HISTORY not in slots_of(variant.template.input_segments):
        raise UserError(
            f"template {name} shows no history, whose items could be left out; name one that does, "
            "such as A7 (`instructrec templates` shows them all)"
        )
    return variant


def _opened(source: Source) -> _Model:
    """Returns a model ready to rank as it was trained."""
    normaliser, why = chosen_normaliser(None, source.ranking)
    if normaliser == PMI:
        raise UserError(f"the normaliser is {PMI!r}, {why}, which `explain` does not know")
    mesh = make_mesh(MeshSettings())
    model = load_model(source, abstract_model(source.config.init, mesh))
    lengths = dict(source.ranking.feature_lengths) if source.ranking else {}
    lengths.pop("candidates", None)  # every candidate is ranked
    return _Model(
        model=model,
        score=functools.partial(Scorer(mesh), model),
        words=open_vocabulary(source, None),
        lengths=lengths,
        normaliser=normaliser,
    )


def _examples(data: PreparedData, asked: ExplainSettings) -> list[CandidateList]:
    """Returns the test examples that were asked for, or the first of a report's page."""
    known = list(data.evaluation(LEAVE_ONE_OUT, TEST))
    if not asked.examples:
        rows, _ = drawn(known)
        return [known[row] for row in rows[: asked.num_examples]]
    by_id = {example.example_id: example for example in known}
    if missing := [name for name in asked.examples if name not in by_id]:
        raise UserError(
            f"example {missing[0]!r} is no test example of {asked.prepared_dir}; expected ids such "
            f"as {known[0].example_id if known else '196:18'}, USER:POSITION of candidates.parquet"
        )
    return [by_id[name] for name in asked.examples]


def _lines(
    model: _Model,
    variant: Variant,
    records: Sequence[InstructionRecord],
    reasoning: Variant | None,
) -> Iterator[dict[str, Any]]:
    """Yields the explanations of records under a template."""
    for record in records:
        if missing := [name for name in variant.needs if not getattr(record, name)]:
            raise UserError(
                f"example {record.example_id!r} has no {missing[0].replace('_', ' ')}, which "
                f"template {variant.name} shows; name the texts with --texts_dir, or leave it out"
            )
    prompts = [_prompts(model, variant, record) for record in records]
    found = leave_one_out(model.score, prompts, normaliser=model.normaliser)
    thoughts = _thoughts(model, reasoning, records) if reasoning else [""] * len(records)
    family, query = variant.template.family, variant.query or NO_QUERY
    for record, own, why, thought in zip(records, prompts, found, thoughts, strict=True):
        titles = [np.array(model.words.encode(title), np.int32) for title in own.history]
        candidate = own.whole.candidates[why.index][:-1]
        why = with_likeness(model.model, why, titles, candidate)
        yield {
            "example_id": record.example_id,
            "scenario": family if query == NO_QUERY else f"{family}.{query}",
            "template": variant.name,
            "normaliser": model.normaliser,
            "target_id": record.target_id,
            "target": plain_title(record.target),
            "num_candidates": len(record.candidates),
            "num_history": len(record.history),
            "num_prompts": why.num_prompts,
            "rank": why.rank,
            "log_likelihood": round(why.log_likelihood, 4),
            "margin": round(why.margin, 4),
            "items": [_item(item) for item in why.telling],
            "reasoning": thought,
        }


def _item(item: HistoryItem) -> dict[str, Any]:
    """Returns a history item as JSON has it."""
    found = dataclasses.asdict(item)
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}


def _prompts(model: _Model, variant: Variant, record: InstructionRecord) -> Prompts:
    """Returns a record's prompt, and the same without each history item that it shows."""
    renderer = model.renderer(variant)
    shown = arrange(record, model.lengths, model.words).record
    history = shown.history[renderer.instruction(shown).num_history_dropped :]
    candidates = renderer.candidates(shown)

    def request(own: Sequence[str]) -> TokenRequest:
        changed = dataclasses.replace(shown, history=tuple(own))
        return TokenRequest(
            request_id=record.example_id,
            instruction=renderer.instruction(changed).tokens,
            candidates=candidates,
        )

    return Prompts(
        whole=request(history),
        without=[request([*history[:n], *history[n + 1 :]]) for n in range(len(history))],
        history=history,
        num_chars=[len(plain_title(title)) for title in record.candidates],
        chosen=record.candidate_ids.index(record.target_id),
    )


def _thoughts(model: _Model, variant: Variant, records: Sequence[InstructionRecord]) -> list[str]:
    """Returns what the model writes where it is asked for the reason first."""
    renderer = model.renderer(variant)
    shown = [arrange(record, model.lengths, model.words).record for record in records]
    prompts = [renderer.instruction(record).tokens for record in shown]
    most = max(model.lengths.get("targets", _MAX_WRITTEN), _MAX_WRITTEN)
    return [
        " ".join(model.words.decode(tokens.tolist()).split())
        for tokens in write_texts(model.model, prompts, max_tokens=most)
    ]


def as_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns explanations for a terminal."""
    return "\n".join(text for line in lines for text in [*map(cut, explanation_lines(line)), ""])


def explanation_lines(line: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of an explanation, as `explain` writes it, for a terminal."""
    number = line["num_prompts"]
    yield f"{line['example_id']}, template {line['template']}, ranked by {line['normaliser']}"
    yield f"  target, rank {line['rank']} of {line['num_candidates']}: {line['target']}"
    yield (
        f"  log-likelihood {line['log_likelihood']:.3f}, margin {line['margin']:+.3f}; {number} "
        f"prompts for {number - 1} of {line['num_history']} history items"
    )
    yield "  what each history item adds for it"
    yield "  margin  log-likelihood  rank without  likeness"
    for item in line["items"][:_SHOWN_ITEMS]:
        yield (
            f"  {item['margin']:+6.3f}  {item['log_likelihood']:+14.3f}  {item['rank']:12d}  "
            f"{item['likeness']:8.2f}  {item['title']}"
        )
    if more := max(len(line["items"]) - _SHOWN_ITEMS, 0):
        yield f"  {more} more in the file"
    if line["reasoning"]:
        yield f"  the model writes: {line['reasoning']}"
