"""An experiment: a head of label-aware attention that orders what the towers find for a note."""
