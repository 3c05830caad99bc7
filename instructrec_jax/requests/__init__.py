"""Ranking requests from files, row by row, as records."""
