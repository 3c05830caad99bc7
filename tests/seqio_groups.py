"""What SeqIO makes of a task that ranks candidates, read in file order as T5X would."""

import itertools

from instructrec_jax.pipeline import loader, registry


def seqio_groups(
    task: str, *, split: str, lengths: dict[str, int], number: int | None = None
) -> list[dict]:
    """The first examples of the task's grouped form, or all, one dictionary of arrays each."""
    provider = registry.get_for(split, registry.grouped_name(task))
    ds = provider.get_dataset(dict(lengths), split=split, shuffle=False)
    return list(itertools.islice(loader.numpy_batches(ds), number))
