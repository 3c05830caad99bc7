"""The Python API: open a model, score and rank texts; and the HTTP service."""
