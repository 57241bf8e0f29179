"""Read slides: what a file contains, and regions of it."""
