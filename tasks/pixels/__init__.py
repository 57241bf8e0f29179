"""Decide how pixels are read, and compute on pixels: pyramids, scale, background, tissue."""
