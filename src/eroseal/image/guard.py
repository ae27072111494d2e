"""What keeps a traversal of a hostile image short: every directory once, and no more bytes than there are.

An image of a few hundred bytes can describe a tree of 2^100 paths (directories with two names each) or an
endless one (a directory inside itself), and 32 bytes can claim a directory as large as the image. So each
directory is entered once, and all of them together may not claim more bytes than hold metadata.
"""

from __future__ import annotations

from typing import Final

from eroseal.errors import FormatError
from eroseal.image.inode import Inode
from eroseal.limits import MAX_DEPTH, MAX_DIRECTORY, MAX_INODES

MAX_PATH: Final = 32 << 10
"""Bytes of a path that a traversal builds: eight PATH_MAX, and 4,096 levels of them still fit memory."""
_PAGE_BITS: Final = 10


class NidSet:
    """A set of inode numbers: a bit each, in pages of 1,024 slots, since inodes lie close together."""

    __slots__ = ("_pages",)

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, nid: int) -> bool:
        """Put `nid` in; returns whether it is new."""
        number = nid >> _PAGE_BITS
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = bytearray(1 << _PAGE_BITS - 3)
        at, bit = nid >> 3 & (1 << _PAGE_BITS - 3) - 1, 1 << (nid & 7)
        if page[at] & bit:
            return False
        page[at] |= bit
        return True


class TreeGuard:
    """Refuses cycles, hard-linked directories, and trees larger than the image that describes them.

    Args:
        metadata_size: bytes that can hold directories.
    """

    __slots__ = ("_budget", "_directories", "_names", "_total")

    def __init__(self, metadata_size: int) -> None:
        self._total = self._budget = metadata_size
        self._directories = NidSet()
        self._names = 0

    def enter(self, directory: Inode, path: bytes, depth: int) -> None:
        """Note that a directory is about to be read; raises FormatError if that is once too often."""
        where = f"/{path.decode(errors='backslashreplace')}"
        if not self._directories.add(directory.nid):
            raise FormatError(f"directory inode {directory.nid} has more than one name: a cycle", where=where)
        if depth > MAX_DEPTH:
            raise FormatError(f"directories are nested deeper than {MAX_DEPTH} levels", where=where[:200])
        if directory.size > MAX_DIRECTORY:
            raise FormatError(f"directory claims {directory.size} bytes, more than {MAX_DIRECTORY}", where=where)
        self._budget -= directory.size
        if self._budget < 0:
            raise FormatError(
                f"directories overlap: together they claim more than the {self._total} bytes that hold metadata",
                where=where,
            )

    def name(self, path: bytes) -> None:
        """Note that a name is visited; raises FormatError if there are too many or the path is too long."""
        self._names += 1
        if self._names > MAX_INODES:
            raise FormatError(f"more than {MAX_INODES} names")
        if len(path) > MAX_PATH:
            raise FormatError(
                f"path of {len(path)} bytes is longer than {MAX_PATH}",
                where=f"/{path[:100].decode(errors='backslashreplace')}...",
            )
