"""Label images as arrays: compiled loops, tables of objects, a block's results."""
