"""One try of a request: sent, authorized, redirected, and its answer judged by its status.

It stands on transports of httpx2, below that library's client, which would keep cookies, read the environment and
log addresses with the signatures in them. Redirects are followed here, by hand, so that credentials stay with the
host that they are for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from eroseal.errors import AccessError, RemoteError, UsageError
from eroseal.store.http_rules import (
    LOG_IN,
    MAX_REDIRECTS,
    REDIRECTS,
    TransientError,
    address_fault,
    joined,
    origin,
    parse_address,
    shown,
    status_error,
    transport_error,
    words_of,
)
from eroseal.store.http_settings import proxy_for, tls_context
from eroseal.store.remote import RemoteOptions

if TYPE_CHECKING:
    import httpx2

Content = bytes | Callable[[], Iterator[bytes]]
"""A request's body; a callable starts it anew for each try, and its length is then in the headers."""

_ERROR_BODY: Final = 8 << 10
"""Bytes of an error's body that are read: more than is shown, and enough to keep most connections usable."""
_SLOWEST: Final = 100
"""Bytes a second that a body must bring, over the timeout: a byte before each timeout would keep us for years."""
_KEEP_SECONDS: Final = 30.0
"""Seconds that an idle connection is kept."""
_CONNECT_SECONDS: Final = 10.0
"""Seconds that making a connection may take."""


