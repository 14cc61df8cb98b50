"""CLH (Code Like Humans): clinical notes in, ICD-10-CM codes with verbatim evidence out.

    import clh

    coded = clh.code("Assessment: essential hypertension, at goal.")
    coded.codes[0].code                # "I10"
    coded.codes[0].evidence[0].text    # "essential hypertension"

`clh.Pipeline.load(profile="cpu")` is the same, loaded once; its `code` is a coroutine.
"""

import os
import sys

# Not typing's, which takes as long to import as all of Python: until `clh.__main__` is there, an
# interrupt of the command line is a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agents.pipeline import Pipeline
    from clh.schema import CodedNote

__version__ = "0.1.0"
__all__ = ["Pipeline", "__version__", "code"]

# Patient text must not leave the machine, whatever the environment of the user's other projects
# says: LangGraph would send its traces, and the note with them, to the server it names.
for _tracing in (
    "LANGSMITH_TRACING",
    "LANGSMITH_TRACING_V2",
    "LANGCHAIN_TRACING_V2",
    "LANGCHAIN_TRACING",
):
    os.environ[_tracing] = "false"
if (_langsmith := sys.modules.get("langsmith.utils")) is not None:
    _langsmith.get_env_var.cache_clear()  # it keeps what it read before
# Libraries that models are loaded, trained and served with report their use to their makers. They
# heed these where they are set before the first import.
os.environ.setdefault("DO_NOT_TRACK", "1")  # huggingface_hub, and so TRL; vLLM
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
# ONNX Runtime would also leave an id of the machine in the home folder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def code(text: str, *, profile: str = "cpu", note_id: str = "note") -> "CodedNote":
    """Code one note and return it; models are loaded at the first call and kept.

    Agents that fail are in `errors`, with what came before kept. Raises `clh.errors.InputError` for
    a blank note or a wrong setting, `clh.errors.ModelError` for weights that are missing.
    """
    from agents.pipeline import code_text

    return code_text(text, profile=profile, note_id=note_id)


def __getattr__(name: str) -> "Any":
    """Load `Pipeline` when it is first asked for: importing clh must stay instant."""
    if name == "Pipeline":
        from agents.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
