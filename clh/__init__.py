"""CLH (Code Like Humans): clinical notes in, ICD-10-CM codes with verbatim evidence out."""

__version__ = "0.1.0"
