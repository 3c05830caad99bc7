"""SeqIO tasks: one file a family. This folder is the package `instructrec_jax.tasks`."""
