"""Segment the blocks of a slide: what they share, the loop over them, start-marks, devices."""
