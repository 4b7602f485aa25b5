"""Runs: options, setup, epochs, the training loop, several runs at once."""
