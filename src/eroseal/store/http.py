"""One HTTP client for registries and web servers: pooled, bounded, and distrustful.

What one try of a request does is http_exchange's; this module adds what callers want: tries again where that can
help, bounded bodies, ranges and streams. Every byte that a caller gets was asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from eroseal.limits import MAX_JSON_BODY
from eroseal.store.http_download import Download
from eroseal.store.http_exchange import Authenticator, Content, Exchange
from eroseal.store.http_retry import retried
from eroseal.store.http_rules import content_length
from eroseal.store.remote import RemoteOptions


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer.

    Args:
        status: of HTTP.
        headers: by name in any case.
        body: whole.
        url: that gave it, after redirects.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str


@dataclass(frozen=True, slots=True)
class Head:
    """What a server says about an object.

    Args:
        size: in bytes; None if it does not say.
        etag: its version; None without one.
        headers: all of them.
    """

    size: int | None
    etag: str | None
    headers: Mapping[str, str]


class HttpClient:
    """Requests to any number of hosts over one pool of connections; safe for use by several threads.

    Args:
        options: what holds for all servers. Connections are as many as there are threads that ask at once;
            `parallel` of them are kept for the next requests.
        authenticator: of the one origin that gets credentials.
    """

    def __init__(self, options: RemoteOptions, *, authenticator: Authenticator | None = None) -> None:
        self.options = options
        self._exchange = Exchange(options, authenticator)

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Content = b"",
        expect: Collection[int] = (200,),
        limit: int = MAX_JSON_BODY,
        retry: bool = True,
    ) -> Answer:
        """Send a request and read its answer whole.

        Args:
            method: GET and HEAD follow redirects, others do not.
            url: absolute.
            headers: beyond those that every request has; `Authorization` goes to this address's origin only.
            content: the body.
            expect: statuses that are no errors.
            limit: bytes that the answer's body may have.
            retry: try again after failures that may pass; False where the request must not arrive twice.

        Raises:
            RemoteError: the server cannot be reached, fails, redirects where it must not, or says too much;
                its subclass TransientError where trying later may help.
            AccessError: it does not let us.
            NotFoundError: it has no such thing.
        """

        def once() -> Answer:
            response = self._exchange.open(method, url, headers=headers, content=content, expect=expect)
            try:
                body = self._exchange.body(response, 0 if method == "HEAD" else limit)
            finally:
                response.close()
            return Answer(response.status_code, response.headers, body, str(response.request.url))

        return retried(self.options.attempts, once) if retry else once()

    def get_bytes(self, url: str, *, limit: int, headers: Mapping[str, str] | None = None) -> bytes:
        """A small object whole; raises RemoteError for more than `limit` bytes, NotFoundError, AccessError."""
        return self.request("GET", url, headers=headers, limit=limit).body

    def head(self, url: str, *, headers: Mapping[str, str] | None = None) -> Head:
        """What the server says about an object without sending it; raises NotFoundError, AccessError, RemoteError."""
        answer = self.request("HEAD", url, headers=headers)
        return Head(content_length(answer.headers), answer.headers.get("etag"), answer.headers)

    def read_range(
        self, url: str, offset: int, length: int, *, size: int | None = None, etag: str | None = None
    ) -> bytes:
        """Exactly `length` bytes from byte `offset` on.

        Args:
            url: of the object.
            offset: in bytes.
            length: in bytes.
            size: of the whole object, if known; another one is refused.
            etag: of the object, if known; another one is refused.

        Raises:
            FormatError: the object is not the expected one, or has no such bytes.
            RemoteError: the server fails, or does not do ranges.
            NotFoundError: there is no such object.
            AccessError: the server does not let us.
        """
        if length == 0:
            return b""
        with Download(self._exchange, url, offset, offset + length, size=size, etag=etag) as download:
            return b"".join(download)

    def stream(self, url: str, *, size: int | None = None, start: int = 0) -> Iterator[bytes]:
        """An object from byte `start` to its end in pieces; broken connections are taken up where they broke.

        Args:
            url: of the object.
            size: of the whole in bytes; another one is refused. None trusts the server.
            start: first byte.

        Raises:
            FormatError, RemoteError, NotFoundError, AccessError: as for `read_range`.
        """
        if size is not None and start == size:
            return
        with Download(self._exchange, url, start, size, size=size) as download:
            yield from download

    def close(self) -> None:
        """Close all connections; closing twice does no harm."""
        self._exchange.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
