"""Slides in files of the TIFF family."""
