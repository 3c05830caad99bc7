"""The baselines of every report, which need nothing but artefact A."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from instructrec_jax.baselines.chance import Chance
from instructrec_jax.baselines.cooccurrence import Cooccurrence
from instructrec_jax.baselines.popularity import Popularity
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.records import CandidateList
from instructrec_jax.scores.parts import NO_QUERY, Scores
from instructrec_jax.stages.baseline.scores import scored_requests
from instructrec_jax.stages.report.systems import Known, Run, ScoredSplit

BASELINES = (Chance, Popularity, Cooccurrence)


class Baselines:
    """The systems that need nothing but A, as if their scores had been given."""

    def __init__(self, data: PreparedData, known: Known, *, seed: int) -> None:
        self._known = known
        self._systems = [make(data, seed=seed) for make in BASELINES]

    def runs(
        self, examples: Sequence[CandidateList], *, without: Collection[str] = ()
    ) -> Iterator[Run]:
        """Yields what each baseline that can score these test examples makes of them.

        Args:
          examples: of one scenario.
          without: names of baselines to leave out.
        """
        for system in self._systems:
            if system.name in without:
                continue
            requests = scored_requests(examples, system.score)
            if requests is None:
                continue
            told = {"system": system.name, "family": system.name, "query": NO_QUERY}
            scores = Scores.of({system.name: requests}, {system.name: told})
            yield Run(
                name=system.name,
                scores=ScoredSplit(scores, "test", self._known, name=system.name),
                template=system.name,
                normaliser="sum",
                rows=np.arange(len(examples)),
            )
