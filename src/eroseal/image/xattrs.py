"""Extended attributes: inline entries, shared entries, long prefixes, the bloom filter.

Names are read at once, values only when asked for: a hostile inode can point 255 times at entries of 64 KiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from eroseal.errors import FormatError
from eroseal.format.erofs import Superblock
from eroseal.format.xattr import (
    ENTRY,
    ENTRY_SIZE,
    HEADER,
    HEADER_SIZE,
    HIDDEN,
    LONG_PREFIX,
    LongPrefix,
    base_prefix,
    prefix_length,
)
from eroseal.image.inode import Inode
from eroseal.image.space import MetaSpace
from eroseal.limits import MAX_NAME_LEN, MAX_XATTR_PREFIXES

MAX_SHARED_CACHED: Final = 4096
"""Shared entries kept: an image rarely has more than a few hundred distinct ones."""
SHARED_UNIT: Final = 4
"""Bytes that one step of a shared id stands for."""
ACL_INDEXES: Final = (2, 3)
"""Name indexes that are whole names."""


@dataclass(frozen=True, slots=True)
class XattrEntry:
    """One attribute, its value not yet read.

    Args:
        index: base name index; 0 = hidden.
        rest: the name without its base prefix.
        space: where the value lies.
        offset: byte of the value there.
        size: bytes of the value.
    """

    index: int
    rest: bytes
    space: MetaSpace
    offset: int
    size: int

    @property
    def hidden(self) -> bool:
        """Whether no system call would list it."""
        return self.index == HIDDEN

    @property
    def name(self) -> bytes:
        """The full name."""
        return (base_prefix(self.index) or b"") + self.rest

    def value(self) -> bytes:
        """Read the value."""
        return self.space.read(self.offset, self.size)


class XattrReader:
    """Reads the attributes of an image's inodes.

    Args:
        superblock: of the image.
        space_of: the metadata space that holds an inode.
        shared_space: the space that shared entries lie in; called when first needed.
        prefix_space: the space that the prefix table lies in; called when first needed.
    """

    __slots__ = ("_prefix_space", "_prefixes", "_shared", "_shared_space", "_space_of", "_superblock")

    def __init__(
        self,
        superblock: Superblock,
        *,
        space_of: Callable[[Inode], MetaSpace],
        shared_space: Callable[[], MetaSpace],
        prefix_space: Callable[[], MetaSpace],
    ) -> None:
        self._superblock = superblock
        self._space_of = space_of
        self._shared_space = shared_space
        self._prefix_space = prefix_space
        self._prefixes: tuple[LongPrefix, ...] | None = None
        self._shared: dict[int, XattrEntry] = {}

    def name_filter(self, inode: Inode) -> int:
        """The inode's h_name_filter: set bits mean names that it lacks; 0 = no information."""
        if not inode.raw.i_xattr_icount:
            return 0
        space = self._space_of(inode)
        self._check_area(inode, space)
        buffer, at = space.locate(inode.position + inode.raw.size, HEADER_SIZE)
        return int(HEADER.unpack_from(buffer, at)[0])

    def entries(self, inode: Inode) -> Iterator[XattrEntry]:
        """All attributes of an inode in on-disk order, shared ones first, hidden ones included.

        Raises:
            FormatError: the area, an entry, a shared id or a name index is impossible.
        """
        if not inode.raw.i_xattr_icount:
            return
        where = f"inode {inode.nid}"
        space = self._space_of(inode)
        self._check_area(inode, space)
        start = inode.position + inode.raw.size
        area = space.read(start, inode.raw.xattr_size)
        shared_count = HEADER.unpack_from(area)[1]
        at = HEADER_SIZE + SHARED_UNIT * shared_count
        if at > len(area):
            raise FormatError(
                f"{shared_count} shared xattrs do not fit an xattr area of {len(area)} bytes", where=where
            )
        for position in range(HEADER_SIZE, at, SHARED_UNIT):
            yield self._shared_entry(int.from_bytes(area[position : position + SHARED_UNIT], "little"), where)
        while at < len(area):
            name_len, name_index, value_size = ENTRY.unpack_from(area, at)
            size = ENTRY_SIZE + name_len + value_size
            if at + size > len(area):
                raise FormatError(
                    f"xattr entry of {size} bytes leaves the xattr area of {len(area)} bytes", where=where
                )
            # mkfs.erofs --root-xattr-isize fills an area up with zeros.
            if name_len or name_index or value_size:
                suffix = area[at + ENTRY_SIZE : at + ENTRY_SIZE + name_len]
                value_offset = start + at + ENTRY_SIZE + name_len
                yield self._entry(name_index, suffix, space, value_offset, value_size, where)
            at += (size + 3) & ~3

    @property
    def prefixes(self) -> tuple[LongPrefix, ...]:
        """The long prefixes; raises FormatError if the table is broken."""
        if self._prefixes is None:
            self._prefixes = self._read_prefixes()
        return self._prefixes

    def _check_area(self, inode: Inode, space: MetaSpace) -> None:
        where = f"inode {inode.nid}"
        size = inode.raw.xattr_size
        # A bare header says nothing, and the kernel refuses it too.
        if size <= HEADER_SIZE:
            raise FormatError("i_xattr_icount 1 leaves no room for an xattr", where=where)
        if inode.position + inode.raw.size + size > space.size:
            raise FormatError(
                f"xattr area of {size} bytes leaves {space.name}, which has {space.size} bytes", where=where
            )

    def _shared_entry(self, shared_id: int, where: str) -> XattrEntry:
        entry = self._shared.get(shared_id)
        if entry is not None:
            return entry
        superblock = self._superblock
        space = self._shared_space()
        at = (superblock.xattr_blkaddr << superblock.blkszbits) + SHARED_UNIT * shared_id
        if at + ENTRY_SIZE > space.size:
            raise FormatError(f"shared xattr {shared_id} lies outside {space.name}", where=where)
        buffer, inside = space.locate(at, ENTRY_SIZE)
        name_len, name_index, value_size = ENTRY.unpack_from(buffer, inside)
        if at + ENTRY_SIZE + name_len + value_size > space.size:
            raise FormatError(f"shared xattr {shared_id} leaves {space.name}", where=where)
        suffix = space.read(at + ENTRY_SIZE, name_len)
        entry = self._entry(name_index, suffix, space, at + ENTRY_SIZE + name_len, value_size, where)
        if len(self._shared) < MAX_SHARED_CACHED:
            self._shared[shared_id] = entry
        return entry

    def _entry(
        self, name_index: int, suffix: bytes, space: MetaSpace, offset: int, size: int, where: str
    ) -> XattrEntry:
        if name_index & LONG_PREFIX:
            number = name_index & ~LONG_PREFIX
            if number >= len(self.prefixes):
                raise FormatError(
                    f"xattr with long prefix {number}, but the image has {len(self.prefixes)}", where=where
                )
            prefix = self.prefixes[number]
            index, rest = prefix.base_index, prefix.infix + suffix
        else:
            index, rest = name_index, suffix
        problem = _name_problem(index, rest)
        if problem is not None:
            raise FormatError(problem, where=where)
        return XattrEntry(index, rest, space, offset, size)

    def _read_prefixes(self) -> tuple[LongPrefix, ...]:
        count = self._superblock.xattr_prefix_count
        if count > MAX_XATTR_PREFIXES:
            raise FormatError(f"superblock has {count} xattr prefixes, more than {MAX_XATTR_PREFIXES}")
        if not count:
            return ()
        space = self._prefix_space()
        at = self._superblock.xattr_prefix_start * 4
        found: list[LongPrefix] = []
        for number in range(count):
            if at + 2 > space.size:
                raise FormatError(f"xattr prefix {number} at byte {at} lies outside {space.name}")
            length = prefix_length(space.read(at, 2))
            if length > 1 + MAX_NAME_LEN or at + 2 + length > space.size:
                raise FormatError(f"xattr prefix {number} has {length} bytes at byte {at}")
            payload = space.read(at + 2, length)
            if base_prefix(payload[0]) is None:
                raise FormatError(f"xattr prefix {number} has unknown base index {payload[0]}")
            found.append(LongPrefix(payload[0], payload[1:]))
            at += (2 + length + 3) & ~3
        return tuple(found)


def _name_problem(index: int, rest: bytes) -> str | None:
    """What is impossible about an attribute's name, if anything."""
    prefix = base_prefix(index)
    if prefix is None:
        return f"xattr with unknown name index {index}"
    if index in ACL_INDEXES:
        return f"xattr {(prefix + rest)!r} is no ACL name" if rest else None
    if not rest:
        return f"xattr with an empty name after {prefix!r}"
    if len(prefix) + len(rest) > MAX_NAME_LEN:
        return f"xattr name of {len(prefix) + len(rest)} bytes is longer than {MAX_NAME_LEN}"
    if b"\0" in rest:
        return "xattr with NUL in its name"
    return None
