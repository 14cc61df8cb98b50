"""CLH (Code Like Humans): clinical notes in, ICD-10-CM codes with verbatim evidence out."""

import os

__version__ = "0.1.0"

# Libraries that models are loaded, trained and served with report their use to their makers. They
# heed these where they are set before the first import.
os.environ.setdefault("DO_NOT_TRACK", "1")  # huggingface_hub, and so TRL; vLLM
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
