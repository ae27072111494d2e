"""EROFS on-disk structures: the one table that reader and writer share.

Field names are the kernel's (fs/erofs/erofs_fs.h, MIT licence); all integers are little endian. A *block address*
counts blocks of the image's block size, a *nid* counts 32-byte slots. Values here are plain shapes: what a reader
accepts and what a writer chooses is decided elsewhere.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import Final

import google_crc32c

from eroseal.errors import FormatError
from eroseal.limits import MAX_SB_EXTSLOTS

# --- superblock ---------------------------------------------------------------------------------
SUPER_OFFSET: Final = 1024
SUPER_SIZE: Final = 128
SUPER_MAGIC: Final = 0xE0F5E1E2
EXTSLOT_SIZE: Final = 16
NID_SLOT: Final = 32
"""Bytes between two nids."""
NID_IN_METABOX: Final = 1 << 63
"""Set in a nid: the inode lies in the metabox inode's data (METABOX images)."""

# feature_compat: unknown bits are ignored
COMPAT_SB_CHKSUM: Final = 0x01
COMPAT_MTIME: Final = 0x02
COMPAT_XATTR_FILTER: Final = 0x04
COMPAT_SHARED_EA_IN_METABOX: Final = 0x08
COMPAT_PLAIN_XATTR_PFX: Final = 0x10
COMPAT_ISHARE_XATTRS: Final = 0x20

# feature_incompat: unknown bits must be refused
INCOMPAT_LZ4_0PADDING: Final = 0x001
INCOMPAT_COMPR_CFGS: Final = 0x002
INCOMPAT_CHUNKED_FILE: Final = 0x004
INCOMPAT_DEVICE_TABLE: Final = 0x008
INCOMPAT_ZTAILPACKING: Final = 0x010
INCOMPAT_FRAGMENTS: Final = 0x020
INCOMPAT_XATTR_PREFIXES: Final = 0x040
INCOMPAT_48BIT: Final = 0x080
INCOMPAT_METABOX: Final = 0x100
INCOMPAT_KNOWN: Final = 0x1FF

# magic, checksum, feature_compat, blkszbits, sb_extslots, rb(rootnid_2b | blocks_hi), inos, epoch, fixed_nsec,
# blocks_lo, meta_blkaddr, xattr_blkaddr, uuid, volume_name, feature_incompat, u1 (compression), extra_devices,
# devt_slotoff, dirblkbits, xattr_prefix_count, xattr_prefix_start, packed_nid, xattr_filter_reserved,
# ishare_xattr_prefix_id, build_time, rootnid_8b
_SUPER: Final = struct.Struct("<IIIBBHQqIIII16s16sIHHHBBIQBB2xIQ8x")
assert _SUPER.size == SUPER_SIZE
# metabox_nid, reserved
_SUPER_EXT: Final = struct.Struct("<Q8x")
assert _SUPER_EXT.size == EXTSLOT_SIZE


