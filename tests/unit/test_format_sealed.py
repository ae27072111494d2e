from __future__ import annotations

import struct

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eroseal.errors import FormatError
from eroseal.format import record
from eroseal.format.chunkmap import decode_chunk_map, encode_chunk_map
from eroseal.format.digest import BLOCK, HashAlgorithm, TreeParams
from eroseal.format.fsverity import Descriptor
from eroseal.format.record import Footer, RecordEntry, encode_record
from eroseal.format.sealed import SealRecord, TreeShape, encode_seal, max_record_length
from eroseal.limits import MAX_DATA_SIZE

DESCRIPTOR = Descriptor(TreeParams(), 10 * BLOCK, bytes(range(32)))


@pytest.mark.parametrize(
    ("blocks", "algorithm", "levels"),
    [
        (1, HashAlgorithm.SHA256, ()),
        (2, HashAlgorithm.SHA256, (1,)),
        (128, HashAlgorithm.SHA256, (1,)),
        (129, HashAlgorithm.SHA256, (2, 1)),
        (128 * 128, HashAlgorithm.SHA256, (128, 1)),
        (128 * 128 + 1, HashAlgorithm.SHA256, (129, 2, 1)),
        (64, HashAlgorithm.SHA512, (1,)),
        (65, HashAlgorithm.SHA512, (2, 1)),
    ],
)
def test_levels_of_a_tree(blocks: int, algorithm: HashAlgorithm, levels: tuple[int, ...]) -> None:
    shape = TreeShape.of(blocks * BLOCK, TreeParams(algorithm))
    assert shape.levels == levels
    assert shape.record_offset == (blocks + 1 + sum(levels)) * BLOCK
    # The root level comes first, level 1 last.
    offsets = [shape.level_offset(level + 1) for level in range(len(levels))]
    assert offsets == sorted(offsets, reverse=True)
    if levels:
        assert offsets[-1] == shape.offset
        assert offsets[0] + levels[0] * BLOCK == shape.record_offset


@pytest.mark.parametrize("size", [0, -BLOCK, 1, BLOCK + 512, MAX_DATA_SIZE + BLOCK])
def test_sizes_that_are_no_data_region(size: int) -> None:
    with pytest.raises(FormatError, match="positive multiple"):
        TreeShape.of(size, TreeParams())


@pytest.mark.parametrize("chunks", [None, [], [10], [1] * 10, [4, 4, 2], [3]])
def test_a_seal_record_round_trips(chunks: list[int] | None) -> None:
    data = encode_seal(DESCRIPTOR, chunks)
    assert len(data) % BLOCK == 0
    parsed = SealRecord.parse(data)
    assert parsed.descriptor == DESCRIPTOR
    assert parsed.padded_length == len(data)
    assert parsed.chunk_map == (None if chunks is None else encode_chunk_map(chunks))
    footer = Footer.parse(data[-64:])
    assert footer == Footer(10 * BLOCK, TreeShape.of(10 * BLOCK, TreeParams()).record_offset, len(data))


def test_record_and_footer_share_a_block_up_to_its_last_byte() -> None:
    """The footer moves to another block exactly when record and footer no longer fit one."""
    lengths = set()
    for runs in range(1, 3000, 7):
        descriptor = Descriptor(TreeParams(), 8192 * BLOCK, bytes(32))
        data = encode_seal(descriptor, [1, 2] * runs if runs < 2700 else None)
        parsed = SealRecord.parse(data)
        assert parsed.length + 64 <= len(data) < parsed.length + 64 + BLOCK
        lengths.add(len(data))
    assert lengths == {BLOCK, 2 * BLOCK, 3 * BLOCK}


def test_chunks_beyond_the_data_region_are_not_written() -> None:
    with pytest.raises(FormatError, match="covers 11 blocks"):
        encode_seal(DESCRIPTOR, [5, 6])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "no critical fs-verity descriptor"),
        ([RecordEntry(1, DESCRIPTOR.encode())], "no critical fs-verity descriptor"),
        ([RecordEntry(1, DESCRIPTOR.encode(), True), RecordEntry(2, b"\0", True)], "marks its chunk map"),
        ([RecordEntry(1, DESCRIPTOR.encode(), True), RecordEntry(3, b"")], "not its own"),
        ([RecordEntry(1, DESCRIPTOR.encode(), True), RecordEntry(16, b"")], "not its own"),
        ([RecordEntry(1, DESCRIPTOR.encode(), True)] * 2, "repeats entry type 1"),
        ([RecordEntry(1, DESCRIPTOR.encode()[:-1], True)], "256 bytes, not 255"),
    ],
)
def test_a_seal_record_holds_exactly_its_entries(entries: list[RecordEntry], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        SealRecord.parse(encode_record(record.SEAL_MAGIC, entries))


@given(st.lists(st.integers(1, 300), max_size=200))
def test_a_chunk_map_round_trips_and_stays_within_its_bound(chunks: list[int]) -> None:
    total = max(1, sum(chunks))
    data = encode_chunk_map(chunks)
    decoded = [size for size, count in decode_chunk_map(data, total_blocks=total) for _ in range(count)]
    assert decoded == chunks
    descriptor = Descriptor(TreeParams(), total * BLOCK, bytes(32))
    SealRecord.parse(encode_seal(descriptor, chunks))
    assert len(data) <= max_record_length(total * BLOCK) - 300


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated inside a number"),
        (b"\x01\x01", "truncated inside a number"),
        (b"\x01\x00\x01", "empty or split run"),
        (b"\x01\x01\x00", "empty or split run"),
        (b"\x02\x01\x01\x01\x02", "empty or split run"),
        (b"\x01\x81\x00\x01", "padded number"),
        (b"\x00\x00", "bytes after its last run"),
        (b"\x01\x0b\x01", "covers 11 blocks"),
        (b"\x01" + b"\xff" * 8 + b"\x7f\x01", "covers"),
        (b"\x01" + b"\xff" * 9 + b"\x01\x01", "truncated inside a number"),
    ],
)
def test_chunk_maps_that_lie_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        list(decode_chunk_map(data, total_blocks=10))


def test_a_zero_length_chunk_is_not_written_silently() -> None:
    with pytest.raises(FormatError, match="empty or split run"):
        encode_seal(DESCRIPTOR, [1, 0, 2])


@given(st.binary(max_size=400))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        SealRecord.parse(data)
    except FormatError:
        return
    pytest.fail("random bytes passed as a seal record")


@given(st.binary(max_size=80))
def test_any_entries_parse_or_are_refused(body: bytes) -> None:
    head = struct.pack("<8sIIQI", record.SEAL_MAGIC, 1, 32, 32 + len(body), google_crc32c.value(body))
    with pytest.raises(FormatError):
        SealRecord.parse(head + struct.pack("<I", google_crc32c.value(head)) + body)
