"""Scores, reports and the folders that experiments write."""
