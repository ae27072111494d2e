"""The unnamed files that a build writes into before it knows where things go."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from eroseal.crypto.pieces import write_at
from eroseal.errors import SourceError
from eroseal.image.writer import ReadTail

_COPY: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Spools:
    """Descriptors of a build's spools; all but `data` go when the build does, whatever happens.

    Args:
        data: chunk data; the new data blob (or the image itself) where that is one file.
        leaves: leaf hashes of the blocks in `data`, at the same index.
        tails: what lies behind files' last whole blocks.
        packed: blocks of small files with their inodes.
    """

    data: int
    leaves: int
    tails: int
    packed: int

    @classmethod
    def create(cls, data: int | None, directory: Path, stack: contextlib.ExitStack) -> Self:
        """Unnamed files in `directory`, closed by `stack`; `data` too unless it is given."""
        return cls(spool(directory, stack) if data is None else data, *(spool(directory, stack) for _ in range(3)))

    def for_another_tree(self, directory: Path, stack: contextlib.ExitStack) -> Self:
        """The same spools for chunk data, and new ones for what belongs to a single meta blob."""
        return type(self)(self.data, self.leaves, spool(directory, stack), spool(directory, stack))

    def tail_reader(self) -> ReadTail:
        """Reads tails in rising order, through one buffer."""
        buffer = b""
        start = 0

        def read(at: int, length: int) -> bytes:
            nonlocal buffer, start
            offset = at - start
            if offset < 0 or offset + length > len(buffer):
                buffer = os.pread(self.tails, _COPY, at)
                start, offset = at, 0
            return buffer[offset : offset + length]

        return read


def spool(directory: Path, stack: contextlib.ExitStack) -> int:
    """A new spool in a directory's file system, closed by `stack`; OSError passes through."""
    fd = unnamed_file(directory)
    stack.callback(os.close, fd)
    return fd


def unnamed_file(directory: Path) -> int:
    """A descriptor of a new file without a name, in a directory's file system; OSError passes through."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    import tempfile  # noqa: PLC0415 - slow to load, and needed on some network file systems only

    fd, path = tempfile.mkstemp(dir=directory)
    os.unlink(path)
    return fd


def copy_bytes(source: int, source_at: int, target: int, target_at: int, length: int) -> None:
    """Copy bytes from a spool into another file; OSError passes through."""
    while length:
        piece = os.pread(source, min(_COPY, length), source_at)
        if not piece:
            raise SourceError("a spool file ended too early")
        write_at(target, piece, target_at)
        source_at += len(piece)
        target_at += len(piece)
        length -= len(piece)
