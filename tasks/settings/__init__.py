"""What to compute: the settings, their checks and their form."""
