"""Ranking all items for many users, and the top k of many scores."""
