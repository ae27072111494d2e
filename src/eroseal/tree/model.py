"""The file tree that sources produce and the image writer consumes.

Content is not here: a regular file holds only where its bytes went (chunk addresses, a place in the tail spool), so
that the tree of a million files fits in memory whatever their sizes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

NO_TAIL: Final = -1
"""`tail_at` of a file without an inline tail."""
NULL_CHUNK: Final = 0xFFFFFFFFFFFFFFFF
"""Location of a chunk of zeros: it takes no space."""
DEVICE_SHIFT: Final = 32
"""A chunk's location is `device << 32 | block`; device 0 is the image's own (meta) blob."""

Xattrs = tuple[tuple[bytes, bytes], ...]
"""(full name, value) pairs in byte order of the name."""

StoredFile = tuple[int, int, int, int, int, int, int, tuple[int, int, int] | None, Xattrs | None]
"""A regular file of an archive: number of the spool that its content lies in, byte offset there, mode, uid, gid, mtime
in ns, size, (0, serial number, names) of a file that has several names, and xattrs or None. A plain tuple, since it
crosses to worker processes as it is."""


class Inode:
    """A file of any kind but a directory.

    Args:
        mode: st_mode, type bits included.
        uid: owner, 32 bits.
        gid: group, 32 bits.
        mtime: seconds since the epoch, signed.
        mtime_nsec: 0 to 999,999,999.
        size: bytes of content; of the target for a symlink.
        xattrs: extended attributes.

    Further fields: `nlink` counts the names in the tree; the layout sets it for directories. `chunks` is None, one
    location (the content lies in consecutive blocks from there) or an array with a location for each chunk. `tail_at`
    is the byte offset in the tail spool of what lies behind the last whole block, or NO_TAIL. `target` belongs to
    symlinks, `rdev` (major, minor) to devices. `position` is set by the layout: byte offset in the metadata area.
    """

    __slots__ = (
        "chunks",
        "gid",
        "mode",
        "mtime",
        "mtime_nsec",
        "nlink",
        "position",
        "rdev",
        "size",
        "tail_at",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(
        self, mode: int, uid: int, gid: int, mtime: int, mtime_nsec: int, size: int, xattrs: Xattrs = ()
    ) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.mtime_nsec = mtime_nsec
        self.size = size
        self.xattrs = xattrs
        self.nlink = 1
        self.chunks: int | array[int] | None = None
        self.tail_at = NO_TAIL
        self.target = b""
        self.rdev = (0, 0)
        self.position = 0


class Packed:
    """A small file whose inode and bytes are packed already: only its place matters from then on.

    Args:
        mode: st_mode.
        position: byte offset of its inode in the packed blocks.
    """

    __slots__ = ("mode", "position")

    def __init__(self, mode: int, position: int) -> None:
        self.mode = mode
        self.position = position


class Directory(Inode):
    """A directory: names in byte order, and an inode (or a packed file) for each.

    Args:
        parent: None for the root.
    """

    __slots__ = ("children", "names", "parent")

    def __init__(
        self,
        mode: int,
        uid: int,
        gid: int,
        mtime: int,
        mtime_nsec: int,
        xattrs: Xattrs = (),
        *,
        parent: Directory | None = None,
    ) -> None:
        super().__init__(mode, uid, gid, mtime, mtime_nsec, 0, xattrs)
        self.parent = parent
        self.names: list[bytes] = []
        self.children: list[Inode | Packed] = []

    def directories(self) -> Iterator[Directory]:
        """This directory and all below, each before its subdirectories, in byte order of names."""
        stack = [self]
        while stack:
            directory = stack.pop()
            yield directory
            stack.extend(child for child in reversed(directory.children) if isinstance(child, Directory))

    def inodes(self) -> Iterator[Inode]:
        """Every inode once, in the canonical order: a directory, its files, then its subdirectories' inodes.

        Packed files are left out.
        """
        seen: set[int] = set()
        for directory in self.directories():
            yield directory
            for child in directory.children:
                if isinstance(child, Packed | Directory):
                    continue
                if child.nlink > 1:
                    if id(child) in seen:
                        continue
                    seen.add(id(child))
                yield child

    def packed(self) -> Iterator[Packed]:
        """Every packed file of this directory and those below, once however many names it has."""
        seen: set[int] = set()
        for directory in self.directories():
            for child in directory.children:
                if isinstance(child, Packed) and id(child) not in seen:
                    seen.add(id(child))
                    yield child
