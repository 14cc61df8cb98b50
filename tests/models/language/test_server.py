"""Language models behind a server: a real HTTP server on loopback, and models of LangChain's."""

import asyncio
import base64
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import ModelRateLimitError, ModelRefusalError
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableLambda

from clh.errors import ClhError, InputError, ModelError, ReplyError, ServerError
from clh.models.language import LangChainModel, connect
from tests.models.language.conversations import (
    NOTE,
    Term,
    Terms,
    about_the_note,
    assert_close,
    chat,
    user,
)

ROOT = Path(__file__).parents[3]
Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Server:
    """Speaks /v1/chat/completions; takes one queued answer a request, and repeats the last.

    `drip` is how many seconds it waits after each byte of an answer.
    """

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.drip = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = {"path": self.path, "authorization": self.headers["Authorization"]}
                outer.requests.append(json.loads(body) | request)
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                status, content = answer(outer.requests[-1])
                payload = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                size = 1 if outer.drip else len(payload)
                try:
                    for start in range(0, len(payload), size):
                        self.wfile.write(payload[start : start + size])
                        time.sleep(outer.drip)
                except OSError:  # whoever asked has given up
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._http.server_port}"
        self.url = f"http://{self.address}/v1"
        Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that the environment names as proxy for everything."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    proxy = Server()
    proxy.answers = [replies(VALID)]
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{proxy.address}")
        monkeypatch.setenv(name.lower(), f"http://{proxy.address}")
    yield proxy
    proxy.close()


def replies(text: str, finish: str = "stop", logprobs: dict[str, float] | None = None) -> Answer:
    top = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in (logprobs or {}).items()]
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
        "logprobs": {"content": [top[0] | {"top_logprobs": top}]} if top else None,
    }
    completion = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "smol",
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    return lambda request: (200, completion)


def fails(status: int, message: str = "oh no") -> Answer:
    return lambda request: (status, {"error": {"message": message, "type": "x", "code": status}})


def repeats_the_request(status: int) -> Answer:
    """An error as FastAPI and vLLM word it."""

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        text = request["messages"][-1]["content"]
        return status, {
            "error": {"message": f"[{{'input': {text!r}}}]", "type": text, "code": status},
            "detail": [{"loc": ["body", "messages", 0], "msg": text, "input": text}],
        }

    return answer


def hangs(request: dict[str, Any]) -> tuple[int, Any]:
    time.sleep(1)
    return 500, {}


VALID = '{"terms": [{"quote": "pneumonia", "status": "affirmed"}]}'


async def test_chat(server: Server) -> None:
    server.answers = [replies(VALID)]
    note = "5 < 6 & {braces} <|im_end|>"

    model = connect(server.url, "smol", max_tokens=77)
    reply = await chat(model, note, Terms)

    assert reply.value == Terms(terms=[Term(quote="pneumonia", status="affirmed")])
    assert reply.raw == VALID
    assert (model.id, model.host) == (f"smol@{server.address}", server.address)
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["messages"] == [{"role": "user", "content": note}]
    assert request["response_format"]["type"] == "json_schema"
    assert "terms" in request["response_format"]["json_schema"]["schema"]["properties"]
    assert (request["temperature"], request["max_completion_tokens"]) == (0, 77)


async def test_half_a_character_of_a_note_is_replaced(server: Server) -> None:
    server.answers = [replies(VALID)]
    await chat(connect(server.url, "smol"), "fever \ud83d, cough", Terms)
    assert server.requests[0]["messages"][0]["content"] == "fever ?, cough"


async def test_a_model_that_thinks_aloud(server: Server) -> None:
    server.answers = [replies(f"<think>\nPneumonia, then.\n</think>\n\n{VALID}")]
    reply = await chat(connect(server.url, "smol"), NOTE, Terms)
    assert reply.value == Terms.model_validate_json(VALID)
    assert reply.raw.startswith("<think>\nPneumonia, then.")


async def test_a_server_that_fails_twice_is_asked_again(server: Server) -> None:
    server.answers = [fails(500), fails(429), replies(VALID)]
    assert (await chat(connect(server.url, "smol", retries=2), NOTE, Terms)).raw == VALID
    assert len(server.requests) == 3


