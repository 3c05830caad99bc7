"""Candidates by the vectors of a trained matcher, and the index that finds the nearest of them."""

import functools
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from numpy.typing import NDArray

from instructrec_jax import manifest
from instructrec_jax.baselines.item_transformer import TransformerSizes
from instructrec_jax.baselines.matcher import Matcher
from instructrec_jax.baselines.matcher_vectors import MatcherVectors, best_items
from instructrec_jax.checkpoints import store
from instructrec_jax.checkpoints.arrays import StoredArray, read_checksums
from instructrec_jax.data.prepared import PreparedData, hashes_of
from instructrec_jax.errors import UserError
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.serving.retrieval import NOTHING, Ids, RetrievalRequest

logger = logging.getLogger(__name__)
# Products with all items miss nothing, and of 200,000 take as long as two searches of a graph that
# was built for minutes.
EXACT_ITEMS = 1_000_000
_CONNECTIONS, _BREADTH_OF_BUILDING, _BREADTH = 32, 256, 2048  # of the graph: above what is asked
_PART = f"{store.MODEL}body."


class VectorIndex(Protocol):
    """The vectors of a catalogue, by item id."""

    def nearest(self, vector: NDArray[np.float32], number: int, request: RetrievalRequest) -> Ids:
        """Returns the items of the largest products with a vector, largest first.

        Args:
          vector: [D] float32.
          number: how many at most.
          request: says which items may be found.
        """
        ...


class EmbeddedIndex:
    """Vectors in this process: all are compared, or of very many those that a graph leads to."""

    def __init__(self, vectors: NDArray[np.float32], *, exact_items: int = EXACT_ITEMS) -> None:
        """Takes the vectors.

        Args:
          vectors: [num_items, D] float32.
          exact_items: the largest catalogue that needs no graph.

        Raises:
          UserError: if a graph is needed, and the package for it is not installed.
        """
        self._vectors = vectors
        self._graph = _graph(vectors) if len(vectors) > exact_items else None

    def nearest(self, vector: NDArray[np.float32], number: int, request: RetrievalRequest) -> Ids:
        """See `VectorIndex`; of the items that have labels all are compared."""
        if request.among is not None:
            return request.among[best_items(self._vectors[request.among] @ vector, number)]
        if self._graph is None:
            return best_items(self._vectors @ vector, number)
        return self._graph.search(vector, min(number, len(self._vectors))).keys.astype(np.int64)


class TowerSource:
    """What the two towers of a trained matcher find for a history."""

    def __init__(self, vectors: MatcherVectors, rows: Any, index: VectorIndex) -> None:
        """Takes a matcher.

        Args:
          vectors: of the matcher.
          rows: the `MatcherRows` that it was trained on.
          index: of the items' vectors.
        """
        self._vectors, self._rows, self._index = vectors, rows, index
        self._vector([0], None)  # compiles

    def find(self, request: RetrievalRequest, number: int) -> Ids:
        """Returns items by their products with the user's vector; none without a history.

        A user whom the matcher was trained on brings an own embedding along. Anybody else has none:
        the tower reads the history alone.
        """
        if not request.history:
            return NOTHING
        return self._index.nearest(self._vector(request.history, request.user_id), number, request)

    def _vector(self, history: Any, user_id: str | None) -> NDArray[np.float32]:
        return self._vectors.users(self._rows.request_batch(history, user_id))[0]


class TrainedMatcher:
    """A folder of `instructrec baseline matcher`, opened.

    Attributes:
      vectors: of its towers.
      rows: what it was trained on.
      fingerprint: of its best checkpoint and of the data: that of its items' vectors.
    """

    def __init__(self, folder: Path | str, prepared_dir: Path | str, data: PreparedData) -> None:
        """Opens the best checkpoint, on one device.

        Args:
          folder: of the run.
          prepared_dir: what `prepare` wrote.
          data: the same, read.

        Raises:
          UserError: if it is no matcher, or was trained on other data.
        """
        read = manifest.read_manifest(folder)
        if not str(read.settings.get("system", "")).startswith(f"{Matcher.__name__}("):
            raise UserError(
                f"{folder} holds the output of {read.stage!r}; --matcher_dir is the --output_dir "
                "of `instructrec baseline matcher`"
            )
        trained_on = read.inputs.get("prepared")
        if trained_on not in hashes_of(prepared_dir):
            raise UserError(
                f"the matcher in {folder} was trained on other data than {prepared_dir}; its "
                "vectors stand for other items: train it on these, or name the data of its run"
            )
        step_folder = store.resolve_checkpoint(folder)
        system = Matcher(sizes=_sizes(store.stored_arrays(step_folder, {"model"}), step_folder))
        mesh = make_mesh(MeshSettings(), jax.devices()[:1])
        model = abstract_model(functools.partial(system.init, data), mesh)
        self.rows = system.open(data)
        self.vectors = MatcherVectors(
            store.restore(step_folder, {"model": model})["model"], self.rows, mesh, num_users=1
        )
        told = json.dumps([read_checksums(step_folder), trained_on], sort_keys=True)
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()
        logger.info("the matcher of step %s in %s retrieves", step_folder.name, folder)


def _sizes(arrays: Mapping[str, StoredArray], folder: Path) -> TransformerSizes:
    """Returns the sizes of a matcher, which the shapes of its arrays tell."""
    try:
        _, _, num_heads, _ = arrays[f"{_PART}layers.attention.query.kernel"].shape
        num_layers, emb_dim, mlp_dim = arrays[f"{_PART}layers.wi.kernel"].shape
        max_length, _ = arrays[f"{_PART}positions"].shape
    except (KeyError, ValueError):
        raise UserError(f"checkpoint {folder} holds no matcher; train it again") from None
    return TransformerSizes(
        emb_dim=emb_dim,
        num_heads=num_heads,
        mlp_dim=mlp_dim,
        num_layers=num_layers,
        max_length=max_length,
    )


def _graph(vectors: NDArray[np.float32]) -> Any:
    """Returns a graph of neighbours (HNSW) that searches by inner product."""
    try:
        from usearch.index import Index
    except ImportError:
        raise UserError(
            f"a catalogue of {len(vectors)} items needs usearch; install it: "
            "pip install 'instructrec-jax[serve]'"
        ) from None
    graph = Index(
        ndim=vectors.shape[1],
        metric="ip",
        dtype="f32",
        connectivity=_CONNECTIONS,
        expansion_add=_BREADTH_OF_BUILDING,
        expansion_search=_BREADTH,
    )
    graph.add(np.arange(len(vectors)), vectors)
    return graph
