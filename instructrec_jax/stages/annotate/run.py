"""The stage `annotate run`: a language model is asked for texts, and its answers become B."""

import logging
from collections.abc import Iterator
from pathlib import Path

from instructrec_jax.manifest import Manifest
from instructrec_jax.settings import check_arguments
from instructrec_jax.stages.annotate.export import (
    check_output,
    open_ledger,
    open_prepared,
    write_texts,
)
from instructrec_jax.teacher.client import ask_all
from instructrec_jax.teacher.outcomes import Answers, outcomes
from instructrec_jax.teacher.prompts import PARAPHRASE
from instructrec_jax.teacher.questions import Question
from instructrec_jax.teacher.settings import ClientSettings
from instructrec_jax.teacher.wanted import WantedSettings, WantedTexts

logger = logging.getLogger(__name__)


def run(
    *,
    dataset: str,
    input_dir: Path | str,
    output_dir: Path | str,
    ledger_path: Path | str,
    settings: WantedSettings,
    client: ClientSettings,
) -> Manifest | None:
    """Asks for every text that the ledger has no answer for, then writes the texts.

    A question whose answer cannot be used is asked once more, see `teacher.filters`.

    Args:
      dataset: name of the dataset, such as ml_100k.
      input_dir: output folder of `prepare`.
      output_dir: folder for artefact B, new, empty or of the same work.
      ledger_path: a file on a local disk that keeps every answer; made if it is new.
      settings: what is asked.
      client: whom, how fast and for how much.

    Returns:
      The manifest; None where the run was asked to stop before it had all answers.

    Raises:
      UserError: if an input or a setting is unusable, or the money ends; answers are kept.
    """
    check_arguments(run, locals())
    data = open_prepared(dataset, input_dir)
    check_output(data.dataset, settings, input_dir=input_dir, output_dir=output_dir)
    wanted = WantedTexts(data, settings)
    with open_ledger(ledger_path, input_dir) as ledger:
        asked = ask_all(_first(wanted), ledger, client, total=wanted.total())
        if not asked["stopped"]:
            logger.info("annotate: answers that cannot be used are asked for once more")
            asked = ask_all(_retries(wanted, ledger), ledger, client)
        if not asked["stopped"] and PARAPHRASE in settings.augment:
            logger.info("annotate: texts at training targets are worded once more")
            asked = ask_all(_paraphrases(wanted, ledger), ledger, client)
        if asked["stopped"]:
            return None
        return write_texts(data, ledger, settings, input_dir=input_dir, output_dir=output_dir)


def _first(wanted: WantedTexts) -> Iterator[Question]:
    """Yields the first question on every text."""
    for block in wanted:
        for text in block:
            yield text.question


def _retries(wanted: WantedTexts, ledger: Answers) -> Iterator[Question]:
    """Yields the questions that are asked once more."""
    for block in wanted:
        for outcome in outcomes(block, ledger):
            if outcome.retry is not None:
                yield outcome.retry


def _paraphrases(wanted: WantedTexts, ledger: Answers) -> Iterator[Question]:
    """Yields the questions on what the answers before give."""
    for block in wanted:
        for outcome in outcomes(block, ledger):
            if outcome.wanted.prompt.kind == PARAPHRASE:
                yield outcome.wanted.question