async def test_a_request_that_is_refused_is_not_sent_again(server: Server) -> None:
    server.answers = [fails(422)]
    with pytest.raises(ServerError, match=r"failed with status 422"):
        await chat(connect(server.url, "smol", retries=2), NOTE, Terms)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (fails(500), r"failed with status 500 \(.*Error\): see the log of the server"),
        (fails(401), "refused the API key: set llm.api_key"),
        (fails(404), "is not served there: set llm.model"),
        (hangs, "did not answer within 0.5 seconds: raise llm.timeout"),
        (lambda request: (200, "<html>"), "does not speak OpenAI's API"),
        (lambda request: (200, {}), "does not speak OpenAI's API"),
        (lambda request: (200, {"choices": []}), "does not speak OpenAI's API"),
    ],
)
async def test_errors_say_what_to_do(server: Server, answer: Answer, message: str) -> None:
    server.answers = [answer]
    model = connect(server.url, "smol", timeout=0.5, retries=0)
    with pytest.raises(ServerError, match=message) as caught:
        await chat(model, NOTE, Terms)
    assert "\n" not in str(caught.value)
    with pytest.raises(ServerError, match=message):
        await model.choose([user(NOTE)], ["yes", "no"])


async def test_a_note_longer_than_the_model_reads(server: Server) -> None:
    server.answers = [fails(400, "This model's maximum context length is 8192 tokens. However, …")]
    with pytest.raises(InputError, match=r"longer than smol@.* reads: send a shorter text"):
        await chat(connect(server.url, "smol", retries=0), NOTE, Terms)


async def test_no_server(server: Server) -> None:
    server.close()
    with pytest.raises(ServerError, match=r"start vLLM there, or set llm.base_url"):
        await chat(connect(server.url, "smol", retries=0), NOTE, Terms)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 429, 500, 503])
async def test_an_error_repeats_nothing_of_the_request(
    server: Server, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [repeats_the_request(status)]
    model = connect(server.url, "smol", retries=1)
    for ask in (
        lambda: model.chat([user("Mrs. Xylophonic coughs.")], Terms),
        lambda: model.choose([user("Mrs. Xylophonic coughs.")], ["yes", "no"]),
    ):
        with caplog.at_level(logging.DEBUG), pytest.raises(ServerError) as caught:
            await ask()
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        printed = "".join(traceback.format_exception(caught.value))
        assert printed.count("Xylophonic") == 0
    ours = [record for record in caplog.records if record.name not in {"asyncio"}]
    assert not [record for record in ours if "Xylophonic" in record.getMessage()]


@pytest.mark.parametrize(
    ("answer", "message", "raw"),
    [
        (replies("Sure! Here is"), "not a valid Terms", "Sure! Here is"),
        (replies('{"terms": [{"quote": "x"}]}'), r"missing at terms\.0\.status", '{"terms"'),
        (replies('{"terms": [', finish="length"), "was cut off", '{"terms": ['),
        (replies("", finish="content_filter"), "refused to reply", ""),
        (replies(""), "not a valid Terms", ""),
    ],
)
async def test_bad_replies_are_kept(server: Server, answer: Answer, message: str, raw: str) -> None:
    server.answers = [answer]
    [error] = await connect(server.url, "smol").chat([user(NOTE)], Terms)
    assert isinstance(error, ReplyError)
    assert re.search(message, str(error))
    assert error.raw.startswith(raw)


# --- probabilities ------------------------------------------------------------------------------


async def test_choose_reads_the_first_token(server: Server) -> None:
    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        asthma = "Asthma" in request["messages"][0]["content"]
        return replies("", "length", {"yes": 0.1 if asthma else 0.6, "no": 0.2, "n": 0.1})(request)

    server.answers = [answer]

    rows = await connect(server.url, "smol").choose(about_the_note(), ["yes", "no"])

    assert_close(rows, [[0.75, 0.25], [1 / 3, 2 / 3], [0.75, 0.25]], 1e-6)
    request = server.requests[0]
    assert (request["logprobs"], request["top_logprobs"]) == (True, 20)
    assert request["max_completion_tokens"] == 1


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (replies("maybe", "length", {"maybe": 0.9}), "answered none of"),
        (replies("yes"), "no log-probabilities"),
        (replies("", "content_filter"), "no log-probabilities"),
    ],
)
async def test_one_unusable_answer_loses_no_other(
    server: Server, odd: Answer, message: str
) -> None:
    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        asthma = "Asthma" in request["messages"][0]["content"]
        return (odd if asthma else replies("yes", "length", {"yes": 0.6, "no": 0.2}))(request)

    server.answers = [answer]
    before, error, after = await connect(server.url, "smol").choose(about_the_note(), ["yes", "no"])
    assert_close([before, after], [[0.75, 0.25]] * 2, 1e-6)
    assert isinstance(error, ReplyError)
    assert message in str(error)
    assert "Asthma" not in str(error)


