"""Ranking of all items for many users, and top k of many scores."""
