"""The pieces of a large file that hold data: holes are never read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from eroseal.build.wire import ARENA, OPEN_FLAGS, Identity, identity_of
from eroseal.errors import SourceError

_NO_HOLES: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY})
"""What file systems say that cannot tell data from holes."""


def data_segments(path: bytes, identity: Identity, chunk_size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of pieces of whole chunks, at most an arena each, that hold data.

    Args:
        path: of the file.
        identity: that it must have, now and when the last piece was given: the pieces themselves are checked by who
            reads them, but nobody reads a hole.
        chunk_size: bytes; a piece of a file with few bytes in many places is no larger than it must be.

    Raises:
        SourceError: it cannot be read, or is not the same any more.
    """
    where = os.fsdecode(path)
    try:
        fd = os.open(path, OPEN_FLAGS)
        try:
            _require(fd, identity, where)
            yield from _segments(fd, 0, identity[2], chunk_size)
            _require(fd, identity, where)
        finally:
            os.close(fd)
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=where) from error


def stored_segments(fd: int, start: int, size: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    """As `data_segments`, for the `size` bytes from byte `start` on of a source's spool; offsets count from there."""
    try:
        yield from _segments(fd, start, size, chunk_size)
    except OSError as error:
        raise SourceError(f"cannot read what was unpacked: {error.strerror}") from error


def _segments(fd: int, start: int, size: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    offset = 0
    while (data := _next_data(fd, start + offset, start + size)) is not None:
        offset = (data - start) // chunk_size * chunk_size
        end = min(offset + ARENA, size)
        if offset + chunk_size < end:
            hole = _next_hole(fd, data, start + end) - start
            end = min(end, hole + -hole % chunk_size)
        yield offset, end - offset
        offset = end


def _next_data(fd: int, offset: int, end: int) -> int | None:
    """Where data begins at or behind `offset`; None where there is none up to `end`."""
    if offset >= end:
        return None
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a hole up to the end
            return None
        if error.errno in _NO_HOLES:
            return offset
        raise
    return start if start < end else None


def _next_hole(fd: int, offset: int, end: int) -> int:
    """Where the data at `offset` ends, behind it at any rate; `end` where that cannot be told."""
    try:
        return max(os.lseek(fd, offset, os.SEEK_HOLE), offset + 1)
    except OSError as error:
        if error.errno == errno.ENXIO or error.errno in _NO_HOLES:
            return end
        raise


def _require(fd: int, identity: Identity, where: str) -> None:
    if identity_of(fd) != identity:
        raise SourceError(
            "changed while it was read", where=where, hint="build from a snapshot, or when nothing writes there"
        )
