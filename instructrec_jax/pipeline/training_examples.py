"""The training examples of a task or mixture by number: which record each one shows, rendered.

The number decides the task, the record and the random draws of an example (`data_order`), so any
process can make any example without those before it.
"""

import functools
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from instructrec_jax.data.columnar import TRAIN
from instructrec_jax.data.data_order import Integers, draws, hashed, permuted
from instructrec_jax.errors import UserError
from instructrec_jax.pipeline import record_store, registry, vocabulary
from instructrec_jax.pipeline.preprocessors import Form
from instructrec_jax.pipeline.record_index import RecordIndex, parsed
from instructrec_jax.pipeline.registry import InstructionTask
from instructrec_jax.pipeline.rendering import ERROR_BEGIN, ERROR_END
from instructrec_jax.pipeline.vocabulary import CorpusVocabulary
from instructrec_jax.seeds import stable_seed

Batch = dict[str, np.ndarray]
_Feature = tuple[str, tuple[int, ...], Any, Any]
_OUR_ERROR = re.compile(re.escape(ERROR_BEGIN) + "(.*?)" + re.escape(ERROR_END), re.DOTALL)
_DRAWS = 1  # apart from the seed of an epoch
_MAKING = threading.Lock()  # a graph is made by one thread


class TrainingExamples:
    """The endless, shuffled training examples of a task or mixture."""

    def __init__(
        self,
        name: str,
        lengths: Mapping[str, int],
        blank: Mapping[str, np.ndarray],
        *,
        seed: int,
        use_cached: bool = False,
    ) -> None:
        """Opens the records; nothing is rendered, but tasks from elsewhere.

        Args:
          name: of a registered task or mixture.
          lengths: as `preprocessors` reads them.
          blank: an example without content: by feature its shape, dtype and padding.
          seed: of order and draws.
          use_cached: read tasks from elsewhere as SeqIO has cached them.

        Raises:
          UserError: if there are no such examples, or the records are damaged.
        """
        record_store.hide_accelerators()
        # A graph of a template is as fast without; to optimise it takes longer than to render 500.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        provider = registry.get_for(TRAIN, name)
        members = [task for task in seqio.get_subtasks(provider) if TRAIN in task.splits]
        is_mixture = isinstance(provider, seqio.Mixture)
        self._rates = [float(provider.get_rate(task)) if is_mixture else 1.0 for task in members]
        self._key, self._blank = stable_seed(seed, name), dict(blank)
        CorpusVocabulary().tf_tokenizer  # noqa: B018  once, before threads ask for it
        indices: dict[tuple[str, str], RecordIndex] = {}
        self._tasks: list[_Rendered | _Held] = []
        for task in members:
            if isinstance(task, InstructionTask) and task.form is not None:
                place = (task.source.dataset, task.source.config)
                if place not in indices:
                    indices[place] = RecordIndex(task.source, TRAIN)
                self._tasks.append(_Rendered(task, indices[place], lengths, blank, seed=seed))
            else:
                self._tasks.append(_Held(task, lengths, blank, seed=seed, use_cached=use_cached))

    def read(self, begin: int, number: int) -> Batch:
        """Returns consecutive examples, padded as the blank one, [number, ...] of each feature.

        Beside them stands `example_number` [number] int64.

        Raises:
          UserError: where an example does not fit, or a record is damaged.
        """
        drawn = draws(self._rates, self._key, begin=begin, number=number)
        batch = {
            name: np.repeat(value[None], number, axis=0) for name, value in self._blank.items()
        }
        for task in np.unique(drawn.tasks).tolist():
            which = np.flatnonzero(drawn.tasks == task)
            for name, values in self._tasks[task].read(drawn.counts[which]).items():
                batch[name][which] = values
        return {**batch, "example_number": np.arange(begin, begin + number)}


class _Rendered:
    """The examples of a task of ours."""

    def __init__(
        self,
        task: InstructionTask,
        index: RecordIndex,
        lengths: Mapping[str, int],
        blank: Mapping[str, np.ndarray],
        *,
        seed: int,
    ) -> None:
        self._index, self._key = index, stable_seed(seed, task.name)
        # Of all records, or of those that have what is needed, at these places.
        self._number, self._places = len(index), None
        if task.source.num_input_examples(TRAIN) < self._number:
            self._places = index.positions_with(task.source.needs)
            self._number = len(self._places)
        features = tuple((name, v.shape, v.dtype, v.flat[0]) for name, v in blank.items())
        made_of = (task.form, tuple(lengths.items()), features, vocabulary.chosen())
        self._renderer = functools.partial(_renderer, *made_of)

    def read(self, counts: Integers) -> Mapping[str, np.ndarray]:
        """Returns the examples before which the task had so many."""
        epochs, positions = np.divmod(counts, self._number)
        places = permuted(positions, self._number, hashed(self._key, epochs))
        if self._places is not None:
            places = self._places[places]
        mixed = hashed(self._key, counts, _DRAWS)
        seeds = np.stack([mixed >> np.uint64(33), mixed & np.uint64(2**31 - 1)], axis=1)
        try:
            with _MAKING:
                render = self._renderer()
            found = render(
                tf.constant(self._index.read(places)), tf.constant(seeds.astype(np.int64))
            )
        except tf.errors.InvalidArgumentError as error:
            raise user_error(error) from None
        return {name: values.numpy() for name, values in found.items()}


