"""Inspect and read OME-Zarr folders."""
