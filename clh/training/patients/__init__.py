"""An experiment: a patient tower that reads labs, age and sex beside the note."""
