"""Artefact E, the same for every system: log-likelihoods of candidates in Parquet parts."""
