"""Training data of the agents: examples, preference pairs and rewards."""
