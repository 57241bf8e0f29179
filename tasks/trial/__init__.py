"""Trying settings on a few regions of a slide before it is run: regions, choices, the trial itself, its page and table."""
