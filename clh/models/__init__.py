"""Models: where weights come from, text embedders, rerankers and language models."""
