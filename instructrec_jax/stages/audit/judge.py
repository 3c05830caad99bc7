"""The stages `audit judge` and `audit plan`: a language model answers the audit's questions."""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import FILE_NAME, Manifest, find_same_work
from instructrec_jax.report.tables import Document
from instructrec_jax.settings import check_arguments
from instructrec_jax.stages.annotate.plan import cost_sections
from instructrec_jax.teacher import audit
from instructrec_jax.teacher.audit import JUDGE, QUESTIONS, Sample
from instructrec_jax.teacher.client import ask_all
from instructrec_jax.teacher.estimate import Volume
from instructrec_jax.teacher.filters import NO_ROOM
from instructrec_jax.teacher.judging import KIND, JudgeSettings, answers_in, questions
from instructrec_jax.teacher.ledger import Ledger
from instructrec_jax.teacher.questions import Answer, Question
from instructrec_jax.teacher.settings import ClientSettings

logger = logging.getLogger(__name__)
_UNANSWERED = "unanswered"


def judge(
    *,
    sample_dir: Path | str,
    output_dir: Path | str,
    ledger_path: Path | str,
    settings: JudgeSettings,
    client: ClientSettings,
) -> Manifest | None:
    """Has a language model answer the four questions on every text of a sample.

    An answer that cannot be read is asked for once more. What the ledger holds is not asked again.

    Args:
      sample_dir: output folder of `audit sample`.
      output_dir: folder for the answers, new, empty or of the same work.
      ledger_path: a file on a local disk that keeps every answer; that of `annotate run` will do.
      settings: who judges.
      client: at which server, how fast and for how much.

    Returns:
      The manifest; None where the run was asked to stop before it had all answers.

    Raises:
      UserError: if an input or a setting is unusable, or the money ends; answers are kept.
    """
    check_arguments(judge, locals())
    sampled = audit.read_sample(sample_dir)
    planned = _planned(sample_dir, settings)
    earlier = find_same_work(output_dir, planned)
    if earlier is not None and not earlier.drops.get(_UNANSWERED):
        return earlier
    first = questions(sampled.examples, settings)
    with _ledger(ledger_path, sampled) as ledger:
        asked = ask_all(first.values(), ledger, client, total=len(first))
        again = _retries(first, ledger, settings)
        if again and not asked["stopped"]:
            asked = ask_all(again.values(), ledger, client, total=len(again))
        if asked["stopped"]:
            return None
        found = {number: _said([first[number], *_of(again, number)], ledger) for number in first}
    return _write(planned, found, output_dir)


def plan(
    *,
    sample_dir: Path | str,
    settings: JudgeSettings,
    client: ClientSettings,
    ledger_path: Path | str | None = None,
) -> Document:
    """Returns the requests, tokens, prices and hours of `audit judge` with the same flags.

    Args:
      sample_dir: output folder of `audit sample`.
      settings: who judges.
      client: at which server, how fast and for how much.
      ledger_path: a ledger whose answers need not be asked for again.

    Raises:
      UserError: if an input or a setting is unusable.
    """
    check_arguments(plan, locals())
    sampled = audit.read_sample(sample_dir)
    wanted = {q.key: q for q in questions(sampled.examples, settings).values()}
    known: set[str] = set()
    if ledger_path is not None and Path(ledger_path).exists():
        with _ledger(ledger_path, sampled) as ledger:
            known = ledger.answered(wanted)
    volume = Volume(answered=len(known), repeated=len(sampled.examples) - len(wanted))
    for key, question in wanted.items():
        if key not in known:
            volume.add(question, expected_tokens=settings.prompt.expected_tokens)
    return Document(
        title=f"Audit of {sampled.manifest.text('teacher')} by {settings.model}",
        summary=f"{volume.requests:,} requests; none was sent.",
        sections=cost_sections({KIND: volume}, settings.model, client),
    )


def _planned(sample_dir: Path | str, settings: JudgeSettings) -> Manifest:
    """Returns the manifest of the work, without what it will count."""
    return Manifest(
        stage=JUDGE,
        inputs={"sample": files.sha256(Path(sample_dir) / FILE_NAME)},
        settings={**dataclasses.asdict(settings), "prompt_version": settings.prompt.version},
    )


def _ledger(path: Path | str, sampled: Sample) -> Ledger:
    return Ledger(path, fingerprint=sampled.manifest.inputs["prepared"])


def _retries(
    first: Mapping[str, Question], ledger: Ledger, settings: JudgeSettings
) -> dict[str, Question]:
    """Returns the questions that are asked once more: their answers cannot be read."""
    answers = ledger.answers(question.key for question in first.values())
    return {
        number: settings.prompt.retry(question)
        for number, question in first.items()
        if (found := answers.get(question.key))
        and answers_in(found.text) is None
        and not _has_no_room(found)
    }


def _has_no_room(answer: Answer) -> bool:
    """Returns whether an answer ended at its most tokens before any text."""
    return answer.finish_reason == "length" and not answer.text.strip()


def _of(questions: Mapping[str, Question], number: str) -> list[Question]:
    return [questions[number]] if number in questions else []


def _said(asked: Iterable[Question], ledger: Ledger) -> dict[str, bool] | str:
    """Returns what the last answer says; the reason where it says nothing."""
    *_, last = asked
    if (answer := ledger.answer(last.key)) is None:
        return _UNANSWERED
    return answers_in(answer.text) or (NO_ROOM if _has_no_room(answer) else "unread")


def _write(
    planned: Manifest, found: Mapping[str, dict[str, bool] | str], output_dir: Path | str
) -> Manifest:
    """Writes the answers; a text without any has None to each question."""
    without = Counter(said for said in found.values() if isinstance(said, str))
    if len(found) == without.total():
        raise UserError(f"the model answered nothing that can be read: {dict(without)}")
    nothing = dict.fromkeys(QUESTIONS)
    answers = {n: nothing if isinstance(said, str) else said for n, said in found.items()}
    manifest = dataclasses.replace(
        planned,
        counts={"judged": len(found) - without.total()},
        drops=dict(sorted(without.items())),
    )
    with files.atomic_directory(output_dir) as folder:
        (folder / audit.JUDGED).write_text(json.dumps({"answers": answers}, indent=1) + "\n")
        manifest.write_finished(folder)
    for name, count in {**manifest.counts, **manifest.drops}.items():
        logger.info("audit: %s=%d", name, count)
    return manifest
