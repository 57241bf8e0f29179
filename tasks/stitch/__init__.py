"""Join the labels of neighbouring blocks into the objects of the slide."""
