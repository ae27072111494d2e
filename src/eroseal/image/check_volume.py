"""The structure check of what an image has once: superblock, device table, root, special inodes."""

from __future__ import annotations

from eroseal.errors import FormatError
from eroseal.format.erofs import (
    COMPAT_SB_CHKSUM,
    INCOMPAT_DEVICE_TABLE,
    INCOMPAT_FRAGMENTS,
    INCOMPAT_METABOX,
    SUPER_OFFSET,
    Superblock,
    superblock_checksum,
)
from eroseal.image.inode import Inode
from eroseal.image.reader import ImageReader
from eroseal.readat import ReadAt
from eroseal.trust.image import VerifiedImage


def check_volume(reader: ImageReader) -> list[str]:
    """Check superblock and device table against each other and the blobs at hand; gives warnings.

    Args:
        reader: of the image.

    Raises:
        FormatError: names the field that is wrong.
        UnsupportedError: the packed inode or the metabox cannot be looked at.
    """
    superblock = reader.superblock
    meta = reader.source.meta
    if SUPER_OFFSET + superblock.size > meta.size:
        raise FormatError(f"superblock of {superblock.size} bytes leaves the meta blob, which has {meta.size} bytes")
    if superblock.feature_compat & COMPAT_SB_CHKSUM:
        _check_checksum(superblock, meta)
    if superblock.blocks * superblock.block_size > meta.size:
        raise FormatError(
            f"superblock claims {superblock.blocks} blocks of {superblock.block_size} bytes, "
            f"but the meta blob has {meta.size} bytes"
        )
    warnings = _check_devices(reader)
    if superblock.feature_incompat & INCOMPAT_FRAGMENTS and superblock.packed_nid:
        _check_carrier(reader, reader.inode(superblock.packed_nid), "packed")
    if superblock.feature_incompat & INCOMPAT_METABOX:
        _check_carrier(reader, reader.metabox_inode(), "metabox")
    return warnings


def check_root(reader: ImageReader) -> Inode:
    """The root directory, if it is one and does not lie before the end of the superblock; else FormatError."""
    root = reader.root()
    if not root.is_dir:
        raise FormatError(f"the root, inode {root.nid}, has mode {root.mode:#o} and is not a directory")
    if not root.in_metabox and root.position < SUPER_OFFSET + reader.superblock.size:
        raise FormatError(f"the root, inode {root.nid}, lies at byte {root.position}, before the superblock's end")
    return root


def _check_checksum(superblock: Superblock, meta: ReadAt) -> None:
    size = superblock.block_size
    end = size if size > SUPER_OFFSET else SUPER_OFFSET + size
    if end > meta.size:
        raise FormatError(f"superblock checksum covers {end} bytes, but the meta blob has {meta.size} bytes")
    actual = superblock_checksum(meta.read_at(0, end), superblock.blkszbits)
    if actual != superblock.checksum:
        raise FormatError(f"superblock checksum is {superblock.checksum:#010x}, but its block has {actual:#010x}")


def _check_devices(reader: ImageReader) -> list[str]:
    superblock = reader.superblock
    warnings = []
    if superblock.extra_devices and not superblock.feature_incompat & INCOMPAT_DEVICE_TABLE:
        raise FormatError(f"superblock claims {superblock.extra_devices} devices without a device table")
    sealed = isinstance(reader.source, VerifiedImage)
    for number, (slot, device) in enumerate(zip(reader.devices, reader.source.devices, strict=False), 1):
        if not slot.blocks and not sealed:
            # mkfs.erofs 1.5 leaves the whole slot zero.
            warnings.append(f"device slot {number} does not say how many blocks the device has")
        elif slot.blocks * superblock.block_size != device.size:
            raise FormatError(
                f"device slot {number} claims {slot.blocks} blocks of {superblock.block_size} bytes, "
                f"but the data blob has {device.size} bytes"
            )
    # One address, two meanings: kernels look through devices in order, other readers in other ways.
    overlap = reader.device_map.overlap()
    if overlap is not None:
        raise FormatError(f"devices {overlap[0]} and {overlap[1]} overlap in the unified address space")
    for number, slot in enumerate(reader.devices, 1):
        if slot.blocks and 0 < slot.uniaddr < superblock.blocks:
            raise FormatError(f"device {number} overlaps the meta blob in the unified address space")
    return warnings


def _check_carrier(reader: ImageReader, inode: Inode, name: str) -> None:
    """An inode outside the tree that carries other inodes' bytes."""
    if not inode.is_regular:
        raise FormatError(f"the {name} inode {inode.nid} has mode {inode.mode:#o} and is not a regular file")
    if not inode.compressed:
        for _ in reader.extents(inode):
            pass
