"""PAX extended headers: records to typed attributes.

Records are `LENGTH KEY=VALUE` and a newline, where LENGTH counts all of it; values are bytes. Of the keys, those that
change what a member is are parsed, and malformed ones refused; times and names that we do not keep are skipped.

Source: POSIX.1-2017, pax, "pax Extended Header"; the manual of GNU tar, "PAX Headers"; libarchive's tar(5).
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Final

from eroseal.errors import FormatError

_SCHILY_XATTR: Final = b"SCHILY.xattr."
_LIBARCHIVE_XATTR: Final = b"LIBARCHIVE.xattr."
_SPARSE: Final = b"GNU.sparse."
_SELINUX: Final = b"RHT.security.selinux"
_ACLS: Final = frozenset({b"SCHILY.acl.access", b"SCHILY.acl.default", b"SCHILY.acl.ace"})
_TIME: Final = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_LONGEST_NUMBER: Final = 20

Record = tuple[bytes, bytes]
"""(key, value)."""


@dataclass(slots=True)
class Attributes:
    """What extended headers say of a member; None where they say nothing.

    Args:
        path, link: name and link target, without NULs.
        size: bytes that follow the header.
        uid, gid: of the owner.
        mtime: (seconds, nanoseconds).
        xattrs: full names and values; later records replace earlier ones.
        sparse: records of GNU.sparse, in their order and without that prefix.
        unused: keys that would have changed the file's permissions, but are not understood.
    """

    path: bytes | None = None
    link: bytes | None = None
    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime: tuple[int, int] | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    sparse: list[Record] = field(default_factory=list)
    unused: list[bytes] = field(default_factory=list)


def parse_records(data: bytes) -> list[Record]:
    """The records of an extended header.

    Raises:
        FormatError: a record that is malformed.
    """
    records = []
    at, end = 0, len(data)
    while at < end:
        space = data.find(b" ", at, at + _LONGEST_NUMBER)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit() or digits[0] == ord("0"):
            raise FormatError("malformed PAX header: a record does not begin with its length")
        stop = at + int(digits)
        if not space + 1 < stop <= end or data[stop - 1] != ord("\n"):
            raise FormatError("malformed PAX header: a record does not end where its length says")
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if not equals or not key:
            raise FormatError("malformed PAX header: a record without a key")
        records.append((key, value))
        at = stop
    return records


def parse_attributes(data: bytes) -> Attributes:
    """The attributes that an extended header (typeflag x) gives to the member behind it.

    Raises:
        FormatError: a record or a value that is malformed.
    """
    found = Attributes()
    for key, value in parse_records(data):
        match key:
            case b"mtime":
                found.mtime = parse_time(value)
            case b"atime" | b"ctime" | b"comment" | b"uname" | b"gname":
                pass
            case b"path":
                found.path = _text(key, value)
            case b"linkpath":
                found.link = _text(key, value)
            case b"size":
                found.size = parse_decimal(value)
            case b"uid":
                found.uid = parse_decimal(value)
            case b"gid":
                found.gid = parse_decimal(value)
            case _:
                _parse_other(found, key, value)
    return found


def parse_global(data: bytes) -> Attributes:
    """The attributes that a global header (typeflag g) gives to all members behind it.

    Raises:
        FormatError: malformed, or something that cannot hold for several members: nobody writes it, and readers
            disagree on what it means.
    """
    found = parse_attributes(data)
    own = (found.path, found.link, found.size)
    if own != (None, None, None) or found.xattrs or found.sparse:
        raise FormatError("a global PAX header with attributes of a single member")
    return found


def parse_time(value: bytes) -> tuple[int, int]:
    """(seconds, nanoseconds) of a decimal time; finer digits are dropped, downwards as GNU tar does it."""
    match = _TIME.fullmatch(value)
    if match is None:
        raise FormatError(f"malformed PAX header: {value[:40]!r} is no time")
    sign, whole, fraction = match.groups(b"")
    seconds, nanoseconds = int(whole), int(fraction[:9].ljust(9, b"0"))
    if sign:
        if fraction[9:].strip(b"0"):
            nanoseconds += 1
        seconds, nanoseconds = divmod(-seconds * 1_000_000_000 - nanoseconds, 1_000_000_000)
    return seconds, nanoseconds


def parse_decimal(value: bytes) -> int:
    """A number without sign, of up to 20 digits."""
    if not value.isdigit() or len(value) > _LONGEST_NUMBER:
        raise FormatError(f"malformed PAX header: {value[:40]!r} is no number")
    return int(value)


def _text(key: bytes, value: bytes) -> bytes:
    if not value or b"\0" in value:
        raise FormatError(f"malformed PAX header: {key.decode('latin-1')} is empty or has a NUL")
    return value


def _parse_other(found: Attributes, key: bytes, value: bytes) -> None:
    if key.startswith(_SCHILY_XATTR):
        # GNU tar writes these two characters so, and no others.
        name = key[len(_SCHILY_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")
        found.xattrs[_xattr_name(name)] = value
    elif key.startswith(_LIBARCHIVE_XATTR):
        name = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), key[len(_LIBARCHIVE_XATTR) :])
        found.xattrs[_xattr_name(name)] = _base64(value)
    elif key.startswith(_SPARSE):
        found.sparse.append((key[len(_SPARSE) :], value))
    elif key == _SELINUX:
        found.xattrs[b"security.selinux"] = value.rstrip(b"\0") + b"\0"
    elif key in _ACLS:
        found.unused.append(key)


def _xattr_name(name: bytes) -> bytes:
    if not name or b"\0" in name:
        raise FormatError("malformed PAX header: the name of an extended attribute is empty or has a NUL")
    return name


def _base64(value: bytes) -> bytes:
    # libarchive leaves out the padding.
    unpadded = value.rstrip(b"=")
    try:
        return base64.b64decode(unpadded + b"=" * (-len(unpadded) % 4), validate=True)
    except binascii.Error:
        raise FormatError("malformed PAX header: an extended attribute's value is no base64") from None
