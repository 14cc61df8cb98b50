"""Language models behind one small interface: `chat` for objects, `choose` for probabilities.

`LocalModel` runs in this process, `LangChainModel` asks any LangChain chat model, and `connect`
makes the latter for a server that speaks OpenAI's API, such as vLLM. Their libraries are imported
when a model is made, not before.
"""

from clh.models.language.base import (
    MAX_THOUGHT,
    LanguageModel,
    Message,
    Messages,
    Reply,
    SchemaT,
    strip_thinking,
    with_thinking,
)
from clh.models.language.local import LocalModel
from clh.models.language.server import NO_KEY, LangChainModel, connect

__all__ = [
    "MAX_THOUGHT",
    "NO_KEY",
    "LangChainModel",
    "LanguageModel",
    "LocalModel",
    "Message",
    "Messages",
    "Reply",
    "SchemaT",
    "connect",
    "strip_thinking",
    "with_thinking",
]
