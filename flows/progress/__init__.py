"""Show how far a run is, on a terminal and on its page in the Prefect UI."""
