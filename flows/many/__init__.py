"""Many slides: cohorts, inboxes, retries."""