class _Held:
    """The examples of a SeqIO task from elsewhere, whose preprocessors know no single record.

    They are made once, and held in memory.
    """

    def __init__(
        self,
        task: seqio.Task,
        lengths: Mapping[str, int],
        blank: Mapping[str, np.ndarray],
        *,
        seed: int,
        use_cached: bool,
    ) -> None:
        self._key, self._blank = stable_seed(seed, task.name), blank
        options = {"split": TRAIN, "shuffle": False, "seed": seed, "num_epochs": 1}
        try:
            ds = task.get_dataset(lengths, use_cached=use_cached, **options)
        except AssertionError as error:
            if not use_cached:
                raise
            raise UserError(
                f"USE_CACHED_TASKS is True, but {str(error).rstrip('.')}; cache the task with "
                "`seqio_cache_tasks` and name the folder with `seqio.add_global_cache_dirs` in "
                "MIXTURE_OR_TASK_MODULE, or set USE_CACHED_TASKS to False"
            ) from None
        ds = ds.map(lambda found: {name: found[name] for name in blank if name in found})
        self._examples = list(ds.as_numpy_iterator())
        if not self._examples:
            raise UserError(f"task {task.name!r} has no {TRAIN} examples; leave it out")

    def read(self, counts: Integers) -> Mapping[str, np.ndarray]:
        """Returns the examples before which the task had so many."""
        number = len(self._examples)
        epochs, positions = np.divmod(counts, number)
        places = permuted(positions, number, hashed(self._key, epochs)).tolist()
        found: Batch = {}
        for name, value in self._blank.items():
            found[name] = np.repeat(value[None], len(counts), axis=0)
            for row, place in enumerate(places):
                if name in self._examples[place]:
                    own = self._examples[place][name]
                    found[name][row, ...][tuple(map(slice, own.shape))] = own
        return found


@functools.lru_cache(maxsize=256)
def _renderer(
    form: Form, lengths: tuple[tuple[str, int], ...], features: tuple[_Feature, ...], words: object
) -> Callable[..., Mapping[str, tf.Tensor]]:
    """Returns what renders serialized records [n] with their seeds [n, 2].

    One call for many records: it takes half the time of a call for each. A graph takes seconds to
    make, so streams share it.

    Args:
      form: makes an example of a record.
      lengths: as `preprocessors` reads them.
      features: of an example: name, shape, dtype and padding of each.
      words: the vocabulary that is chosen.
    """
    del words  # which `CorpusVocabulary` stands for
    how = {"vocabulary": CorpusVocabulary(), "lengths": dict(lengths)}
    specs = {name: tf.TensorSpec(shape, tf.as_dtype(dtype)) for name, shape, dtype, _ in features}

    def example(parts: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        serialized, seed = parts
        record = {**parsed(serialized), "is_training": tf.constant(True)}
        found = form(record, **how, seed=seed)
        return {name: _padded(found[name], shape, fill) for name, shape, _, fill in features}

    @tf.function(
        autograph=False,
        input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None, 2], tf.int64)],
    )
    def render(serialized: tf.Tensor, seeds: tf.Tensor) -> dict[str, tf.Tensor]:
        return tf.map_fn(
            example, (serialized, seeds), fn_output_signature=specs, parallel_iterations=1
        )

    return render.get_concrete_function()


def _padded(value: tf.Tensor, shape: tuple[int, ...], fill: int | bytes) -> tf.Tensor:
    """Returns a value filled up to a shape."""
    if not shape:
        return value
    missing = np.array(shape) - tf.shape(value)
    amounts = tf.stack([tf.zeros_like(missing), missing], axis=1)
    padded = tf.pad(value, amounts, constant_values=tf.constant(fill, value.dtype))
    return tf.ensure_shape(padded, shape)


def user_error(error: tf.errors.InvalidArgumentError) -> UserError:
    """Returns our message inside an error of TensorFlow; another error is raised as it is."""
    found = _OUR_ERROR.search(str(error))
    if not found:
        raise error
    escaped = found[1].encode("ascii", "backslashreplace")  # TensorFlow escapes the rest
    text = escaped.decode("unicode_escape").encode("latin-1", "replace")
    return UserError(text.decode("utf-8", "replace"))
