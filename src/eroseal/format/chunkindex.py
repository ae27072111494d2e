"""The chunk index of the EROFS image layer specification: where each chunk of a layer's bytes lies in its blob.

It is advice, made by whoever made the layer: what is read with its help is verified as if it had not been there.
Still it is parsed strictly, and everything that a reader computes from it stays inside the blob and inside bounds.

Source: erofs/erofs-image-spec (draft), 3.4: a header of 32 bytes, then entries of 16 bytes and a checksum each.
"""

from __future__ import annotations

import bisect
import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final

from eroseal.errors import FormatError
from eroseal.limits import MAX_CHUNK_INDEX, MAX_LAYER_CHUNK

MEDIA_TYPE: Final = "application/vnd.erofs.chunk-index.v1"

_MAGIC: Final = bytes((0xCD, 0xE4, 0xEC, 0x67))
_VERSION: Final = 1
# Magic, Version, CompressionType, Flags, UncompressedSize, NumChunks, HashAlgo, HashSize, Reserved
_HEADER: Final = struct.Struct("<4sBBHQIBB10s")
HEADER_SIZE: Final = 32
assert _HEADER.size == HEADER_SIZE
# BlockOffset, UncompressedOffset
_ENTRY: Final = struct.Struct("<QQ")
assert _ENTRY.size == 16
_HASH_SIZES: Final = {0: (0,), 1: (32, 64)}
_SLACK: Final = 128 << 10
"""Stored bytes that a frame may have beyond its content: zstd's own bound (n + n/256 + 64), and padding frames."""
_MAX_OFFSET: Final = (1 << 63) - 1


class Compression(enum.Enum):
    """How chunks lie in a blob."""

    NONE = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk.

    Args:
        stored_offset: byte offset in the blob.
        stored_size: bytes in the blob.
        offset: byte offset in the uncompressed bytes.
        size: uncompressed bytes.
        checksum: SHA-256 or SHA-512 of the stored bytes; empty where there is none.
    """

    stored_offset: int
    stored_size: int
    offset: int
    size: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """A checked chunk index; made by `parse`.

    Args:
        compression: of the chunks.
        size: bytes of all chunks, uncompressed.
        end: byte offset in the blob at which the last chunk ends, at most.
        hash_size: bytes of a checksum: 0, 32 or 64.
        table: the entries as they were read.
    """

    compression: Compression
    size: int
    end: int
    hash_size: int
    table: bytes

    def __len__(self) -> int:
        return len(self.table) // (_ENTRY.size + self.hash_size)

    def chunk(self, number: int) -> Chunk:
        """The chunk of this number, counted from 0."""
        stored, offset = self._entry(number)
        last = number + 1 == len(self)
        next_stored, next_offset = (self.end, self.size) if last else self._entry(number + 1)
        size = next_offset - offset
        stored_size = size if self.compression is Compression.NONE else next_stored - stored
        start = number * (_ENTRY.size + self.hash_size) + _ENTRY.size
        return Chunk(stored, stored_size, offset, size, self.table[start : start + self.hash_size])

    def covering(self, offset: int, length: int) -> range:
        """Numbers of the chunks that hold `length` bytes, at least 1, from uncompressed byte `offset` on."""
        numbers = range(len(self))
        first = bisect.bisect_right(numbers, offset, key=lambda number: self._entry(number)[1]) - 1
        stop = bisect.bisect_left(numbers, offset + length, lo=first, key=lambda number: self._entry(number)[1])
        return range(first, stop)

    def _entry(self, number: int) -> tuple[int, int]:
        stored, offset = _ENTRY.unpack_from(self.table, number * (_ENTRY.size + self.hash_size))
        return int(stored), int(offset)

    @classmethod
    def parse(cls, data: bytes, *, end: int) -> ChunkIndex:
        """Read an index.

        Args:
            data: all of it, without a frame around it.
            end: byte offset in the blob at which its chunks must have ended.

        Raises:
            FormatError: anything but an index whose chunks follow each other from byte 0 to the end of the
                uncompressed bytes, each below MAX_LAYER_CHUNK, and whose stored bytes lie before `end`.
        """
        if len(data) > MAX_CHUNK_INDEX:
            raise FormatError(f"chunk index has {len(data)} bytes, more than {MAX_CHUNK_INDEX}")
        if len(data) < HEADER_SIZE:
            raise FormatError("chunk index is truncated: no room for its header")
        magic, version, compression, flags, size, count, algorithm, hash_size, reserved = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise FormatError("no chunk index here: its magic is missing")
        if version != _VERSION or flags or any(reserved):
            raise FormatError("chunk index has a version, flags or reserved bytes that this program does not know")
        if compression not in (0, 1) or hash_size not in _HASH_SIZES.get(algorithm, ()):
            raise FormatError("chunk index has a compression or checksums that this program does not know")
        if len(data) != HEADER_SIZE + count * (_ENTRY.size + hash_size):
            raise FormatError(f"chunk index of {count} chunks has {len(data)} bytes")
        index = cls(Compression(compression), size, end, hash_size, data[HEADER_SIZE:])
        index._check()
        return index

    def _check(self) -> None:
        starts = map(self._entry, range(len(self)))
        if self.size > _MAX_OFFSET or (len(self) == 0) != (self.size == 0) or (self.size and self._entry(0)[1] != 0):
            raise FormatError("chunk index does not cover the bytes that it is for")
        for (stored, offset), (next_stored, next_offset) in pairwise(chain(starts, [(self.end, self.size)])):
            length, room = next_offset - offset, next_stored - stored
            if not 0 < length <= MAX_LAYER_CHUNK:
                raise FormatError(f"chunk index has a chunk of {length} bytes at byte {offset}")
            if room <= 0 or (self.compression is Compression.NONE and room < length):
                raise FormatError(f"chunk index has a chunk at byte {stored} of the blob that overlaps what follows")
            if self.compression is Compression.ZSTD and room > length + (length >> 8) + _SLACK:
                raise FormatError(f"chunk index gives {room} bytes of the blob to a chunk of {length} bytes")


def encode_chunk_index(
    compression: Compression, size: int, entries: Iterable[tuple[int, int, bytes]], *, hash_size: int = 32
) -> bytes:
    """The bytes of an index.

    Args:
        compression: of the chunks.
        size: bytes of all chunks, uncompressed.
        entries: byte offset in the blob, uncompressed byte offset, and checksum of each chunk.
        hash_size: bytes of each checksum: 0, 32 (SHA-256) or 64 (SHA-512).

    Raises:
        FormatError: too many chunks.
    """
    table = bytearray()
    count = 0
    for stored, offset, checksum in entries:
        table += _ENTRY.pack(stored, offset) + checksum
        count += 1
    if len(table) + HEADER_SIZE > MAX_CHUNK_INDEX:
        raise FormatError(f"chunk index of {count} chunks would have more than {MAX_CHUNK_INDEX} bytes")
    algorithm = 1 if hash_size else 0
    head = _HEADER.pack(_MAGIC, _VERSION, compression.value, 0, size, count, algorithm, hash_size, bytes(10))
    return head + bytes(table)
