"""Evaluation of networks and of finished runs."""
