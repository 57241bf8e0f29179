"""Where blocks are computed: profiles, jobs, workers, devices."""
