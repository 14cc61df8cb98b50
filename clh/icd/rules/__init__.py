"""The rules of the code book: checks of a set of codes, and what can be fixed automatically."""
