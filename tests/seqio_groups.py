"""What SeqIO makes of a task that ranks candidates, read in file order as T5X would."""

from instructrec_jax.pipeline import loader, registry


def seqio_groups(task: str, *, split: str, lengths: dict[str, int]) -> list[dict]:
    """The examples of the task's grouped form, one dictionary of arrays each."""
    provider = registry.get_for(split, registry.grouped_name(task))
    ds = provider.get_dataset(dict(lengths), split=split, shuffle=False)
    return list(loader.numpy_batches(ds))
