"""A web server for the tests of downloads: it serves bytes, and misbehaves as it is told."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeAlias

Fault: TypeAlias = "Callable[[Answering, bytes], None]"


class Answering(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    source: Source

    def do_GET(self) -> None:
        path = self.path
        self.source.requests.append((path, self.headers.get("Range")))
        self.source.agents.add(self.headers.get("User-Agent", ""))
        waiting = self.source.faults.get(path, [])
        fault = waiting.pop(0) if waiting else serve
        fault(self, self.source.bodies.get(path, b""))
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Be quiet."""

    def head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


class Source:
    """What the server has, how it will misbehave, and what it was asked."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.bodies: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.agents: set[str] = set()

    def put(self, path: str, body: bytes, *faults: Fault) -> str:
        """Serve a body, after so many faults; its address."""
        self.bodies[path] = body
        self.faults[path] = list(faults)
        return self.address + path

    def ranges(self, path: str) -> list[str | None]:
        return [asked for other, asked in self.requests if other == path]


def etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def serve(
    request: Answering, body: bytes, *, length: int | None = None, stop: int | None = None
) -> None:
    """As a good server does: 404, 200, or 206 of the version that is asked for."""
    if request.path not in request.source.bodies:
        request.head(404, 0)
        return
    asked = request.headers.get("Range")
    same = request.headers.get("If-Range", etag(body)) == etag(body)
    start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and same else 0
    if start >= len(body) > 0:
        request.head(416, 0, Content_Range=f"bytes */{len(body)}")
        return
    rest = body[start:]
    headers = {"ETag": etag(body)}
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
    request.head(206 if start else 200, len(rest) if length is None else length, **headers)
    request.wfile.write(rest[:stop])


def drop_after(count: int) -> Fault:
    """Send that many bytes of what was asked for, and hang up."""
    return lambda request, body: serve(request, body, stop=count)


def claim_length(length: int) -> Fault:
    """A wrong Content-Length."""
    return lambda request, body: serve(request, body, length=length, stop=length)


def status(code: int, **headers: str) -> Fault:
    return lambda request, body: request.head(code, 0, **headers)


def ignore_range(request: Answering, body: bytes) -> None:
    """200 and the whole file, whatever was asked."""
    request.head(200, len(body))
    request.wfile.write(body)


def damaged(request: Answering, body: bytes) -> None:
    """One byte is another."""
    serve(request, bytes([body[0] ^ 1]) + body[1:])


def careless(request: Answering, body: bytes) -> None:
    """Goes on from the middle without a look at If-Range, as some caches do."""
    start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
    request.head(206, len(body) - start, ETag=etag(body), Content_Range=span)
    request.wfile.write(body[start:])


def web_page(request: Answering, body: bytes) -> None:
    request.head(200, 20, Content_Type="text/html; charset=utf-8")
    request.wfile.write(b"<html>log in!</html>")


def slowly(seconds: float, chunk: int) -> Fault:
    """A chunk now and then."""

    def answer(request: Answering, body: bytes) -> None:
        request.head(200, len(body), ETag=etag(body))
        for start in range(0, len(body), chunk):
            request.wfile.write(body[start : start + chunk])
            time.sleep(seconds)

    return answer


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


@contextmanager
def running_source() -> Iterator[Source]:
    """A server on a free port of this machine."""
    handler = type("Handler", (Answering,), {})
    server = _QuietServer(("127.0.0.1", 0), handler)
    source = Source(f"http://127.0.0.1:{server.server_address[1]}")
    handler.source = source  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield source
    finally:
        server.shutdown()
        server.server_close()
