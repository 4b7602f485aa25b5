"""Base losses: what a network learns from the data alone."""