@pytest.mark.parametrize(
    "content",
    [[], [{}], [{"token": "yes", "logprob": 0.0}], [{"top_logprobs": [{"logprob": -1}]}], None],
)
async def test_log_probabilities_of_another_shape(content: Any) -> None:
    message = AIMessage("yes", response_metadata={"logprobs": {"content": content}})
    model = LangChainModel(GenericFakeChatModel(messages=iter([message])), "fake")
    [error] = await model.choose([user(NOTE)], ["yes", "no"])
    assert isinstance(error, ReplyError)
    assert error.raw == "yes"


async def test_options_must_differ_in_their_first_token(server: Server) -> None:
    server.answers = [replies("not", "length", {"not": 0.9})]
    with pytest.raises(InputError, match="differ in their first token"):
        await connect(server.url, "smol").choose([user(NOTE)], ["not present", "not sure"])


async def test_a_server_that_is_gone_ends_all_requests(server: Server) -> None:
    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        if "Asthma" in request["messages"][0]["content"]:
            return fails(404)(request)
        time.sleep(5)
        return replies(VALID)(request)

    server.answers = [answer]
    started = time.perf_counter()
    with pytest.raises(ServerError, match="is not served there"):
        await connect(server.url, "smol").chat(about_the_note(), Terms)
    assert time.perf_counter() - started < 4
    assert asyncio.all_tasks() == {asyncio.current_task()}


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_server_that_drips_bytes_is_given_up(server: Server, retries: int) -> None:
    server.answers, server.drip = [replies(VALID)], 0.1
    model = connect(server.url, "smol", timeout=0.5, retries=retries)
    started = time.perf_counter()
    with pytest.raises(ServerError, match=r"did not answer within 0\.5 seconds: raise llm.timeout"):
        await chat(model, NOTE, Terms)
    assert 0.5 * (retries + 1) <= time.perf_counter() - started < 0.5 * (retries + 1) + 3
    assert len(server.requests) == retries + 1


async def test_a_server_that_asks_for_patience_is_not_waited_for(server: Server) -> None:
    server.answers, server.headers = [fails(503), replies(VALID)], {"Retry-After": "60"}
    started = time.perf_counter()
    assert (await chat(connect(server.url, "smol", retries=1), NOTE, Terms)).raw == VALID
    assert time.perf_counter() - started < 10


def test_a_model_may_be_asked_from_one_event_loop_after_another(server: Server) -> None:
    server.answers = [replies(VALID)]
    model = connect(server.url, "smol", retries=0)
    for _ in range(3):
        assert asyncio.run(chat(model, NOTE, Terms)).raw == VALID


# --- where notes go -----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
async def test_no_proxy_is_used_for_this_machine(server: Server, proxy: Server, host: str) -> None:
    server.answers = [replies(VALID)]
    model = connect(server.url.replace("127.0.0.1", host), "smol", retries=0)
    assert (await chat(model, NOTE, Terms)).raw == VALID
    assert len(server.requests) == 1
    assert proxy.requests == []


async def test_no_proxy_is_used_for_this_machine_by_its_ipv6_address(proxy: Server) -> None:
    with socket.socket(socket.AF_INET6) as free:
        free.bind(("::1", 0))
        port = free.getsockname()[1]
    model = connect(f"http://[::1]:{port}/v1", "smol", retries=0)
    with pytest.raises(ServerError, match=rf"smol@\[::1\]:{port} cannot be reached"):
        await chat(model, NOTE, Terms)
    assert proxy.requests == []


