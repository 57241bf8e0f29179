"""Order and concurrency: the Prefect flows, the cluster they run on, and the command line. No array arithmetic here."""
