"""A checkpoint of any kind, found and opened: ours, Hugging Face's, T5X's, or adapters on one."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from instructrec_jax import files, manifest
from instructrec_jax.checkpoints.arrays import read_checksums
from instructrec_jax.checkpoints.parameters import Read, assemble
from instructrec_jax.checkpoints.ranking_config import FILE_NAME, RankingConfig
from instructrec_jax.checkpoints.t5x_layout import SavedSlots
from instructrec_jax.errors import UserError
from instructrec_jax.models.int8 import int8_shapes
from instructrec_jax.models.t5 import T5, T5Config
from instructrec_jax.parallel.mesh import LogicalMesh, MeshSettings, abstract_model, make_mesh
from instructrec_jax.parallel.placement import describe_placement
from instructrec_jax.tokenizer import SentencePieceModel, load_vocabulary

logger = logging.getLogger(__name__)
TOKENIZER_FILE = "spiece.model"  # as Hugging Face names it; we keep the name
_OUR_KEYS = (b"settings", b"drops")  # two, since one may be damaged
# Fields of T5Config that no checkpoint knows: they are choices of a run.
_NOT_STORED = {"dropout_rate", "dtype", "key_block", "remat_policy"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters:
    """Low-rank changes that a checkpoint makes to the kernels of another, none of them read.

    Attributes:
      base: the other checkpoint.
      rank: columns of A, rows of B.
      alpha: the product of A and B is multiplied by alpha / rank.
      names: neutral names of the kernels that change.
      read: gives A [in, rank] and B [rank, out], float32, of such a name.
    """

    base: "Source"
    rank: int
    alpha: float
    names: tuple[str, ...]
    read: Callable[[str], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint that was found, its names, shapes and dtypes checked, none of its arrays read.

    Attributes:
      path: the folder that holds it.
      kind: "native", "hf", "t5x", or "lora": adapters, which `read` merges into their base.
      step: training steps taken, 0 where it does not say.
      config: sizes of its model; what is no size has its default.
      read: gives the neutral array of a name; asked layer by layer of one parameter after another.
      members: the files, or the one folder, whose bytes it consists of.
      tokenizer: the SentencePiece model beside it, if there is one.
      ranking: how it says that it ranks, None where it does not.
      slots: the state of Adafactor with which it was trained, if it holds one for all parameters.
      adapters: what it changes of another checkpoint, if that is all it holds.
      is_int8: whether its matrices are int8, which `read` alone makes floats of.
    """

    path: Path
    kind: str
    step: int
    config: T5Config
    read: Read
    members: tuple[Path, ...]
    tokenizer: Path | None = None
    ranking: RankingConfig | None = None
    slots: SavedSlots | None = None
    adapters: Adapters | None = None
    is_int8: bool = False

    def shapes(self, model: T5) -> T5:
        """Returns the shapes of a model of a run as this checkpoint holds it, int8 or float."""
        return int8_shapes(model) if self.is_int8 else model

    def check_fits(self, model: T5Config) -> None:
        """Raises where a run's model is of another size.

        Raises:
          UserError: naming every size that differs.
        """
        sizes = {field.name for field in dataclasses.fields(T5Config)} - _NOT_STORED
        found = {n: (getattr(self.config, n), getattr(model, n)) for n in sorted(sizes)}
        problems = [f"{n} is {there}, not {here}" for n, (there, here) in found.items()]
        problems = [text for text, (a, b) in zip(problems, found.values(), strict=True) if a != b]
        if problems:
            raise UserError(
                f"checkpoint {self.path} ({self.kind}) is of another size than MODEL: there "
                f"{'; '.join(problems)}. Choose the gin/models file of its size, or another "
                "checkpoint"
            )

    def check_files(self) -> None:
        """Checks the files that carry a hash; arrays of ours are checked when they are read.

        Raises:
          UserError: if a file of a model of ours, or of a conversion, is not as it was written.
        """
        if self.adapters is not None:
            self.adapters.base.check_files()
        for folder in (self.path, self.path.parent, self.path.parent.parent):
            if _is_ours(folder):
                patterns = (TOKENIZER_FILE, FILE_NAME) if self.kind == "native" else ()
                manifest.check_files(folder, *patterns)
                return
        if self.kind != "native":
            logger.info("%s holds no checksums: damage in it goes unnoticed", self.path)

    def fingerprint(self) -> str:
        """Returns a sha256 of all it holds: of its arrays' checksums, else of all its bytes.

        The bytes of equal arrays differ from run to run: Orbax writes times and random names.
        """
        hashes = [_sha256_of(member) for member in self.members]
        return (
            hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        )


