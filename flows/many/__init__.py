"""Flows for many slides: cohorts, inboxes, retries, cleaning."""
