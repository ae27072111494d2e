"""Where file data lies: from an inode's layout to byte ranges on devices.

Three steps. *Pieces* come from the layout (flat blocks, inline tail, chunks) in addresses as written; the
device map resolves each to a device and refuses what leaves it; neighbours that continue each other are
joined.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from eroseal.errors import FormatError, UnsupportedError
from eroseal.format.erofs import (
    BLOCK_MAP_SIZE,
    CHUNK_48BIT,
    CHUNK_BLKBITS_MASK,
    CHUNK_INDEX,
    CHUNK_INDEX_SIZE,
    CHUNK_INDEXES,
    CHUNK_KNOWN,
    LAYOUT_CHUNK_BASED,
    LAYOUT_COMPRESSED_FULL,
    LAYOUT_FLAT_INLINE,
    NULL_ADDR_32,
    NULL_ADDR_48,
    DeviceSlot,
)
from eroseal.image.inode import Inode
from eroseal.image.space import MetaSpace

INDEX_BATCH: Final = 8192
"""Chunk addresses decoded in one go: at most 64 KiB of memory however large the file."""
_BLOCK_MAP_ENTRY: Final = struct.Struct("<I")

UNIFIED: Final = 0
"""Device id of addresses in the unified space."""
IN_PLACE: Final = -1
"""Device id, here only, of bytes that follow the inode in its own metadata space."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of file bytes that lie together.

    Args:
        logical: byte in the file.
        length: bytes.
        device: None for a hole, 0 for the meta blob, k for data blob k (counting from 1).
        offset: byte on that device (0 for a hole).
    """

    logical: int
    length: int
    device: int | None
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """An extent in addresses as written: `device_id` as in a chunk index, or IN_PLACE; None for a hole."""

    logical: int
    length: int
    device_id: int | None
    offset: int


class DeviceMap:
    """Resolves addresses to devices and refuses those that leave them.

    Args:
        sizes: bytes of the meta blob and of each data blob; the meta blob alone for a flattened image, whose
            data blobs follow the meta blob's own blocks in one file.
        slots: the device table.
        block_size: of the image.
    """

    __slots__ = ("_flattened", "_ranges", "_sizes", "_slots", "_starts")

    def __init__(self, sizes: Sequence[int], slots: Sequence[DeviceSlot], block_size: int) -> None:
        self._sizes = tuple(sizes)
        self._flattened = len(sizes) == 1 and len(slots) > 0
        self._slots = [(slot.uniaddr * block_size, slot.blocks * block_size) for slot in slots]
        # (start, end, device) in the unified space; uniaddr 0 means that a device is not mapped there.
        mapped = [] if self._flattened else self._slots
        self._ranges = sorted(
            (start, start + length, k) for k, (start, length) in enumerate(mapped, 1) if start and length
        )
        self._starts = [start for start, _, _ in self._ranges]

    @property
    def flattened(self) -> bool:
        """Whether the data blobs are part of the meta blob's file."""
        return self._flattened

    def overlap(self) -> tuple[int, int] | None:
        """Two devices that share unified addresses, if any: readers would disagree on which is meant."""
        for (_, end, first), (start, _, second) in zip(self._ranges, self._ranges[1:], strict=False):
            if start < end:
                return first, second
        return None

    def resolve(self, device_id: int, offset: int, length: int) -> tuple[int, int]:
        """(device, byte on it) of `length` bytes at an address.

        Args:
            device_id: UNIFIED, or k for data blob k.
            offset: byte in the unified space or on the device.
            length: bytes that must all lie on one device.

        Raises:
            FormatError: no such device, or the range leaves it.
        """
        if device_id > len(self._slots):
            raise FormatError(f"device id {device_id}, but the device table has {len(self._slots)} slots")
        if device_id == UNIFIED:
            index = bisect_right(self._starts, offset) - 1
            if index >= 0 and offset < self._ranges[index][1]:
                start, _, device_id = self._ranges[index]
                offset -= start
        elif self._flattened:
            start, size = self._slots[device_id - 1]
            if offset + length > size:
                raise FormatError(_outside(f"device {device_id}", size, offset, length))
            device_id, offset = 0, offset + start
        if offset + length > self._sizes[device_id]:
            name = f"device {device_id}" if device_id else "the meta blob"
            raise FormatError(_outside(name, self._sizes[device_id], offset, length))
        return device_id, offset


def _outside(name: str, size: int, offset: int, length: int) -> str:
    return f"extent of {length} bytes at byte {offset} leaves {name}, which has {size} bytes"


def pieces(inode: Inode, space: MetaSpace, blkszbits: int, start: int, end: int) -> Iterator[Piece]:
    """The pieces of file bytes `start` to `end`, in order, with addresses as written.

    Args:
        inode: a file, directory or symlink.
        space: the inode's metadata space.
        blkszbits: log2 of the block size.
        start: first byte.
        end: byte after the last, at most the file's size.

    Raises:
        FormatError: the layout's own fields or places are impossible.
        UnsupportedError: a compressed layout.
    """
    if inode.compressed:
        kind = "full" if inode.layout == LAYOUT_COMPRESSED_FULL else "compact"
        raise UnsupportedError(
            f"data is compressed ({kind} indexes), which this version does not decode",
            where=f"inode {inode.nid}",
            hint="rebuild the image without compression to read its files",
        )
    if start >= end:
        return iter(())
    if inode.layout == LAYOUT_CHUNK_BASED:
        return _chunks(inode, space, blkszbits, start, end)
    return _flat(inode, space, blkszbits, start, end)


