"""Write and read OME-Zarr: the image, the labels, the conversion of a slide."""
