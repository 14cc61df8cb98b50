"""A publisher of data as PhysioNet, Zenodo and CMS are, on this machine, with their bad days."""

import base64
import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

USER, PASSWORD = "doe", "s3cret:ähm"


@dataclass
class File:
    """A published file, and what happens when it is asked for."""

    body: bytes
    version: str = '"1"'  # its ETag
    modified: str = ""  # its Last-Modified
    ranges: bool = True  # whether it can be had in parts
    troubles: list[int] = field(default_factory=list)
    """For each request, until they are used up: an HTTPStatus is answered; another number is how
    many bytes are sent until the connection breaks."""


@dataclass
class Publisher:
    """Paths below /private/ need the login, and a signature each."""

    address: str
    files: dict[str, File] = field(default_factory=dict)
    unsigned: set[str] = field(default_factory=set)  # paths
    moved: dict[str, str] = field(default_factory=dict)  # path -> address
    asked: list[tuple[str, Message]] = field(default_factory=list)  # path and headers

    def publish(self, path: str, body: bytes, **behaviour: object) -> None:
        self.files[path] = File(body, **behaviour)  # type: ignore[arg-type]

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def ranges(self) -> list[str | None]:
        return [headers["Range"] for _, headers in self.asked]


@contextmanager
def publishing() -> Iterator[Publisher]:
    """A publisher at work."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, publisher)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    publisher = Publisher(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield publisher
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(request: BaseHTTPRequestHandler, publisher: Publisher) -> None:
    publisher.asked.append((request.path, request.headers))
    if request.path in publisher.moved:
        request.send_response(HTTPStatus.FOUND)
        request.send_header("Location", publisher.moved[request.path])
        request.end_headers()
        return
    if refusal := refused(request, publisher):
        request.send_error(refusal)
        return
    file = publisher.files[request.path]
    trouble = file.troubles.pop(0) if file.troubles else len(file.body)
    if isinstance(trouble, HTTPStatus):
        request.send_error(trouble)
        return

    if "gzip" in request.headers["Accept-Encoding"]:
        file = replace(file, body=gzip.compress(file.body))
    start = 0
    wanted = request.headers["Range"]
    if wanted and file.ranges and request.headers["If-Range"] in (file.version, file.modified):
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(file.body):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(file.body)}")
            request.end_headers()
            return
        request.send_response(206)
        size = len(file.body)
        request.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
    else:
        request.send_response(200)
    request.send_header("ETag", file.version)
    if file.modified:
        request.send_header("Last-Modified", file.modified)
    request.send_header("Content-Length", str(len(file.body) - start))
    request.end_headers()
    request.wfile.write(file.body[start : start + trouble])


def refused(request: BaseHTTPRequestHandler, publisher: Publisher) -> HTTPStatus | None:
    if request.path.startswith("/private/"):
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if request.headers["Authorization"] != f"Basic {login}":
            return HTTPStatus.UNAUTHORIZED
        if request.path in publisher.unsigned:
            return HTTPStatus.FORBIDDEN
    return None if request.path in publisher.files else HTTPStatus.NOT_FOUND
