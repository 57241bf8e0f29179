"""Commands that are disturbed at random, on this host or on Slurm: equal results, nothing finished done twice, nothing left."""
