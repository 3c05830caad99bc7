"""A scorer whose array shapes are known before the first request, and compiled at the start.

A batch is one encoding step of one of a few sizes, and decoding steps for short or for long titles;
the smallest that holds it is taken. No request has to wait for a compiler.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.mesh import LogicalMesh
from instructrec_jax.parallel.placement import bytes_per_device, num_batch_shares
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.scoring.scorer import Scorer, num_halves
from instructrec_jax.scoring.shapes import Shapes, path_length, rounded

_BATCHES = (1, 8)  # longest instructions that an encoding step holds
_SHORT_TITLE = 12  # tokens
_NODES_OF_ONE = 128  # of a decoding step, for each longest instruction ...
_MOST_NODES = 1024  # ... and at most
_CHUNK = 32
_SHORT_PART = 4  # instructions of a fourth of the longest get arrays of their own
_ANY_TOKEN = 2  # the padding token is 0 and EOS is 1


class WarmScorer:
    """Scores batches of requests; one thread at a time may call it."""

    def __init__(self, model: T5, mesh: LogicalMesh, lengths: Mapping[str, int]) -> None:
        """Makes a scorer; nothing is compiled yet.

        Args:
          model: the parameters, on the mesh.
          mesh: the devices.
          lengths: most tokens of "inputs" and "targets".
        """
        self._model, self._num_groups = model, num_batch_shares(mesh)
        self._lengths = lengths
        titles = sorted({min(_SHORT_TITLE, lengths["targets"]), lengths["targets"]})
        self._sizes = [
            (shapes, Scorer(mesh, shapes))
            for number, title in itertools.product(_BATCHES, titles)
            if (shapes := _shapes(number, lengths["inputs"], title))
        ]

    @property
    def num_compiled(self) -> int:
        """How many step shapes were compiled so far."""
        return sum(scorer.num_compiled for _, scorer in self._sizes)

    @property
    def num_bytes(self) -> int:
        """What the parameters take of each device."""
        return bytes_per_device(self._model)

    def warm_up(self) -> None:
        """Compiles every shape that a batch may need."""
        for shapes, scorer in self._sizes:
            for length in shapes.row_lengths:
                request = TokenRequest(
                    request_id="warm-up",
                    instruction=np.full(min(length, self._lengths["inputs"]), _ANY_TOKEN, np.int32),
                    candidates=[np.full(shapes.path_length, _ANY_TOKEN, np.int32)],
                )
                scorer(self._model, [request])

    def fits(self, requests: Sequence[TokenRequest]) -> bool:
        """Returns whether one encoding step holds the requests."""
        return num_halves(requests, self._sizes[-1][0], num_groups=self._num_groups) == 1

    def __call__(self, requests: Sequence[TokenRequest]) -> list[np.ndarray]:
        """Returns the log-likelihoods of each request's candidates, float32 [c], natural log."""
        longest = max(len(tokens) for request in requests for tokens in request.candidates)
        for shapes, scorer in self._sizes:
            is_held = num_halves(requests, shapes, num_groups=self._num_groups) == 1
            if is_held and path_length(longest) <= shapes.path_length:
                return scorer(self._model, requests)
        return self._sizes[-1][1](self._model, requests)


def _shapes(number: int, longest: int, title: int) -> Shapes:
    """Returns the sizes of steps for some instructions of the greatest length.

    Args:
      number: of the longest instructions; of shorter ones more.
      longest: tokens of an instruction.
      title: tokens of the longest candidate.
    """
    row_lengths = sorted({rounded(longest / _SHORT_PART), rounded(longest)})
    num_tokens = number * rounded(longest)
    num_nodes = rounded(max(min(number * _NODES_OF_ONE, _MOST_NODES), title))
    return Shapes(
        num_tokens=num_tokens,
        row_lengths=row_lengths,
        rows=[num_tokens // length for length in row_lengths],
        num_nodes=num_nodes,
        num_paths=math.ceil(4 * num_nodes / path_length(title)),
        path_length=path_length(title),
        chunk_length=_CHUNK,
        num_chunks=math.ceil(num_nodes / _CHUNK) + number,
    )
