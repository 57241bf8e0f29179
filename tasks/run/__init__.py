"""One run: what it is, where its files are, who owns it, how it stands."""
