"""What a checkpoint says of its own ranking: `ranking_config.json` beside the weights.

`train` writes it with the SentencePiece model into MODEL_DIR, `convert` copies it; `eval`, `score`,
`rank` and the readers of other projects then need not be told how the model was trained.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.metrics.ranking import NORMALISERS

FILE_NAME = "ranking_config.json"
DEFAULT_NORMALISER = "sum"  # the paper's: the likelihood of the whole title


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """How a model ranks, as it was trained and its best checkpoint chosen.

    Attributes:
      normaliser: what its candidates are ranked by, a name of `metrics.ranking.NORMALISERS`.
      feature_lengths: tokens of "inputs" and "targets" and what else TASK_FEATURE_LENGTHS held.
      extra_ids: sentinel ids after the pieces of its SentencePiece model.
    """

    normaliser: str
    feature_lengths: Mapping[str, int]
    extra_ids: int = 0

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
    return None if path is None else _read(path)


def _read(path: Path) -> RankingConfig:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_HINT}") from None
    wanted = {field.name for field in dataclasses.fields(RankingConfig)}
    if not isinstance(fields, dict) or set(fields) != wanted:
        raise UserError(f"{path} holds {fields!r:.200}; expected {sorted(wanted)}; {_HINT}")
    lengths = fields["feature_lengths"]
    is_right = {
        "normaliser": fields["normaliser"] in NORMALISERS,
        "feature_lengths": isinstance(lengths, dict)
        and all(type(value) is int and value >= 0 for value in lengths.values()),
        "extra_ids": type(fields["extra_ids"]) is int and fields["extra_ids"] >= 0,
    }
    for name, right in is_right.items():
        if not right:
            raise UserError(
                f"{path}: {name} is {fields[name]!r:.200}; expected as `instructrec train` writes "
                f"it; {_HINT}"
            )
    return RankingConfig(**fields)


_HINT = "copy it again from the MODEL_DIR, or remove it and name NORMALISER yourself"


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
