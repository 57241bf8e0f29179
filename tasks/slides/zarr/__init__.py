"""Slides in OME-Zarr folders."""
