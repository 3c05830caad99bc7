"""The vectors of a catalogue in a Qdrant server, which several services may share."""

import logging
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.errors import UserError
from instructrec_jax.records import Item
from instructrec_jax.serving.retrieval import NOTHING, Ids, RetrievalRequest, labels_of

logger = logging.getLogger(__name__)
API_KEY = "QDRANT_API_KEY"
_LABELS = "labels"  # of a point: what an item has to have is looked up there
_SECONDS = 2  # for an answer; the other sources have theirs long before
_UPLOAD_SECONDS, _BLOCK = 60, 1000


class QdrantIndex:
    """A collection whose points are items, as a `VectorIndex`.

    Where the server does not answer a request, it finds nothing and the log says so once: the other
    sources of candidates go on.
    """

    def __init__(self, client: Any, name: str) -> None:
        """Takes a collection.

        Args:
          client: a `qdrant_client.QdrantClient`.
          name: of the collection, filled.
        """
        self._client, self._name = client, name
        self._is_silent, self._lock = False, threading.Lock()

    def nearest(self, vector: NDArray[np.float32], number: int, request: RetrievalRequest) -> Ids:
        """See `VectorIndex`; the server's own index decides how near to exact it is."""
        from qdrant_client import models

        having: list[Any] = [
            models.FieldCondition(key=_LABELS, match=models.MatchValue(value=label))
            for label in request.labels
        ]
        try:
            found = self._client.query_points(
                self._name,
                query=vector.tolist(),
                query_filter=models.Filter(must=having) if having else None,
                limit=number,
                with_payload=False,
                timeout=_SECONDS,
            )
        except Exception as error:  # of HTTP, of its library, of the server: all are one here
            self._tell(type(error).__name__)
            return NOTHING
        self._tell("")
        return np.array([point.id for point in found.points], np.int64)

    def _tell(self, problem: str) -> None:
        """Logs when the server falls silent, and when it answers again."""
        with self._lock:
            is_new, self._is_silent = bool(problem) != self._is_silent, bool(problem)
        if is_new and problem:
            logger.warning("Qdrant does not answer (%s): the matcher finds nothing", problem)
        elif is_new:
            logger.info("Qdrant answers again")


def filled_collection(
    client: Any, fingerprint: str, vectors: NDArray[np.float32], items: Sequence[Item]
) -> str:
    """Returns the name of a collection that holds the vectors; it is filled where it is not.

    Args:
      client: a `qdrant_client.QdrantClient`.
      fingerprint: of the vectors and items: each has a collection of its own, so that a service may
        change to others while another one still serves these.
      vectors: [num_items, D] float32.
      items: of the catalogue.

    Raises:
      UserError: if the server does not take them.
    """
    from qdrant_client import models

    name = f"instructrec_{fingerprint[:32]}"
    try:
        if not client.collection_exists(name):
            size = models.VectorParams(size=vectors.shape[1], distance=models.Distance.DOT)
            try:
                client.create_collection(name, vectors_config=size)
            except Exception:  # two services may start together
                if not client.collection_exists(name):
                    raise
            client.create_payload_index(name, _LABELS, models.PayloadSchemaType.KEYWORD)
        if client.count(name, exact=True).count != len(items):
            logger.info("Qdrant: %d vectors go into the collection %s", len(items), name)
            for begin in range(0, len(items), _BLOCK):
                some = range(begin, min(begin + _BLOCK, len(items)))
                points = models.Batch(
                    ids=list(some),
                    vectors=vectors[some.start : some.stop].tolist(),
                    payloads=[{_LABELS: sorted(labels_of(items[each]))} for each in some],
                )
                client.upsert(name, points, wait=True)
    except Exception as error:  # of HTTP, of its library, of the server: all are one here
        told = " ".join(str(error).split())[:200]
        raise UserError(f"Qdrant takes no vectors ({told or type(error).__name__})") from None
    return name


def connected(url: str) -> Any:
    """Returns a client of a server; QDRANT_API_KEY is its key, where it is set.

    Args:
      url: its address.

    Raises:
      UserError: if the package is not installed.
    """
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise UserError(
            "--qdrant needs qdrant-client; install it: pip install 'instructrec-jax[qdrant]'"
        ) from None
    return QdrantClient(
        url=url,
        api_key=os.environ.get(API_KEY),
        timeout=_UPLOAD_SECONDS,
        check_compatibility=False,  # one more request, whose failure is only a warning
    )
