"""The members of an archive, one after another, with all that extended headers say of them.

Extended headers come before the member that they speak of, or speak of all that follow. What two readers would
understand differently (two names for one member, attributes of a single member for all of them) is refused.

Source: POSIX.1-2017, pax, "pax Interchange Format"; the manual of GNU tar, "Basic Tar Format".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from eroseal.errors import FormatError
from eroseal.format import tar
from eroseal.format.tar import Header, parse_header
from eroseal.format.tar_pax import Attributes, parse_attributes, parse_global
from eroseal.format.tar_sparse import Sparse, parse_sparse
from eroseal.format.xattr import split_name
from eroseal.limits import (
    MAX_ARCHIVE_ENTRIES,
    MAX_ARCHIVE_TRAILER,
    MAX_TAR_EXTENSION,
    MAX_XATTR_VALUE,
)
from eroseal.tree.layer import LayerWarning
from eroseal.tree.model import Xattrs

_MAX_WARNINGS: Final = 100
_HEADERS_PER_ENTRY: Final = 4
"""Extended headers that an archive may have for each entry that it may have."""
_LONGEST_XATTR_NAME: Final = 255
"""Bytes behind the name's prefix: e_name_len has 8 bits."""
_EXTENSIONS: Final = frozenset({tar.PAX, tar.PAX_GLOBAL, tar.GNU_LONG_NAME, tar.GNU_LONG_LINK})
_XATTR_COST: Final = 128
"""Bytes of memory that an extended attribute takes beyond its name and value."""
_SHOWN: Final = 100
"""Bytes of an attribute's name that a message shows."""
_LONGEST_SHOWN: Final = 1000
"""Bytes of a path that a message shows."""
_OVERLAY: Final = (b"trusted.overlay.", b"user.overlay.")


@dataclass(slots=True)
class Extra:
    """What a member has beyond its header block."""

    nanoseconds: int = 0
    xattrs: Xattrs = ()
    sparse: Sparse | None = None


_NOTHING: Final = Extra()
_SILENT: Final = Attributes()


class Blocks(Protocol):
    """Where headers come from; see `Cursor`."""

    @property
    def position(self) -> int: ...
    def block(self) -> bytes: ...
    def take(self, length: int, /) -> bytes: ...
    def drain(self, limit: int, /, *, zeros: bool) -> None: ...


