"""Maps of sparse files: where the bytes that an archive holds of a file belong.

GNU tar has written four forms: in blocks behind the header (typeflag S), in PAX records (0.0 and 0.1), and as text
before the data (1.0). All give the same thing here: pieces of data in rising order that do not overlap.

Source: the manual of GNU tar, "Storing Sparse Files".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from eroseal.errors import FormatError, UnsupportedError
from eroseal.format.tar import parse_number
from eroseal.format.tar_pax import Record, parse_decimal
from eroseal.limits import MAX_SPARSE_PIECES

Pieces = list[tuple[int, int]]
"""(byte offset in the file, length) of each piece of data."""

# struct oldgnu_header: sp[4] of {offset, numbytes}, isextended, realsize. struct sparse_header: sp[21], isextended.
_OLD_MAP: Final = struct.Struct("386x" + "12s12s" * 4 + "c12s17x")
_OLD_EXTENSION: Final = struct.Struct("12s12s" * 21 + "c7x")
assert _OLD_MAP.size == _OLD_EXTENSION.size == 512
_NO_ENTRY: Final = b"\0"


@dataclass(slots=True)
class Sparse:
    """What the header of a sparse file says.

    Args:
        size: bytes of the file, holes counted.
        pieces: its data; those in the archive's text before the data (format 1.0) are not here.
        more: further blocks of the map follow the header (old GNU format).
        in_data: the map is at the beginning of the data (format 1.0).
        name: the file's path, where the sparse records give it.
    """

    size: int
    pieces: Pieces
    more: bool = False
    in_data: bool = False
    name: bytes | None = None


def parse_old_map(block: bytes) -> Sparse:
    """The map in an old GNU header (typeflag S)."""
    *entries, extended, size = _OLD_MAP.unpack(block)
    return Sparse(parse_number(size), _old_pieces(entries), more=extended != _NO_ENTRY)


def parse_old_extension(block: bytes) -> tuple[Pieces, bool]:
    """(pieces, whether a further block follows) of a block behind such a header."""
    *entries, extended = _OLD_EXTENSION.unpack(block)
    return _old_pieces(entries), extended != _NO_ENTRY


def _old_pieces(entries: list[bytes]) -> Pieces:
    pairs = takewhile(lambda pair: pair[1][:1] != _NO_ENTRY, zip(entries[::2], entries[1::2], strict=True))
    return [(parse_number(offset), parse_number(length)) for offset, length in pairs]


def parse_sparse(records: list[Record]) -> Sparse:
    """The map in PAX records of formats 0.0 and 0.1, or the announcement of one in the data (1.0).

    Args:
        records: keys without `GNU.sparse.`.

    Raises:
        FormatError: something is missing or malformed.
        UnsupportedError: another version.
    """
    values = dict(records)
    version = values.get(b"major", b"0"), values.get(b"minor", b"")
    name = values.get(b"name")
    if name is not None and (not name or b"\0" in name):
        raise FormatError("malformed sparse map: the file's name is empty or has a NUL")
    if version == (b"1", b"0"):
        return Sparse(_needed(values, b"realsize"), [], in_data=True, name=name)
    if version not in ((b"0", b""), (b"0", b"0"), (b"0", b"1")):
        raise UnsupportedError(f"sparse format {b'.'.join(version)[:20].decode('latin-1')!r} is not supported")
    numbers = _paired(records)
    if values.get(b"map"):
        numbers += values[b"map"].split(b",")
    if len(numbers) % 2 or len(numbers) // 2 > MAX_SPARSE_PIECES:
        raise FormatError("malformed sparse map: an offset without a length, or too many pieces")
    parsed = [parse_decimal(number) for number in numbers]
    pieces = list(zip(parsed[::2], parsed[1::2], strict=True))
    if _needed(values, b"numblocks") != len(pieces):
        raise FormatError("malformed sparse map: it has not as many pieces as it says")
    return Sparse(_needed(values, b"size"), pieces, name=name)


def _paired(records: list[Record]) -> list[bytes]:
    """Values of offset and numbytes, which must take turns."""
    kinds = [(key, value) for key, value in records if key in (b"offset", b"numbytes")]
    if any(key != (b"offset", b"numbytes")[number % 2] for number, (key, _) in enumerate(kinds)):
        raise FormatError("malformed sparse map: offsets and lengths do not take turns")
    return [value for _, value in kinds]


def _needed(values: dict[bytes, bytes], key: bytes) -> int:
    if key not in values:
        raise FormatError(f"malformed sparse map: it has no {key.decode()}")
    return parse_decimal(values[key])


class DataMap:
    """Reads the map at the beginning of a file's data (format 1.0), block by block.

    It is decimal numbers, a newline behind each: how many pieces, then offset and length of each; zeros pad its last
    block. `feed` it blocks until it is `complete`.
    """

    def __init__(self) -> None:
        self._text: list[bytes] = []
        self._lines = 0
        self._wanted: int | None = None

    @property
    def complete(self) -> bool:
        """Whether all of the map is here."""
        return self._wanted is not None and self._lines >= self._wanted

    def feed(self, block: bytes) -> None:
        """Take the next block.

        Raises:
            FormatError: it does not begin with a number of pieces that is within bounds.
        """
        self._text.append(block)
        self._lines += block.count(b"\n")
        if self._wanted is None:
            count = parse_decimal(block.partition(b"\n")[0])
            if count > MAX_SPARSE_PIECES:
                raise FormatError(f"more than {MAX_SPARSE_PIECES} pieces of a sparse file")
            self._wanted = 1 + 2 * count

    def pieces(self) -> Pieces:
        """The map, once it is complete."""
        *lines, padding = b"".join(self._text).split(b"\n")
        if len(lines) != self._wanted or padding.strip(b"\0"):
            raise FormatError("malformed sparse map: something follows it in its last block")
        numbers = [parse_decimal(line) for line in lines[1:]]
        return list(zip(numbers[::2], numbers[1::2], strict=True))


def check_pieces(pieces: Pieces, *, size: int, stored: int) -> Pieces:
    """The pieces that are not empty, after a check that they fit the file and the archive.

    Args:
        pieces: of the map.
        size: bytes of the file, holes counted.
        stored: bytes of data in the archive.

    Raises:
        FormatError: pieces that overlap, are out of order, leave the file, or are not what the archive stores.
    """
    if len(pieces) > MAX_SPARSE_PIECES:
        raise FormatError(f"more than {MAX_SPARSE_PIECES} pieces of a sparse file")
    end = total = 0
    for offset, length in pieces:
        if offset < end or length < 0 or offset + length > size:
            raise FormatError(f"malformed sparse map: {length} bytes at byte {offset} overlap others or leave the file")
        end = offset + length
        total += length
    if total != stored:
        raise FormatError(f"malformed sparse map: it tells of {total} bytes, but {stored} are stored")
    return [(offset, length) for offset, length in pieces if length]
