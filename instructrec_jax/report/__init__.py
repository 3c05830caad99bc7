"""Artefact E -> tables and plots (artefact F)."""
