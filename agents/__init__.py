"""The agents: analyze, locate, verify, assign, and the graph that joins them."""
