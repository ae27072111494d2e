"""Which bytes of which blobs an image's files use, each stored byte counted once.

A blob is known by its digest where its seal was checked; then the same digest and offset mean the same
bytes, in whatever image. Anything else is only equal to itself.
"""

from __future__ import annotations

from typing import Final

from eroseal.image.extents import Extent
from eroseal.image.guard import NidSet
from eroseal.image.inode import Inode
from eroseal.image.view import BlobKey, TreeView

_COMPACT_AT: Final = 1 << 16
"""Ranges that are collected before duplicates among them are looked for."""


class Ranges:
    """A set of byte ranges of one blob, which remembers what was put in more than once."""

    __slots__ = ("_limit", "_ranges", "_repeated")

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._repeated: list[tuple[int, int]] = []
        self._limit = _COMPACT_AT

    def add(self, start: int, length: int) -> None:
        """Put `length` bytes from byte `start` on in."""
        ranges = self._ranges
        if ranges and ranges[-1][1] == start:  # the usual case: files lie one after the other
            ranges[-1] = (ranges[-1][0], start + length)
            return
        ranges.append((start, start + length))
        if len(ranges) > self._limit:
            self.merged()
            self._limit = max(_COMPACT_AT, 2 * len(self._ranges))

    def merged(self) -> list[tuple[int, int]]:
        """Ranges (start, end) that neither touch nor overlap, rising."""
        self._ranges, again = _union(self._ranges)
        if again:
            self._repeated, _ = _union(self._repeated + again)
        return self._ranges

    def repeated(self) -> list[tuple[int, int]]:
        """Like `merged`, for what was put in more than once."""
        self.merged()
        return self._repeated

    def size(self) -> int:
        """Bytes in the set."""
        return _total(self.merged())

    def common(self, other: Ranges) -> int:
        """Bytes that are in both sets."""
        mine, theirs = self.merged(), other.merged()
        total = i = j = 0
        while i < len(mine) and j < len(theirs):
            total += max(0, min(mine[i][1], theirs[j][1]) - max(mine[i][0], theirs[j][0]))
            if mine[i][1] < theirs[j][1]:
                i += 1
            else:
                j += 1
        return total


def _union(ranges: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The union of ranges, merged, and the overlaps among them as they come."""
    union: list[tuple[int, int]] = []
    overlaps: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if not union or start > union[-1][1]:
            union.append((start, end))
            continue
        low, high = union[-1]
        if start < high:
            overlaps.append((start, min(end, high)))
        union[-1] = (low, max(high, end))
    return union, overlaps


def _total(ranges: list[tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges)


class Usage:
    """Collects what the files of one image use.

    Args:
        reader: of the image.
    """

    def __init__(self, reader: TreeView) -> None:
        self.keys = reader.blob_keys
        self.blobs: dict[BlobKey, Ranges] = {}
        self.logical_bytes = 0
        self.hole_bytes = 0
        self._seen = NidSet()

    def first(self, inode: Inode) -> bool:
        """Whether an inode is met for the first time; further names of it use nothing more."""
        return self._seen.add(inode.nid)

    def add(self, extent: Extent) -> None:
        """Count one extent of a file."""
        self.logical_bytes += extent.length
        if extent.device is None:
            self.hole_bytes += extent.length
            return
        key = self.keys[extent.device]
        ranges = self.blobs.get(key)
        if ranges is None:
            ranges = self.blobs[key] = Ranges()
        ranges.add(extent.offset, extent.length)

    def stored_bytes(self) -> int:
        """Bytes of blobs that hold file contents, each once."""
        return sum(ranges.size() for ranges in self.blobs.values())

    def shared_inside(self) -> tuple[int, int]:
        """(bytes, runs) of blobs that more than one place in files uses."""
        repeated = [ranges.repeated() for ranges in self.blobs.values()]
        return sum(map(_total, repeated)), sum(map(len, repeated))

    def shared_with(self, other: Usage) -> int:
        """Stored bytes that the files of another image use too."""
        return sum(ranges.common(other.blobs[key]) for key, ranges in self.blobs.items() if key in other.blobs)
