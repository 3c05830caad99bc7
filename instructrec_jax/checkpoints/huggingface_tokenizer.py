"""The files by which Hugging Face's tokenizers read a SentencePiece model of ours as we do."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructrec_jax import files
from instructrec_jax.tokenizer import EOS_ID, PAD_ID, UNK_ID, unigram

CONFIG_FILE, TOKENIZER_FILE = "tokenizer_config.json", "tokenizer.json"
_SPACE = "▁"
_METASPACE = {"replacement": _SPACE, "prepend_scheme": "always", "split": True}


def write_tokenizer_files(folder: Path, model_file: Path, *, extra_ids: int) -> None:
    """Writes what makes `AutoTokenizer` give the ids of a SentencePiece model, EOS included.

    A model that spells rare characters in bytes, as `build` trains them, needs tokenizer.json:
    `T5Tokenizer` makes its own of the pieces and leaves the bytes out.

    Args:
      folder: where to write.
      model_file: the SentencePiece model, in the same folder.
      extra_ids: sentinel ids after its pieces; none where it holds sentinels itself.

    Raises:
      UserError: if the model file is damaged.
    """
    pieces, has_bytes, charsmap = unigram(model_file)
    if any("<extra_id_" in piece for piece, _ in pieces):
        extra_ids = 0
    sentinels = [f"<extra_id_{index}>" for index in reversed(range(extra_ids))]
    special = {"pad_token": PAD_ID, "eos_token": EOS_ID, "unk_token": UNK_ID}
    names = {name: pieces[index][0] for name, index in special.items()}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast" if has_bytes else "T5Tokenizer",
        "extra_ids": extra_ids,
        "additional_special_tokens": sorted(sentinels, key=lambda name: int(name[10:-1])),
        "model_max_length": 512,
        **names,
    }
    _write(folder / CONFIG_FILE, config)
    if has_bytes:
        vocabulary = [*pieces, *((name, 0.0) for name in sentinels)]
        _write(folder / TOKENIZER_FILE, _fast_tokenizer(vocabulary, sentinels, charsmap))


def _fast_tokenizer(
    vocabulary: Sequence[tuple[str, float]], sentinels: Sequence[str], charsmap: bytes
) -> dict[str, Any]:
    """Returns tokenizer.json: the steps of SentencePiece one by one, then EOS."""
    eos = vocabulary[EOS_ID][0]
    special = [PAD_ID, EOS_ID, UNK_ID, *range(len(vocabulary) - len(sentinels), len(vocabulary))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    precompiled = {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(charsmap).decode("ascii"),
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": vocabulary[index][0], **flags, "special": True}
            for index in special
        ],
        "normalizer": precompiled if charsmap else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace", **_METASPACE}],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_sequence("A"), _special(eos)],
            "pair": [_sequence("A"), _special(eos), _sequence("B"), _special(eos)],
            "special_tokens": {eos: {"id": eos, "ids": [EOS_ID], "tokens": [eos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"},
                {"type": "Metaspace", **_METASPACE},
            ],
        },
        "model": {"type": "Unigram", "unk_id": UNK_ID, "vocab": vocabulary, "byte_fallback": True},
    }


def _sequence(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


def _special(name: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": 0}}


def _write(path: Path, value: dict[str, Any]) -> None:
    files.write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
