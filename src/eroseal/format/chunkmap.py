"""The chunk map of a plain data blob: how many blocks each of its chunks has, in order.

Encoded as runs: (blocks of a chunk, repetitions), both LEB128, with a leading count of runs. It is not
authenticated and need not be: chunk ids are computed from verified tree blocks, so a map that lies finds
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from eroseal.errors import FormatError
from eroseal.limits import MAX_CHUNKS

_MAX_VARINT_BYTES = 9


def encode_chunk_map(blocks: Iterable[int]) -> bytes:
    """Run-length encode the chunks' lengths, in blocks of 4096 bytes."""
    runs = [(size, sum(1 for _ in same)) for size, same in groupby(blocks)]
    return b"".join([_varint(len(runs)), *(_varint(size) + _varint(count) for size, count in runs)])


def decode_chunk_map(data: bytes, *, total_blocks: int) -> Iterator[tuple[int, int]]:
    """The runs of a chunk map, each (blocks of a chunk, repetitions), checked as they are read.

    Args:
        total_blocks: blocks of the blob's data region; a map that covers more is refused, one that covers
            less describes the first chunks only.

    Raises:
        FormatError: not canonical, too many chunks, or more blocks than the blob has.
    """
    runs, offset = _read_varint(data, 0)
    covered = chunks = 0
    last = 0
    for _ in range(runs):
        size, offset = _read_varint(data, offset)
        count, offset = _read_varint(data, offset)
        covered += size * count
        chunks += count
        if size == 0 or count == 0 or size == last:
            raise FormatError("chunk map is not canonical: an empty or split run")
        if covered > total_blocks or chunks > MAX_CHUNKS:
            raise FormatError(f"chunk map covers {covered} blocks, the blob has {total_blocks}")
        last = size
        yield size, count
    if offset != len(data):
        raise FormatError("chunk map has bytes after its last run")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[offset : offset + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index:
                raise FormatError("chunk map is not canonical: a padded number")
            return value, offset + index + 1
    raise FormatError("chunk map is truncated inside a number")
