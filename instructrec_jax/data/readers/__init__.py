"""Readers of raw logs: one small file a format, registered in `registry.py`."""
