"""Experiments with the agents: a corpus through all of them, or one on gold input."""
