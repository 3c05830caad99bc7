"""Log-likelihoods of candidates (artefact E)."""
