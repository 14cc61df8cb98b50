"""What trains the models, shared by the experiment scripts."""
