"""The verbs `baseline NAME`: other systems rank the same candidates, and write artefact E."""
