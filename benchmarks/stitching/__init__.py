"""Stitching compared: the same per-block labels through slidesam and its peers, against a known truth."""
