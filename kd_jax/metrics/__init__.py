"""Metrics of ranked items and of labels, and tests of their differences."""
