"""What crosses between a build and its workers.

Plain tuples, which marshal packs fastest; their types are named here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from eroseal.tree.model import StoredFile

BLOCK: Final = 4096
ARENA: Final = 2 << 20
"""Bytes of an arena; a segment of a large file fills one."""
LARGE: Final = 1 << 20
"""Bytes above which a file is read in segments, and has no inline tail: it would save less than 0.4 %."""
LONGEST_TAIL: Final = BLOCK - 32
"""Longest inline tail of a file that also has whole blocks: behind any xattr area it still fits a block."""

MOST_COMPACT_LINKS: Final = 0xFFFF
"""Names that a compact inode can count."""
OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

FileTask = list[tuple[bytes, list[bytes]]]
"""(directory, names of regular files in it), in canonical order."""
Identity = tuple[int, int, int, int]
"""(st_dev, st_ino, st_size, st_mtime_ns) that a file must keep while it is read."""
LargePlace = tuple[bytes, Identity] | tuple[int, int]
"""Where a large file lies: its path and identity, or the number of a source's spool and a byte offset in that."""
SegmentTask = tuple[LargePlace, int, int]
"""(place, byte offset in the file, length)."""
StoredTask = list[StoredFile]
"""Files of archives, in canonical order."""

LARGE_FILE: Final = -2
Record = tuple[
    int,
    int,
    int,
    int,
    int,
    tuple[int, int, int] | None,
    tuple[tuple[bytes, bytes], ...] | None,
    int,
    list[bytes | None] | None,
    tuple[bool, bytes | None] | None,
]
"""mode, uid, gid, mtime in ns, size, (st_dev, st_ino, st_nlink) of a file with several names or that is large,
xattrs, first block in the arena (-1: no blocks here; LARGE_FILE: to be read in segments), chunk hashes (None for a
chunk of zeros), and for a file of several chunks with a tail (whether the tail's block is a chunk of its own, the hash
of the last chunk with the tail's block)."""
PackedRecord = tuple[int, int, int]
"""mode, size and, within the part's packed blocks, the byte offset of a small file's inode."""
PackedLinkRecord = tuple[int, int, int, bool, tuple[int, int], int]
"""As PackedRecord, for a file that has several names, here or elsewhere: mode, size, offset, whether its inode is
compact, (st_dev, st_ino), and the index of this record in its part."""
Part = tuple[list[Record | PackedRecord | PackedLinkRecord], int]
"""Records of some files of a task, and the number of packed blocks."""

Write = tuple[int, int, int]
"""(first block in the arena, blocks, first block in the data spool)."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker needs to know.

    Args:
        data_fd, leaves_fd, tails_fd, packed_fd: descriptors of the spools. Blocks of chunk data and their leaf hashes
            lie at the same index in the first two; the others take tails and packed blocks.
        algorithm, salt: the tree's parameters.
        chunk_size: bytes, a power of two from 4096.
        inline_max: longest tail, in bytes, that is inlined; 0 to 4095.
        tails: whether files of a block or more may have inline tails.
        epoch: the image's own time, in seconds.
        all_root, timestamp, clamp: as in `BuildOptions`.
        pack: whether small files are packed with their inodes; not where the parent has yet to change these.
        source_fds: descriptors of the spools that archives were read into.
    """

    data_fd: int
    leaves_fd: int
    tails_fd: int
    packed_fd: int
    algorithm: str
    salt: bytes
    chunk_size: int
    inline_max: int
    tails: bool
    epoch: int
    all_root: bool
    timestamp: int | None
    clamp: int | None
    pack: bool
    source_fds: tuple[int, ...] = ()

    @property
    def fds(self) -> tuple[int, ...]:
        """All descriptors that a worker needs."""
        return (self.data_fd, self.leaves_fd, self.tails_fd, self.packed_fd, *self.source_fds)


class ScanError(Exception):
    """A file that could not be read as it should: what, and its path; `number` is the errno or 0."""

    def __init__(self, what: str, path: bytes, number: int = 0, *, output: bool = False) -> None:
        super().__init__(what, path, number, output)
        self.what, self.path, self.number, self.output = what, path, number, output


def identity_of(fd: int) -> Identity:
    """What an open file must keep while it is read."""
    st = os.fstat(fd)
    return st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns


def adjusted(config: WorkerConfig, uid: int, gid: int, mtime: int) -> tuple[int, int, int]:
    """Owner and mtime (in ns) as the ownership and time options want them."""
    if config.all_root:
        uid = gid = 0
    if config.timestamp is not None:
        mtime = config.timestamp * 1_000_000_000
    elif config.clamp is not None:
        mtime = min(mtime, config.clamp * 1_000_000_000)
    return uid, gid, mtime
