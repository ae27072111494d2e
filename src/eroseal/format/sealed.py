"""Where things lie in a sealed blob: data region, dm-verity superblock, tree, seal record.

See docs/format.md, "Layout of a sealed blob". All offsets are bytes from the blob's start.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from eroseal.errors import FormatError
from eroseal.format.chunkmap import decode_chunk_map, encode_chunk_map
from eroseal.format.digest import BLOCK, TreeParams
from eroseal.format.fsverity import DESCRIPTOR_SIZE, Descriptor
from eroseal.format.record import (
    CHUNK_MAP,
    DESCRIPTOR,
    FOOTER_SIZE,
    HEADER_SIZE,
    SEAL_MAGIC,
    Footer,
    RecordEntry,
    encode_record,
    parse_record,
)
from eroseal.limits import MAX_DATA_SIZE, MAX_SEAL_RECORD


@dataclass(frozen=True, slots=True)
class TreeShape:
    """The levels of a Merkle tree over `data_size` bytes.

    Args:
        data_size: bytes, a positive multiple of 4096.
        digest_size: bytes of one hash.
        levels: tree blocks of each level, level 1 (hashes of data) first; empty for a single data block.
    """

    data_size: int
    digest_size: int
    levels: tuple[int, ...]

    @classmethod
    def of(cls, data_size: int, params: TreeParams) -> TreeShape:
        """The shape for this much data."""
        if not 0 < data_size <= MAX_DATA_SIZE or data_size % BLOCK:
            raise FormatError(f"a data region of {data_size} bytes is not a positive multiple of {BLOCK}")
        arity = params.algorithm.hashes_per_block
        blocks, levels = data_size // BLOCK, []
        while blocks > 1:
            blocks = -(-blocks // arity)
            levels.append(blocks)
        return cls(data_size, params.algorithm.digest_size, tuple(levels))

    @property
    def size(self) -> int:
        """Bytes of the whole tree (T)."""
        return sum(self.levels) * BLOCK

    @property
    def offset(self) -> int:
        """Where the tree starts: behind the dm-verity superblock's block."""
        return self.data_size + BLOCK

    @property
    def record_offset(self) -> int:
        """Where the seal record starts."""
        return self.offset + self.size

    def level_offset(self, level: int) -> int:
        """Byte offset in the blob of level 1, 2, …; the root level is stored first."""
        return self.offset + sum(self.levels[level:]) * BLOCK


def encode_seal(descriptor: Descriptor, chunk_blocks: Iterable[int] | None) -> bytes:
    """The seal record with padding and footer: a blob's last R bytes.

    Args:
        descriptor: of the data region.
        chunk_blocks: lengths in blocks of a plain data blob's chunks; None leaves the map out.

    Raises:
        FormatError: the chunks cover more blocks than the data region has, or the record would be too long.
    """
    entries = [RecordEntry(DESCRIPTOR, descriptor.encode(), critical=True)]
    if chunk_blocks is not None:
        chunk_map = encode_chunk_map(chunk_blocks)
        for _ in decode_chunk_map(chunk_map, total_blocks=descriptor.data_size // BLOCK):
            pass  # the reader's rules are the writer's: a map that it would refuse is not written
        entries.append(RecordEntry(CHUNK_MAP, chunk_map))
    record = encode_record(SEAL_MAGIC, entries)
    limit = max_record_length(descriptor.data_size)
    if len(record) > limit:
        raise FormatError(f"seal record would have {len(record)} bytes, more than {limit}")
    return record + record_tail(descriptor, len(record))


def max_record_length(data_size: int) -> int:
    """Largest number of bytes of header and entries that a data region can need.

    A run of the chunk map stands for at least one block and takes two bytes for each at most: chunks of 2^7 blocks
    or runs of 2^7 chunks are where a third byte begins.
    """
    fixed = HEADER_SIZE + (8 + DESCRIPTOR_SIZE) + 8 + 16
    return min(MAX_SEAL_RECORD, fixed + 2 * (data_size // BLOCK))


def padded_record_length(length: int) -> int:
    """Bytes of a seal record with padding and footer (R), given those of its header and entries."""
    return -(-(length + FOOTER_SIZE) // BLOCK) * BLOCK


def record_tail(descriptor: Descriptor, length: int) -> bytes:
    """What follows a seal record of `length` bytes: zeros and the footer, up to a whole block."""
    shape = TreeShape.of(descriptor.data_size, descriptor.params)
    padded = padded_record_length(length)
    footer = Footer(descriptor.data_size, shape.record_offset, padded)
    return bytes(padded - length - FOOTER_SIZE) + footer.encode()


@dataclass(frozen=True, slots=True)
class SealRecord:
    """A parsed seal record; nothing in it is trusted before the descriptor's digest is.

    Args:
        descriptor: of the data region.
        chunk_map: encoded chunk map, or None.
        length: bytes of header and entries, without padding.
    """

    descriptor: Descriptor
    chunk_map: bytes | None
    length: int

    @property
    def padded_length(self) -> int:
        """Bytes with padding and footer (R)."""
        return padded_record_length(self.length)

    @classmethod
    def parse(cls, data: bytes) -> SealRecord:
        """Read a record from its first byte; padding and footer may follow."""
        entries = parse_record(SEAL_MAGIC, data, limit=MAX_SEAL_RECORD)
        by_type = {entry.type: entry for entry in entries}
        if set(by_type) - {DESCRIPTOR, CHUNK_MAP}:
            raise FormatError("seal record holds entries that are not its own")
        found = by_type.get(DESCRIPTOR)
        if found is None or not found.critical:
            raise FormatError("seal record has no critical fs-verity descriptor")
        chunk_map = by_type.get(CHUNK_MAP)
        if chunk_map is not None and chunk_map.critical:
            raise FormatError("seal record marks its chunk map as critical, which it is not")
        length = HEADER_SIZE + sum(8 + len(entry.value) + -len(entry.value) % 8 for entry in entries)
        return cls(Descriptor.parse(found.value), None if chunk_map is None else chunk_map.value, length)
