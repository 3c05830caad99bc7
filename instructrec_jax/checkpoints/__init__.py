"""Reading and writing model states (artefact D)."""
