"""Language models behind a server, through LangChain."""

import asyncio
import ipaddress
import json
import math
import sys
from collections.abc import Sequence
from contextvars import Context
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from clh.errors import ClhError, InputError, ReplyError, ServerError, requires_extra
from clh.models.language.base import Messages, Reply, SchemaT

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage

NO_KEY = "none"  # what is sent to a server that needs no key
_LONGEST_WAIT = 8.0  # seconds between two attempts
# Refusals that may pass, as do all errors of the server's own.
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS}


class LangChainModel:
    """Any LangChain chat model.

    `choose` needs one that returns log-probabilities as OpenAI's API does. It reads the first
    token of the answer, among the 20 most probable: an option that is not there counts as
    impossible, and options must differ in that token.

    A server applies the chat template itself. Whether it keeps control tokens in a note apart
    from its own is up to the server; `LocalModel` does.

    Notes go to the model and nowhere else: its calls are never traced, whatever the environment or
    the caller asks for, and errors repeat nothing that the server said.

    Args:
        model: the LangChain model; set it to temperature 0, without retries of its own.
        id: what to report as the model's name.
        host: where the notes go, to be shown to the user.
        timeout: seconds after which one attempt to get an answer is given up.
        retries: how often to ask again, each time after a longer pause with jitter, when the server
            is unreachable, overloaded or failing. A request so ends after at most
            `(retries + 1) * timeout + retries * 8` seconds.
        concurrency: how many requests one call has under way.

    """

    id: str
    host: str

    def __init__(
        self,
        model: "BaseChatModel",
        id: str,
        *,
        host: str = "",
        timeout: float = 60.0,
        retries: int = 2,
        concurrency: int = 16,
    ) -> None:
        self.id = id
        self.host = host
        self._model = model
        self._timeout = timeout
        self._retries = retries
        self._concurrency = concurrency

    async def chat(
        self, conversations: Sequence[Messages], schema: type[SchemaT]
    ) -> list[Reply[SchemaT] | ReplyError]:
        """See `LanguageModel.chat`."""
        # The schema as a dict: given the class, the client would parse, and lose a bad reply.
        model = self._model.with_structured_output(schema.model_json_schema(), include_raw=True)

        def read(answer: Any) -> Reply[SchemaT] | ReplyError:
            message: AIMessage = answer["raw"]
            calls = message.tool_calls  # how models without a JSON mode answer
            return Reply.try_parse(json.dumps(calls[0]["args"]) if calls else message.text, schema)

        answers = await self._ask(model, conversations)
        return [answer if isinstance(answer, ReplyError) else read(answer) for answer in answers]

    async def choose(
        self, conversations: Sequence[Messages], options: Sequence[str]
    ) -> list[list[float] | ReplyError]:
        """See `LanguageModel.choose`; an option's probability is that of its first token."""
        model = self._model.bind(logprobs=True, top_logprobs=20, max_tokens=1)
        answers = await self._ask(model, conversations)
        return [
            answer if isinstance(answer, ReplyError) else self._read_options(answer, options)
            for answer in answers
        ]

    async def _ask(self, model: Any, conversations: Sequence[Messages]) -> list[Any]:
        """The answer to each conversation, or the ReplyError if there is none to read.

        Where the server cannot be asked, the first error ends all requests.
        """
        gate = asyncio.Semaphore(self._concurrency)

        async def ask(messages: Messages) -> Any:
            async with gate:
                try:
                    return await self._request(model, messages)
                except ReplyError as error:
                    return error

        try:
            async with asyncio.TaskGroup() as group:
                # In an empty context: a caller's tracing travels in context variables.
                tasks = [
                    group.create_task(ask(messages), context=Context())
                    for messages in conversations
                ]
            return [task.result() for task in tasks]
        except ExceptionGroup as errors:
            first = errors.exceptions[0]
        raise first

    async def _request(self, model: Any, messages: Messages) -> Any:
        from langsmith import tracing_context
        from tenacity import (
            AsyncRetrying,
            retry_if_exception,
            stop_after_attempt,
            wait_random_exponential,
        )

        turns = [(message["role"], _encodable(message["content"])) for message in messages]

        async def attempt() -> Any:
            # The client's own timeout starts anew with each byte that a server drips.
            async with asyncio.timeout(self._timeout):
                with tracing_context(enabled=False):
                    return await model.ainvoke(turns)

        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._retries + 1),
            wait=wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT),
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except Exception as error:  # noqa: BLE001  # whatever the client of a provider raises
            problem = self._explain(error)
        # Raised out here, it has no cause or context that quotes the request.
        raise problem

    def _explain(self, error: Exception) -> ClhError:
        """The error in our own words: a server's may repeat the request, and so the note."""
        from langchain_core import exceptions as langchain

        openai: Any = sys.modules.get("openai")  # loaded if the error is one of its own
        if openai and isinstance(error, openai.LengthFinishReasonError):
            raw = error.completion.choices[0].message.content or ""
            return ReplyError(f"{self.id} was cut off before its reply was complete", raw)
        if isinstance(error, langchain.ModelRefusalError) or (
            openai and isinstance(error, openai.ContentFilterFinishReasonError)
        ):
            return ReplyError(f"{self.id} refused to reply")
        name, status = type(error).__name__, getattr(error, "status_code", None)
        if isinstance(error, langchain.ContextOverflowError) or (
            status == HTTPStatus.BAD_REQUEST and "maximum context length" in str(error)  # vLLM
        ):
            return InputError(
                f"a conversation is longer than {self.id} reads: send a shorter text, or use a "
                "model with a longer context"
            )
        if isinstance(error, TimeoutError | langchain.ModelTimeoutError):
            problem = f"did not answer within {self._timeout:g} seconds: raise llm.timeout"
        elif isinstance(error, langchain.ModelConnectionError):
            problem = "cannot be reached: start vLLM there, or set llm.base_url"
        elif status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            problem = "refused the API key: set llm.api_key"
        elif status == HTTPStatus.NOT_FOUND:
            problem = "is not served there: set llm.model or llm.base_url"
        elif isinstance(status, int):
            problem = f"failed with status {status} ({name}): see the log of the server"
        # Clients check no body that comes with status 200, and trip over what it lacks.
        elif isinstance(error, AttributeError | LookupError | TypeError | ValueError):
            problem = f"does not speak OpenAI's API ({name}): set llm.base_url"
        else:
            problem = f"failed ({name})"
        return ServerError(f"{self.id} {problem}")

    def _read_options(
        self, message: "AIMessage", options: Sequence[str]
    ) -> list[float] | ReplyError:
        """The probability of each option, by the log-probabilities of the first token."""
        try:
            tops = message.response_metadata["logprobs"]["content"][0]["top_logprobs"]
            found = {top["token"]: math.exp(top["logprob"]) for top in tops}
        except (LookupError, TypeError):
            return ReplyError(f"{self.id} returned no log-probabilities", message.text)
        firsts = [
            max(
                (token for token in found if token and option.startswith(token)),
                key=len,
                default="",
            )
            for option in options
        ]
        if any(token and firsts.count(token) > 1 for token in firsts):
            raise InputError(f"options must differ in their first token for {self.id}: {options}")
        probabilities = [found.get(token, 0.0) for token in firsts]
        total = sum(probabilities)
        if not total:
            return ReplyError(f"{self.id} answered none of {list(options)}", message.text)
        return [probability / total for probability in probabilities]


