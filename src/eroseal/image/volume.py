"""The two tables with fixed meaning at the front of an image: superblock and device slots."""

from __future__ import annotations

from typing import Final

from eroseal.errors import FormatError, UnsupportedError
from eroseal.format.erofs import (
    DEVICE_SLOT_SIZE,
    EXTSLOT_SIZE,
    INCOMPAT_48BIT,
    INCOMPAT_DEVICE_TABLE,
    INCOMPAT_KNOWN,
    SUPER_OFFSET,
    SUPER_SIZE,
    DeviceSlot,
    Superblock,
)
from eroseal.image.inode import NSEC_PER_SEC
from eroseal.image.space import MetaSpace

MIN_BLKSZBITS: Final = 9
MAX_BLKSZBITS: Final = 16
"""Block sizes of 512 bytes to 64 KiB: what any kernel mounts, whatever its page size."""


def read_superblock(meta: MetaSpace) -> Superblock:
    """The superblock at byte 1024, if it is one that this reader understands.

    Raises:
        FormatError: there is none, or its fields are impossible.
        UnsupportedError: it needs unknown features.
    """
    size = min(SUPER_SIZE + EXTSLOT_SIZE, meta.size - SUPER_OFFSET)
    if size < SUPER_SIZE:
        raise FormatError(f"image of {meta.size} bytes is too short for an EROFS superblock")
    superblock = Superblock.parse(meta.read(SUPER_OFFSET, size))
    unknown = superblock.feature_incompat & ~INCOMPAT_KNOWN
    if unknown:
        raise UnsupportedError(f"image needs features that this version does not know ({unknown:#x})")
    if not MIN_BLKSZBITS <= superblock.blkszbits <= MAX_BLKSZBITS:
        raise FormatError(f"superblock claims a block size of 2^{superblock.blkszbits} bytes")
    if superblock.dirblkbits:
        raise FormatError(f"superblock claims directory blocks of {superblock.dirblkbits} more bits")
    if superblock.fixed_nsec >= NSEC_PER_SEC:
        raise FormatError(f"superblock claims {superblock.fixed_nsec} nanoseconds")
    return superblock


def read_devices(meta: MetaSpace, superblock: Superblock) -> tuple[DeviceSlot, ...]:
    """The device table, empty without the feature; raises FormatError if it is not inside the meta blob."""
    # Without the feature bit the count has no meaning.
    if not superblock.feature_incompat & INCOMPAT_DEVICE_TABLE or not superblock.extra_devices:
        return ()
    start, size = superblock.devt_slotoff * DEVICE_SLOT_SIZE, superblock.extra_devices * DEVICE_SLOT_SIZE
    if start < SUPER_OFFSET + superblock.size or start + size > meta.size:
        raise FormatError(
            f"device table of {superblock.extra_devices} slots at byte {start} is not inside "
            f"{meta.name}, which has {meta.size} bytes"
        )
    table = meta.read(start, size)
    wide = bool(superblock.feature_incompat & INCOMPAT_48BIT)
    return tuple(
        DeviceSlot.parse(table[at : at + DEVICE_SLOT_SIZE], wide=wide) for at in range(0, size, DEVICE_SLOT_SIZE)
    )