class Members:
    """Reads headers off a stream; whoever takes a member takes its content off the stream, too.

    Args:
        cursor: the stream, a `Cursor` or its like.
        container: the archive is a container image's layer: it may be empty, and has no attributes of overlayfs's own.
        keep: told how many bytes of attributes stay in memory.
    """

    def __init__(self, cursor: Blocks, *, container: bool, keep: Callable[[int], None]) -> None:
        self.entries = 0
        self._cursor = cursor
        self._container = container
        self._keep = keep
        self._headers = 0
        self._known_xattrs: dict[Xattrs, Xattrs] = {}
        self._warnings: dict[str, tuple[bytes, int]] = {}
        # Extended headers: for all members behind, and for the next one.
        self._global: Attributes | None = None
        self._pax: Attributes | None = None
        self._long: dict[bytes, bytes] = {}
        # For messages: where the current header is, and the name in it.
        self._at = 0
        self._name = b""

    def read(self) -> Iterator[tuple[Header, Extra, bytes]]:
        """(header, what it has beyond, its block) of each member; then the stream is at its end.

        Raises:
            FormatError, UnsupportedError: without `where`.
        """
        cursor = self._cursor
        while True:
            self._at, self._name = cursor.position, b""
            block = cursor.block()
            header = parse_header(block) if block else None
            if header is None:
                break
            if header.kind in _EXTENSIONS:
                self._extension(header)
                continue
            self.entries += 1
            if self.entries > MAX_ARCHIVE_ENTRIES:
                raise FormatError(f"more than {MAX_ARCHIVE_ENTRIES} entries")
            extra = _NOTHING
            self._name = header.name
            if self._pax is not None or self._long or self._global is not None:
                header, extra = self._amended(header)
            yield header, extra, block
        self._end(block)

    def where(self) -> str:
        """The place of a fault."""
        return os.fsdecode(self._name[:_LONGEST_SHOWN]) if self._name else f"byte {self._at}"

    def warnings(self) -> tuple[LayerWarning, ...]:
        """What was left out."""
        return tuple(LayerWarning(what, path, count) for what, (path, count) in sorted(self._warnings.items()))

    def _end(self, block: bytes) -> None:
        """Two blocks of zeros, or the end of the stream instead of either."""
        if self._pax is not None or self._long:
            raise FormatError("truncated: the archive ends behind an extended header")
        if not block:
            if not self.entries and not self._headers and not self._container:
                raise FormatError("is empty: an archive of nothing has an end, too")
            return
        following = self._cursor.block()
        if following and following != tar.ZERO_BLOCK:
            raise FormatError("a block of zeros in the middle of the archive")
        # Layers are what other engines read of them; anywhere else a second archive must not go unnoticed.
        self._cursor.drain(MAX_ARCHIVE_TRAILER, zeros=not self._container)

    # --- extended headers -----------------------------------------------------------------------
    def _extension(self, header: Header) -> None:
        kind, size = header.kind, header.size
        self._headers += 1
        if self._headers > _HEADERS_PER_ENTRY * MAX_ARCHIVE_ENTRIES:
            raise FormatError("too many extended headers")
        if not 0 <= size <= MAX_TAR_EXTENSION:
            raise FormatError(f"an extended header of {size} bytes, but {MAX_TAR_EXTENSION} are allowed")
        data = self._cursor.take(size)
        if kind == tar.PAX_GLOBAL:
            new, old = parse_global(data), self._global or Attributes()
            self._global = Attributes(
                uid=old.uid if new.uid is None else new.uid,
                gid=old.gid if new.gid is None else new.gid,
                mtime=new.mtime or old.mtime,
            )
        elif kind == tar.PAX:
            if self._pax is not None:
                raise FormatError("two PAX headers for one member")
            self._pax = parse_attributes(data)
        else:  # a later one counts: bsdtar leaves one behind for each member that it then gives up
            self._long[kind] = data.partition(b"\0")[0]

    def _amended(self, header: Header) -> tuple[Header, Extra]:
        """A header as the extended headers before it want it, and what these give beyond."""
        pax, common, long = self._pax or _SILENT, self._global or _SILENT, self._long
        self._pax, self._long = None, {}
        name, link = long.get(tar.GNU_LONG_NAME, pax.path), long.get(tar.GNU_LONG_LINK, pax.link)
        self._name = name or header.name
        if (pax.path is not None and tar.GNU_LONG_NAME in long) or (pax.link is not None and tar.GNU_LONG_LINK in long):
            raise FormatError("a name both in a PAX header and in one of GNU tar")
        sparse = parse_sparse(pax.sparse) if pax.sparse else None
        if sparse is not None and sparse.name is not None:
            self._name = name = sparse.name
        uid = pax.uid if pax.uid is not None else common.uid
        gid = pax.gid if pax.gid is not None else common.gid
        seconds, nanoseconds = pax.mtime or common.mtime or (header.mtime, 0)
        amended = Header(
            header.kind,
            header.name if name is None else name,
            header.mode,
            header.uid if uid is None else uid,
            header.gid if gid is None else gid,
            header.size if pax.size is None else pax.size,
            seconds,
            header.link if link is None else link,
            header.rdev,
            header.gnu,
        )
        for key in pax.unused:
            self._warn(f"{key.decode('latin-1')} left out: access control lists as text are not supported")
        return amended, Extra(nanoseconds, self._xattrs(pax.xattrs) if pax.xattrs else (), sparse)

    def _xattrs(self, xattrs: dict[bytes, bytes]) -> Xattrs:
        """Those that a Linux file system keeps; overlayfs's own would speak for us in a stack."""
        kept = []
        for key, value in sorted(xattrs.items()):
            split = split_name(key)
            if split is None or (self._container and key.startswith(_OVERLAY)):
                self._warn(f"extended attribute {os.fsdecode(key[:_SHOWN])} left out")
                continue
            if len(split[1]) > _LONGEST_XATTR_NAME or len(value) > MAX_XATTR_VALUE:
                raise FormatError(f"extended attribute {os.fsdecode(key[:_SHOWN])} is too large")
            kept.append((key, value))
        result = tuple(kept)
        known = self._known_xattrs.get(result)
        if known is None:
            self._keep(sum(len(key) + len(value) + _XATTR_COST for key, value in result))
            known = self._known_xattrs[result] = result
        return known

    def _warn(self, what: str) -> None:
        if what not in self._warnings and len(self._warnings) >= _MAX_WARNINGS:
            what = "further attributes left out"
        path, count = self._warnings.get(what, (self._name[:_LONGEST_SHOWN], 0))
        self._warnings[what] = path, count + 1
