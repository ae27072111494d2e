from __future__ import annotations

import struct

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eroseal.errors import FormatError
from eroseal.format import record
from eroseal.format.record import (
    FOOTER_SIZE,
    HEADER_SIZE,
    IMAGE_MAGIC,
    SEAL_MAGIC,
    Footer,
    RecordEntry,
    encode_record,
    parse_record,
    record_length,
)

LIMIT = 1 << 20


def build(
    body: bytes,
    *,
    magic: bytes = IMAGE_MAGIC,
    version: int = 1,
    header_size: int = HEADER_SIZE,
    total: int | None = None,
    body_crc: int | None = None,
    head_crc: int | None = None,
) -> bytes:
    """A record whose checksums are right unless told otherwise."""
    total = HEADER_SIZE + len(body) if total is None else total
    crc = google_crc32c.value(body) if body_crc is None else body_crc
    head = struct.pack("<8sIIQI", magic, version, header_size, total, crc)
    crc = google_crc32c.value(head) if head_crc is None else head_crc
    return head + struct.pack("<I", crc) + body


def entry(kind: int, value: bytes = b"", *, flags: int = 0, length: int | None = None) -> bytes:
    head = struct.pack("<HHI", kind, flags, len(value) if length is None else length)
    return head + value + bytes(-len(value) % 8)


entries_strategy = st.lists(
    st.builds(
        RecordEntry,
        st.sampled_from([16, 17, 18, 19, 20, 22]),
        st.binary(max_size=40),
        st.booleans(),
    ),
    max_size=12,
)


@given(entries_strategy)
def test_records_round_trip_sorted_by_type(entries: list[RecordEntry]) -> None:
    data = encode_record(IMAGE_MAGIC, entries)
    assert len(data) % 8 == 0
    assert record_length(IMAGE_MAGIC, data, limit=LIMIT) == len(data)
    expected = sorted(entries, key=lambda item: item.type)
    assert parse_record(IMAGE_MAGIC, data, limit=LIMIT) == expected
    # What follows a record is not its business.
    assert parse_record(IMAGE_MAGIC, data + b"trailing", limit=LIMIT) == expected


@given(entries_strategy, st.data())
def test_every_flipped_bit_is_noticed(entries: list[RecordEntry], data: st.DataObject) -> None:
    raw = bytearray(encode_record(IMAGE_MAGIC, entries))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError):
        parse_record(IMAGE_MAGIC, bytes(raw), limit=LIMIT)


@given(entries_strategy, st.data())
def test_every_truncation_is_noticed(entries: list[RecordEntry], data: st.DataObject) -> None:
    raw = encode_record(IMAGE_MAGIC, entries)
    end = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(FormatError, match="truncated"):
        parse_record(IMAGE_MAGIC, raw[:end], limit=LIMIT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (build(b"", magic=SEAL_MAGIC), "no image record here"),
        (build(b"", version=2), "has version 2"),
        (build(b"", header_size=40), "has version 1"),
        (build(b"", total=31), "claims 31 bytes"),
        (build(b"", total=LIMIT + 1), "claims 1048577 bytes"),
        (build(b"", total=2**64 - 1), "claims"),
        (build(b"", total=40), "truncated"),
        (build(b"", head_crc=0), "checksum of the image record's header"),
        (build(entry(16), body_crc=1), "checksum of the image record's entries"),
        (build(entry(17) + entry(16)), "not in rising order"),
        (build(entry(21) + entry(21)), "repeats entry type 21"),
        (build(entry(23, flags=1)), "critical entry type 23, unknown"),
        (build(entry(16, flags=2)), "unknown flags 0x2"),
        (build(entry(16, length=1)), "reaches past its end"),
        (build(entry(16, length=2**32 - 1)), "reaches past its end"),
        (build(entry(16, b"abc")[:-1] + b"\x01"), "padding after entry type 16"),
        (build(entry(16) + b"\0\0\0\0"), "ends inside an entry's header"),
        (b"", "no room for its header"),
        (bytes(31), "no room for its header"),
    ],
)
def test_what_no_writer_writes_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_record(IMAGE_MAGIC, data, limit=LIMIT)


def test_unknown_entries_that_are_not_critical_are_kept() -> None:
    assert parse_record(IMAGE_MAGIC, build(entry(99, b"later")), limit=LIMIT) == [RecordEntry(99, b"later")]


def test_the_number_of_entries_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "MAX_RECORD_ENTRIES", 3)
    assert len(parse_record(IMAGE_MAGIC, build(entry(16) * 3), limit=LIMIT)) == 3
    with pytest.raises(FormatError, match="more than 3 entries"):
        parse_record(IMAGE_MAGIC, build(entry(16) * 4), limit=LIMIT)


def test_a_footer_round_trips() -> None:
    footer = Footer(1 << 40, (1 << 40) + 4096, 8192)
    data = footer.encode()
    assert len(data) == FOOTER_SIZE
    assert data[40:] == bytes(24)
    assert Footer.parse(data) == footer


def test_a_footer_that_was_altered_is_none() -> None:
    data = Footer(4096, 8192, 4096).encode()
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        assert Footer.parse(bytes(altered)) is None, bit
    assert Footer.parse(data[:-1]) is None
    assert Footer.parse(data + b"\0") is None