@dataclass(frozen=True, slots=True)
class Superblock:
    """`struct erofs_super_block`; `root_nid` and `blocks` are already put together from their halves."""

    blkszbits: int
    root_nid: int
    inos: int
    blocks: int
    feature_compat: int = 0
    feature_incompat: int = 0
    epoch: int = 0
    fixed_nsec: int = 0
    build_time: int = 0
    meta_blkaddr: int = 0
    xattr_blkaddr: int = 0
    uuid: bytes = bytes(16)
    volume_name: bytes = bytes(16)
    compression: int = 0
    extra_devices: int = 0
    devt_slotoff: int = 0
    dirblkbits: int = 0
    xattr_prefix_count: int = 0
    xattr_prefix_start: int = 0
    packed_nid: int = 0
    xattr_filter_reserved: int = 0
    ishare_xattr_prefix_id: int = 0
    sb_extslots: int = 0
    metabox_nid: int = 0
    checksum: int = 0

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return 1 << self.blkszbits

    @property
    def size(self) -> int:
        """Bytes of the superblock with its extension slots."""
        return SUPER_SIZE + EXTSLOT_SIZE * self.sb_extslots

    def encode(self) -> bytes:
        """128 bytes and the extension slots, with the checksum field as it stands."""
        wide = bool(self.feature_incompat & INCOMPAT_48BIT)
        fixed = _SUPER.pack(
            SUPER_MAGIC,
            self.checksum,
            self.feature_compat,
            self.blkszbits,
            self.sb_extslots,
            self.blocks >> 32 if wide else self.root_nid,
            self.inos,
            self.epoch,
            self.fixed_nsec,
            self.blocks & 0xFFFFFFFF,
            self.meta_blkaddr,
            self.xattr_blkaddr,
            self.uuid,
            self.volume_name,
            self.feature_incompat,
            self.compression,
            self.extra_devices,
            self.devt_slotoff,
            self.dirblkbits,
            self.xattr_prefix_count,
            self.xattr_prefix_start,
            self.packed_nid,
            self.xattr_filter_reserved,
            self.ishare_xattr_prefix_id,
            self.build_time,
            self.root_nid if wide else 0,
        )
        if not self.sb_extslots:
            return fixed
        return fixed + _SUPER_EXT.pack(self.metabox_nid).ljust(EXTSLOT_SIZE * self.sb_extslots, b"\0")

    @classmethod
    def parse(cls, data: bytes) -> Superblock:
        """Read the bytes from offset 1024 on (128, and 16 for each extension slot where they are at hand).

        Raises:
            FormatError: wrong magic or too many extension slots.
        """
        if len(data) < SUPER_SIZE:
            raise FormatError("image is too short for an EROFS superblock")
        fields = _SUPER.unpack_from(data)
        if fields[0] != SUPER_MAGIC:
            raise FormatError("no EROFS superblock at byte 1024: wrong magic")
        (_, checksum, compat, blkszbits, extslots, rb, inos, epoch, fixed_nsec, blocks_lo, meta, xattr, uuid) = fields[
            :13
        ]
        (volume, incompat, compression, extra, slotoff, dirblkbits, prefix_count, prefix_start) = fields[13:21]
        (packed_nid, filter_reserved, ishare, build_time, rootnid_8b) = fields[21:]
        if extslots > MAX_SB_EXTSLOTS:
            raise FormatError(f"superblock has {extslots} extension slots, more than {MAX_SB_EXTSLOTS}")
        wide = bool(incompat & INCOMPAT_48BIT) and rootnid_8b != 0
        metabox_nid = 0
        if extslots and len(data) >= SUPER_SIZE + EXTSLOT_SIZE:
            (metabox_nid,) = _SUPER_EXT.unpack_from(data, SUPER_SIZE)
        return cls(
            blkszbits=blkszbits,
            root_nid=rootnid_8b if wide else rb,
            inos=inos,
            blocks=blocks_lo | (rb << 32 if wide else 0),
            feature_compat=compat,
            feature_incompat=incompat,
            epoch=epoch,
            fixed_nsec=fixed_nsec,
            build_time=build_time,
            meta_blkaddr=meta,
            xattr_blkaddr=xattr,
            uuid=uuid,
            volume_name=volume,
            compression=compression,
            extra_devices=extra,
            devt_slotoff=slotoff,
            dirblkbits=dirblkbits,
            xattr_prefix_count=prefix_count,
            xattr_prefix_start=prefix_start,
            packed_nid=packed_nid,
            xattr_filter_reserved=filter_reserved,
            ishare_xattr_prefix_id=ishare,
            sb_extslots=extslots,
            metabox_nid=metabox_nid if incompat & INCOMPAT_METABOX else 0,
            checksum=checksum,
        )


def superblock_checksum(first_block: bytes | bytearray, blkszbits: int) -> int:
    """CRC-32C without final inversion over the first block from byte 1024 on, the checksum field as zero.

    Args:
        first_block: the image's first max(block size, 1024 + block size when that is at most 1024) bytes.
        blkszbits: log2 of the block size.
    """
    block_size = 1 << blkszbits
    end = block_size if block_size > SUPER_OFFSET else SUPER_OFFSET + block_size
    covered = bytearray(first_block[SUPER_OFFSET:end])
    covered[4:8] = bytes(4)
    return int(google_crc32c.value(bytes(covered))) ^ 0xFFFFFFFF


# --- inodes -------------------------------------------------------------------------------------
LAYOUT_FLAT_PLAIN: Final = 0
LAYOUT_COMPRESSED_FULL: Final = 1
LAYOUT_FLAT_INLINE: Final = 2
LAYOUT_COMPRESSED_COMPACT: Final = 3
LAYOUT_CHUNK_BASED: Final = 4

FORMAT_EXTENDED: Final = 0x01
FORMAT_LAYOUT_SHIFT: Final = 1
FORMAT_BIT4: Final = 0x10
"""NLINK_1 on compact non-directories, DOT_OMITTED on directories."""
FORMAT_KNOWN: Final = 0x1F

COMPACT_SIZE: Final = 32
EXTENDED_SIZE: Final = 64
NULL_ADDR_32: Final = 0xFFFFFFFF
NULL_ADDR_48: Final = 0xFFFFFFFFFFFF

# i_format, i_xattr_icount, i_mode, i_nb, i_size, i_mtime, i_u, i_ino, i_uid, i_gid
INODE_COMPACT: Final = struct.Struct("<HHHHIIIIHH4x")
assert INODE_COMPACT.size == COMPACT_SIZE
# i_format, i_xattr_icount, i_mode, i_nb, i_size, i_u, i_ino, i_uid, i_gid, i_mtime, i_mtime_nsec, i_nlink
INODE_EXTENDED: Final = struct.Struct("<HHHHQIIIIqII16x")
assert INODE_EXTENDED.size == EXTENDED_SIZE

COMPACT_NLINK_AT: Final = 6
EXTENDED_NLINK_AT: Final = 0x2C
"""Byte offsets of the link count in both forms."""


