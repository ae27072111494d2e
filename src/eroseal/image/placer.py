"""Packing units into blocks: an inode with what must lie right behind it.

Best fit: 129 stacks of blocks by free 32-byte slots, and a bit mask that says which are not empty, so that finding the
fullest block with room takes two integer operations. Only blocks of the last few MiB stay open, so that a writer can
emit in the order of placing through a small window.
"""

from __future__ import annotations

from typing import Final

from eroseal.format.erofs import NID_SLOT

BLOCK: Final = 4096
SLOTS: Final = BLOCK // NID_SLOT
OPEN_BLOCKS: Final = 1024
"""Blocks back from the end that still take units: the writer's window is larger than this."""
_U16: Final = 0xFFFF


class Placer:
    """Gives out places in the metadata area: byte offsets from its start.

    Args:
        start: first free byte.
    """

    __slots__ = ("_mask", "_open", "end")

    def __init__(self, start: int) -> None:
        self._open: list[list[int]] = [[] for _ in range(SLOTS + 1)]
        self._mask = 0
        self.end = start + -start % BLOCK
        if start % BLOCK:
            self._offer(start + -start % NID_SLOT, self.end)

    def place(self, head: int, tail: int) -> int | None:
        """A 32-byte aligned place for `head` bytes with `tail` bytes right behind that cross no block.

        Returns None where the tail cannot be had (it and the head's odd end exceed a block): then it needs a block
        of its own.
        """
        slots = -(-(head + tail) // NID_SLOT)
        if slots <= SLOTS:
            return self.best_fit(slots)
        if not tail:
            return self._run(head)
        behind = head % NID_SLOT
        if behind + tail > BLOCK:
            return None
        # The head fills blocks up to a boundary, its odd end and the tail come behind it.
        whole = head - behind
        start = self.blocks(-(-whole // BLOCK))
        boundary = self.end
        position = boundary - whole
        self.blocks(1)
        self._offer(start, position)
        last = boundary + behind + tail
        self._offer(last + -last % NID_SLOT, self.end)
        return position

    def blocks(self, count: int) -> int:
        """Whole blocks at the end."""
        start = self.end
        self.end += count * BLOCK
        return start

    def aligned(self, length: int, alignment: int) -> int:
        """`length` bytes at the end, aligned; the rest of the last block stays open."""
        start = self.end + -self.end % alignment
        self.end = start + length
        rest = self.end + -self.end % NID_SLOT
        self.end += -self.end % BLOCK
        self._offer(rest, self.end)
        return start

    def _run(self, length: int) -> int:
        return self.aligned(length, NID_SLOT)

    def best_fit(self, slots: int) -> int:
        """A place inside one block, in the fullest block that has room.

        Args:
            slots: 32-byte slots, 1 to 128.
        """
        while fitting := self._mask >> slots:
            size = slots + (fitting & -fitting).bit_length() - 1
            stack = self._open[size]
            position = stack.pop()
            if not stack:
                self._mask &= ~(1 << size)
            if position < self.end - OPEN_BLOCKS * BLOCK:
                # Too far back for the writer's window, and what lies below it in the stack mostly is, too.
                stack.clear()
                self._mask &= ~(1 << size)
                continue
            if size > slots:
                self._push(position + slots * NID_SLOT, size - slots)
            return position
        position = self.blocks(1)
        if slots < SLOTS:
            self._push(position + slots * NID_SLOT, SLOTS - slots)
        return position

    def _offer(self, start: int, end: int) -> None:
        if (end - start) // BLOCK:
            start = end - (end - start) % BLOCK  # whole blocks are not worth remembering
        slots = (end - start) // NID_SLOT
        if slots > 0:
            self._push(start, slots)

    def _push(self, position: int, slots: int) -> None:
        self._open[slots].append(position)
        self._mask |= 1 << slots


def fits_compact(epoch: int, mtime: int, mtime_nsec: int, uid: int, gid: int) -> bool:
    """Whether a 32-byte inode holds these: it has 16-bit owners and the image's own time (kernels before 6.15)."""
    return mtime == epoch and not mtime_nsec and uid <= _U16 and gid <= _U16
