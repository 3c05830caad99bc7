"""What a report reads: hashes of the scores, and opened what it is told beside them."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from instructrec_jax import files, manifest
from instructrec_jax.data import prepared as prepared_files
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.task_modules import SHIPPED
from instructrec_jax.scores.importers import holds_t5x_scores
from instructrec_jax.settings import check_fields
from instructrec_jax.stages.report.checks import Checks
from instructrec_jax.stages.report.details import Items
from instructrec_jax.stages.report.systems import splits_of
from instructrec_jax.teacher.texts import Texts, read_texts_manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside:
    """What a report shows beside the scores.

    Attributes:
      metrics_file: JSONL metrics of the training run, for the curve.
      texts_dir: artefact B that the records were built with; the report then warns of test
        intentions that are also texts of training positions, and prompts show the texts.
      explanations: a file that `explain` wrote, to show on the page.
    """

    metrics_file: str | None = None
    texts_dir: str | None = None
    explanations: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def inputs(self, prepared_dir: Path) -> dict[str, str]:
        """Returns hashes for the manifest; the texts must be of these prepared data."""
        found = {}
        if self.metrics_file is not None:
            if not Path(self.metrics_file).is_file():
                raise UserError(f"metrics file {self.metrics_file} is not there")
            found["training_metrics"] = files.sha256(self.metrics_file)
        if self.explanations is not None:
            found["explanations"] = files.sha256(self.explanations)
        if self.texts_dir is not None:
            read_texts_manifest(self.texts_dir, prepared=prepared_files.hashes_of(prepared_dir))
            found["texts"] = files.sha256(Path(self.texts_dir) / manifest.FILE_NAME)
        return found


def input_hashes(paths: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """Returns the hashes of systems' scores for a manifest; scoring must have finished."""
    found = {}
    for name, own in paths.items():
        for split, path in zip(splits_of(own), own, strict=True):
            _check_finished(path)
            found[f"{name} {split}"] = files.sha256(path)
    return found


def _check_finished(path: Path) -> None:
    """Raises where a scoring run has not finished; parts without a manifest were copied."""
    if not path.exists():
        raise UserError(f"there are no scores in {path}: no such file or folder")
    if holds_t5x_scores(path) or not (path / manifest.FILE_NAME).exists():
        return
    if not manifest.read_manifest(path).counts:  # claimed, not finished
        raise UserError(f"scoring into {path} has not finished; run its command again")


class Given(NamedTuple):
    """What is known beside the scores."""

    data: PreparedData
    texts: Texts | None
    checks: Checks
    items: Items


@contextlib.contextmanager
def opened(
    prepared_dir: Path | str, texts_dir: Path | str | None = None, *, task_module: str = SHIPPED
) -> Iterator[Given]:
    """Gives what is known beside the scores, as long as the block lasts.

    Args:
      prepared_dir: artefact A.
      texts_dir: artefact B on it.
      task_module: module whose templates were scored.
    """
    data = prepared_files.read_prepared(prepared_dir)
    with contextlib.ExitStack() as stack:
        texts = None
        if texts_dir is not None:
            unpacked = stack.enter_context(tempfile.TemporaryDirectory())
            texts = Texts(texts_dir, data.histories, unpacked=unpacked)
        yield Given(data, texts, Checks(data, texts, task_module=task_module), Items(data))
