"""Small HTTP servers for tests: model servers that answer badly, and traps that nobody may ask."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "test-model"


@dataclass
class Server:
    """A server on loopback, and what it was asked."""

    port: int
    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    """One request; `body` is what the client sent."""

    body: bytes

    def send(self, status: int, content: bytes, kind: str = "application/json") -> None:
        """Answer with a status and a body."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


Answer = Callable[[Handler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    """A server that answers every POST with `answer`, and lists one model."""

    class Answering(Handler):
        def do_POST(self) -> None:
            self.receive()
            answer(self)

        def do_GET(self) -> None:
            self.receive()
            if self.path == "/v1/models":
                models = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
                self.send(200, json.dumps(models).encode())
            else:
                answer(self)

        # What a client asks a proxy for before it speaks TLS.
        do_CONNECT = do_PUT = do_PATCH = do_HEAD = do_POST  # noqa: N815

        def receive(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.paths.append(self.path)
            asked.bodies.append(self.body)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    http.daemon_threads = True
    asked = Server(http.server_port)
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def accept(handler: Handler) -> None:
    """Take whatever comes, as a collector of traces does."""
    handler.send(200, b"{}")


def completion(content: str | None, choices: int = 1) -> Answer:
    """A model whose every reply is `content`."""

    def answer(handler: Handler) -> None:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": content},
            "finish_reason": "stop",
        }
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [choice] * choices,
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
        handler.send(200, json.dumps(reply).encode())

    return answer


def raw(status: int, content: bytes, kind: str = "application/json") -> Answer:
    """A server that answers every request so."""
    return lambda handler: handler.send(status, content, kind)


def repeating(status: int) -> Answer:
    """A server whose errors repeat the request, as validation errors of FastAPI and vLLM do."""

    def answer(handler: Handler) -> None:
        asked = handler.body.decode("utf-8", "replace")
        error = {"message": f"invalid request: {asked}", "input": asked, "type": "invalid"}
        handler.send(status, json.dumps({"error": error, "detail": [error]}).encode())

    return answer


def dripping(seconds: float) -> Answer:
    """A server that sends its answer byte by byte, with a pause before each."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        try:
            for _ in range(1000):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(seconds)
        except OSError:
            pass  # the client has hung up

    return answer
