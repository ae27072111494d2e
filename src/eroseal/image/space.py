"""Byte spaces that hold metadata: the meta blob, or the decoded data of a metabox inode.

Metadata comes in pieces of 12 to a few hundred bytes, while a verified read costs the same for one byte as
for a block. So small reads go through windows, kept in a bounded cache; large ones go straight to the source.
"""

from __future__ import annotations

import threading
from typing import Final

from eroseal.errors import FormatError
from eroseal.readat import ReadAt

WINDOW: Final = 64 << 10
"""Bytes of a window: inodes of one directory lie close together, so the next ones are mostly at hand."""
MAX_WINDOWS: Final = 128
"""Windows kept: 8 MiB. A walk visits directories and their inodes in turn, both mostly in order."""


class MetaSpace:
    """Cached positional reads of one byte space; safe to use from several threads.

    Args:
        source: the bytes; what it returns is used as it is, so verification is its own affair.
        name: how messages call it.
    """

    __slots__ = ("_lock", "_source", "_windows", "name", "size")

    def __init__(self, source: ReadAt, name: str) -> None:
        self._source = source
        self.name = name
        self.size = source.size
        self._windows: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def locate(self, offset: int, length: int) -> tuple[bytes, int]:
        """A buffer and the position in it from which `length` bytes of the space follow.

        Raises:
            FormatError: the range is not inside the space.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise FormatError(f"{length} bytes wanted at byte {offset}, but {self.name} has {self.size} bytes")
        index, inside = divmod(offset, WINDOW)
        if inside + length > WINDOW:
            return self._join(offset, length), 0
        # A dict's own get is atomic: hits need no lock.
        window = self._windows.get(index)
        return (self._load(index) if window is None else window), inside

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from byte `offset` on; raises FormatError outside the space."""
        buffer, at = self.locate(offset, length)
        return buffer if len(buffer) == length else buffer[at : at + length]

    def _join(self, offset: int, length: int) -> bytes:
        if length > WINDOW:
            return self._source.read_at(offset, length)
        first = WINDOW - offset % WINDOW
        return self.read(offset, first) + self.read(offset + first, length - first)

    def _load(self, index: int) -> bytes:
        start = index * WINDOW
        window = self._source.read_at(start, min(WINDOW, self.size - start))
        with self._lock:
            # First in, first out: keeping order of use would cost every hit a lock.
            while len(self._windows) >= MAX_WINDOWS:
                del self._windows[next(iter(self._windows))]
            self._windows[index] = window
        return window
