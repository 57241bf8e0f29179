"""One slide as a Prefect flow with three child flows."""