def connect(
    base_url: str,
    model: str,
    *,
    api_key: str = NO_KEY,
    timeout: float = 60.0,
    retries: int = 2,
    max_tokens: int = 1024,
) -> LangChainModel:
    """The model named `model` on a server that speaks OpenAI's API; nothing is sent yet.

    The environment's proxies are used, but not for a server on this machine.

    Args:
        base_url: for example `http://localhost:8000/v1`; a user name and password in it are sent by
            HTTP's basic authentication instead of the key, and shown nowhere.
        model: its name there.
        api_key: local servers take any.
        timeout: see `LangChainModel`.
        retries: see `LangChainModel`.
        max_tokens: the length after which a reply counts as cut off.

    Raises:
        InputError: `base_url` is not the address of a server, or holds a password beside a key.
        ModelError: an extra is not installed.

    """
    with requires_extra("server"):
        import openai
        from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    url = _parse(base_url)
    address = url.netloc.rpartition("@")[2]
    password = None
    if address != url.netloc:
        if api_key != NO_KEY:
            raise InputError(
                "llm.base_url holds a password, so llm.api_key cannot be sent: unset one"
            )
        password = unquote(url.username or ""), unquote(url.password or "")
    host = url.hostname or ""
    pattern = f"all://[{host}]" if ":" in host else f"all://{host}"
    client = openai.DefaultAsyncHttpxClient(
        auth=password,
        mounts={pattern: None} if is_loopback(host) else None,
        follow_redirects=False,  # to where nobody was told that notes go
        # Open connections belong to an event loop, and the next call may come from another.
        headers={"Connection": "close"},
    )
    chat = ChatOpenAI(
        base_url=url._replace(netloc=address, query="").geturl(),
        default_query=dict(parse_qsl(url.query)),
        model=model,
        api_key=SecretStr(api_key),
        timeout=timeout,
        max_retries=0,
        max_completion_tokens=max_tokens,
        temperature=0,
        use_responses_api=False,
        cache=False,
        http_async_client=client,
        http_socket_options=(),
        openai_proxy=None,
    )
    return LangChainModel(
        chat, f"{model}@{address}", host=address, timeout=timeout, retries=retries
    )


def _parse(base_url: str) -> SplitResult:
    try:
        url = urlsplit(base_url)
        sound = url.scheme in {"http", "https"} and url.hostname and url.port != 0
    except ValueError:
        sound = False
    if not sound:  # it may hold a password, and is not quoted
        raise InputError("llm.base_url is not a URL like http://localhost:8000/v1: set it anew")
    return url


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, which no proxy can reach."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _encodable(text: str) -> str:
    """The text with a `?` in place of each lone surrogate, which UTF-8 has no bytes for."""
    return text.encode(errors="replace").decode()


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status in _PASSING or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(error, TimeoutError) or bool(getattr(error, "is_retryable", False))