async def test_the_proxy_of_the_environment_is_used_for_other_machines(
    proxy: Server, caplog: pytest.LogCaptureFixture
) -> None:
    model = connect("http://clh.invalid:8000/v1", "smol", retries=0)
    assert (await chat(model, NOTE, Terms)).raw == VALID
    assert [request["path"] for request in proxy.requests] == [
        "http://clh.invalid:8000/v1/chat/completions"
    ]
    assert model.host == "clh.invalid:8000"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_server_does_not_send_notes_elsewhere(server: Server) -> None:
    elsewhere = Server()
    elsewhere.answers = [replies(VALID)]
    server.answers = [fails(307)]
    server.headers = {"Location": f"{elsewhere.url}/chat/completions"}
    with pytest.raises(ServerError, match="failed with status 307"):
        await chat(connect(server.url, "smol", retries=0), NOTE, Terms)
    assert elsewhere.requests == []
    elsewhere.close()


async def test_a_password_in_the_address_is_sent_and_not_shown(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [replies(VALID), fails(401)]
    model = connect(f"http://us%40er:sec%2Fret@{server.address}/v1", "smol", retries=0)
    with caplog.at_level(logging.DEBUG):
        await chat(model, NOTE, Terms)
        with pytest.raises(ServerError, match="refused the API key") as caught:
            await chat(model, NOTE, Terms)
    assert [request["authorization"] for request in server.requests] == [
        "Basic " + base64.b64encode(b"us@er:sec/ret").decode()
    ] * 2
    shown = [model.id, model.host, str(caught.value), caplog.text]
    assert not [text for text in shown if "sec/ret" in text or "sec%2Fret" in text]


async def test_a_query_in_the_address_is_sent_with_each_request(server: Server) -> None:
    server.answers = [replies(VALID)]
    model = connect(f"{server.url}/?version=1%2F2", "smol")
    await chat(model, NOTE, Terms)
    assert server.requests[0]["path"] == "/v1/chat/completions?version=1%2F2"
    assert model.id == f"smol@{server.address}"


async def test_a_key_is_sent(server: Server) -> None:
    server.answers = [replies(VALID)]
    await chat(connect(server.url, "smol", api_key="key"), NOTE, Terms)
    assert server.requests[0]["authorization"] == "Bearer key"


def test_a_password_and_a_key_cannot_both_be_sent() -> None:
    with pytest.raises(InputError, match=r"llm.api_key cannot be sent: unset one") as caught:
        connect("http://user:secret@127.0.0.1:8000/v1", "smol", api_key="key")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host/v1", "http://", "http://user:secret/x@a/v1"]
)
def test_what_is_not_an_address_is_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"llm.base_url is not a URL like http:") as caught:
        connect(url, "smol")
    assert "secret" not in "".join(traceback.format_exception(caught.value))


TRACED = """
import asyncio, os, sys
import clh
os.environ.update(LANGSMITH_TRACING_V2="true", LANGCHAIN_TRACING_V2="true")
import langsmith
from langchain_core.tracers.context import tracing_v2_enabled
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers import LangChainTracer
from langchain_core.tracers.langchain import wait_for_all_tracers
from clh.models.language import connect
from tests.models.language.conversations import Terms, user

url, way = sys.argv[1:]
model = connect(url, "smol", retries=0)

async def note(_=""):
    await model.chat([user("Mrs. Xylophonic coughs.")], Terms)
    await model.choose([user("Mrs. Xylophonic coughs.")], ["yes", "no"])
    return "coded"

async def main():
    if way == "another":
        await GenericFakeChatModel(messages=iter(["a"])).ainvoke("Mrs. Xylophonic coughs.")
        return
    await note()
    with langsmith.tracing_context(enabled=True):
        await note()
    with tracing_v2_enabled():
        await note()
    await langsmith.traceable(note)()
    await RunnableLambda(note).ainvoke("", {"callbacks": [LangChainTracer()]})
    langsmith.configure(enabled=True)
    await note()

asyncio.run(main())
wait_for_all_tracers()
langsmith.Client().flush()
"""


