"""A proxy between a client and a server that does, by script, what networks and servers do at their worst.

It keeps what it was sent and what it sent, so that a test can say that no byte went twice.
"""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
from dataclasses import dataclass, field

from tests.support.web import Handler, Server


@dataclass(frozen=True)
class Fault:
    """What becomes of one request; unset fields change nothing.

    Args:
        status: answer so, without asking the server.
        headers: set in the answer; None as a value takes one away.
        body: with `status`.
        cut: body bytes of the answer after which the connection breaks.
        cut_request: body bytes of the request after which the connection breaks; the server sees nothing of it.
        lose_answer: the server gets the request, the client no answer.
        flip: the byte of the answer's body that is changed.
        extra: sent behind the answer's body, within its length.
        short: bytes that are missing from the answer's body, and from its length.
    """

    status: int | None = None
    headers: dict[str, str | None] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    cut_request: int | None = None
    lose_answer: bool = False
    flip: int | None = None
    extra: bytes = b""
    short: int = 0


@dataclass
class Exchange:
    """One request, as it was, and how many body bytes went each way."""

    method: str
    path: str
    headers: dict[str, str]
    received: int = 0
    sent: int = 0
    status: int = 0


PASS = Fault()


class FaultProxy(Server):
    """Stands before `backend` ("host:port"); a context manager."""

    def __init__(self, backend: str) -> None:
        self.exchanges: list[Exchange] = []
        self._scripts: list[tuple[re.Pattern[str], list[Fault]]] = []
        self._lock = threading.Lock()
        outer = self

        class Forward(Handler):
            def handle_any(self) -> None:
                exchange = Exchange(self.command, self.path, dict(self.headers.items()))
                with outer._lock:
                    outer.exchanges.append(exchange)
                    fault = outer._next(f"{self.command} {self.path}")
                body = self.take_body(exchange, fault)
                if body is None:
                    return
                if fault.status is not None:
                    status, headers, data = fault.status, {}, fault.body
                else:
                    status, headers, data = ask(backend, self.command, self.path, self.headers, body)
                if fault.lose_answer:
                    self.break_off()
                    return
                exchange.status = status
                self.give(exchange, status, headers, data, fault)

            def take_body(self, exchange: Exchange, fault: Fault) -> bytes | None:
                length = int(self.headers.get("Content-Length", 0))
                wanted = length if fault.cut_request is None else min(length, fault.cut_request)
                body = self.rfile.read(wanted)
                exchange.received = len(body)
                if fault.cut_request is not None:
                    self.break_off()
                    return None
                return body

            def give(self, exchange: Exchange, status: int, headers: dict[str, str], data: bytes, fault: Fault) -> None:
                if fault.flip is not None:
                    data = data[: fault.flip] + bytes([data[fault.flip] ^ 1]) + data[fault.flip + 1 :]
                data = (data + fault.extra)[: len(data) + len(fault.extra) - fault.short]
                if self.command != "HEAD":
                    headers["Content-Length"] = str(len(data))
                for name, value in fault.headers.items():
                    headers = {key: kept for key, kept in headers.items() if key.lower() != name.lower()}
                    if value is not None:
                        headers[name] = value
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                piece = data if fault.cut is None else data[: fault.cut]
                exchange.sent = len(piece)
                self.wfile.write(piece)
                if fault.cut is not None:
                    self.wfile.flush()
                    self.close_connection = True

            def break_off(self) -> None:
                """Reset the connection, as a network does that drops dead."""
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        super().__init__(Forward)

    def script(self, pattern: str, *faults: Fault) -> None:
        """Let the next requests that match ("METHOD /path") come to these faults, one each."""
        self._scripts.append((re.compile(pattern), list(faults)))

    def of(self, pattern: str) -> list[Exchange]:
        """The exchanges whose "METHOD /path" matches."""
        return [item for item in self.exchanges if re.search(pattern, f"{item.method} {item.path}")]

    def _next(self, request: str) -> Fault:
        for pattern, faults in self._scripts:
            if faults and pattern.search(request):
                return faults.pop(0)
        return PASS


def ask(
    backend: str, method: str, path: str, headers: http.client.HTTPMessage, body: bytes
) -> tuple[int, dict[str, str], bytes]:
    """The server's answer; the Host header stays, so that its addresses lead through the proxy again."""
    connection = http.client.HTTPConnection(backend, timeout=30)
    try:
        sent = {name: value for name, value in headers.items() if name.lower() != "connection"}
        connection.request(method, path, body=body or None, headers=sent)
        answer = connection.getresponse()
        given = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "date")}
        return answer.status, given, answer.read()
    finally:
        connection.close()
