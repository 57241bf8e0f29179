"""Inspect and read slide files."""
