"""What slidesam asks of a Prefect server."""