def _flat(inode: Inode, space: MetaSpace, blkszbits: int, start: int, end: int) -> Iterator[Piece]:
    """Consecutive blocks, and with layout 2 a tail right behind the inode."""
    body = inode.size
    if inode.layout == LAYOUT_FLAT_INLINE:
        # As in the kernel, a size that is a multiple of the block size has a whole block as its tail.
        body = (inode.size - 1) >> blkszbits << blkszbits
        _check_tail(inode, space, inode.size - body, 1 << blkszbits)
    if start < body:
        length = min(end, body) - start
        if inode.start_is_null and inode.layout != LAYOUT_FLAT_INLINE:
            yield Piece(start, length, None, 0)
        else:
            yield Piece(start, length, UNIFIED, (inode.start_block << blkszbits) + start)
    if end > body:
        first_byte = max(start, body)
        yield Piece(first_byte, end - first_byte, IN_PLACE, inode.end + first_byte - body)


def _check_tail(inode: Inode, space: MetaSpace, tail: int, block_size: int) -> None:
    if inode.end % block_size + tail > block_size:
        raise FormatError(
            f"inline tail of {tail} bytes at byte {inode.end} crosses a block", where=f"inode {inode.nid}"
        )
    if inode.end + tail > space.size:
        raise FormatError(
            f"inline tail of {tail} bytes at byte {inode.end} leaves {space.name} of {space.size} bytes",
            where=f"inode {inode.nid}",
        )


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """Where a chunk-based file's addresses lie.

    Args:
        chunk_bits: log2 of the chunk size in bytes.
        unit: bytes of an entry: 8 for indexes, 4 for a block map.
        offset: byte of the first entry in the metadata space.
        count: entries.
    """

    chunk_bits: int
    unit: int
    offset: int
    count: int


def chunk_table(inode: Inode, space: MetaSpace, blkszbits: int) -> ChunkTable:
    """The place of a chunk-based file's addresses; raises FormatError if it is not inside `space`."""
    form = inode.chunk_format
    if form & ~CHUNK_KNOWN:
        raise FormatError(f"chunk format {form:#06x} has unknown bits", where=f"inode {inode.nid}")
    chunk_bits = blkszbits + (form & CHUNK_BLKBITS_MASK)
    unit = CHUNK_INDEX_SIZE if form & CHUNK_INDEXES else BLOCK_MAP_SIZE
    count = (inode.size + (1 << chunk_bits) - 1) >> chunk_bits
    offset = (inode.end + unit - 1) // unit * unit
    if offset + count * unit > space.size:
        raise FormatError(
            f"{count} chunk addresses at byte {offset} leave {space.name}, which has {space.size} bytes",
            where=f"inode {inode.nid}",
        )
    return ChunkTable(chunk_bits, unit, offset, count)


def _chunks(inode: Inode, space: MetaSpace, blkszbits: int, start: int, end: int) -> Iterator[Piece]:
    table = chunk_table(inode, space, blkszbits)
    indexed = table.unit == CHUNK_INDEX_SIZE
    mask = NULL_ADDR_48 if indexed and inode.chunk_format & CHUNK_48BIT else NULL_ADDR_32
    bits, unit = table.chunk_bits, table.unit
    logical = start >> bits << bits
    for first in range(start >> bits, ((end - 1) >> bits) + 1, INDEX_BATCH):
        count = min(INDEX_BATCH, ((end - 1) >> bits) + 1 - first)
        data = space.read(table.offset + first * unit, count * unit)
        for entry in (CHUNK_INDEX if indexed else _BLOCK_MAP_ENTRY).iter_unpack(data):
            if indexed:
                block, device_id = (entry[2] | entry[0] << 32) & mask, entry[1]
            else:
                block, device_id = entry[0], UNIFIED
            following = logical + (1 << bits)
            low = max(start, logical)
            high = min(end, following)
            if block == mask:
                yield Piece(low, high - low, None, 0)
            else:
                yield Piece(low, high - low, device_id, (block << blkszbits) + low - logical)
            logical = following


def merged(extents: Iterator[Extent]) -> Iterator[Extent]:
    """Join neighbours that continue each other on the same device, and neighbouring holes."""
    pending: Extent | None = None
    for extent in extents:
        if pending is None:
            pending = extent
            continue
        if extent.device == pending.device and (
            extent.device is None or extent.offset == pending.offset + pending.length
        ):
            pending = Extent(pending.logical, pending.length + extent.length, pending.device, pending.offset)
            continue
        yield pending
        pending = extent
    if pending is not None:
        yield pending
