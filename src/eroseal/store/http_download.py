"""A range of an object as it arrives, however often its connection breaks.

Each connection is asked for what is still missing, and must answer with that and no more. The object must stay the
same: its size and its ETag are compared each time. A try counts as failed only if it brought nothing new, so that a
long download over a bad line ends, and one that stands still, or that crawls from break to break, does too.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from eroseal.errors import FormatError, RemoteError
from eroseal.limits import IO_CHUNK
from eroseal.store.http_exchange import Exchange
from eroseal.store.http_retry import retried
from eroseal.store.http_rules import TransientError, content_length, content_range, shown

if TYPE_CHECKING:
    import httpx2

_MAX_SKIP: Final = 4 << 20
"""Bytes that are thrown away when a server sends the whole of it in place of a range: about what a second costs."""
_BREAKS: Final = 4
"""Breaks without a step between them, for each try of a request."""
_STEP: Final = 64 << 10
"""Bytes that make up for all breaks before them."""


class Download:
    """Pieces of bytes `start` to `end` of an object; iterate once, and close.

    Args:
        exchange: that asks.
        url: of the object.
        start: first byte.
        end: byte after the last; None means the object's end, as the server tells it.
        size: of the whole object, if known.
        etag: of the object, if known.
    """

    __slots__ = (
        "_breaks",
        "_broken",
        "_end",
        "_etag",
        "_exchange",
        "_mark",
        "_pieces",
        "_position",
        "_response",
        "_size",
        "_surplus",
        "_url",
        "_where",
    )

    def __init__(
        self,
        exchange: Exchange,
        url: str,
        start: int,
        end: int | None,
        *,
        size: int | None = None,
        etag: str | None = None,
    ) -> None:
        self._exchange = exchange
        self._url = url
        self._where = shown(url)
        self._position = start
        self._end = end
        self._size = size
        self._etag = etag
        self._response: httpx2.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._surplus = False
        self._broken: TransientError | None = None
        self._breaks = 0
        self._mark = start

    def __iter__(self) -> Iterator[bytes]:
        while self._end is None or self._position < self._end:
            yield from retried(self._exchange.options.attempts, self._some)

    def close(self) -> None:
        """Drop the connection if there is something left to come; closing twice does no harm."""
        response, self._response = self._response, None
        if response is not None:
            response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _some(self) -> list[bytes]:
        """The next pieces, about IO_CHUNK bytes; TransientError where not one byte came."""
        if self._broken is not None:
            broken, self._broken = self._broken, None
            raise broken
        if self._response is None:
            self._connect()
        begin = self._position
        got: list[bytes] = []
        try:
            self._gather(got)
        except TransientError as error:
            self.close()
            if self._position == begin:
                raise
            self._count_break(error)
            # What came counts; the failure is the next try's, which then waits.
            self._broken = error
        return got

    def _count_break(self, error: TransientError) -> None:
        """Refuse a server that gives a few bytes and breaks off, again and again."""
        if self._position - self._mark >= _STEP:
            self._mark, self._breaks = self._position, 0
        self._breaks += 1
        if self._breaks > _BREAKS * self._exchange.options.attempts:
            raise RemoteError(f"{error.what}, again and again", where=self._where) from error

    def _gather(self, got: list[bytes]) -> None:
        end = self._end
        assert end is not None
        full = min(end, self._position + IO_CHUNK)
        while self._position < full:
            piece = next(self._pieces, None)
            if piece is None:
                raise TransientError(f"ended at byte {self._position} of {end}", where=self._where)
            missing = end - self._position
            if len(piece) > missing:
                self._refuse_surplus()
                piece = piece[:missing]
            got.append(piece)
            self._position += len(piece)
        if self._position == end:
            if not self._surplus:
                self._run_out()
            self.close()

    def _run_out(self) -> None:
        """Let an answer come to its end, so that its connection serves the next request."""
        try:
            if next(self._pieces, None) is not None:
                self._refuse_surplus()
        except TransientError:
            # All that was wanted is there.
            return

    def _refuse_surplus(self) -> None:
        if not self._surplus:
            raise RemoteError("sends more bytes than it said", where=self._where)

    def _connect(self) -> None:
        start, end = self._position, self._end
        headers = {}
        if start or (end is not None and end != self._size):
            headers["Range"] = f"bytes={start}-" + (f"{end - 1}" if end is not None else "")
        response = self._response = self._exchange.open("GET", self._url, headers=headers, expect=(200, 206, 416))
        if response.status_code == 416:
            raise FormatError(f"has no bytes {start} to {end}", where=self._where)
        skip = 0
        if response.status_code == 206:
            first, last, total = content_range(response.headers, self._where)
            if first != start or (end is not None and last > end):
                raise RemoteError("sends another part of it than was asked for", where=self._where)
            self._surplus = False
        else:
            total, skip = content_length(response.headers), start
            self._surplus = end is not None and total != end
            if skip > _MAX_SKIP:
                raise RemoteError("does not send parts of objects", where=self._where, hint="use another server")
        self._same_object(total, response.headers.get("etag"))
        self._pieces = _skipping(self._exchange.pieces(response), skip)

    def _same_object(self, size: int | None, etag: str | None) -> None:
        """Compare with what is known of the object, and learn the rest."""
        known = self._size
        if size is not None and known is not None and size != known:
            raise FormatError(f"has {size} bytes, not {known}", where=self._where)
        if etag is not None and self._etag is not None and etag != self._etag:
            raise FormatError("changed while it was read", where=self._where, hint="start again")
        self._size = size if known is None else known
        self._etag = etag if self._etag is None else self._etag
        if self._end is None:
            if self._size is None:
                raise RemoteError("does not say how many bytes it has", where=self._where)
            self._end = self._size
        if self._size is not None and self._size < self._end:
            raise FormatError(f"has {self._size} bytes, not {self._end}", where=self._where)


def _skipping(pieces: Iterator[bytes], skip: int) -> Iterator[bytes]:
    for piece in pieces:
        if skip >= len(piece):
            skip -= len(piece)
            continue
        yield piece[skip:] if skip else piece
        skip = 0