@pytest.mark.parametrize("way", ["ours", "another"])
def test_no_note_is_traced_whoever_asks_for_it(server: Server, way: str) -> None:
    import zstandard

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        return replies(VALID, "stop", {"yes": 0.6, "no": 0.2})(request)

    server.answers = [answer]
    collected: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "zstd":
                body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
            collected.append(body)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST = do_PATCH = answer  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    Thread(target=collector.serve_forever, daemon=True).start()
    tracing = {
        "LANGSMITH_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "LANGSMITH_API_KEY": "key",
    }
    command = [sys.executable, "-c", TRACED, server.url, way]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **tracing}, check=True, timeout=100)
    collector.shutdown()
    collector.server_close()
    # Another model is traced, which shows that the trap works.
    assert any(b"Xylophonic" in body for body in collected) is (way == "another")


class Recorder(BaseCallbackHandler):
    """As tracers of other makers are."""

    def __init__(self) -> None:
        self.recorded: list[str] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **_: Any) -> None:
        self.recorded.append(str(messages))


@pytest.mark.parametrize("through_us", [True, False])
async def test_callbacks_of_a_caller_see_no_note(server: Server, through_us: bool) -> None:
    server.answers, recorder = [replies(VALID)], Recorder()
    model, other = connect(server.url, "smol"), GenericFakeChatModel(messages=iter(["a"]))

    async def code(note: str) -> None:
        await (chat(model, note, Terms) if through_us else other.ainvoke(note))

    await RunnableLambda(code).ainvoke(NOTE, {"callbacks": [recorder]})
    assert bool(recorder.recorded) is not through_us  # the other shows that the trap works


# --- other models of LangChain's ----------------------------------------------------------------


class ToolCaller(GenericFakeChatModel):
    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


class Failing(ToolCaller):
    """Fails as another provider's client does."""

    error: Exception

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        if self.error is not None:
            error, self.error = self.error, None  # type: ignore[assignment]
            raise error
        reply = AIMessage("", tool_calls=[{"name": "Terms", "args": json.loads(VALID), "id": "1"}])
        return ChatResult(generations=[ChatGeneration(message=reply)])


class HttpError(Exception):
    """As many clients have one."""

    def __init__(self, status: int) -> None:
        super().__init__(f"Mrs. Xylophonic coughs: {status}")
        self.status_code = status


async def test_a_model_that_answers_by_tool_call() -> None:
    call = {"name": "Terms", "args": json.loads(VALID), "id": "1"}
    caller = ToolCaller(messages=iter([AIMessage(content="", tool_calls=[call])]))
    reply = await chat(LangChainModel(caller, "fake"), NOTE, Terms)
    assert reply.value == Terms.model_validate_json(VALID)


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (HttpError(418), ServerError, r"fake failed with status 418 \(HttpError\)"),
        (RuntimeError("Mrs. Xylophonic coughs"), ServerError, r"fake failed \(RuntimeError\)"),
        (TimeoutError(), ServerError, "did not answer within 60 seconds"),
    ],
)
async def test_another_provider_needs_no_openai(
    monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type[ClhError], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)  # as if it were not installed
    model = LangChainModel(Failing(messages=iter(()), error=error), "fake", retries=0)
    with pytest.raises(raised, match=message) as caught:
        await model.chat([user(NOTE)], Terms)
    assert "Xylophonic" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("error", [HttpError(503), ModelRateLimitError("Mrs. Xylophonic coughs")])
async def test_another_provider_is_asked_again(error: Exception) -> None:
    model = LangChainModel(Failing(messages=iter(()), error=error), "fake", retries=1)
    assert (await chat(model, NOTE, Terms)).value == Terms.model_validate_json(VALID)


async def test_another_provider_that_refuses() -> None:
    refusal = ModelRefusalError("Mrs. Xylophonic coughs")
    model = LangChainModel(Failing(messages=iter(()), error=refusal), "fake")
    [error] = await model.chat([user(NOTE)], Terms)
    assert isinstance(error, ReplyError)
    assert str(error) == "fake refused to reply"


@pytest.mark.parametrize("module", ["openai", "langchain_openai"])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ModelError, match=rf"{module} is not installed: run `pip install 'clh\[server\]'`"
    ):
        connect("http://127.0.0.1:8000/v1", "smol")
