"""Tar archives, block by block: one header block to a typed header.

Numbers and texts are parsed as strictly as GNU tar and Go's archive/tar agree on, because what two readers understand
differently can be used to show them different trees. What a header may ask for is decided by whoever reads the archive.
Extended headers are in `tar_pax`, maps of sparse files in `tar_sparse`.

Source: POSIX.1-2017, pax, "ustar Interchange Format"; the manual of GNU tar, "Basic Tar Format".
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final, NamedTuple
from zlib import adler32

from eroseal.errors import FormatError

BLOCK: Final = 512
ZERO_BLOCK: Final = bytes(BLOCK)

# typeflag
FILE: Final = b"0"
OLD_FILE: Final = b"\0"
HARD_LINK: Final = b"1"
SYMLINK: Final = b"2"
CHARACTER: Final = b"3"
BLOCK_DEVICE: Final = b"4"
DIRECTORY: Final = b"5"
FIFO: Final = b"6"
CONTIGUOUS: Final = b"7"
PAX: Final = b"x"
PAX_GLOBAL: Final = b"g"
GNU_LONG_NAME: Final = b"L"
GNU_LONG_LINK: Final = b"K"
GNU_SPARSE: Final = b"S"
GNU_VOLUME: Final = b"V"

# name, mode, uid, gid, size, mtime, chksum, typeflag, linkname, magic with version, devmajor, devminor, prefix;
# uname and gname are left out: they mean something on one machine only.
_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
assert _HEADER.size == BLOCK

_MAGIC_POSIX: Final = b"ustar\x0000"
_MAGIC_GNU: Final = b"ustar  \0"
_MAGIC_V7: Final = bytes(8)

_POSITIVE, _NEGATIVE = 0x80, 0xFF
"""First bytes of numbers in base 256."""
_BLANKS: Final = 8 * ord(" ")
_DEVICES: Final = frozenset({CHARACTER, BLOCK_DEVICE})
_NO_DEVICE: Final = (0, 0)
# A named tuple's own constructor takes twice as long.
_new_tuple: Final = tuple.__new__


class Header(NamedTuple):
    """A header block.

    Args:
        kind: typeflag, one byte.
        name: path, with ustar's prefix.
        mode: as in the block: type bits mean nothing.
        uid, gid: as in the block; may be negative.
        size: bytes that follow; may be negative.
        mtime: seconds since the epoch; may be negative.
        link: target of a link.
        rdev: (major, minor); (0, 0) unless a device.
        gnu: whether this is an old GNU header, whose end holds the map of a sparse file.
    """

    kind: bytes
    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes
    rdev: tuple[int, int]
    gnu: bool


def parse_header(block: bytes) -> Header | None:
    """The header in a block; None for a block of zeros.

    Args:
        block: 512 bytes.

    Raises:
        FormatError: the checksum is wrong, or something in it is malformed.
    """
    name, mode, uid, gid, size, mtime, stated, kind, link, magic, major, minor, prefix = _HEADER.unpack(block)
    if not _checks(block, stated):
        if block == ZERO_BLOCK:
            return None
        raise FormatError("no tar header: its checksum is wrong")
    name = name.partition(b"\0")[0]
    if magic == _MAGIC_POSIX:
        if prefix[0]:
            name = prefix.partition(b"\0")[0] + b"/" + name
    elif magic not in (_MAGIC_GNU, _MAGIC_V7):
        raise FormatError(f"no tar header: unknown magic {magic!r}")
    header = (
        kind,
        name,
        _frequent_number(mode),
        _frequent_number(uid),
        _frequent_number(gid),
        parse_number(size),
        parse_number(mtime),
        link.partition(b"\0")[0] if link[0] else b"",
        (parse_number(major), parse_number(minor)) if kind in _DEVICES else _NO_DEVICE,
        magic == _MAGIC_GNU,
    )
    return _new_tuple(Header, header)


def parse_number(field: bytes) -> int:
    """A numeric field: octal digits with blanks or NULs around them, or base 256; 0 where it is blank.

    Source: POSIX for octal; GNU tar, "Basic Tar Format", for base 256 (first byte 0x80, or 0xff for negative numbers).
    """
    digits = field.rstrip(b"\0 ")
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError:
            raise FormatError(f"malformed number {field!r}") from None
    if field[0] in (_POSITIVE, _NEGATIVE):
        return int.from_bytes(field[1:], "big") - (0 if field[0] == _POSITIVE else 1 << 8 * (len(field) - 1))
    # Old writers pad on the left; behind the digits' end anything may stand.
    digits = field.partition(b"\0")[0].lstrip(b" ").partition(b" ")[0]
    if digits and not (digits.isdigit() and max(digits) < ord("8")):
        raise FormatError(f"malformed number {field!r}")
    return int(digits, 8) if digits else 0


# Modes and owners repeat, sizes and times do not.
_frequent_number = lru_cache(maxsize=1024)(parse_number)


def _checks(block: bytes, stated: bytes) -> bool:
    """Whether the checksum is right: the sum of all bytes, its own counted as blanks."""
    # The lower half of Adler-32 is one more than the sum of the bytes, modulo 65521, which ASCII does not reach: ten
    # times as fast as sum().
    if block.isascii() and stated == b"%06o\0 " % ((adler32(block) & 0xFFFF) - (adler32(stated) & 0xFFFF) + _BLANKS):
        return True
    digits = stated.rstrip(b"\0 ").lstrip(b" ")
    if not digits.isdigit() or max(digits) >= ord("8"):
        return False
    checksum, total = int(digits, 8), sum(block) - sum(stated) + _BLANKS
    if checksum == total:
        return True
    # Historic writers summed signed bytes.
    high = sum(byte >> 7 for byte in block) - sum(byte >> 7 for byte in stated)
    return checksum == total - 256 * high
