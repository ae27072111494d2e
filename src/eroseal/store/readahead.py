"""Small reads of something far away, served from whole blocks.

Readers of images ask for superblocks, inodes and directories a few bytes at a time, near each other. Blocks that were
fetched for one are kept for the next; large reads pass by the blocks, because they are seldom repeated.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from eroseal.readat import check_range

READ_AHEAD: Final = 64 << 10
"""Bytes of a block: at 100 Mbit/s and 20 ms of latency it costs a quarter more than a single byte."""
_BLOCKS: Final = 64
"""Blocks kept of each object: 4 MiB."""


class ReadAhead:
    """An object's bytes by offset; safe for reads by several threads.

    Args:
        fetch: gives exactly `length` bytes from byte `offset` on, of those there are; never asked for none.
        size: of the object, in bytes.
        name: for messages.
        block: bytes that small reads are served from; 0 fetches each read by itself.
    """

    __slots__ = ("_block", "_blocks", "_fetch", "_lock", "name", "size")

    def __init__(self, fetch: Callable[[int, int], bytes], size: int, *, name: str, block: int = READ_AHEAD) -> None:
        self._fetch = fetch
        self.size = size
        self.name = name
        self._block = block
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from byte `offset` on; raises FormatError past the end."""
        check_range(self.name, self.size, offset, length)
        if length == 0:
            return b""
        if length >= self._block:
            return self._fetch(offset, length)
        first, last = offset // self._block, (offset + length - 1) // self._block
        data = b"".join(self._kept(number) for number in range(first, last + 1))
        begin = offset - first * self._block
        return data[begin : begin + length]

    def clear(self) -> None:
        """Forget the blocks."""
        with self._lock:
            self._blocks.clear()

    def _kept(self, number: int) -> bytes:
        with self._lock:
            block = self._blocks.get(number)
            if block is not None:
                self._blocks.move_to_end(number)
                return block
        offset = number * self._block
        # Two threads may fetch the same block; waiting for each other would cost more code than that costs time.
        block = self._fetch(offset, min(self._block, self.size - offset))
        with self._lock:
            self._blocks[number] = block
            while len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        return block
