"""The two ends of reading an archive: a cursor in a stream of pieces, and the spool that contents go to.

Small contents are cut out of the stream and written in batches; large ones go from the stream's pieces to the spool
without a copy. Neither end holds more than a few MiB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from eroseal.errors import FormatError, OutputError
from eroseal.format.tar import BLOCK
from eroseal.limits import IO_CHUNK

ALIGNMENT: Final = 4096
"""Large contents begin at multiples of this in the spool, so that their holes and blocks are its own."""
_FILL: Final = 64 << 10
"""Bytes that are gathered at least where pieces are smaller."""


class Cursor:
    """Takes bytes off a stream, in blocks, runs or whatever lies ready.

    Args:
        pieces: the stream.
        seen: called with every piece as it arrives.
        unpadded: the stream may end right behind a member's content, without its padding.
    """

    __slots__ = ("_at", "_data", "_ended", "_pieces", "_seen", "_taken", "_unpadded")

    def __init__(
        self, pieces: Iterable[bytes], seen: Callable[[bytes], None] | None, *, unpadded: bool = False
    ) -> None:
        self._unpadded = unpadded
        self._pieces: Iterator[bytes] = iter(pieces)
        self._seen = seen
        self._data = b""
        self._at = 0
        self._taken = 0
        self._ended = False

    @property
    def position(self) -> int:
        """Bytes taken so far."""
        return self._taken + self._at

    def block(self) -> bytes:
        """The next block; b"" at the end of the stream.

        Raises:
            FormatError: the stream ends within the block.
        """
        start = self._at
        end = start + BLOCK
        if end > len(self._data):
            self._refill(BLOCK)
            if len(self._data) < BLOCK:
                if not self._data:
                    return b""
                raise _truncated(self.position + len(self._data))
            start, end = 0, BLOCK
        self._at = end
        return self._data[start:end]

    def take(self, length: int) -> bytes:
        """The next bytes, which the caller has bounded, and the padding behind them is passed over."""
        start = self._at
        end = start + length
        padded = end + -length % BLOCK
        if padded > len(self._data):
            self._refill(padded - start)
            start, end, padded = 0, length, padded - start
            if padded > len(self._data):
                if end > len(self._data) or not self._unpadded:
                    raise _truncated(self.position + len(self._data))
                padded = len(self._data)
        self._at = padded
        return self._data[start:end]

    def ready(self, limit: int) -> memoryview:
        """Some of the next bytes, one at least and at most `limit`, without a copy.

        Raises:
            FormatError: the stream has ended.
        """
        if self._at_end():
            raise _truncated(self.position)
        view = memoryview(self._data)[self._at : self._at + limit]
        self._at += len(view)
        return view

    def skip(self, length: int) -> None:
        """Pass over bytes."""
        while length:
            length -= len(self.ready(length))

    def skip_padding(self, length: int) -> None:
        """Pass over what fills the last block of a content of `length` bytes."""
        left = -length % BLOCK
        while left and not (self._unpadded and self._at_end()):
            left -= len(self.ready(left))

    def _at_end(self) -> bool:
        if self._at >= len(self._data):
            self._taken += self._at
            self._data, self._at = self._next(), 0
        return not self._data

    def drain(self, limit: int, *, zeros: bool) -> None:
        """Read to the end of the stream.

        Args:
            limit: bytes that may follow.
            zeros: whether only zeros may follow.

        Raises:
            FormatError: more than `limit` bytes, or others than zeros.
        """
        left = limit
        piece = self._data[self._at :]
        self._taken += len(self._data)
        self._data, self._at = b"", 0
        while piece and left >= 0:
            left -= len(piece)
            if zeros and piece.count(0) != len(piece):
                raise FormatError("something follows the archive's end", hint="is it a tar archive, and only one?")
            piece = self._next()
        if left < 0:
            raise FormatError(f"more than {limit} bytes follow the archive's end")

    def _refill(self, needed: int) -> None:
        """Have `needed` bytes from the beginning of `_data` on, or all there are."""
        parts = [self._data[self._at :]]
        have = len(parts[0])
        self._taken += self._at
        while have < max(needed, _FILL) and (piece := self._next()):
            parts.append(piece)
            have += len(piece)
        self._data, self._at = b"".join(parts), 0

    def _next(self) -> bytes:
        """The next piece that is not empty; b"" at the end."""
        while not self._ended:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
            elif piece:
                if self._seen is not None:
                    self._seen(piece)
                return piece
        return b""


def _truncated(position: int) -> FormatError:
    return FormatError(f"truncated: the archive ends after byte {position}, within a member")


class Spool:
    """Gives contents their places in a file, and writes them there.

    Args:
        fd: the file, empty and of this archive alone.
        name: of the archive, for messages.
    """

    __slots__ = ("_batch", "_end", "_fd", "_name", "_waiting")

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._batch: list[bytes] = []
        self._waiting = 0
        self._end = 0

    def add(self, data: bytes) -> int:
        """Take a small content; returns its offset."""
        offset = self._end
        self._batch.append(data)
        self._end += len(data)
        self._waiting += len(data)
        if self._waiting >= IO_CHUNK:
            self._flush()
        return offset

    def reserve(self, size: int) -> int:
        """Make room for a large content, which `write` brings; returns its offset."""
        self._flush()
        offset = self._end + -self._end % ALIGNMENT
        self._end = offset + size
        return offset

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write bytes of a large content at their offset in the spool.

        Raises:
            OutputError: there is no room, or another fault of the file.
        """
        try:
            done = os.pwrite(self._fd, data, offset)
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], offset + done)
        except OSError as error:
            raise self._fault(error) from error

    def finish(self) -> None:
        """Write what waits; a hole at the end becomes part of the file."""
        self._flush()
        try:
            if os.fstat(self._fd).st_size < self._end:
                os.ftruncate(self._fd, self._end)
        except OSError as error:
            raise self._fault(error) from error

    def _flush(self) -> None:
        if self._batch:
            self.write(b"".join(self._batch), self._end - self._waiting)
            self._batch.clear()
            self._waiting = 0

    def _fault(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write to the temporary file for its contents: {error.strerror}",
            where=self._name,
            hint="it is unpacked beside a target on this machine; for a target on a server in --work or $TMPDIR",
        )
