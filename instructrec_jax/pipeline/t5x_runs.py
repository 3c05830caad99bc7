"""What gin files name when our tasks run under T5X's own programs (gin/t5x); needs no T5X."""

from instructrec_jax.pipeline.vocabulary import CorpusVocabulary, use_vocabulary


def chosen_vocabulary(path: str | None = None, extra_ids: int = 100) -> CorpusVocabulary:
    """Makes every task of this process tokenise with one model; returns what T5X's model gets.

    T5X compares the vocabulary of its model with that of the tasks, and all of ours are equal.

    Args:
      path: a SentencePiece model; None for T5's public one.
      extra_ids: sentinel ids after its pieces.

    Raises:
      UserError: if the file is missing or cannot serve.
    """
    use_vocabulary(path, extra_ids=extra_ids)
    return CorpusVocabulary()