class Authenticator(Protocol):
    """Credentials of one origin; safe for use by several threads."""

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port that they are for; nobody else is sent them."""
        ...

    def authorization(self) -> str | None:
        """The Authorization header for the next request, if there is one yet."""
        ...

    def challenged(self, challenges: list[str], used: str | None) -> bool:
        """Deal with a 401; True if the request should be tried once more.

        Args:
            challenges: the WWW-Authenticate headers.
            used: what was sent.
        """
        ...


class Exchange:
    """Requests to any number of hosts over one pool of connections; safe for use by several threads.

    Args:
        options: what holds for all servers.
        authenticator: of the one origin that gets credentials.
    """

    def __init__(self, options: RemoteOptions, authenticator: Authenticator | None) -> None:
        import httpx2  # noqa: PLC0415 - most commands speak to no server

        self.options = options
        self._auth = authenticator
        self._tls = tls_context(options)
        self._lock = threading.Lock()
        self._transports: dict[str | None, httpx2.HTTPTransport] = {}
        connect = min(_CONNECT_SECONDS, options.timeout)
        self._timeout = httpx2.Timeout(options.timeout, connect=connect, pool=None).as_dict()

    def open(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Content = b"",
        expect: Collection[int] = (200,),
    ) -> httpx2.Response:
        """One try of a request; gives the answer with its body still to come, which the caller closes.

        Raises:
            RemoteError, AccessError, NotFoundError: as for `request`.
        """
        target = parse_address(url)
        fault = address_fault(target, tls_verify=self.options.tls_verify)
        if fault is not None:
            raise UsageError(fault, where=shown(target), hint="use https://")
        given = {"Accept": "*/*", **(headers or {})}
        for _ in range(MAX_REDIRECTS + 1):
            response, used = self._authorized(method, target, given, content)
            if response.status_code in expect:
                return response
            if response.status_code not in REDIRECTS:
                raise self._refusal(response, used)
            self._drain(response)
            target, given = self._redirected(method, target, response, given)
        raise RemoteError(f"redirects more than {MAX_REDIRECTS} times", where=shown(url))

    def pieces(self, response: httpx2.Response) -> Iterator[bytes]:
        """The body of an answer as it comes, not decoded.

        Raises:
            TransientError: the connection breaks, or brings so little that somebody must mean it. Only the time that
                is spent in waiting counts.
        """
        import httpx2  # noqa: PLC0415 - most commands speak to no server

        body, waited, arrived = response.iter_raw(), 0.0, 0
        try:
            while True:
                begun = time.monotonic()
                piece = next(body, None)
                waited += time.monotonic() - begun
                if piece is None:
                    return
                arrived += len(piece)
                yield piece
                if waited >= self.options.timeout:
                    if arrived < _SLOWEST * waited:
                        raise TransientError("sends next to nothing", where=shown(response.request.url))
                    waited, arrived = 0.0, 0
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise transport_error(error, shown(response.request.url)) from error

    def body(self, response: httpx2.Response, limit: int) -> bytes:
        """A whole body of at most `limit` bytes; raises RemoteError."""
        body = bytearray()
        for piece in self.pieces(response):
            body += piece
            if len(body) > limit:
                raise RemoteError(f"sends more than {limit} bytes", where=shown(response.request.url))
        return bytes(body)

    def close(self) -> None:
        """Close all connections; closing twice does no harm."""
        with self._lock:
            transports = list(self._transports.values())
            self._transports.clear()
        for transport in transports:
            transport.close()

    def _transport(self, target: httpx2.URL) -> httpx2.HTTPTransport:
        """The pool of connections for an address: one for all, and one for each proxy."""
        import httpx2  # noqa: PLC0415 - most commands speak to no server

        proxy = proxy_for(target, self.options)
        with self._lock:
            transport = self._transports.get(proxy)
            if transport is None:
                limits = httpx2.Limits(
                    max_connections=None,
                    max_keepalive_connections=max(self.options.parallel, 1),
                    keepalive_expiry=_KEEP_SECONDS,
                )
                try:
                    transport = httpx2.HTTPTransport(verify=self._tls, trust_env=False, limits=limits, proxy=proxy)
                except (ValueError, ImportError, httpx2.InvalidURL) as error:
                    # Its address may hold a password.
                    raise UsageError("cannot use the proxy that the environment names", where=shown(target)) from error
                self._transports[proxy] = transport
            return transport

    def _authorized(
        self, method: str, target: httpx2.URL, headers: Mapping[str, str], content: Content
    ) -> tuple[httpx2.Response, str | None]:
        """Send with the credentials of this origin, and once more if they had to be renewed."""
        auth = self._auth if self._auth is not None and self._auth.origin == origin(target) else None
        given = headers.get("Authorization")
        used = given or (auth.authorization() if auth is not None else None)
        response = self._send(method, target, headers, content, used)
        if response.status_code != 401 or auth is None or given is not None:
            return response, used
        self._drain(response)
        if not auth.challenged(response.headers.get_list("www-authenticate"), used):
            raise AccessError("refused without the right credentials (401)", where=shown(target), hint=LOG_IN)
        used = auth.authorization()
        return self._send(method, target, headers, content, used), used

    def _send(
        self, method: str, target: httpx2.URL, headers: Mapping[str, str], content: Content, authorization: str | None
    ) -> httpx2.Response:
        import httpx2  # noqa: PLC0415 - most commands speak to no server

        sent = {"User-Agent": "eroseal", "Accept-Encoding": "identity", **headers}
        if authorization is not None:
            sent["Authorization"] = authorization
        try:
            request = httpx2.Request(
                method,
                target,
                headers=sent,
                content=content() if callable(content) else content,
                extensions={"timeout": self._timeout},
            )
            response = self._transport(target).handle_request(request)
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise transport_error(error, shown(target)) from error
        response.request = request
        encoding = response.headers.get("content-encoding", "identity").lower()
        if encoding != "identity" and response.status_code < 300:
            response.close()
            raise RemoteError("sends its content in an encoding that was not asked for", where=shown(target))
        return response

    def _redirected(
        self, method: str, target: httpx2.URL, response: httpx2.Response, headers: dict[str, str]
    ) -> tuple[httpx2.URL, dict[str, str]]:
        if method not in ("GET", "HEAD"):
            raise RemoteError(f"redirects a {method} request ({response.status_code})", where=shown(target))
        onward = joined(str(target), response.headers.get("location", ""))
        fault = address_fault(onward, tls_verify=self.options.tls_verify)
        if fault is None and (target.scheme, onward.scheme) == ("https", "http"):
            fault = "from TLS to plain HTTP"
        if fault is not None:
            raise RemoteError(f"redirects to {shown(onward)}: {fault}", where=shown(target))
        if origin(onward) == origin(target):
            return onward, headers
        return onward, {name: value for name, value in headers.items() if name != "Authorization"}

    def _refusal(self, response: httpx2.Response, used: str | None) -> Exception:
        words = words_of(self._drain(response), used)
        return status_error(response.status_code, shown(response.request.url), words, response.headers)

    def _drain(self, response: httpx2.Response) -> bytes:
        """The first bytes of a body that is not wanted; never raises."""
        body = b""
        try:
            for piece in self.pieces(response):
                body += piece
                if len(body) >= _ERROR_BODY:
                    break
        except RemoteError:
            pass
        finally:
            response.close()
        return body[:_ERROR_BODY]
