"""The SentencePiece vocabulary that all tasks share, chosen by the run and not by the task.

Tasks register before any flag is read, so the vocabulary they hold finds its model file when it is
first used. T5's own file is the default; `build` trains a small one for runs without pretraining.
"""

import dataclasses
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf
import tensorflow_text as tf_text

from instructrec_jax.errors import UserError
from instructrec_jax.tokenizer import load_vocabulary, pieces

T5_PATH = "gs://t5-data/vocabs/cc_all.32000/sentencepiece.model"
T5_EXTRA_IDS = 100


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
    added = load_vocabulary(path, extra_ids=extra_ids).get_piece_size() - len(pieces(path))
    _choice = _Choice(str(path), added, Path(path).stat().st_mtime)


def chosen() -> object:
    """Returns what tells the chosen vocabulary from others."""
    return _choice


class CorpusVocabulary(seqio.SentencePieceVocabulary):
    """A vocabulary whose model file is the one the run chose.

    All instances are equal, and equal to any other of the same model and extra ids.
    """

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
        if isinstance(other, CorpusVocabulary):
            return True
        if not isinstance(other, seqio.SentencePieceVocabulary):
            return False
        return bool(self.sp_model == other.sp_model)  # extra ids are pieces of it

    __hash__ = None  # type: ignore[assignment]  # as its parent: equal and mutable

    def __str__(self) -> str:
        return f"CorpusVocabulary(file={_choice.path}, extra_ids={_choice.extra_ids})"


def chosen_vocabulary(path: str | None = None, extra_ids: int = 100) -> CorpusVocabulary:
    """Makes every task of this process tokenise with one model; returns what T5X's model gets.

    What gin/t5x names: our tasks then run under T5X's own programs.

    T5X compares the vocabulary of its model with that of the tasks, and all of ours are equal.

    Args:
      path: a SentencePiece model; None for T5's public one.
      extra_ids: sentinel ids after its pieces.

    Raises:
      UserError: if the file is missing or cannot serve.
    """
    use_vocabulary(path, extra_ids=extra_ids)
    return CorpusVocabulary()
