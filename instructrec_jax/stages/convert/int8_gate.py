"""Weights of eight bits only where they rank as well: measured before anything is kept."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from instructrec_jax.checkpoints.ranking_config import FILE_NAME as RANKING_CONFIG
from instructrec_jax.checkpoints.source import Source, load_model, open_source
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.task_modules import SHIPPED
from instructrec_jax.manifest import Manifest
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.settings import Count, NotNegative, OneOf, check_fields
from instructrec_jax.stages.run_data import RunData

logger = logging.getLogger(__name__)
INT8 = "int8"
_SPLIT = "validation"
_FIGURES = ("ndcg@5", "hr@1")  # the first decides


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """Weights of fewer bits, and what they may cost.

    Attributes:
      quantize: "int8": matrices but the logits' in eight bits with a scale for each output, a
        fourth of the bytes; only with --to=native. Needs --data_dir and --tasks.
      data_dir: output folder of `build`, on whose validation examples both are measured.
      tasks: tasks or mixtures that are measured, such as ml_100k.A7.
      max_ndcg_loss: by how much validation NDCG@5 may fall; where it falls by more, nothing is
        written.
      num_examples: of each task, drawn alike at each try; by default all.
      task_module: registers the tasks.
    """

    quantize: Annotated[str, OneOf((INT8,))] | None = None
    data_dir: str | None = None
    tasks: Sequence[str] = ()
    max_ndcg_loss: NotNegative = 0.005
    num_examples: Count | None = None
    task_module: str = SHIPPED

    def __post_init__(self) -> None:
        check_fields(self)
        given = [name for name in ("data_dir", "tasks") if getattr(self, name)]
        if self.quantize is None and given:
            raise UserError(f"--{given[0]} without --quantize; expected --quantize={INT8}")
        if self.quantize is not None and len(given) < 2:
            raise UserError(
                f"--quantize={INT8} keeps the weights only where they rank as well; name "
                "validation examples with --data_dir and --tasks, such as --tasks ml_100k.A7"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """What decides whether weights of eight bits are kept.

    Attributes:
      asked: the settings.
      inputs: hashes of what is measured on.
      num_examples: that are ranked.
      measure: gives the figures of a model under "validation/...".
    """

    asked: Quantization
    inputs: Mapping[str, str]
    num_examples: int
    measure: Callable[[T5], Mapping[str, float]]

    def settings(self) -> dict[str, Any]:
        """Returns what decides the output, as its manifest has it."""
        fields = dataclasses.asdict(self.asked)
        return {name: value for name, value in fields.items() if name != "data_dir"}

    def passed(self, finished: Manifest, opened: Source, made: Path) -> Manifest:
        """Measures a checkpoint before and after.

        Args:
          finished: the manifest of the conversion.
          opened: the checkpoint that was converted.
          made: the folder of its conversion.

        Returns:
          The manifest with what was measured, by "float32/validation/ndcg@5" and such.

        Raises:
          UserError: if NDCG@5 fell by more than it may.
        """
        figures = {
            f"{kind}/{_SPLIT}/{name}": value
            for kind, source in (("float32", opened), (INT8, open_source(made)))
            for name, value in self._figures_of(source).items()
        }
        before, after = (figures[f"{kind}/{_SPLIT}/{_FIGURES[0]}"] for kind in ("float32", INT8))
        told = f"{before:.4f} in float32, {after:.4f} in {INT8}, of {self.num_examples} examples"
        logger.info("%s NDCG@5: %s", _SPLIT, told)
        if before - after > self.asked.max_ndcg_loss:
            raise UserError(
                f"{_SPLIT} NDCG@5 is {told}: it falls by {before - after:.4f}, more than the "
                f"{self.asked.max_ndcg_loss:g} of --max_ndcg_loss; nothing is written. Keep the "
                "weights as they are (--dtype=bfloat16 halves what computing takes), or allow more"
            )
        counts = {**finished.counts, "validation examples": self.num_examples}
        return dataclasses.replace(finished, counts=counts, measured=figures)

    def _figures_of(self, source: Source) -> dict[str, float]:
        model = load_model(source, abstract_model(source.config.init, make_mesh(MeshSettings())))
        measured = self.measure(model)
        return {name: float(measured[f"{_SPLIT}/{name}"]) for name in _FIGURES}


def open_gate(asked: Quantization, opened: Source) -> Gate:
    """Opens the validation examples.

    Args:
      asked: names them.
      opened: the checkpoint that is converted.

    Raises:
      UserError: if they are missing or of another vocabulary, or the checkpoint is int8 already or
        does not say how it ranks.
    """
    # TensorFlow, which other conversions do without.
    from instructrec_jax.pipeline import loader, registry
    from instructrec_jax.stages.evaluate import ValidationSettings, make_evaluate

    if opened.is_int8:
        raise UserError(f"{opened.path} is {INT8} already; name the checkpoint it was made of")
    if opened.ranking is None:
        raise UserError(
            f"{opened.path} does not say how it ranks ({RANKING_CONFIG}), so that nothing can be "
            "measured; expected a MODEL_DIR that `train` wrote, or a conversion of one"
        )
    data = RunData(
        data_dir=asked.data_dir,
        feature_lengths=opened.ranking.feature_lengths,
        module=asked.task_module,
        extra_ids=opened.ranking.extra_ids,
        vocabulary=None if opened.tokenizer is None else str(opened.tokenizer),
    )
    vocabulary = data.open(*asked.tasks, vocab_size=opened.config.vocab_size)
    settings = ValidationSettings(
        tasks=registry.evaluated_tasks(asked.tasks, split=_SPLIT),
        split=_SPLIT,
        num_examples=asked.num_examples,
        normaliser=opened.ranking.normaliser,
    )
    numbers = [loader.check_records(task, _SPLIT) for task in settings.tasks]
    scorer = Scorer(make_mesh(MeshSettings()))
    return Gate(
        asked=asked,
        inputs=data.fingerprint(asked.tasks[0]),
        num_examples=sum(min(number, settings.num_drawn or number) for number in numbers),
        measure=make_evaluate(settings, data, scorer, vocabulary=vocabulary),
    )
