"""A small web server with ranges and ETags, and what servers on loopback have in common."""

from __future__ import annotations

import hashlib
import re
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self


class Server:
    """A server on a free loopback port, in a thread of its own; a context manager that ends it."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = QuietServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    # Threads of connections that clients keep open would be waited for.
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away in the middle: that is what the tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        pass

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class WebServer(Server):
    """Serves `files`, by path; without `ranges` it sends whole objects only."""

    def __init__(self, files: dict[str, bytes], *, ranges: bool = True) -> None:
        self.files = files
        self.connections: set[tuple[str, int]] = set()
        outer = self

        class Static(Handler):
            def do_GET(self) -> None:
                outer.connections.add(self.client_address)
                data = outer.files.get(self.path.partition("?")[0])
                if data is None:
                    self.answer(404, {}, b"no such file\n")
                    return
                headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:16]}"'}
                asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                if asked is None or not ranges:
                    self.answer(200, headers, data)
                    return
                first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
                if first > last:
                    self.answer(416, {"Content-Range": f"bytes */{len(data)}"})
                    return
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                self.answer(206, headers, data[first : last + 1])

            do_HEAD = do_GET

        super().__init__(Static)


def make_certificate(openssl: str, place: Path) -> None:
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", place / "key.pem", "-out", place / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip


def with_tls(server: Server, place: Path) -> Server:
    """Let a server that has not begun yet speak TLS, with the certificate made in `place`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(place / "cert.pem", place / "key.pem")
    inner = server._server
    inner.socket = context.wrap_socket(inner.socket, server_side=True)
    return server
