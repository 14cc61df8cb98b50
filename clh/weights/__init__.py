"""Weights that CLH ships, each in a folder with a model card."""
