"""Which records, tasks and vocabulary a run reads.

TensorFlow and SeqIO are imported where records are read: requests from a file do without them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from instructrec_jax import files, manifest
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.task_modules import SHIPPED
from instructrec_jax.settings import Count, Natural, check_fields, refuse
from instructrec_jax.tokenizer import SentencePieceModel, copy_vocabulary, load_vocabulary, pieces

SIDES = ("inputs", "targets")  # whose lengths a model has to know
NO_TEACHER = "none"
AUDITED, ANNOTATORS = "texts/audited", "texts/annotators"  # counts of records
LABELS, SHUFFLED = "labels", "shuffled"  # what scores of such records tell
VOCABULARY_FILE = Path("vocabulary") / "sentencepiece.model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """What a training or scoring run reads.

    Attributes:
      data_dir: output folder of `build`, for one dataset or several (DATA_DIR); None where no
        record is read and `vocabulary` is given.
      feature_lengths: tokens of "inputs" and "targets" (TASK_FEATURE_LENGTHS), and what else
        `pipeline.preprocessors` reads there.
      module: module that registers the tasks (MIXTURE_OR_TASK_MODULE).
      vocabulary: a SentencePiece model; by default the one that `build` left with the dataset.
      extra_ids: sentinel ids after its pieces: 100 with T5's own file.
      buckets: input lengths that training batches of whole rankings are trimmed to, the smallest
        that holds the longest row; empty: every batch has the full length.
    """

    data_dir: str | None
    feature_lengths: Mapping[str, int]
    module: str = SHIPPED
    vocabulary: str | None = None
    extra_ids: Natural = 0
    buckets: Sequence[Count] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        given = self.feature_lengths
        if min(given.values(), default=0) < 0 or 0 in (given.get(name) for name in SIDES):
            raise refuse(self, "feature_lengths", f"at least 1 for {SIDES}, no number below 0")

    def open(self, *tasks: str, vocab_size: int | None = None) -> SentencePieceModel:
        """Points the pipeline to the records, tasks and vocabulary of the tasks' dataset.

        Args:
          *tasks: tasks or mixtures, "<dataset>.<name>".
          vocab_size: rows of the model's embedding; None where there is no model.

        Returns:
          The vocabulary.

        Raises:
          UserError: if one of them is missing, the tasks are of several datasets, or the model has
            fewer rows than the vocabulary.
        """
        from instructrec_jax.pipeline import record_store, registry, vocabulary

        dataset = dataset_of(*tasks)
        record_store.use_data_dir(self._folder)
        registry.import_task_module(self.module, dataset)
        model = self.open_vocabulary(dataset, vocab_size=vocab_size)
        vocabulary.use_vocabulary(self._vocabulary_path(dataset), extra_ids=self.extra_ids)
        return model

    def open_vocabulary(self, task: str, *, vocab_size: int | None = None) -> SentencePieceModel:
        """Returns the vocabulary that a task's texts are tokenised with; needs no TensorFlow.

        Raises:
          UserError: as `open`.
        """
        if vocab_size is not None and not set(SIDES) <= self.feature_lengths.keys():
            raise refuse(self, "feature_lengths", f"a length for each of {SIDES}")
        path = self._vocabulary_path(task)
        if self.vocabulary is None:
            manifest.check_files(self._folder / dataset_of(task), VOCABULARY_FILE.as_posix())
        model = load_vocabulary(path, extra_ids=self.extra_ids)
        size = model.get_piece_size()
        if vocab_size is not None and size > vocab_size:
            raise UserError(
                f"vocabulary {path} has {size} ids and the model only {vocab_size} rows for them; "
                "set VOCAB_SIZE to at least that, or name the vocabulary the model was made for"
            )
        return model

    def check_tokenizer(self, task: str, tokenizer: Path | None) -> None:
        """Checks that a checkpoint means the same by its token ids as this run does.

        Args:
          task: a task or mixture, "<dataset>.<name>".
          tokenizer: the SentencePiece model beside the checkpoint; None: nothing is known.

        Raises:
          UserError: if that is damaged, its special ids are not T5's, or the run's is another one.
        """
        if tokenizer is None:
            return
        own = self._vocabulary_path(task)
        theirs, ours = pieces(tokenizer), pieces(own)
        # One file may hold the sentinel ids that the other leaves to its reader.
        if theirs[: len(ours)] != ours[: len(theirs)]:
            raise UserError(
                f"vocabulary {own} ({len(ours)} pieces) is not the one of the checkpoint, "
                f"{tokenizer} ({len(theirs)} pieces): its ids would mean other words. Set "
                f"VOCABULARY='\"{tokenizer}\"'"
            )

    def copy_vocabulary(self, task: str, path: Path) -> None:
        """Copies the SentencePiece model of a task's texts, so that a model can be read alone."""
        copy_vocabulary(self._vocabulary_path(task), path)

    def fingerprint(self, task: str) -> dict[str, str]:
        """Returns hashes of the records and the vocabulary, for manifests."""
        records = files.sha256(self._folder / dataset_of(task) / manifest.FILE_NAME)
        return {"records": records, "vocabulary": self.vocabulary_hash(task)}

    def vocabulary_hash(self, task: str) -> str:
        """Returns the hash of the vocabulary's file."""
        return files.sha256(self._vocabulary_path(task))

    def teacher(self, task: str) -> str:
        """Returns who wrote the records' preferences and intentions, NO_TEACHER if nobody did."""
        built = manifest.read_manifest(self._folder / dataset_of(task))
        return built.text("teacher")

    def labels(self, task: str) -> dict[str, str]:
        """Returns what scores have to tell of the labels: {} where they are the true ones."""
        built = manifest.read_manifest(self._folder / dataset_of(task))
        return {LABELS: SHUFFLED} if built.settings.get("shuffled_labels") else {}

    def about_texts(self, task: str) -> str:
        """Returns in words who wrote the records' texts, and whether somebody has audited them."""
        built = manifest.read_manifest(self._folder / dataset_of(task))
        teacher, number = built.text("teacher"), built.counts.get(AUDITED)
        if teacher == NO_TEACHER:
            return "the records hold no texts of a teacher"
        if number is None:
            return (
                f"texts by the teacher {teacher}; nobody had audited them when they were built in"
            )
        people = built.counts[ANNOTATORS]
        return f"texts by the teacher {teacher}, audited on {number} texts by " + (
            f"{people} {'person' if people == 1 else 'people'}"
            if people
            else "a language model alone"
        )

    def _vocabulary_path(self, task: str) -> Path:
        if self.vocabulary is not None:
            return Path(self.vocabulary)
        return self._folder / dataset_of(task) / VOCABULARY_FILE

    @property
    def _folder(self) -> Path:
        """The folder of the records.

        Raises:
          UserError: if none was named.
        """
        if self.data_dir is None:
            raise UserError(
                "neither DATA_DIR nor VOCABULARY is set, and the checkpoint has no tokenizer "
                "beside it; set VOCABULARY to the SentencePiece model that it was made for, or "
                "DATA_DIR to the folder that `instructrec build` wrote"
            )
        return Path(self.data_dir)


