"""SentencePiece without TensorFlow: models loaded, checked and trained, and tokens of a text."""

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from instructrec_jax import files
from instructrec_jax.errors import UserError

_SENTINEL = re.compile(r"▁?<extra_id_\d+>")
_BLANK = "▁"
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
SentencePieceModel: TypeAlias = sentencepiece.SentencePieceProcessor
_NORMAL_FORM = sentencepiece.SentencePieceNormalizer(  # that of the models trained here
    rule_name="nmt_nfkc",
    add_dummy_prefix=False,
    escape_whitespaces=False,
    remove_extra_whitespaces=True,
)


def check_vocabulary(path: Path | str) -> SentencePieceModel:
    """Returns the loaded model of a file that can serve as a vocabulary.

    Raises:
      UserError: if the file is missing or damaged, or its special ids are not pad 0, eos 1, unk 2.
    """
    if not Path(path).is_file():
        raise UserError(
            f"vocabulary {path} does not exist; give the path of a SentencePiece model, or let "
            "`instructrec build` train one"
        )
    try:
        model = SentencePieceModel(model_file=str(path))
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"vocabulary {path} is not a SentencePiece model ({error})") from None
    found = (model.pad_id(), model.eos_id(), model.unk_id())
    if found != (PAD_ID, EOS_ID, UNK_ID):
        raise UserError(
            f"vocabulary {path} has pad, eos, unk = {found}; expected (0, 1, 2) as T5 has them: "
            "use T5's model, or let `instructrec build` train one"
        )
    return model


def load_vocabulary(path: Path | str, *, extra_ids: int = 0) -> SentencePieceModel:
    """Returns the model that a run tokenises with, its sentinel ids included, as SeqIO makes it.

    Args:
      path: the model file.
      extra_ids: sentinel ids after its pieces; a file that holds its sentinels itself (T5's
        `cc_all.32000.100extra`) gets no more of them.

    Raises:
      UserError: as `check_vocabulary`.
    """
    model = check_vocabulary(path)
    if not extra_ids or _SENTINEL.fullmatch(model.id_to_piece(model.get_piece_size() - 1)):
        return model
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.serialized_model_proto())
    kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
    for index in reversed(range(extra_ids)):
        proto.pieces.add(piece=f"▁<extra_id_{index}>", score=0.0, type=kind)
    return SentencePieceModel(model_proto=proto.SerializeToString())


def tokens_of(model: SentencePieceModel, text: str) -> np.ndarray:
    """Returns a text's ids ending in EOS, int32, as tasks tokenise it; none for an empty text."""
    ids = model.encode(text)
    return np.array([*ids, EOS_ID] if ids else [], np.int32)


def pieces(path: Path | str) -> list[str]:
    """Returns the pieces of a model file in the order of their ids.

    Raises:
      UserError: as `check_vocabulary`.
    """
    model = check_vocabulary(path)
    return [model.id_to_piece(index) for index in range(model.get_piece_size())]


class Unigram(NamedTuple):
    """What a model file consists of.

    Attributes:
      pieces: (piece, score) in the order of their ids.
      whole: ids of the texts that are pieces of their own.
      has_bytes: whether characters without a piece are spelt in bytes.
      charsmap: its table of normal forms of characters, in SentencePiece's own binary form.
    """

    pieces: Sequence[tuple[str, float]]
    whole: Sequence[int]
    has_bytes: bool
    charsmap: bytes


def unigram(path: Path | str) -> Unigram:
    """Returns what a model file consists of.

    Raises:
      UserError: as `check_vocabulary`.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(
        check_vocabulary(path).serialized_model_proto()
    )
    return Unigram(
        pieces=[(piece.piece, piece.score) for piece in proto.pieces],
        whole=[
            index
            for index, piece in enumerate(proto.pieces)
            if piece.type == piece.USER_DEFINED and not _SENTINEL.fullmatch(piece.piece)
        ],
        has_bytes=proto.trainer_spec.byte_fallback,
        charsmap=proto.normalizer_spec.precompiled_charsmap,
    )


def train_vocabulary(
    lines: Iterable[str], path: Path | str, *, vocab_size: int, whole: Sequence[str] = ()
) -> int:
    """Trains a SentencePiece unigram model with pad 0, eos 1, unk 2 and writes it whole.

    Bytes stand in for characters that are too rare for a piece of their own, so that every title
    can be written; the same lines always give the same model.

    Args:
      lines: the corpus, one text each.
      path: the model file to write.
      vocab_size: most pieces, the 3 special ones and 256 bytes included; a small corpus gives
        fewer.
      whole: texts that become pieces of their own beside those, where a blank or nothing is before
        them; the longest that fits is taken.

    Returns:
      The number of pieces.

    Raises:
      UserError: if the corpus is empty, or has more characters than that.
    """
    corpus = [line for line in lines if line.strip()]
    if not corpus:
        raise UserError("cannot train a vocabulary: the data set has no text at all")
    symbols = list(dict.fromkeys(filter(None, map(_as_piece, whole))))
    with files.atomic_file(path) as temporary, temporary.open("wb") as stream:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(corpus),
                model_writer=stream,
                model_type="unigram",
                vocab_size=vocab_size + len(symbols),
                user_defined_symbols=symbols,
                character_coverage=0.9999,
                hard_vocab_limit=False,
                byte_fallback=True,
                pad_id=PAD_ID,
                eos_id=EOS_ID,
                unk_id=UNK_ID,
                bos_id=-1,
                num_threads=1,  # the sums of several threads depend on their number
                minloglevel=2,
            )
        except RuntimeError as error:
            raise _training_error(str(error), vocab_size, len(symbols)) from None
    return check_vocabulary(path).get_piece_size()


def _as_piece(text: str) -> str:
    """Returns a text as SentencePiece holds it: in normal form, with blanks marked."""
    normal = _NORMAL_FORM.normalize(text)
    return "" if not normal else f"{_BLANK}{normal.replace(' ', _BLANK)}"


def copy_vocabulary(source: Path | str, path: Path | str) -> int:
    """Copies a model file after checking that it can serve as a vocabulary.

    Returns:
      The number of pieces.

    Raises:
      UserError: as `check_vocabulary`.
    """
    pieces = check_vocabulary(source).get_piece_size()
    with files.atomic_file(path) as temporary:
        shutil.copyfile(source, temporary)
    return pieces


def _training_error(message: str, vocab_size: int, num_whole: int) -> UserError:
    """Puts what the trainer says into words that name the setting."""
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return UserError(
            f"vocab_size={vocab_size} is too small for the characters of the corpus; "
            f"it must be at least {int(found[1]) - num_whole}"
        )
    return UserError(f"the vocabulary of {vocab_size} pieces could not be trained: {message}")
