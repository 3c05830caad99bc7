"""Artefact C -> numpy batches: the only home of tensorflow, tfds and seqio."""
