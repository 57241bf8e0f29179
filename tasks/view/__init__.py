"""A finished result in the browser: tiles of image and outlines, rows of the table; nothing on disk is changed."""