@dataclass(frozen=True, slots=True)
class RawInode:
    """`struct erofs_inode_compact` or `_extended`; what a compact one leaves out is None."""

    i_format: int
    i_xattr_icount: int
    i_mode: int
    i_nb: int
    i_size: int
    i_u: int
    i_ino: int
    i_uid: int
    i_gid: int
    i_mtime: int
    i_mtime_nsec: int | None
    i_nlink: int | None

    @property
    def extended(self) -> bool:
        """Whether the 64-byte form is used."""
        return bool(self.i_format & FORMAT_EXTENDED)

    @property
    def layout(self) -> int:
        """One of the LAYOUT_ values (5 to 7 are invalid)."""
        return self.i_format >> FORMAT_LAYOUT_SHIFT & 7

    @property
    def size(self) -> int:
        """Bytes of the inode itself."""
        return EXTENDED_SIZE if self.extended else COMPACT_SIZE

    @property
    def xattr_size(self) -> int:
        """Bytes of the inline xattr area that follows."""
        return 0 if not self.i_xattr_icount else 12 + 4 * (self.i_xattr_icount - 1)

    @classmethod
    def parse(cls, data: bytes) -> RawInode:
        """Read 32 bytes of a compact or 64 of an extended inode."""
        if len(data) >= 2 and not data[0] & FORMAT_EXTENDED and len(data) >= COMPACT_SIZE:
            fmt, icount, mode, nb, size, mtime, u, ino, uid, gid = INODE_COMPACT.unpack_from(data)
            return cls(fmt, icount, mode, nb, size, u, ino, uid, gid, mtime, None, None)
        if len(data) < EXTENDED_SIZE:
            raise FormatError("inode is truncated")
        fmt, icount, mode, nb, size, u, ino, uid, gid, mtime, nsec, nlink = INODE_EXTENDED.unpack_from(data)
        return cls(fmt, icount, mode, nb, size, u, ino, uid, gid, mtime, nsec, nlink)


def encode_rdev(major: int, minor: int) -> int:
    """i_u of a device inode: the kernel's new_encode_dev()."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def decode_rdev(i_u: int) -> tuple[int, int]:
    """(major, minor) of a device inode's i_u: the kernel's new_decode_dev()."""
    return (i_u & 0xFFF00) >> 8, (i_u & 0xFF) | ((i_u >> 12) & 0xFFF00)


# --- directories --------------------------------------------------------------------------------
DIRENT: Final = struct.Struct("<QHBx")
DIRENT_SIZE: Final = 12
assert DIRENT.size == DIRENT_SIZE

FT_REG_FILE: Final = 1
FT_DIR: Final = 2
FT_CHRDEV: Final = 3
FT_BLKDEV: Final = 4
FT_FIFO: Final = 5
FT_SOCK: Final = 6
FT_SYMLINK: Final = 7

FT_OF_IFMT: Final = {
    stat.S_IFREG: FT_REG_FILE,
    stat.S_IFDIR: FT_DIR,
    stat.S_IFCHR: FT_CHRDEV,
    stat.S_IFBLK: FT_BLKDEV,
    stat.S_IFIFO: FT_FIFO,
    stat.S_IFSOCK: FT_SOCK,
    stat.S_IFLNK: FT_SYMLINK,
}
"""Directory entry type of each file type in i_mode."""

# --- chunk-based files --------------------------------------------------------------------------
CHUNK_BLKBITS_MASK: Final = 0x1F
CHUNK_INDEXES: Final = 0x20
CHUNK_48BIT: Final = 0x40
CHUNK_KNOWN: Final = 0x7F

# startblk_hi, device_id, startblk_lo
CHUNK_INDEX: Final = struct.Struct("<HHI")
CHUNK_INDEX_SIZE: Final = 8
assert CHUNK_INDEX.size == CHUNK_INDEX_SIZE
BLOCK_MAP_SIZE: Final = 4

# --- devices ------------------------------------------------------------------------------------
# tag, blocks_lo, uniaddr_lo, blocks_hi, uniaddr_hi
_DEVICE_SLOT: Final = struct.Struct("<64sIIHH52x")
DEVICE_SLOT_SIZE: Final = 128
assert _DEVICE_SLOT.size == DEVICE_SLOT_SIZE


@dataclass(frozen=True, slots=True)
class DeviceSlot:
    """`struct erofs_deviceslot`.

    Args:
        tag: 64 bytes; in sealed images the data blob's digest.
        blocks: blocks of the device.
        uniaddr: its first block in the unified address space; 0 = not mapped there.
    """

    tag: bytes
    blocks: int
    uniaddr: int

    def encode(self) -> bytes:
        """The 128 bytes."""
        return _DEVICE_SLOT.pack(
            self.tag, self.blocks & 0xFFFFFFFF, self.uniaddr & 0xFFFFFFFF, self.blocks >> 32, self.uniaddr >> 32
        )

    @classmethod
    def parse(cls, data: bytes, *, wide: bool) -> DeviceSlot:
        """Read 128 bytes; the high halves count only on 48BIT images (`wide`)."""
        tag, blocks_lo, uniaddr_lo, blocks_hi, uniaddr_hi = _DEVICE_SLOT.unpack(data)
        if not wide:
            return cls(tag, blocks_lo, uniaddr_lo)
        return cls(tag, blocks_lo | blocks_hi << 32, uniaddr_lo | uniaddr_hi << 32)
