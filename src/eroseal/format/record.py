"""Seal records, image records and annexes: one container, its entries, and the footer that helps to find it.

Layout (docs/format.md, "Records"): a 32-byte header, entries aligned to 8 bytes in rising order of type, zero
padding. Checksums guard against accidents only; no field here carries authority.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import google_crc32c

from eroseal.errors import FormatError
from eroseal.limits import MAX_RECORD_ENTRIES

SEAL_MAGIC: Final = b"EROSEAL\0"
IMAGE_MAGIC: Final = b"EROSIMG\0"
ANNEX_MAGIC: Final = b"EROSANX\0"
FOOTER_MAGIC: Final = b"EROSEALF"
VERSION: Final = 1

# magic, version, header length, total length, crc of entries, crc of the 28 bytes before
_HEADER: Final = struct.Struct("<8sIIQII")
HEADER_SIZE: Final = 32
assert _HEADER.size == HEADER_SIZE
# type, flags, length
_ENTRY: Final = struct.Struct("<HHI")
# magic, version, crc of the footer with this field 0, D, record offset, record length, zero
_FOOTER: Final = struct.Struct("<8sIIQQQ24x")
FOOTER_SIZE: Final = 64
assert _FOOTER.size == FOOTER_SIZE

_CRITICAL: Final = 1

DESCRIPTOR: Final = 1
CHUNK_MAP: Final = 2
IMAGE_SIGNATURE: Final = 16
FSVERITY_SIGNATURE: Final = 17
DMVERITY_SIGNATURE: Final = 18
BOOTLOADER_SIGNATURE: Final = 19
KEY_ENVELOPE: Final = 20
ACCESS_TRACE: Final = 21
DATA_BLOB_SIGNATURE: Final = 22
OCI_CONFIG: Final = 32

_SEAL_TYPES: Final = frozenset({DESCRIPTOR, CHUNK_MAP})
_IMAGE_TYPES: Final = frozenset(range(IMAGE_SIGNATURE, DATA_BLOB_SIGNATURE + 1))
_KINDS: Final[dict[bytes, tuple[str, frozenset[int]]]] = {
    SEAL_MAGIC: ("seal", _SEAL_TYPES),
    IMAGE_MAGIC: ("image", _IMAGE_TYPES),
    ANNEX_MAGIC: ("annex", frozenset({OCI_CONFIG})),
}
"""What messages call each record, and the types of entries that it may hold."""
_REPEATABLE: Final = frozenset(
    {
        IMAGE_SIGNATURE,
        FSVERITY_SIGNATURE,
        DMVERITY_SIGNATURE,
        BOOTLOADER_SIGNATURE,
        KEY_ENVELOPE,
        DATA_BLOB_SIGNATURE,
    }
)


@dataclass(frozen=True, slots=True)
class RecordEntry:
    """One entry of a record.

    Args:
        type: 1 and 2 in a seal record, 16 to 22 in an image record, 32 in an annex; others are unknown.
        value: the bytes, without padding.
        critical: a reader that does not know the type must refuse the record.
    """

    type: int
    value: bytes
    critical: bool = False


def encode_record(magic: bytes, entries: Iterable[RecordEntry]) -> bytes:
    """Header and entries, the latter sorted by type (stable); not padded to a block."""
    body = bytearray()
    for entry in sorted(entries, key=lambda item: item.type):
        body += _ENTRY.pack(entry.type, _CRITICAL if entry.critical else 0, len(entry.value))
        body += entry.value
        body += bytes(-len(body) % 8)
    head = _HEADER.pack(magic, VERSION, HEADER_SIZE, HEADER_SIZE + len(body), google_crc32c.value(bytes(body)), 0)
    return head[:28] + struct.pack("<I", google_crc32c.value(head[:28])) + bytes(body)


def record_length(magic: bytes, header: bytes, *, limit: int) -> int:
    """Total length that a record's first 32 bytes announce.

    Args:
        magic: which record is expected.
        header: at least 32 bytes.
        limit: largest length accepted, in bytes.

    Raises:
        FormatError: not such a record, a broken header, or longer than `limit`.
    """
    if len(header) < HEADER_SIZE:
        raise FormatError("record is truncated: no room for its header")
    found, version, header_size, total, _, crc = _HEADER.unpack_from(header)
    if found != magic:
        raise FormatError(f"no {_label(magic)} record here: its magic is missing")
    if crc != google_crc32c.value(bytes(header[:28])):
        raise FormatError(f"checksum of the {_label(magic)} record's header is wrong")
    if version != VERSION or header_size != HEADER_SIZE:
        raise FormatError(f"{_label(magic)} record has version {version}, this program reads {VERSION}")
    if not HEADER_SIZE <= total <= limit:
        raise FormatError(f"{_label(magic)} record claims {total} bytes, outside {HEADER_SIZE} to {limit}")
    return int(total)


def parse_record(magic: bytes, data: bytes, *, limit: int) -> list[RecordEntry]:
    """Read a record whose padding, if any, follows its announced length.

    Raises:
        FormatError: anything that `encode_record` would not write, or an unknown critical entry.
    """
    total = record_length(magic, data, limit=limit)
    if len(data) < total:
        raise FormatError(f"{_label(magic)} record is truncated: {total} bytes announced, {len(data)} there")
    body = bytes(data[HEADER_SIZE:total])
    (body_crc,) = struct.unpack_from("<I", data, 24)
    if google_crc32c.value(body) != body_crc:
        raise FormatError(f"checksum of the {_label(magic)} record's entries is wrong")
    _, known = _KINDS[magic]
    entries: list[RecordEntry] = []
    for entry in _entries(body, _label(magic)):
        if entry.type not in known and entry.critical:
            raise FormatError(f"{_label(magic)} record holds critical entry type {entry.type}, unknown to this version")
        if entries and entry.type < entries[-1].type:
            raise FormatError(f"entries of the {_label(magic)} record are not in rising order of type")
        if entries and entry.type == entries[-1].type and entry.type in known - _REPEATABLE:
            raise FormatError(f"{_label(magic)} record repeats entry type {entry.type}")
        entries.append(entry)
        if len(entries) > MAX_RECORD_ENTRIES:
            raise FormatError(f"{_label(magic)} record has more than {MAX_RECORD_ENTRIES} entries")
    return entries


def _entries(body: bytes, label: str) -> Iterator[RecordEntry]:
    offset = 0
    while offset < len(body):
        if offset + _ENTRY.size > len(body):
            raise FormatError(f"{label} record ends inside an entry's header")
        kind, flags, length = _ENTRY.unpack_from(body, offset)
        if flags & ~_CRITICAL:
            raise FormatError(f"entry type {kind} of the {label} record has unknown flags {flags:#x}")
        start = offset + _ENTRY.size
        end = start + length
        offset = end + -end % 8
        if offset > len(body):
            raise FormatError(f"entry type {kind} of the {label} record reaches past its end")
        if any(body[end:offset]):
            raise FormatError(f"padding after entry type {kind} of the {label} record is not zero")
        yield RecordEntry(kind, body[start:end], bool(flags & _CRITICAL))


def _label(magic: bytes) -> str:
    return _KINDS[magic][0]


@dataclass(frozen=True, slots=True)
class Footer:
    """The hint in the last 64 bytes of a sealed blob; the verified descriptor decides.

    Args:
        data_size: D, bytes of the data region.
        record_offset: byte offset of the seal record.
        record_length: bytes of the seal record with its padding and this footer.
    """

    data_size: int
    record_offset: int
    record_length: int

    def encode(self) -> bytes:
        """The 64 bytes."""
        raw = bytearray(_FOOTER.pack(FOOTER_MAGIC, VERSION, 0, self.data_size, self.record_offset, self.record_length))
        struct.pack_into("<I", raw, 12, google_crc32c.value(bytes(raw)))
        return bytes(raw)

    @classmethod
    def parse(cls, data: bytes) -> Footer | None:
        """The footer in these 64 bytes, or None where there is none."""
        if len(data) != FOOTER_SIZE or data[:8] != FOOTER_MAGIC:
            return None
        _, _, _, data_size, offset, length = _FOOTER.unpack(data)
        footer = cls(data_size, offset, length)
        return footer if footer.encode() == data else None
