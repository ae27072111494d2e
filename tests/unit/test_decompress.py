"""Compressed streams: every format whole and in pieces, bombs in bounded pieces, and everything that is not right."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard
from tests.support.tars import split

from eroseal.errors import FormatError, RemoteError, UnsupportedError
from eroseal.tree.decompress import PIECE, compression_of, decompressed

DATA = random.Random(1).randbytes(200_000) + bytes(100_000) + b"text " * 40_000
SKIPPABLE = b"\x5f\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"PK\0\0\0"


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd, "xz": lzma.compress}


def read(*pieces: bytes) -> bytes:
    return b"".join(decompressed(pieces, name="it"))


@pytest.mark.parametrize("kind", COMPRESSORS)
@pytest.mark.parametrize("size", [7, 1000, 1 << 20])
def test_pieces_of_any_size(kind: str, size: int) -> None:
    packed = COMPRESSORS[kind](DATA)
    assert compression_of(packed[:10]) == kind
    assert read(*split(packed, size)) == DATA


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_byte_by_byte_with_empty_pieces(kind: str) -> None:
    packed = COMPRESSORS[kind](DATA[:3000])
    pieces = [piece for byte in split(packed, 1) for piece in (b"", byte)]
    assert read(*pieces) == DATA[:3000]


@pytest.mark.parametrize("data", [b"", b"x", b"\x1f\x8b", DATA])
def test_plain_streams_pass(data: bytes) -> None:
    assert compression_of(data[:10]) == "none"
    assert read(*split(data, 4096)) == data


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_nothing_is_a_stream_too(kind: str) -> None:
    assert read(COMPRESSORS[kind](b"")) == b""


@pytest.mark.parametrize("size", [1, 3, 100_000])
def test_several_parts(size: int) -> None:
    data, more = DATA[:2000], b"more"
    for packed in (
        gzip.compress(data) + gzip.compress(b"") + gzip.compress(more),
        gzip.compress(data) + gzip.compress(more) + bytes(1000),
        SKIPPABLE + zstd(data) + SKIPPABLE + zstd(b"") + zstd(more) + SKIPPABLE,
        lzma.compress(data) + lzma.compress(more),
        lzma.compress(data) + bytes(8) + lzma.compress(more) + bytes(4),
    ):
        assert read(*split(packed, size)) == data + more


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_truncated(kind: str) -> None:
    packed = COMPRESSORS[kind](DATA[:2000] + DATA[-2000:])
    for end in range(10, len(packed)):
        with pytest.raises(FormatError, match="it: truncated"):
            read(packed[:end])


def test_truncated_behind_a_whole_part() -> None:
    for compress in COMPRESSORS.values():
        one, two = compress(b"one" * 100), compress(b"two" * 100)
        for end in range(1, len(two)):
            with pytest.raises(FormatError, match="it: "):
                read(one + two[:end])


def test_a_truncated_frame_may_want_any_number_of_bytes() -> None:
    # A raw block that ends early: what comes behind the end must not be taken for its rest.
    header = b"\x28\xb5\x2f\xfd\x00\x58"  # no checksum, a window of 2 MiB
    for wanted in range(300):
        block = (wanted << 3).to_bytes(3, "little")
        with pytest.raises(FormatError, match="it: "):
            read(header + block)


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_something_behind_the_end(kind: str) -> None:
    packed = COMPRESSORS[kind](DATA[:1000])
    for behind in (b"garbage!", bytes(300) + b"x", b"\x1f", b"\0\0\0x"):
        with pytest.raises(FormatError, match="it: "):
            read(packed + behind)


def test_padding_that_xz_does_not_have() -> None:
    packed = lzma.compress(b"data")
    for behind in (bytes(3), bytes(5) + packed):
        for size in (1, 1000):
            with pytest.raises(FormatError, match="multiples of 4"):
                read(*split(packed + behind, size))


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_every_changed_byte_is_an_error_or_nothing(kind: str) -> None:
    if kind == "zstd":
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(DATA[-3000:])
    else:
        packed = COMPRESSORS[kind](DATA[-3000:])
    for at in range(6, len(packed)):
        changed = bytearray(packed)
        changed[at] ^= 0x41
        try:
            data = read(bytes(changed))
        except FormatError as error:
            assert error.where == "it"  # most are errors, but gzip's header has bytes of no effect
        else:
            assert data == DATA[-3000:]


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_bombs_come_in_bounded_pieces(kind: str) -> None:
    size = 32 << 20
    packed = COMPRESSORS[kind](bytes(size))
    assert len(packed) < size // 900
    tracemalloc.start()
    try:
        total = 0
        for piece in decompressed([packed], name="it"):
            assert len(piece) <= PIECE
            total += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == size
    assert peak < 16 << 20


def test_a_bomb_is_not_read_before_it_is_asked_for() -> None:
    taken: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(1000):
            taken.append(number)
            yield zstd(bytes(1 << 20))

    stream = decompressed(pieces(), name="it")
    assert len(next(stream)) == PIECE
    assert len(taken) < 10


def test_windows_have_a_bound() -> None:
    # Frame header: window of 2 GiB (exponent 21), then an empty last block.
    with pytest.raises(FormatError, match="zstd"):
        read(b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\1\0\0")
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 << 20}]
    with pytest.raises(FormatError, match="xz data: Memory"):
        read(_xz_with_dictionary(filters))
    assert read(lzma.compress(DATA[:100], preset=9)) == DATA[:100]


def _xz_with_dictionary(filters: list[dict[str, int]]) -> bytes:
    # A small stream whose block header claims a large dictionary, so that the test need not allocate one.
    packed = bytearray(lzma.compress(b"data", preset=0, check=lzma.CHECK_CRC32))
    header_size = (packed[12] + 1) * 4
    header = packed[12 : 12 + header_size]
    at = header.index(b"\x21\x01") + 2
    bits = filters[0]["dict_size"].bit_length() - 1
    header[at] = (bits - 12) * 2
    header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "little")
    packed[12 : 12 + header_size] = header
    return bytes(packed)


def test_other_compressions_are_named() -> None:
    with pytest.raises(UnsupportedError, match="it: is compressed with bzip2"):
        read(bz2.compress(b"data"))
    with pytest.raises(UnsupportedError, match="bzip2"):
        read(bz2.compress(b""))


@pytest.mark.parametrize("kind", ["none", *COMPRESSORS])
def test_errors_of_the_source_pass(kind: str) -> None:
    packed = DATA if kind == "none" else COMPRESSORS[kind](DATA)

    def pieces() -> Iterator[bytes]:
        yield packed[:50_000]
        raise RemoteError("the line is cut")

    with pytest.raises(RemoteError, match="the line is cut"):
        list(decompressed(pieces(), name="it"))


def test_threads_share_nothing() -> None:
    results: dict[str, bytes] = {}

    def work(kind: str) -> None:
        results[kind] = read(*split(COMPRESSORS[kind](DATA), 1000))

    threads = [threading.Thread(target=work, args=(kind,)) for kind in COMPRESSORS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(COMPRESSORS, DATA)
