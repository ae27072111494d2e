"""Inodes as the reader hands them out, and their decoding from either on-disk form.

Decoding checks what every user of an inode relies on: a known layout and file type, a size that fits the
kernel's loff_t, valid owners and nanoseconds. What the inode *points at* is checked where it is followed.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

from eroseal.errors import FormatError
from eroseal.format.erofs import (
    COMPACT_SIZE,
    EXTENDED_SIZE,
    FORMAT_BIT4,
    FORMAT_KNOWN,
    FT_OF_IFMT,
    LAYOUT_CHUNK_BASED,
    LAYOUT_COMPRESSED_COMPACT,
    LAYOUT_COMPRESSED_FULL,
    NID_IN_METABOX,
    NID_SLOT,
    NULL_ADDR_32,
    NULL_ADDR_48,
    RawInode,
    Superblock,
    decode_rdev,
)
from eroseal.image.space import MetaSpace

MAX_FILE_SIZE: Final = (1 << 63) - 1
"""Bytes of a file: the kernel's loff_t is signed."""
INVALID_ID: Final = 0xFFFFFFFF
"""(uid_t)-1: chown(2) takes it for "leave as it is", so a file must not claim it as its owner."""
NSEC_PER_SEC: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Inode:
    """One inode of an image.

    Args:
        nid: its number: a 32-byte slot, which is also the kernel's st_ino.
        mode: file type and permissions, as st_mode.
        uid: owner.
        gid: group.
        size: bytes of a file, of a symlink's target, or of a directory's entries.
        mtime: seconds since 1970, negative before.
        mtime_nsec: 0 to 999,999,999.
        nlink: number of names it claims to have.
        rdev: (major, minor) of a device, else (0, 0).
        layout: one of the LAYOUT_ values of eroseal.format.erofs.
        raw: the on-disk fields.
        position: byte of the inode in its metadata space.
    """

    nid: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    mtime_nsec: int
    nlink: int
    rdev: tuple[int, int]
    layout: int
    raw: RawInode
    position: int

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def has_data(self) -> bool:
        """Whether it is of a type that has data: a file, a directory or a symlink."""
        return self.is_regular or self.is_dir or self.is_symlink

    @property
    def file_type(self) -> int:
        """The FT_ value that directory entries must carry for it."""
        return FT_OF_IFMT[stat.S_IFMT(self.mode)]

    @property
    def compressed(self) -> bool:
        """Whether its data is in one of the compressed layouts."""
        return self.layout in (LAYOUT_COMPRESSED_FULL, LAYOUT_COMPRESSED_COMPACT)

    @property
    def in_metabox(self) -> bool:
        """Whether it lies in the metabox inode's data rather than in the meta blob itself."""
        return bool(self.nid & NID_IN_METABOX)

    @property
    def dot_omitted(self) -> bool:
        """Whether this directory has no "." entry."""
        return self.is_dir and bool(self.raw.i_format & FORMAT_BIT4)

    @property
    def end(self) -> int:
        """Byte after the inode and its inline xattrs: tails and index arrays start here."""
        return self.position + self.raw.size + self.raw.xattr_size

    @property
    def start_block(self) -> int:
        """First block of flat data, as written."""
        return self.raw.i_u | self.raw.i_nb << 32 if self._wide else self.raw.i_u

    @property
    def start_is_null(self) -> bool:
        """Whether the first block is the null address: layout 0 then means all zeros."""
        return self.start_block == (NULL_ADDR_48 if self._wide else NULL_ADDR_32)

    @property
    def _wide(self) -> bool:
        """Whether i_nb holds the high bits of the first block rather than nlink."""
        return self.raw.extended or (not self.is_dir and bool(self.raw.i_format & FORMAT_BIT4))

    @property
    def chunk_format(self) -> int:
        """The chunk format of a chunk-based file: size and kind of its index."""
        return self.raw.i_u & 0xFFFF if self.layout == LAYOUT_CHUNK_BASED else 0


def decode_inode(space: MetaSpace, superblock: Superblock, nid: int) -> Inode:
    """Read and check one inode.

    Args:
        space: where `nid` lies: the meta blob, or the metabox's data for nids with bit 63.
        superblock: of the image.
        nid: inode number.

    Raises:
        FormatError: it lies outside `space`, or its fields are impossible.
    """
    position = NID_SLOT * (nid & ~NID_IN_METABOX)
    if not nid & NID_IN_METABOX:
        position += superblock.meta_blkaddr << superblock.blkszbits
    room = space.size - position
    if room < COMPACT_SIZE:
        raise FormatError(
            f"inode would lie at byte {position}, but {space.name} has {space.size} bytes",
            where=f"inode {nid}",
        )
    buffer, at = space.locate(position, min(EXTENDED_SIZE, room))
    raw = RawInode.parse(buffer[at : at + EXTENDED_SIZE])
    problem = _problem(raw)
    if problem is not None:
        raise FormatError(problem, where=f"inode {nid}")
    mode = raw.i_mode
    device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    mtime, mtime_nsec, nlink = raw.i_mtime, raw.i_mtime_nsec, raw.i_nlink
    if mtime_nsec is None or nlink is None:
        # Compact: seconds count from the epoch, the nanoseconds are shared.
        mtime, mtime_nsec = superblock.epoch + mtime, superblock.fixed_nsec
        nlink = 1 if raw.i_format & FORMAT_BIT4 and not stat.S_ISDIR(mode) else raw.i_nb
    return Inode(
        nid=nid,
        mode=mode,
        uid=raw.i_uid,
        gid=raw.i_gid,
        size=raw.i_size,
        mtime=mtime,
        mtime_nsec=mtime_nsec,
        nlink=nlink,
        rdev=decode_rdev(raw.i_u) if device else (0, 0),
        layout=raw.layout,
        raw=raw,
        position=position,
    )


def _problem(raw: RawInode) -> str | None:
    """What is impossible about an inode's own fields, if anything."""
    if raw.i_format & ~FORMAT_KNOWN:
        return f"i_format {raw.i_format:#06x} has unknown bits"
    if raw.layout > LAYOUT_CHUNK_BASED:
        return f"unknown data layout {raw.layout}"
    if stat.S_IFMT(raw.i_mode) not in FT_OF_IFMT:
        return f"mode {raw.i_mode:#o} has an unknown file type"
    if raw.i_size > MAX_FILE_SIZE:
        return f"size {raw.i_size} is beyond the largest file"
    if INVALID_ID in (raw.i_uid, raw.i_gid):
        return f"owner {INVALID_ID} is not a valid user or group id"
    if raw.i_mtime_nsec is not None and raw.i_mtime_nsec >= NSEC_PER_SEC:
        return f"mtime has {raw.i_mtime_nsec} nanoseconds"
    return None
