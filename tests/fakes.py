"""Stand-ins for what is slow or far away."""

from collections import deque
from collections.abc import Iterable, Sequence

from pydantic import BaseModel

from clh.llm import Messages, Reply, SchemaT


class QueuedModel:
    """A language model that answers from queues, in order, and remembers what it was asked.

    Args:
        replies: for `chat`: an object is the value of the reply, a string its raw text, and an
            exception is raised.
        probabilities: for `choose`: the row of one conversation each.
    """

    id = "queued"

    def __init__(
        self,
        replies: Iterable[BaseModel | str | Exception] = (),
        probabilities: Iterable[Sequence[float]] = (),
    ) -> None:
        self._replies = deque(replies)
        self._probabilities = deque(probabilities)
        self.chats: list[Messages] = []
        self.choices: list[Messages] = []

    async def chat(self, messages: Messages, schema: type[SchemaT]) -> Reply[SchemaT]:
        """See `clh.llm.LanguageModel.chat`."""
        self.chats.append(messages)
        reply = self._replies.popleft()
        if isinstance(reply, Exception):
            raise reply
        raw = reply.model_dump_json() if isinstance(reply, BaseModel) else reply
        return Reply.parse(raw, schema)

    async def choose(
        self, conversations: Sequence[Messages], options: Sequence[str]
    ) -> list[list[float]]:
        """See `clh.llm.LanguageModel.choose`."""
        self.choices.extend(conversations)
        rows = [list(self._probabilities.popleft()) for _ in conversations]
        if any(len(row) != len(options) for row in rows):
            raise AssertionError(f"a queued row does not fit the options {list(options)}")
        return rows
