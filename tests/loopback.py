"""A file server on loopback that misbehaves on request."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

Behaviour = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request to a :class:`FileServer`."""

    server: "FileServer"

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        planned = self.server.behaviours.get(self.path, [])
        behave = planned.pop(0) if planned else whole
        behave(self)

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""

    @property
    def content(self) -> bytes:
        return self.server.files.get(self.path, b"")

    def start_of_range(self) -> int:
        """The first byte that is asked for."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        tag = self.headers.get("If-Range")
        return int(match[1]) if match and tag in (None, self.server.tag) else 0

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def send(self, body: bytes) -> None:
        self.server.sent[self.path] = self.server.sent.get(self.path, 0) + len(body)
        self.wfile.write(body)
        self.wfile.flush()

    def drop(self) -> None:
        """End the connection as a broken line does."""
        self.connection.shutdown(socket.SHUT_RDWR)


@dataclass
class FileServer(ThreadingHTTPServer):
    """Serves files by path, with ranges and an entity tag, unless a behaviour is planned.

    Attributes
    ----------
    files
        Content by path.
    behaviours
        By path, what to do at the first, second, ... request instead.
    requests, sent
        What was asked, and the bytes sent by path.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    behaviours: dict[str, list[Behaviour]] = field(default_factory=dict)
    tag: str = '"one"'
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)

    daemon_threads = True

    def __post_init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)

    def handle_error(self, *_: object) -> None:
        """Clients that go away are part of the tests."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


def whole(request: Request, tag: str | None = None) -> None:
    """Serve the rest that is asked for."""
    if request.path not in request.server.files:
        return request.head(404)
    size, start = len(request.content), request.start_of_range()
    tag = tag or request.server.tag
    if start >= size > 0:
        return request.head(416, Content_Range=f"bytes */{size}")
    if start:
        given = f"bytes {start}-{size - 1}/{size}"
        request.head(206, Content_Length=size - start, Content_Range=given, ETag=tag)
    else:
        request.head(200, Content_Length=size, ETag=tag)
    return request.send(request.content[start:])


def without_ranges(request: Request) -> None:
    """Serve everything, whatever is asked for."""
    request.head(200, Content_Length=len(request.content))
    request.send(request.content)


def cut_after(n_bytes: int, ranges: bool = True) -> Behaviour:
    """Break the line after so many bytes of the answer."""

    def behave(request: Request) -> None:
        size, start = len(request.content), request.start_of_range() if ranges else 0
        status = 206 if start else 200
        headers = {"Content_Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
        request.head(status, Content_Length=size - start, ETag=request.server.tag, **headers)
        request.send(request.content[start : start + n_bytes])
        request.drop()

    return behave


def answer(status: int, **headers: object) -> Behaviour:
    """Answer with a status and nothing else."""
    return lambda request: request.head(status, Content_Length=0, **headers)


def stall_after(n_bytes: int, seconds: float) -> Behaviour:
    """Fall silent after so many bytes."""

    def behave(request: Request) -> None:
        request.head(200, Content_Length=len(request.content), ETag=request.server.tag)
        request.send(request.content[:n_bytes])
        time.sleep(seconds)

    return behave


def instead(content: bytes) -> Behaviour:
    """Serve other content, with its own matching length."""

    def behave(request: Request) -> None:
        request.head(200, Content_Length=len(content))
        request.send(content)

    return behave


@contextmanager
def serving(**files: bytes) -> Iterator[FileServer]:
    """Run a server of the files, each at its name."""
    server = FileServer({f"/{name}": content for name, content in files.items()})
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
