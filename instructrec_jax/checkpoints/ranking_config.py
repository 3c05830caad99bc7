"""What a checkpoint says of its own ranking: `ranking_config.json` beside the weights.

`train` writes it with the SentencePiece model into MODEL_DIR, `convert` copies it; `eval`, `score`,
`rank` and the readers of other projects then need not be told how the model was trained.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from instructrec_jax import files
from instructrec_jax.metrics.ranking import NORMALISERS
from instructrec_jax.settings import Natural, OneOf

FILE_NAME = "ranking_config.json"
_HINT = "copy it again from the MODEL_DIR, or remove it and name NORMALISER yourself"
DEFAULT_NORMALISER = "sum"  # the paper's: the likelihood of the whole title


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """How a model ranks, as it was trained and its best checkpoint chosen.

    Attributes:
      normaliser: what its candidates are ranked by, a name of `metrics.ranking.NORMALISERS`.
      feature_lengths: tokens of "inputs" and "targets" and what else TASK_FEATURE_LENGTHS held.
      extra_ids: sentinel ids after the pieces of its SentencePiece model.
    """

    normaliser: Annotated[str, OneOf(NORMALISERS)]
    feature_lengths: Mapping[str, Natural]
    extra_ids: Natural

    def write(self, folder: Path | str) -> None:
        """Writes the file whole."""
        text = json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)
        files.write_text(Path(folder) / FILE_NAME, text + "\n")


def find_ranking_config(*folders: Path) -> RankingConfig | None:
    """Returns what the first folder that has the file says, None where none has.

    Raises:
      UserError: if the file is damaged.
    """
    places = [folder / FILE_NAME for folder in folders]
    path = next((place for place in places if place.is_file()), None)
    return None if path is None else files.read_json(path, RankingConfig, remedy=_HINT)


def chosen_normaliser(asked: str | None, found: RankingConfig | None) -> tuple[str, str]:
    """Returns the normaliser of a run, and where it comes from in words.

    Args:
      asked: the user's choice, None for none.
      found: what the checkpoint says.
    """
    if asked is not None:
        said = (
            ""
            if found is None or found.normaliser == asked
            else (f"; the checkpoint was trained to be ranked by {found.normaliser}")
        )
        return asked, f"as asked{said}"
    if found is not None:
        return found.normaliser, "as the checkpoint says"
    return DEFAULT_NORMALISER, "the default: the checkpoint does not say"
