"""An object store that lies, stalls and breaks on order, and holds objects of any size without keeping them.

What moto does right is tested against moto; this one is for what a good server never does, and for sizes that moto,
which copies each object several times, cannot hold.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[["Request"], bool]
"""Looks at a request first; True if it dealt with it."""

MODIFIED = "Sat, 28 Nov 2026 11:22:30 GMT"


class FakeObjects:
    """A running server that speaks as much of S3 as a client of stores needs.

    Attributes:
        objects: by path (`/bucket/key`): bytes, or a file that holds them.
        requests: method and path of each, in order.
        fault: asked first; None for a server that works.
        received: bytes of parts that were taken, and forgotten.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes | Path] = {}
        self.requests: list[tuple[str, str]] = []
        self.fault: Fault | None = None
        self.received = 0
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Request,), {"owner": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def count(self, method: str) -> int:
        """How many requests of a method came."""
        return sum(found == method for found, _ in self.requests)


class Request(BaseHTTPRequestHandler):
    """One connection's requests."""

    protocol_version = "HTTP/1.1"
    owner: FakeObjects

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def do_GET(self) -> None:
        if self._noted():
            return
        value = self.owner.objects.get(urllib.parse.unquote(self.path))
        if value is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        size = len(value) if isinstance(value, bytes) else os.path.getsize(value)
        start, stop = self.range(size)
        headers = {"ETag": '"one"', "Last-Modified": MODIFIED, "Content-Length": str(stop - start)}
        if "Range" in self.headers and size:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self.head(206 if "Content-Range" in headers else 200, headers)
        if self.command == "HEAD":
            return
        if isinstance(value, bytes):
            self.wfile.write(value[start:stop])
            return
        with value.open("rb") as file:
            while start < stop:
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        if self._noted():
            return
        path, _, query = self.path.partition("?")
        data = self.body(keep=not query)
        if query:
            with self.owner.lock:
                self.owner.received += int(self.headers["Content-Length"])
        elif self.headers.get("If-None-Match") == "*" and path in self.owner.objects:
            self.answer(412)
            return
        else:
            self.owner.objects[path] = data
        self.answer(200, headers={"ETag": '"one"'})

    def do_POST(self) -> None:
        if self._noted():
            return
        self.body(keep=False)
        path, _, query = self.path.partition("?")
        if query.startswith("uploads"):
            self.answer(200, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
            return
        self.owner.objects[path] = b""
        self.answer(200, b"<CompleteMultipartUploadResult><ETag>&quot;one&quot;</ETag></CompleteMultipartUploadResult>")

    def do_DELETE(self) -> None:
        if self._noted():
            return
        self.owner.objects.pop(self.path, None)
        self.answer(204)

    def range(self, size: int) -> tuple[int, int]:
        """The bytes that are asked for."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            return 0, size
        return int(match[1]), min(size, int(match[2] or size) + 1)

    def body(self, *, keep: bool) -> bytes:
        """Take the request's body, and forget it unless it is to be kept."""
        left = int(self.headers.get("Content-Length", 0))
        kept = []
        while left:
            piece = self.rfile.read(min(left, 1 << 20))
            if not piece:
                raise ConnectionError("the client went away")
            left -= len(piece)
            if keep:
                kept.append(piece)
        return b"".join(kept)

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """A complete answer."""
        self.head(status, {"Content-Length": str(len(body)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)

    def head(self, status: int, headers: dict[str, str]) -> None:
        """The begin of an answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def cut(self) -> None:
        """Break the connection."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _noted(self) -> bool:
        with self.owner.lock:
            self.owner.requests.append((self.command, self.path))
        return self.owner.fault is not None and self.owner.fault(self)
