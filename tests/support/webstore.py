"""A web server for a directory that counts what it sends, and may be slow, lie, or fail."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from eroseal.store.document import Document
from eroseal.store.local import LocalStore

Meddle = Callable[[str, int, bytes], bytes | None]
"""From path, offset and the bytes there to those that are sent; None answers that the server failed."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_args: object) -> None:
        """Clients that were killed are no news."""


class WebDirectory:
    """A directory behind HTTP/1.1 with single ranges, on a free port of the loopback interface.

    Args:
        root: that is served.

    Attributes:
        sent: bytes of bodies by path.
        asked: bodies by path and first byte.
        meddle: changes bodies; may wait, too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sent: Counter[str] = Counter()
        self.asked: Counter[tuple[str, int]] = Counter()
        self.meddle: Meddle | None = None
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def total(self) -> int:
        """Bytes of blobs that were sent."""
        with self._lock:
            return sum(count for path, count in self.sent.items() if path.startswith("/blobs/"))

    def forget(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self.sent.clear()
            self.asked.clear()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _count(self, path: str, offset: int, length: int) -> None:
        with self._lock:
            self.sent[path] += length
            self.asked[path, offset] += 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def log_message(self, *_args: object) -> None:
                pass

            def _answer(self, *, body: bool) -> None:
                try:
                    fd = os.open(f"{web.root}{self.path}", os.O_RDONLY)
                except OSError:
                    self._plain(404)
                    return
                with contextlib.suppress(ConnectionError), open(fd, "rb") as file:
                    size = os.fstat(fd).st_size
                    found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                    first, last = (int(found[1]), min(int(found[2]), size - 1)) if found else (0, size - 1)
                    file.seek(first)
                    data = file.read(last + 1 - first) if body else b""
                    if body and web.meddle is not None:
                        changed = web.meddle(self.path, first, data)
                        if changed is None:
                            self._plain(500)
                            return
                        data = changed
                    self.send_response(206 if found else 200)
                    self.send_header("Content-Length", str(last + 1 - first))
                    self.send_header("Accept-Ranges", "bytes")
                    if found:
                        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
                    self.end_headers()
                    if body:
                        web._count(self.path, first, len(data))
                        self.wfile.write(data)

            def _plain(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        return Handler


@contextlib.contextmanager
def serving(root: Path) -> Iterator[WebDirectory]:
    """A server for as long as the context lasts."""
    server = WebDirectory(root)
    try:
        yield server
    finally:
        server.stop()


def blob_bytes(document: Document) -> int:
    """Bytes of all blobs of an image."""
    return sum(blob.size for blob in dict.fromkeys(document.blobs))


def same_image(first: LocalStore, second: LocalStore, name: str) -> bool:
    """Whether two stores have an image with the same blobs, byte for byte, and the same record."""
    (document, record), (other, other_record) = first.image(name), second.image(name)
    return (document, record) == (other, other_record) and all(
        first.blob_path(blob.digest).read_bytes() == second.blob_path(blob.digest).read_bytes()
        for blob in document.blobs
    )
