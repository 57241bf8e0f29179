"""Inspect and read files of the TIFF family."""
