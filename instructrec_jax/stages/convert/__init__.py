"""`instructrec convert`: a checkpoint of one kind -> the same parameters as another kind."""

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax import files, manifest
from instructrec_jax.checkpoints import huggingface_tokenizer
from instructrec_jax.checkpoints.adapters import write_peft
from instructrec_jax.checkpoints.huggingface import write_huggingface
from instructrec_jax.checkpoints.native import write_native
from instructrec_jax.checkpoints.parameters import STORED_DTYPES, check_finite, neutral_shapes
from instructrec_jax.checkpoints.source import TOKENIZER_FILE, Source, open_source
from instructrec_jax.checkpoints.t5x import write_t5x
from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.report import model_card
from instructrec_jax.stages.convert.int8_gate import Quantization, open_gate
from instructrec_jax.tokenizer import pieces
from instructrec_jax.training.metrics_log import FILE_NAME as METRICS
from instructrec_jax.training.metrics_log import read_metrics

logger = logging.getLogger(__name__)

REPORT = "report.json"
_T5_EXTRA_IDS = 100  # of a SentencePiece model about which nothing else is known
# What transformers keeps of a tokenizer; other kinds of checkpoint need the first alone.
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def convert(
    *,
    source_path: str,
    output_dir: str,
    to: str,
    dtype: str = "float32",
    scan_layers: bool = False,
    report_dir: str | None = None,
    quantization: Quantization | None = None,
) -> None:
    """Writes the parameters and the step of a checkpoint as a checkpoint of another kind.

    Arrays pass one by one, bit for bit (16-bit floats become float32, which holds them exactly).
    Adafactor's state is converted between T5X and native, any other optimizer's state is left out.
    The tokenizer's files in the source's folder are copied, and what says how the model ranks; with
    "hf" the files that `AutoTokenizer` needs are written where they are missing, and a model card:
    data, protocol, figures, limits.

    Args:
      source_path: a checkpoint of any kind, as `checkpoints.source.open_source` finds it.
      output_dir: folder to write, which must be new, empty or hold the same conversion.
      to: "native", "hf" or "t5x", adapters merged; or "adapter": adapters alone, in PEFT's form.
      dtype: of the weights with "hf", "float32" or "bfloat16", to which they are rounded.
      scan_layers: with "t5x": stack the layers, as T5X's scalable T5 has them.
      report_dir: with "hf": output folder of `report` on scores of this checkpoint, whose figures
        the model card shows.

    Raises:
      UserError: for a source that is damaged or no T5 1.1, non-finite values, or a folder that
        holds something else; nothing is written then.
    """
    if to not in WRITERS:
        raise unknown_name("kind of checkpoint", to, WRITERS)
    asked = quantization or Quantization()
    choices = _choices(to, dtype, scan_layers=scan_layers, quantize=asked.quantize)
    began = time.monotonic()
    if report_dir is not None and to != "hf":
        raise UserError(f"--report_dir with --to={to}; only --to=hf writes a model card")
    opened = open_source(source_path)
    gate = open_gate(asked, opened) if asked.quantize else None
    fingerprint = opened.fingerprint()
    scenarios, system = _reported(report_dir, fingerprint)
    planned = manifest.Manifest(
        stage="convert",
        inputs={"checkpoint": fingerprint, **_hash_of(report_dir), **(gate.inputs if gate else {})},
        settings=_settings(opened, to=to, dtype=dtype, scan_layers=scan_layers)
        | (gate.settings() if gate else {}),
    )
    if manifest.find_finished(output_dir, planned) is not None:
        logger.info("nothing left to do: %s holds all of it", output_dir)
        return
    folder = Path(output_dir)
    num_parameters = _say(opened, folder, to)
    opened.check_files()
    with files.atomic_directory(folder) as temporary:
        checked = dataclasses.replace(opened, read=_only_finite(opened))
        WRITERS[to](temporary, checked, **choices)
        _write_beside(temporary, opened, to)
        if to == "hf":
            files.write_text(temporary / model_card.FILE_NAME, _card(opened, scenarios, system))
        finished = dataclasses.replace(planned, counts={"parameters": num_parameters})
        if gate is not None:
            finished = gate.passed(finished, opened, temporary)
        finished.write_finished(temporary)
    logger.info("wrote %s in %.1f s", folder, time.monotonic() - began)


def _say(opened: Source, folder: Path, to: str) -> int:
    """Says what becomes what, and returns the number of parameters."""
    num_parameters = sum(int(np.prod(s)) for s in neutral_shapes(opened.config).values())
    logger.info(
        "%s (%s, step %d, %s parameters) -> %s (%s)",
        opened.path,
        opened.kind,
        opened.step,
        f"{num_parameters:,}",
        folder,
        to,
    )
    return num_parameters


def _settings(opened: Source, **choices: Any) -> dict[str, Any]:
    """Returns what decides the output, as its manifest has it."""
    model = dataclasses.asdict(opened.config)
    return {"from": opened.kind, **choices, "step": opened.step, "model": model}


def _hash_of(report_dir: str | None) -> dict[str, str]:
    """Returns the report among the inputs, where one is given."""
    return {} if report_dir is None else {REPORT: files.sha256(Path(report_dir) / REPORT)}


