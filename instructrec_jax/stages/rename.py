"""`instructrec rename`: artefact A -> the same with numbers for titles, as P5 names items.

Source: Geng et al., "Recommendation as Language Processing (RLP)" (RecSys 2022). The tasks, the
candidates and the texts are those of the titles, so what differs is what titles say.
"""

import dataclasses
from collections import Counter
from pathlib import Path

from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.manifest import Manifest
from instructrec_jax.stages.candidates import write_changed

NAME = "item_{:0{}}"  # of one width: no name is the beginning of another


def rename(*, prepared_dir: Path | str, output_dir: Path | str) -> Manifest:
    """Names the items by their numbers.

    Args:
      prepared_dir: artefact A.
      output_dir: folder for the new one.

    Returns:
      The manifest of the new artefact A.

    Raises:
      UserError: if the folder holds other work.
    """

    def make(data: PreparedData) -> tuple[PreparedData, Counter[str]]:
        width = len(str(len(data.items) - 1))
        items = [dataclasses.replace(i, title=NAME.format(i.item_id, width)) for i in data.items]
        return dataclasses.replace(data, items=items), Counter()

    return write_changed(prepared_dir, output_dir, changed={"titles": NAME}, make=make)
