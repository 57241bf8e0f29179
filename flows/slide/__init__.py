"""Segments one slide in a Prefect flow with three child flows."""
