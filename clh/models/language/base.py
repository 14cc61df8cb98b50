"""What the agents ask of a language model, and how its replies are read."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ValidationError
from typing_extensions import TypedDict  # typing's own is for pydantic only from Python 3.12 on

from clh.errors import ReplyError

MAX_THOUGHT = 240  # characters, some 60 tokens; a small model that thinks longer repeats itself

SchemaT = TypeVar("SchemaT", bound=BaseModel)


class Message(TypedDict):
    """One turn of a conversation, as in OpenAI's API."""

    role: Literal["system", "user", "assistant"]
    content: str


Messages = Sequence[Message]


@dataclass(frozen=True)
class Reply(Generic[SchemaT]):
    """A model's reply: the object, and the text it was parsed from, including any thinking."""

    value: SchemaT
    raw: str

    @classmethod
    def parse(cls, raw: str, schema: type[SchemaT]) -> Self:
        """Parse `raw`, without the thinking in front, as a `schema`.

        Raises:
            ReplyError: it is not JSON, or does not fit the schema.

        """
        reply = cls.try_parse(raw, schema)
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    @classmethod
    def try_parse(cls, raw: str, schema: type[SchemaT]) -> "Self | ReplyError":
        """Parse like `parse`, but return the error instead of raising it."""
        try:
            return cls(schema.model_validate_json(strip_thinking(raw)), raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # Pydantic's own message may quote the reply, and so the note. Its kind of error does not.
        place = _place(first["loc"], schema)
        return ReplyError(
            f"the reply is not a valid {schema.__name__}: {first['type']}{place}", raw
        )


def _place(path: tuple[int | str, ...], schema: type[BaseModel]) -> str:
    """Where in a reply an error lies, without names that the model made up."""
    definition = schema.model_json_schema()
    objects: list[dict[str, Any]] = [definition, *definition.get("$defs", {}).values()]
    names = {name for shape in objects for name in shape.get("properties", {})}
    known = [str(step) for step in path if isinstance(step, int) or step in names]
    return f" at {'.'.join(known)}" if known else ""


def strip_thinking(raw: str) -> str:
    """A reply without the `<think>…</think>` in front of it."""
    return re.sub(r"\A\s*<think>.*?</think>\s*", "", raw, flags=re.DOTALL)


def with_thinking(thought: str, reply: str) -> str:
    """A reply with a thought in front of it, cut to `MAX_THOUGHT` characters.

    A `<` in the thought is left out, because a note may contain `</think>`.
    """
    short = textwrap.shorten(thought.replace("<", " "), MAX_THOUGHT, placeholder="")
    return f"<think>{short}</think>\n{reply}"


class LanguageModel(Protocol):
    """What the agents ask of a language model."""

    @property
    def id(self) -> str:
        """The model's name in outputs and audit, for example `SmolLM2-135M-Instruct@7ef915c9`."""
        ...

    async def chat(
        self, conversations: Sequence[Messages], schema: type[SchemaT]
    ) -> list[Reply[SchemaT] | ReplyError]:
        """Ask for an object of `schema` in answer to each conversation.

        Ask all questions about one note in one call: they are answered side by side. A model
        writes better, and always stops, if the schema forbids extra fields and bounds its strings
        and lists.

        Returns:
            One item for each conversation: the reply, or the error if it is unusable.

        Raises:
            InputError: a conversation does not fit the model's context window.
            ServerError: the model could not be asked.

        """
        ...

    async def choose(
        self, conversations: Sequence[Messages], options: Sequence[str]
    ) -> list[list[float] | ReplyError]:
        """Ask how probable each option is as the answer to each conversation.

        Ask all questions about one note in one call, each conversation beginning with the note:
        a prefix that all conversations share is computed only once.

        Returns:
            One item for each conversation: a probability for each option, summing to 1 because
            they are relative to the other options; or the error if the model gave none.

        Raises:
            InputError: one option begins another, or a conversation does not fit the model's
                context window.
            ServerError: the model could not be asked.

        """
        ...
