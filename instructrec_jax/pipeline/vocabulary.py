"""The SentencePiece vocabulary that all tasks share, chosen by the run and not by the task.

Tasks register before any flag is read, so the vocabulary they hold finds its model file when it is
first used. T5's own file is the default; `build` trains a small one for runs without pretraining.
"""

import dataclasses
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import sentencepiece
import seqio
import tensorflow as tf
import tensorflow_text as tf_text

from instructrec_jax import files
from instructrec_jax.errors import UserError

T5_PATH = "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model"
T5_EXTRA_IDS = 100
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
SentencePieceModel: TypeAlias = sentencepiece.SentencePieceProcessor
_SENTINEL = re.compile(r"▁?<extra_id_\d+>")


@dataclasses.dataclass(frozen=True)
class _Choice:
    """A model file, how many sentinel ids follow its pieces, and when the file was written."""

    path: str
    extra_ids: int
    modified: float = 0.0


_choice = _Choice(T5_PATH, T5_EXTRA_IDS)
_tokenizers: dict[_Choice, tf_text.SentencepieceTokenizer] = {}


def use_vocabulary(path: Path | str | None, *, extra_ids: int = 0) -> None:
    """Makes every task of this process tokenise with one SentencePiece model.

    Args:
      path: the model file; None for T5's public one with its 100 extra ids.
      extra_ids: sentinel ids after the pieces; T5's models expect 100, one trained here none. A
        file that holds its sentinels itself (T5's `cc_all.32000.100extra`) gets no more of them.

    Raises:
      UserError: if the file is missing or damaged, or its special ids are not pad 0, eos 1, unk 2.
    """
    global _choice
    if path is None:
        _choice = _Choice(T5_PATH, T5_EXTRA_IDS)
        return
    extra_ids = 0 if _SENTINEL.fullmatch(pieces(path)[-1]) else extra_ids
    _choice = _Choice(str(path), extra_ids, Path(path).stat().st_mtime)


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


def vocabulary_size() -> int:
    """Returns the number of ids of the vocabulary in use, its sentinel ids included."""
    return CorpusVocabulary().vocab_size


class CorpusVocabulary(seqio.SentencePieceVocabulary):
    """A vocabulary whose model file is the one the run chose; all instances are equal."""

    def __init__(self) -> None:
        super().__init__(T5_PATH, extra_ids=T5_EXTRA_IDS)
        self._loaded: _Choice | None = None

    def _model_context(self) -> Any:
        """Loads the chosen model, again if the run has chosen another since."""
        if self._loaded != _choice:
            self._model = None
            self._sentencepiece_model_file = _choice.path
            self._extra_ids = _choice.extra_ids
            if _choice.modified:  # seqio remembers models by path alone
                seqio.vocabularies._load_model_internal.cache_clear()
        try:
            context = super()._model_context()
        except (tf.errors.OpError, OSError) as error:
            raise UserError(
                f"cannot read vocabulary {_choice.path} ({type(error).__name__}); give a local "
                "SentencePiece model, or let `instructrec build` train one"
            ) from None
        self._loaded = _choice
        return context

    @property
    def tf_tokenizer(self) -> tf_text.SentencepieceTokenizer:
        """The TensorFlow tokeniser, one for the process and not one for each use."""
        if _choice not in _tokenizers:
            serialized = self.sp_model
            with tf.init_scope():  # a resource made inside a graph would die with it
                _tokenizers[_choice] = tf_text.SentencepieceTokenizer(model=serialized)
        return _tokenizers[_choice]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CorpusVocabulary)

    __hash__ = None  # type: ignore[assignment]  # as its parent: equal and mutable

    def __str__(self) -> str:
        return f"CorpusVocabulary(file={_choice.path}, extra_ids={_choice.extra_ids})"


def train_vocabulary(lines: Iterable[str], path: Path | str, *, vocab_size: int) -> int:
    """Trains a SentencePiece unigram model with pad 0, eos 1, unk 2 and writes it whole.

    Bytes stand in for characters that are too rare for a piece of their own, so that every title
    can be written; the same lines always give the same model.

    Args:
      lines: the corpus, one text each.
      path: the model file to write.
      vocab_size: most pieces, the 3 special ones and 256 bytes included; a small corpus gives
        fewer.

    Returns:
      The number of pieces.

    Raises:
      UserError: if the corpus is empty, or has more characters than that.
    """
    corpus = [line for line in lines if line.strip()]
    if not corpus:
        raise UserError("cannot train a vocabulary: the data set has no text at all")
    with files.atomic_file(path) as temporary, temporary.open("wb") as stream:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(corpus),
                model_writer=stream,
                model_type="unigram",
                vocab_size=vocab_size,
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
            raise _training_error(str(error), vocab_size) from None
    return check_vocabulary(path).get_piece_size()


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


def _training_error(message: str, vocab_size: int) -> UserError:
    """Puts what the trainer says into words that name the setting."""
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return UserError(
            f"vocab_size={vocab_size} is too small for the characters of the corpus; "
            f"it must be at least {found[1]}"
        )
    return UserError(f"the vocabulary of {vocab_size} pieces could not be trained: {message}")
