"""The chunk index: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eroseal.errors import FormatError
from eroseal.format.chunkindex import HEADER_SIZE, Chunk, ChunkIndex, Compression, encode_chunk_index
from eroseal.limits import MAX_LAYER_CHUNK

SUMS = [hashlib.sha256(bytes([number])).digest() for number in range(3)]
SAMPLE = [(0, 0, SUMS[0]), (900, 4096, SUMS[1]), (1000, 10_000, SUMS[2])]
END = 2000


def sample(compression: Compression = Compression.ZSTD) -> bytes:
    return encode_chunk_index(compression, 12_000, SAMPLE)


def test_the_header_is_that_of_the_specification() -> None:
    data = sample()
    assert data[:8] == bytes.fromhex("cde4ec67 01 01 0000")
    assert struct.unpack("<QIBB", data[8:22]) == (12_000, 3, 1, 32)
    assert data[22:32] == bytes(10)
    assert len(data) == 32 + 3 * 48
    assert data[32:80] == struct.pack("<QQ", 0, 0) + SUMS[0]


def test_chunks_are_read_back() -> None:
    index = ChunkIndex.parse(sample(), end=END)
    assert len(index) == 3
    assert index.chunk(0) == Chunk(0, 900, 0, 4096, SUMS[0])
    assert index.chunk(1) == Chunk(900, 100, 4096, 5904, SUMS[1])
    assert index.chunk(2) == Chunk(1000, 1000, 10_000, 2000, SUMS[2])


@pytest.mark.parametrize(
    ("offset", "length", "numbers"),
    [(0, 1, [0]), (4095, 1, [0]), (4095, 2, [0, 1]), (4096, 5904, [1]), (0, 12_000, [0, 1, 2]), (11_999, 1, [2])],
)
def test_a_range_is_covered_by_the_chunks_that_it_touches(offset: int, length: int, numbers: list[int]) -> None:
    assert list(ChunkIndex.parse(sample(), end=END).covering(offset, length)) == numbers


def test_chunks_without_compression_are_as_long_as_what_they_hold() -> None:
    data = encode_chunk_index(Compression.NONE, 6000, [(0, 0, b""), (5000, 4096, b"")], hash_size=0)
    index = ChunkIndex.parse(data, end=8000)
    assert len(data) == 32 + 2 * 16
    assert [index.chunk(number).stored_size for number in range(2)] == [4096, 1904]
    assert index.chunk(0).checksum == b""


def test_an_index_of_nothing_is_valid() -> None:
    index = ChunkIndex.parse(encode_chunk_index(Compression.NONE, 0, []), end=0)
    assert (len(index), index.size) == (0, 0)


def patched(offset: int, data: bytes, original: bytes | None = None) -> bytes:
    original = sample() if original is None else original
    return original[:offset] + data + original[offset + len(data) :]


def entry(number: int, stored: int, offset: int) -> bytes:
    return patched(HEADER_SIZE + 48 * number, struct.pack("<QQ", stored, offset))


BROKEN = {
    "empty": b"",
    "header cut": sample()[:31],
    "magic": patched(0, b"\0"),
    "version": patched(4, b"\2"),
    "compression": patched(5, b"\2"),
    "flags": patched(6, b"\1"),
    "reserved": patched(31, b"\1"),
    "hash without size": patched(20, b"\1\0"),
    "size without hash": patched(20, b"\0\40"),
    "unknown hash": patched(20, b"\2\40"),
    "odd hash size": patched(21, b"\24"),
    "one entry more": patched(16, b"\4"),
    "one entry less": patched(16, b"\2"),
    "a billion entries": patched(16, b"\xff\xff\xff\xff"),
    "trailing byte": sample() + b"\0",
    "entry cut": sample()[:-1],
    "does not begin at 0": entry(0, 0, 1),
    "offsets fall": entry(2, 1000, 4000),
    "offset repeats": entry(1, 900, 0),
    "stored offsets fall": entry(2, 800, 10_000),
    "stored offset repeats": entry(2, 900, 10_000),
    "stored after the end": entry(2, END, 10_000),
    "offset after the end": entry(2, 1000, 12_000),
    "size below the last chunk": patched(8, struct.pack("<Q", 10_000)),
    "size of 0": patched(8, bytes(8)),
    "size of 2^64": patched(8, b"\xff" * 8),
    "chunk too large": patched(8, struct.pack("<Q", 10_001 + MAX_LAYER_CHUNK)),
    "no entries for some bytes": encode_chunk_index(Compression.ZSTD, 1, []),
    "raw chunks overlap": sample(Compression.NONE),
}


@pytest.mark.parametrize("name", BROKEN)
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(FormatError):
        ChunkIndex.parse(BROKEN[name], end=END)


def test_a_frame_much_larger_than_its_content_is_refused() -> None:
    with pytest.raises(FormatError, match="to a chunk of 2000 bytes"):
        ChunkIndex.parse(sample(), end=1 << 30)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_consistent(data: bytes) -> None:
    try:
        index = ChunkIndex.parse(sample()[:5] + data, end=END)
    except FormatError:
        return
    assert sum(index.chunk(number).size for number in range(len(index))) == index.size


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, MAX_LAYER_CHUNK)), max_size=20))
def test_every_index_that_is_written_is_read_back(chunks: list[tuple[int, int]]) -> None:
    stored = offset = 0
    entries = []
    for room, size in chunks:
        entries.append((stored, offset, b""))
        stored, offset = stored + room, offset + size
    index = ChunkIndex.parse(encode_chunk_index(Compression.ZSTD, offset, entries, hash_size=0), end=stored)
    found = [index.chunk(number) for number in range(len(index))]
    assert [(chunk.stored_size, chunk.size) for chunk in found] == chunks