def _reported(report_dir: str | None, fingerprint: str) -> tuple[Mapping[str, Any], str]:
    """Returns the scenarios of a report in which a checkpoint was scored, and its name there.

    Raises:
      UserError: if the folder holds no report, or one of other checkpoints.
    """
    if report_dir is None:
        return {}, ""
    path = Path(report_dir) / REPORT
    found: dict[str, Any] = {}
    names: list[str] = []
    try:
        for scenario, values in files.parse_json(files.read_text(path))["scenarios"].items():
            for name, facts in values["protocol"]["systems"].items():
                if facts.get("checkpoint_sha256") == fingerprint:
                    found[scenario], names = values, [*names, name]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is no report; name the folder that `report` wrote") from None
    if len(set(names)) != 1:
        raise UserError(
            f"{path} has {len(set(names))} systems of this checkpoint (sha256 "
            f"{fingerprint[:12]}...), expected one: report what `score` wrote with the very "
            "checkpoint that is converted"
        )
    return found, names[0]


def _card(opened: Source, scenarios: Mapping[str, Any], system: str) -> str:
    """Returns the model card, with what the MODEL_DIR of the checkpoint tells of its training."""
    run, settings, measured = opened.path.parent.parent, {}, []
    if (run / manifest.FILE_NAME).is_file():
        found = manifest.read_manifest(run)
        settings = dict(found.settings) if found.stage == "train" else {}
    if settings:
        measured = [line for line in read_metrics(run / METRICS) if line["step"] == opened.step]
    normaliser = None if opened.ranking is None else opened.ranking.normaliser
    sizes = dataclasses.asdict(opened.config)
    return model_card.model_card(
        facts={
            "converted from": opened.kind,
            "step": opened.step,
            "ranked by": normaliser,
            **{name: sizes[name] for name in ("vocab_size", "emb_dim", "num_encoder_layers")},
        },
        training=settings,
        validation={
            name: value
            for line in measured
            for name, value in line.items()
            if name.startswith("validation/")
        },
        scenarios=scenarios,
        system=system,
    )


def _only_finite(opened: Source) -> Callable[[str], np.ndarray]:
    """Returns what reads an array and refuses one that holds non-finite values."""

    def read(name: str) -> np.ndarray:
        array = opened.read(name)
        check_finite(f"{name} of {opened.path}", array)
        return array

    return read


def _choices(to: str, dtype: str, *, scan_layers: bool, quantize: str | None) -> dict[str, Any]:
    """Returns what a kind of checkpoint leaves to choose, as its writer takes it.

    Raises:
      UserError: for a choice that this kind does not leave.
    """
    if dtype not in STORED_DTYPES:
        raise unknown_name("dtype of a checkpoint", dtype, STORED_DTYPES)
    if dtype != "float32" and to != "hf":
        raise UserError(f"--dtype={dtype} with --to={to}; only --to=hf leaves the choice")
    if scan_layers and to != "t5x":
        raise UserError(f"--scan_layers with --to={to}; only --to=t5x leaves the choice")
    if quantize and to != "native":
        raise UserError(f"--quantize={quantize} with --to={to}; only --to=native can hold it")
    choices: dict[str, dict[str, Any]] = {
        "native": {"is_int8": quantize is not None},
        "hf": {"dtype": dtype},
        "t5x": {"scanned": scan_layers},
    }
    return choices.get(to, {})


def _write_native(folder: Path, opened: Source, *, is_int8: bool) -> None:
    write_native(
        folder,
        config=opened.config,
        step=opened.step,
        read=opened.read,
        slots=None if is_int8 else opened.slots,  # nothing learns from int8
        is_int8=is_int8,
    )


def _write_huggingface(folder: Path, opened: Source, *, dtype: str) -> None:
    write_huggingface(folder, config=opened.config, step=opened.step, read=opened.read, dtype=dtype)


def _write_t5x(folder: Path, opened: Source, *, scanned: bool) -> None:
    if opened.config.relative_max_distance != 128:
        raise UserError(
            f"{opened.path} has relative_max_distance {opened.config.relative_max_distance}; a "
            "T5X checkpoint cannot say so, expected 128: convert it to hf or native"
        )
    names, slots = neutral_shapes(opened.config), opened.slots
    if slots is None:
        logger.info(
            "%s holds no state of Adafactor, and neither will the copy (the best checkpoint of a "
            "run never does; its latest one is in MODEL_DIR/checkpoints)",
            opened.path,
        )
    write_t5x(
        folder,
        ((name, opened.read(name)) for name in names),
        config=opened.config,
        step=opened.step,
        slots=None if slots is None else ((name, slots.read(name)) for name in names),
        scanned=scanned,
    )


def _write_beside(folder: Path, opened: Source, to: str) -> None:
    """Writes the tokenizer and what says how the model ranks."""
    _copy_tokenizer(opened, folder)
    if opened.ranking is not None:
        opened.ranking.write(folder)
    if to == "hf" and opened.tokenizer is not None:
        _complete_tokenizer(opened, folder)


def _copy_tokenizer(opened: Source, folder: Path) -> None:
    """Copies the tokenizer's files that are in the source's folder."""
    if opened.tokenizer is None:
        return
    for name in TOKENIZER_FILES:
        beside = opened.tokenizer.with_name(name)
        if beside.is_file():
            shutil.copyfile(beside, folder / name)


def _complete_tokenizer(opened: Source, folder: Path) -> None:
    """Writes what Hugging Face's tokenizers need, unless the source had it."""
    if (folder / huggingface_tokenizer.CONFIG_FILE).is_file():
        return
    extra_ids = _T5_EXTRA_IDS if opened.ranking is None else opened.ranking.extra_ids
    model_file = folder / TOKENIZER_FILE
    if len(pieces(model_file)) + extra_ids > opened.config.vocab_size:
        extra_ids = 0
    huggingface_tokenizer.write_tokenizer_files(folder, model_file, extra_ids=extra_ids)


WRITERS: dict[str, Callable[..., None]] = {
    "native": _write_native,
    "hf": _write_huggingface,
    "t5x": _write_t5x,
    "adapter": write_peft,
}
