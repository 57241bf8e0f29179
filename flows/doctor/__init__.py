"""Find out whether a site can run slides, and say what to do where it can't."""
