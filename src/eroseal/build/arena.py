"""A worker's buffer: blocks of larger files side by side, and small files on their way into packed blocks.

A small file's inode and bytes are packed into blocks of the meta blob right where they are read, so that the parent
never touches them again.
"""

from __future__ import annotations

import operator
from typing import Final

from eroseal.build.wire import BLOCK, PackedLinkRecord, PackedRecord, Record
from eroseal.format.erofs import (
    COMPACT_SIZE,
    EXTENDED_SIZE,
    FORMAT_EXTENDED,
    FORMAT_LAYOUT_SHIFT,
    INODE_COMPACT,
    INODE_EXTENDED,
    LAYOUT_FLAT_INLINE,
    LAYOUT_FLAT_PLAIN,
    NID_SLOT,
    NULL_ADDR_32,
)
from eroseal.image.placer import Placer, fits_compact

Shortcut = tuple[int, int, int, int, int, bytes]
"""mode, uid, gid, mtime in seconds, its nanoseconds, content."""
Records = list[Record | PackedRecord | PackedLinkRecord]
Owner = tuple[int, int, int, int, int]
"""mode, uid, gid, mtime in seconds, its nanoseconds."""

PLACE_LATER: Final = (0, 0, 0)
"""Record of a small file until its part is finished."""


class _Small:
    """A small file on its way into packed blocks; `record` is its index in the part's records."""

    __slots__ = ("compact", "data", "link", "offset", "owner", "record", "slots")

    def __init__(
        self, record: int, owner: Owner, data: bytes, link: tuple[int, int] | None, *, compact: bool, slots: int
    ) -> None:
        self.record, self.owner, self.data, self.compact, self.slots = record, owner, data, compact, slots
        self.link = link
        self.offset = 0


class Arena:
    """One buffer with the leaf hashes of its blocks, from when it is read until its writes are settled."""

    __slots__ = ("_packed", "_placer", "buffer", "leaves", "tails", "used", "view")

    def __init__(self, size: int, digest_size: int) -> None:
        self.buffer = bytearray(size)
        self.view = memoryview(self.buffer)
        self.leaves = bytearray(size // BLOCK * digest_size)
        self.reset()

    def reset(self) -> None:
        """Forget what was read."""
        self.tails: list[bytes] = []
        self._packed: list[_Small] = []
        self._placer = Placer(0)
        self.used = 0

    @property
    def has_packed(self) -> bool:
        """Whether files were put aside for packing."""
        return bool(self._packed)

    def pack(self, epoch: int, record: int, small: Shortcut, link: tuple[int, int] | None) -> bool:
        """Put a small file aside for packing; False where it and its inode do not fit a block.

        Args:
            epoch: the image's own time, in seconds.
            record: index of the file's record in its part.
            small: its attributes and content.
            link: what identifies a file that has several names.
        """
        mode, uid, gid, seconds, nsec, data = small
        compact = fits_compact(epoch, seconds, nsec, uid, gid)
        slots = ((COMPACT_SIZE if compact else EXTENDED_SIZE) + len(data) + NID_SLOT - 1) // NID_SLOT
        if slots > BLOCK // NID_SLOT:
            return False
        self._packed.append(_Small(record, (mode, uid, gid, seconds, nsec), data, link, compact=compact, slots=slots))
        return True

    def place_packed(self, records: Records) -> int:
        """Give the small files their places, the largest first, which wastes least; gives the blocks that they need.

        Args:
            records: of the part; those of packed files are filled in.
        """
        placer = self._placer
        for small in sorted(self._packed, key=_slots_of, reverse=True):
            small.offset = placer.best_fit(small.slots)
            mode, size = small.owner[0], len(small.data)
            if small.link is None:
                records[small.record] = (mode, size, small.offset)
            else:
                records[small.record] = (mode, size, small.offset, small.compact, small.link, small.record)
        return placer.end // BLOCK

    def packed_blocks(self, serial: int, dropped: frozenset[int]) -> bytearray:
        """The packed blocks: each file's inode, and its bytes right behind.

        Args:
            serial: i_ino of the first of them.
            dropped: indexes of records whose packed file is not wanted.
        """
        blocks = bytearray(self._placer.end)
        pack_extended, pack_compact = INODE_EXTENDED.pack_into, INODE_COMPACT.pack_into
        for number, small in enumerate(self._packed, serial):
            if small.record in dropped:
                continue
            mode, uid, gid, seconds, nsec = small.owner
            offset, data = small.offset, small.data
            size = len(data)
            layout = LAYOUT_FLAT_INLINE if size else LAYOUT_FLAT_PLAIN
            if small.compact:
                form = layout << FORMAT_LAYOUT_SHIFT
                pack_compact(blocks, offset, form, 0, mode, 1, size, 0, NULL_ADDR_32, number, uid, gid)
                start = offset + COMPACT_SIZE
            else:
                form = layout << FORMAT_LAYOUT_SHIFT | FORMAT_EXTENDED
                pack_extended(blocks, offset, form, 0, mode, 0, size, NULL_ADDR_32, number, uid, gid, seconds, nsec, 1)
                start = offset + EXTENDED_SIZE
            blocks[start : start + size] = data
        return blocks


_slots_of = operator.attrgetter("slots")
