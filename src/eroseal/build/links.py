"""Small files with several names: packed like any other, and counted when all names are known.

What counts is how many names come up in the source. A file whose other names are elsewhere is laid out as if it had
one, so that a tree gives the same image whether it was copied or linked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from eroseal.build.wire import MOST_COMPACT_LINKS, PackedLinkRecord
from eroseal.errors import SourceError
from eroseal.format.erofs import COMPACT_NLINK_AT, EXTENDED_NLINK_AT
from eroseal.tree.model import Packed


@dataclass(slots=True)
class _Link:
    packed: Packed
    compact: bool
    names: int = 1


class PackedLinks:
    """Packed files by what identifies them in the source."""

    def __init__(self) -> None:
        self._links: dict[tuple[int, int], _Link] = {}

    def settle(self, record: PackedLinkRecord, start: int) -> tuple[Packed, bool]:
        """The packed file of a record, and whether this is its first name; a later one's copy is not wanted.

        Args:
            record: from a worker.
            start: byte offset of its part's packed blocks.
        """
        mode, _, offset, compact, key, _ = record
        known = self._links.get(key)
        if known is not None:
            known.names += 1
            return known.packed, False
        link = self._links[key] = _Link(Packed(mode, start + offset), compact)
        return link.packed, True

    def write_counts(self, packed_fd: int) -> None:
        """Put the number of names into the inodes that turned out to have several; all are written by now.

        Raises:
            SourceError: a file that had few enough names got more.
        """
        for link in self._links.values():
            if link.names == 1:
                continue
            if link.names > MOST_COMPACT_LINKS:  # it got names after it was first read
                raise SourceError(f"a file had {MOST_COMPACT_LINKS} names at most, and now has {link.names}")
            at, width = (COMPACT_NLINK_AT, 2) if link.compact else (EXTENDED_NLINK_AT, 4)
            os.pwrite(packed_fd, link.names.to_bytes(width, "little"), link.packed.position + at)
