"""Finding codes by meaning: the towers that embed and the index that searches."""
