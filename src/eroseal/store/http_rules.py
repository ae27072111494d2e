"""What HTTP requests and answers must look like before the client acts on them; no I/O.

Addresses: plain HTTP reaches the loopback interface only, unless certificates do not matter to the user anyway, and
no redirect leads from TLS to plain text. Answers: what a server says is shown cleaned and short, never raw, and
addresses without their queries, because those of object stores hold signatures.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from eroseal.errors import AccessError, ErosealError, NotFoundError, RemoteError, UsageError

if TYPE_CHECKING:
    import httpx2

MAX_REDIRECTS: Final = 5
"""Redirects that one request follows: registries need one or two."""
MAX_ERROR_TEXT: Final = 200
"""Characters of a server's words that a message shows."""
MAX_RETRY_AFTER: Final = 60.0
"""Seconds of Retry-After that are waited: a server that needs longer gets the request, and may refuse again."""

LOG_IN: Final = "log in as for other container tools, with podman or docker login"
"""What a user can do about missing credentials."""
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PASSING: Final = frozenset({408, 425, 429})
# Servers that do not know the method or the protocol will not learn it.
_LASTING: Final = frozenset({501, 505})
_CONTENT_RANGE: Final = re.compile(r"bytes +([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.ASCII)
_LENGTH: Final = re.compile(r"[0-9]{1,19}", re.ASCII)
_MESSAGE: Final = re.compile(r'"message"\s*:\s*"((?:[^"\\]|\\.){1,400})"')
_SHORTEST_SECRET: Final = 4


class TransientError(RemoteError):
    """A failure that trying again may help against.

    Args:
        wait: seconds that the server asks to wait, at most MAX_RETRY_AFTER; None if it does not say.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None, wait: float | None = None):
        super().__init__(what, where=where, hint=hint)
        self.wait = wait


class NoTlsError(RemoteError):
    """What answers does not speak TLS."""


def is_loopback(host: str) -> bool:
    """Whether a host, without its port, is this machine by its very name."""
    host = host.strip("[]").lower()
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def origin(url: httpx2.URL) -> tuple[str, str, int]:
    """Scheme, host and port: what credentials are bound to."""
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def origin_of(address: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address; raises UsageError."""
    return origin(parse_address(address))


def parse_address(text: str) -> httpx2.URL:
    """An address without its fragment; raises UsageError for what is none."""
    import httpx2  # noqa: PLC0415 - most commands speak to no server

    try:
        return httpx2.URL(text).copy_with(fragment=None)
    except httpx2.InvalidURL as error:
        raise UsageError("is not an address", where=shown(text)) from error


def joined(base: str, reference: str) -> httpx2.URL:
    """Where a server's reference leads from an address; raises RemoteError for what is none."""
    import httpx2  # noqa: PLC0415 - most commands speak to no server

    try:
        return httpx2.URL(base).join(reference).copy_with(fragment=None)
    except httpx2.InvalidURL as error:
        raise RemoteError("points to something that is no address", where=shown(base)) from error


def shown(url: httpx2.URL | str) -> str:
    """An address as messages show it: without user, query and fragment."""
    text = re.split(r"[?#]", str(url), maxsplit=1)[0]
    return clean(re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/]*@", r"\1", text))


def address_fault(url: httpx2.URL, *, tls_verify: bool) -> str | None:
    """Why an address must not be asked, or None."""
    if url.scheme not in ("https", "http") or not url.host:
        return "is not an address of a web server"
    if url.userinfo:
        return "addresses do not carry passwords"
    if url.scheme == "http" and tls_verify and not is_loopback(url.host):
        return "plain HTTP would let anybody on the way read and change what is sent"
    return None


def clean(text: str) -> str:
    """Foreign text, fit for a terminal: printable, one line, at most MAX_ERROR_TEXT characters."""
    words = "".join(character if character.isprintable() else " " for character in text[: 8 * MAX_ERROR_TEXT])
    return " ".join(words.split())[:MAX_ERROR_TEXT]


def words_of(body: bytes, secret: str | None = None) -> str:
    """What an error's body says: the first message of a registry's JSON, or the text itself; b"" and HTML say nothing.

    Args:
        body: as far as it was read.
        secret: the Authorization header that was sent; a server that repeats it does not get it shown.
    """
    text = body.decode("utf-8", "replace")
    message = _MESSAGE.search(text)
    if message is not None:
        text = message[1].replace('\\"', '"')
    elif text.lstrip().startswith("<"):
        return ""
    return clean(_without(text, secret))


def _without(text: str, secret: str | None) -> str:
    parts = {secret or "", *(secret or "").split(" ")[1:]}
    for part in list(parts):
        try:
            decoded = base64.b64decode(part, validate=True).decode()
        except (binascii.Error, ValueError):
            continue
        parts |= {decoded, decoded.partition(":")[2]}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= _SHORTEST_SECRET:
            text = text.replace(part, "...")
    return text


def status_error(status: int, where: str, words: str, headers: Mapping[str, str]) -> ErosealError:
    """The error that an unwelcome status means.

    Source: RFC 9110 section 15.
    """
    said = f": {words}" if words else ""
    if status == 401:
        return AccessError(f"refused without the right credentials (401){said}", where=where, hint=LOG_IN)
    if status == 403:
        return AccessError(f"refused access (403){said}", where=where, hint="these credentials do not suffice")
    if status in (404, 410):
        return NotFoundError(f"not found ({status}){said}", where=where)
    if status in _PASSING or (status >= 500 and status not in _LASTING):
        hint = "the server limits requests; try again later" if status == 429 else None
        return TransientError(f"answered {status}{said}", where=where, hint=hint, wait=retry_after(headers))
    return RemoteError(f"answered {status}{said}", where=where)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds of a Retry-After header, capped; None without a usable one.

    Args:
        headers: of the answer.
        now: seconds since the epoch, for answers that name a date and have no Date of their own.

    Source: RFC 9110 section 10.2.3.
    """
    value = headers.get("retry-after", "").strip()
    if _LENGTH.fullmatch(value):
        return min(float(value), MAX_RETRY_AFTER)
    until = _date(value)
    since = _date(headers.get("date", "")) if now is None else now
    if until is None or since is None:
        return None
    return min(max(until - since, 0.0), MAX_RETRY_AFTER)


def _date(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def content_length(headers: Mapping[str, str]) -> int | None:
    """Bytes that an answer says it has; None if it does not say, or nonsense."""
    value = headers.get("content-length", "")
    return int(value) if _LENGTH.fullmatch(value) else None


def content_range(headers: Mapping[str, str], where: str) -> tuple[int, int, int | None]:
    """First byte, byte after the last, and size of the whole, of a partial answer; None for an unknown size.

    Raises:
        RemoteError: it says no such thing, or nonsense.

    Source: RFC 9110 section 14.4.
    """
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    first, last = (int(match[1]), int(match[2])) if match is not None else (0, -1)
    total = int(match[3]) if match is not None and match[3] != "*" else None
    if last < first or (total is not None and last >= total):
        raise RemoteError("sends a part of it, but does not say which", where=where)
    return first, last + 1, total


def transport_error(error: Exception, where: str) -> RemoteError:
    """A failure to connect, send or receive, as one of our own."""
    import httpx2  # noqa: PLC0415 - most commands speak to no server

    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return RemoteError(
                f"its certificate is not trusted: {cause.verify_message}",
                where=where,
                hint="add its CA to the system's",
            )
        if isinstance(cause, ssl.SSLError):
            return NoTlsError(f"does not speak TLS: {cause.reason or 'handshake failed'}", where=where)
        if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
            return RemoteError("no such host", where=where, hint="check its name")
    if isinstance(error, httpx2.ProxyError):
        return RemoteError("the proxy refuses", where=where)
    if isinstance(error, httpx2.TimeoutException):
        return TransientError("does not answer in time", where=where)
    if isinstance(error, httpx2.ConnectError):
        return TransientError("cannot be reached", where=where, hint="check the address and the network")
    if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
        return TransientError("the connection broke", where=where)
    return RemoteError("cannot be asked", where=where)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
