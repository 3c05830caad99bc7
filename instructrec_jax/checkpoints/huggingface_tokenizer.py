"""The files by which Hugging Face's tokenizers read a SentencePiece model of ours as we do."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructrec_jax import files
from instructrec_jax.tokenizer import EOS_ID, PAD_ID, UNK_ID, Unigram, unigram

CONFIG_FILE, TOKENIZER_FILE = "tokenizer_config.json", "tokenizer.json"
_BLANK = "▁"
# Blanks at the ends go, several are one, and the first word has one before it.
_BLANKS: list[dict[str, Any]] = [
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    {"type": "Prepend", "prepend": _BLANK},
    {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK},
]


def write_tokenizer_files(folder: Path, model_file: Path, *, extra_ids: int) -> None:
    """Writes what makes `AutoTokenizer` give the ids of a SentencePiece model, EOS included.

    A model that spells rare characters in bytes, as `build` trains them, needs tokenizer.json:
    `T5Tokenizer` makes its own of the pieces, and leaves the bytes and whole titles out.

    Args:
      folder: where to write.
      model_file: the SentencePiece model, in the same folder.
      extra_ids: sentinel ids after its pieces; none where it holds sentinels itself.

    Raises:
      UserError: if the model file is damaged.
    """
    model = unigram(model_file)
    pieces = model.pieces
    if any("<extra_id_" in piece for piece, _ in pieces):
        extra_ids = 0
    sentinels = [f"<extra_id_{index}>" for index in reversed(range(extra_ids))]
    special = {"pad_token": PAD_ID, "eos_token": EOS_ID, "unk_token": UNK_ID}
    names = {name: pieces[index][0] for name, index in special.items()}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast" if model.has_bytes else "T5Tokenizer",
        "extra_ids": extra_ids,
        "additional_special_tokens": sorted(sentinels, key=lambda name: int(name[10:-1])),
        "model_max_length": 512,
        **names,
    }
    _write(folder / CONFIG_FILE, config)
    if model.has_bytes:
        _write(folder / TOKENIZER_FILE, _fast_tokenizer(model, sentinels))


def _fast_tokenizer(model: Unigram, sentinels: Sequence[str]) -> dict[str, Any]:
    """Returns tokenizer.json: the steps of SentencePiece one by one, then EOS."""
    # Whole texts are looked for in normal form, into which Hugging Face brings them itself; with a
    # plain blank before them they are no piece of a text in normal form.
    whole = {i: model.pieces[i][0].replace(_BLANK, " ") for i in model.whole}
    vocabulary = [(whole.get(i, piece), score) for i, (piece, score) in enumerate(model.pieces)]
    vocabulary += [(name, 0.0) for name in sentinels]
    special = [PAD_ID, EOS_ID, UNK_ID, *range(len(model.pieces), len(vocabulary))]
    added = [_added(i, vocabulary[i][0], is_special=True) for i in special]
    added += [_added(i, text, is_special=False) for i, text in whole.items()]
    eos = vocabulary[EOS_ID][0]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*_normal_form(model.charsmap), *_BLANKS],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_sequence("A"), _special(eos)],
            "pair": [_sequence("A"), _special(eos), _sequence("B"), _special(eos)],
            "special_tokens": {eos: {"id": eos, "ids": [EOS_ID], "tokens": [eos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {"type": "Unigram", "unk_id": UNK_ID, "vocab": vocabulary, "byte_fallback": True},
    }


def _normal_form(charsmap: bytes) -> list[dict[str, Any]]:
    text = base64.b64encode(charsmap).decode("ascii")
    return [{"type": "Precompiled", "precompiled_charsmap": text}] if charsmap else []


def _added(index: int, content: str, *, is_special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "special": is_special}
    return {"id": index, "content": content, "normalized": not is_special, **flags}


def _sequence(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


def _special(name: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": 0}}


def _write(path: Path, value: dict[str, Any]) -> None:
    files.write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