def open_source(path: Path | str, *, above: tuple[Path, ...] = ()) -> Source:
    """Opens a checkpoint of any kind; names, shapes and dtypes are checked, no array is read.

    Args:
      path: a MODEL_DIR of ours, a folder of step folders or one of these; a local folder with
        config.json and safetensors; a checkpoint_<step> folder of T5X or a folder of several;
        adapters of a run of ours or in PEFT's form, whose base is found by the path they name.
      above: the files of adapters that name `path` as their base, directly or not.

    Raises:
      UserError: if nothing is there, or something that is damaged or no T5 1.1.
    """
    # Each kind builds on this file, and its imports take time that only its checkpoints need.
    from instructrec_jax.checkpoints import adapters, huggingface, native, t5x

    path = Path(path)
    if not path.exists():
        raise UserError(
            f"no finished checkpoint in {path}, which does not exist; expected a local folder of "
            "this project, of Hugging Face's or of T5X's"
        )
    if path.is_dir() and huggingface.is_huggingface(path):
        return huggingface.open_huggingface(path.resolve())
    if path.is_dir() and adapters.is_peft(path):
        return adapters.open_peft(path.resolve(), above)
    if (folder := t5x.resolve_t5x(path)) is not None:
        return t5x.open_t5x(folder.resolve())
    return native.open_native(path, above)


def open_vocabulary(source: Source, path: Path | str | None = None) -> SentencePieceModel:
    """Returns the SentencePiece model of a checkpoint.

    Args:
      source: the checkpoint.
      path: another place of it; None: beside the checkpoint.

    Raises:
      UserError: if there is none, or the checkpoint has fewer rows than it has ids.
    """
    path = path or source.tokenizer
    if path is None:
        raise UserError(
            f"no SentencePiece model is in {source.path}; name it with vocabulary=, for a "
            "model of this package DATA_DIR/<dataset>/vocabulary/sentencepiece.model"
        )
    pieces = load_vocabulary(path, extra_ids=source.ranking.extra_ids if source.ranking else 0)
    size, num_rows = pieces.get_piece_size(), source.config.vocab_size
    if size > num_rows:
        raise UserError(
            f"vocabulary {path} has {size} ids and the model of {source.path} only {num_rows} "
            "rows for them; name the one it was made for"
        )
    return pieces


def load_model(source: Source, abstract_model: T5) -> T5:
    """Returns the model of a checkpoint, placed as `abstract_model` says.

    Raises:
      UserError: if it is of another size or damaged, or of another project and not finite.
    """
    source.check_fits(abstract_model.config)
    source.check_files()
    if source.kind == "native":
        from instructrec_jax.checkpoints import store

        return store.restore(source.path, {"model": source.shapes(abstract_model)})["model"]
    return assemble(abstract_model, source.read)


def open_for_run(
    path: str, config: T5Config, mesh: MeshSettings, *, work: str, output_dir: str
) -> tuple[Source, LogicalMesh, T5]:
    """Opens a checkpoint that a run uses, and says for what and what memory its model takes.

    Args:
      path: any checkpoint that `open_source` takes.
      config: sizes of its model.
      mesh: how devices are shared.
      work: what the run does.
      output_dir: where it writes.

    Returns:
      The checkpoint, the devices, and what `load_model` takes: the model's shapes and shardings.

    Raises:
      UserError: if there is none, it is of another size, or the devices cannot be shared so.
    """
    source = open_source(path)
    device_mesh = make_mesh(mesh)
    shapes = abstract_model(config.init, device_mesh)
    logger.info("%s, by %s, into %s", work, source.path, output_dir)
    logger.info("%s", describe_placement(source.shapes(shapes)))
    source.check_fits(config)
    return source, device_mesh, shapes


def _sha256_of(member: Path) -> str:
    if kept := read_checksums(member):
        text = json.dumps([member.name, kept], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
    return files.sha256(member)


def _is_ours(folder: Path) -> bool:
    """Whether `train` or `convert` wrote a folder; other programs may leave a manifest.json too."""
    path = folder / manifest.FILE_NAME
    if not path.is_file() or not any(b'"%s"' % key in path.read_bytes() for key in _OUR_KEYS):
        return False
    return manifest.read_manifest(folder).stage in ("train", "convert")


def find_tokenizer(*folders: Path) -> Path | None:
    """Returns the SentencePiece model of the first folder that holds one."""
    places = [folder / TOKENIZER_FILE for folder in folders]
    return next((place for place in places if place.is_file()), None)
