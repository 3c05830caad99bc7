"""The Python API: open a model, score and rank texts, for a notebook or a service."""
