"""A run from its options to its end: setup, epochs, the loop, several runs at once."""
