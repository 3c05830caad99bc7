"""SeqIO tasks: one file a family."""
