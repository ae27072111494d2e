"""The unnamed files that a build writes into before it knows where things go."""

from __future__ import annotations

import contextlib
import os
import tempfile
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

        def spool() -> int:
            return stack.enter_context(tempfile.TemporaryFile(dir=directory)).fileno()

        return cls(spool() if data is None else data, spool(), spool(), spool())

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
