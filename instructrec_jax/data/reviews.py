"""Review texts of artefact A: an Arrow file that is mapped into memory, not read."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from instructrec_jax.data.columnar import Lazy
from instructrec_jax.data.titles import clean_text, cut_title
from instructrec_jax.errors import UserError
from instructrec_jax.files import check_is_file

FILE_NAME = "reviews.arrow"
SCHEMA = pa.schema({"text": pa.string()})
_BATCH_ROWS = 4096  # in every batch but the last, so that a row's batch is known


class Reviews(Lazy[str]):
    """Texts of a file, fetched from disk when asked for."""

    def __init__(self, path: Path | str) -> None:
        """Opens the file.

        Raises:
          UserError: if it is damaged.
        """
        check_is_file(Path(path))
        try:
            self._file = pa.ipc.open_file(pa.memory_map(str(path)))
            num_batches = self._file.num_record_batches
            self._batches: list[pa.StringArray | None] = [None] * num_batches
            num_last = len(self._batch(num_batches - 1)) if num_batches else 0
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"cannot read {path} ({str(error).splitlines()[0]}); remove its folder and run "
                "`instructrec prepare` again"
            ) from None
        self._num_rows = max(num_batches - 1, 0) * _BATCH_ROWS + num_last

    def __len__(self) -> int:
        """Returns the number of texts."""
        return self._num_rows

    def block(self, begin: int, end: int) -> list[str]:
        """Returns texts, from one batch or several."""
        texts: list[str] = []
        while begin < end:
            number, first = divmod(begin, _BATCH_ROWS)
            taken = min(end - begin, _BATCH_ROWS - first)
            texts += self._batch(number).slice(first, taken).to_pylist()
            begin += taken
        return texts

    def _batch(self, number: int) -> pa.StringArray:
        """Returns a batch's texts; what is kept is the mapping alone."""
        if (texts := self._batches[number]) is None:
            texts = self._batches[number] = self._file.get_batch(number).column(0)
        return texts


def write_reviews(
    path: Path | str,
    reviews: Iterable[tuple[int, str]],
    *,
    is_kept: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.int32],
    max_chars: int,
) -> tuple[int, int]:
    """Writes the texts of kept events, in the order they come.

    Args:
      path: file to write.
      reviews: (event number, text as written), see `RawLog.reviews`.
      is_kept: [events] whether the event's text is wanted; events beyond it are not.
      rows: [events] -1; gets the row of each event's text.
      max_chars: longer texts are cut between words.

    Returns:
      How many texts were written, and how many of them were cut.
    """
    num_texts = num_cut = 0
    options = pa.ipc.IpcWriteOptions(compression=None)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA, options=options) as file,
    ):
        for texts in _batches(_kept_texts(reviews, is_kept, rows)):
            num_texts += len(texts)
            num_cut += sum(len(text) > max_chars for text in texts)
            cut = pa.array([cut_title(text, max_chars) for text in texts], type=pa.string())
            file.write_batch(pa.record_batch([cut], schema=SCHEMA))
    return num_texts, num_cut


def _kept_texts(
    reviews: Iterable[tuple[int, str]],
    is_kept: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.int32],
) -> Iterator[str]:
    """Yields the cleaned texts of kept events that say anything; notes the row of each."""
    row = 0
    for event, text in reviews:
        if event < len(is_kept) and is_kept[event] and (clean := clean_text(text)):
            rows[event] = row
            row += 1
            yield clean


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields full batches, then what is left."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch
