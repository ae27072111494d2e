"""Deduplication: which chunks are new, and where each one lies.

A chunk's id is the pair (number of blocks, hash of its blocks' leaf hashes joined; the leaf hash itself for one
block). The number of blocks is part of the id on purpose: without it, a block of a file that holds 128 chosen
hashes would pass for a 512 KiB chunk. See docs/format.md, "Chunks".
"""

from __future__ import annotations

from array import array
from typing import Final

from eroseal.errors import UnsupportedError, UsageError
from eroseal.tree.model import DEVICE_SHIFT, NULL_CHUNK

_BLOCKS_BYTES: Final = 2
_START_SLOTS: Final = 1 << 12
_MOST_BLOCKS: Final = (1 << DEVICE_SHIFT) - 1

MIN_CHUNK: Final = 4096
MAX_CHUNK: Final = 1 << 20


def check_chunk_size(size: int) -> int:
    """`size` if it is a power of two from 4 KiB to 1 MiB; raises UsageError."""
    if not MIN_CHUNK <= size <= MAX_CHUNK or size & (size - 1):
        raise UsageError(f"chunk size {size} is not a power of two from 4K to 1M")
    return size


class ChunkIndex:
    """Chunk ids to locations, in about 60 bytes for each distinct chunk.

    An open-addressing table of 32-bit indexes over flat arrays: a dict of 32-byte keys takes four times as much,
    and the index is what grows with an image's size.

    Args:
        digest_size: bytes of a hash, 32 or 64.
    """

    __slots__ = ("_count", "_keys", "_locations", "_mask", "_slots", "_width")

    def __init__(self, digest_size: int) -> None:
        self._width = digest_size + _BLOCKS_BYTES
        self._keys = bytearray()
        self._locations = array("Q")
        self._slots = array("I", bytes(4 * _START_SLOTS))
        self._mask = _START_SLOTS - 1
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def find(self, blocks: int, digest: bytes) -> int | None:
        """Location of a known chunk, or None."""
        index = self._slots[self._slot(digest + blocks.to_bytes(_BLOCKS_BYTES, "little"))]
        return self._locations[index - 1] if index else None

    def add(self, blocks: int, digest: bytes, location: int) -> None:
        """Remember a chunk, unless it is known: the first location stays."""
        key = digest + blocks.to_bytes(_BLOCKS_BYTES, "little")
        slot = self._slot(key)
        if self._slots[slot]:
            return
        self._keys += key
        self._locations.append(location)
        self._count += 1
        self._slots[slot] = self._count
        if self._count * 2 > self._mask:
            self._grow()

    def _slot(self, key: bytes) -> int:
        """The slot that holds this key, or the free one where it belongs."""
        width, keys, slots, mask = self._width, self._keys, self._slots, self._mask
        slot = int.from_bytes(key[:8], "little") & mask
        while index := slots[slot]:
            start = (index - 1) * width
            if keys[start : start + width] == key:
                break
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        size = (self._mask + 1) * 2
        mask, width, keys = size - 1, self._width, self._keys
        slots = array("I", bytes(4 * size))
        for index in range(self._count):
            start = index * width
            slot = int.from_bytes(keys[start : start + 8], "little") & mask
            while slots[slot]:
                slot = (slot + 1) & mask
            slots[slot] = index + 1
        self._slots, self._mask = slots, mask


class BlobAllocator:
    """Hands out blocks of one new data blob, in the order asked for.

    Args:
        device: provisional device number of the blob.
        first_block: where chunk data starts (1 in an image's own blob, behind the superblock's block).
        spool_start: block of the data spool that corresponds to `first_block`.
    """

    __slots__ = ("chunk_blocks", "device", "first_block", "next_block", "spool_start")

    def __init__(self, device: int, *, first_block: int = 0, spool_start: int = 0) -> None:
        self.device = device
        self.first_block = first_block
        self.next_block = first_block
        self.spool_start = spool_start
        self.chunk_blocks = array("H")

    @property
    def blocks(self) -> int:
        """Blocks handed out."""
        return self.next_block - self.first_block

    @property
    def next_location(self) -> int:
        """Location that the next chunk will get."""
        return self.device << DEVICE_SHIFT | self.next_block

    def take(self, blocks: int) -> int:
        """Use up the next blocks for one chunk; gives their place in the data spool, in blocks.

        Raises:
            UnsupportedError: the blob would have blocks that 32-bit addresses do not reach.
        """
        at = self.spool_start + self.blocks
        self.next_block += blocks
        if self.next_block > _MOST_BLOCKS:  # in a location, they would run into the device number
            raise UnsupportedError("one data blob cannot hold more than 16 TiB of chunks", hint="build parts of it")
        self.chunk_blocks.append(blocks)
        return at


def compact(locations: array[int], step: int) -> int | array[int]:
    """One location if all chunks follow each other (or all are zeros), else the array as it is.

    Args:
        locations: of a file's chunks.
        step: blocks of a whole chunk.
    """
    first = locations[0]
    if first == NULL_CHUNK:
        return first if locations.count(NULL_CHUNK) == len(locations) else locations
    if locations[-1] != first + (len(locations) - 1) * step:
        return locations
    for number, location in enumerate(locations):
        if location != first + number * step:
            return locations
    return first
