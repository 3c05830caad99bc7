"""Artefact C -> numpy batches: the only home of tensorflow, tfds and seqio."""

import os

# Before anything here imports tensorflow: its start-up notices are no message to a user, and oneDNN
# complains on standard error about integers that it leaves to others.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
