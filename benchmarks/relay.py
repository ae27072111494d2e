"""A relay between a client and an HTTP server: it counts, and may make every request wait.

It passes bytes on as they come and knows of HTTP only that a client speaks, then the server: what a client sends first
after the server spoke is a request.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

_PIECE = 1 << 20


class Relay:
    """Stands before a server on loopback for as long as the context lasts.

    Args:
        port: of the server.
        delay: seconds that each request waits.

    Attributes:
        connections: that clients opened.
        requests: that they made.
        most: requests that waited for the first byte of their answer at once, at most.
        up, down: bytes to the server, and from it.
    """

    def __init__(self, port: int, *, delay: float = 0.0) -> None:
        self._server = port
        self._delay = delay
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._waiting: set[int] = set()
        self.port: int = self._listener.getsockname()[1]
        self.connections = self.requests = self.most = self.up = self.down = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                number = self.connections
            server = socket.create_connection(("127.0.0.1", self._server))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for work in (self._upward, self._downward):
                threading.Thread(target=work, args=(number, client, server), daemon=True).start()

    def _upward(self, number: int, client: socket.socket, server: socket.socket) -> None:
        for data in _received(client):
            with self._lock:
                new = number not in self._waiting
                if new:
                    self._waiting.add(number)
                    self.requests += 1
                    self.most = max(self.most, len(self._waiting))
                self.up += len(data)
            if new and self._delay:
                time.sleep(self._delay)
            if not _sent(server, data):
                break
        _end(server)

    def _downward(self, number: int, client: socket.socket, server: socket.socket) -> None:
        for data in _received(server):
            with self._lock:
                self._waiting.discard(number)
                self.down += len(data)
            if not _sent(client, data):
                break
        with self._lock:
            self._waiting.discard(number)
        _end(client)


def _received(source: socket.socket) -> Iterator[memoryview]:
    buffer = bytearray(_PIECE)
    with contextlib.suppress(OSError), memoryview(buffer) as view:
        while count := source.recv_into(buffer):
            yield view[:count]


def _sent(target: socket.socket, data: memoryview) -> bool:
    try:
        target.sendall(data)
    except OSError:
        return False
    return True


def _end(target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