def plain_data(data_dir: Path | str, *tasks: str, module: str = SHIPPED) -> RunData:
    """Returns records as they are read without a model: the vocabulary of `build`, no limits.

    Args:
      data_dir: output folder of `build`.
      *tasks: tasks or mixtures of one dataset.
      module: registers them.

    Raises:
      UserError: if the folder does not hold the dataset.
    """
    from instructrec_jax.pipeline import record_store, vocabulary

    dataset = dataset_of(*tasks)
    record_store.use_data_dir(data_dir)
    record_store.check_dataset(dataset)
    # A model that `build` was given is T5's, which leaves its sentinel ids to its readers.
    is_given = "vocabulary" in manifest.read_manifest(Path(data_dir) / dataset).inputs
    extra_ids = vocabulary.T5_EXTRA_IDS if is_given else 0
    return RunData(data_dir=str(data_dir), feature_lengths={}, module=module, extra_ids=extra_ids)


def dataset_of(*tasks: str) -> str:
    """Returns the dataset of tasks or mixtures: "ml_100k" of "ml_100k.A7.grouped".

    Raises:
      UserError: if they are not of one dataset.
    """
    found = dict.fromkeys(task.split(".")[0] for task in tasks)
    if len(found) != 1:
        raise UserError(
            f"tasks are {list(tasks)}; expected some of one dataset, found "
            f"{', '.join(found) or 'none'}: run once for each dataset"
        )
    return next(iter(found))
