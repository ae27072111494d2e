"""Steps 6 and 7 of the verifier: from a verified meta blob's superblock to the digests of its data blobs.

As pure as the other steps (verifier.py). The rest of step 6, that every file's extents stay inside their
device, is the structure check of the image package, which knows inodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eroseal.errors import FormatError, IntegrityError
from eroseal.format.digest import BLOCK, Digest
from eroseal.format.erofs import (
    DEVICE_SLOT_SIZE,
    INCOMPAT_48BIT,
    INCOMPAT_DEVICE_TABLE,
    DeviceSlot,
    Superblock,
)
from eroseal.format.fsverity import Descriptor
from eroseal.trust.verifier import VerifiedSeal


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A data blob as the verified device table names it.

    Args:
        digest: its digest; None in an unverified image whose tags are not digests.
        size: bytes of its data region.
    """

    digest: Digest | None
    size: int


def step6_superblock(data: bytes, data_size: int, *, name: str) -> Superblock:
    """The superblock, its blocks and its device table inside the data region.

    Args:
        data: the image's bytes from 1024 on, up to 4096.
        data_size: D of the meta blob.
        name: what errors call the blob.
    """
    try:
        parsed = Superblock.parse(data)
    except FormatError as error:
        raise IntegrityError(error.what, step=6, blob=name, offset=1024) from error
    if not 9 <= parsed.blkszbits <= 16:
        raise IntegrityError(
            f"superblock has blocks of 2^{parsed.blkszbits} bytes, not 2^9 to 2^16",
            step=6,
            blob=name,
            offset=1024,
        )
    if parsed.blocks << parsed.blkszbits > data_size:
        raise IntegrityError(
            f"superblock claims {parsed.blocks} blocks of {parsed.block_size} bytes, "
            f"the data region has {data_size} bytes",
            step=6,
            blob=name,
            offset=1024,
        )
    start, length = device_table(parsed)
    if start + length > data_size:
        raise IntegrityError(
            f"device table of {length} bytes at byte {start} leaves the data region of {data_size} bytes",
            step=6,
            blob=name,
            offset=1024,
        )
    return parsed


def device_table(superblock: Superblock) -> tuple[int, int]:
    """Byte offset and length of the device table; length 0 where there is none."""
    if not superblock.feature_incompat & INCOMPAT_DEVICE_TABLE:
        return 0, 0
    return superblock.devt_slotoff * DEVICE_SLOT_SIZE, superblock.extra_devices * DEVICE_SLOT_SIZE


def device_slots(superblock: Superblock, table: bytes) -> list[DeviceSlot]:
    """The slots in the bytes of a device table."""
    wide = bool(superblock.feature_incompat & INCOMPAT_48BIT)
    return [
        DeviceSlot.parse(table[at : at + DEVICE_SLOT_SIZE], wide=wide) for at in range(0, len(table), DEVICE_SLOT_SIZE)
    ]


def step6_devices(superblock: Superblock, table: bytes, *, name: str) -> Sequence[DeviceSlot]:
    """The device slots, each of a size that a data region can have."""
    slots = device_slots(superblock, table)
    for number, slot in enumerate(slots):
        size = slot.blocks * superblock.block_size
        if size == 0 or size % BLOCK:
            raise IntegrityError(
                f"device slot {number + 1} has {size} bytes, not a positive multiple of {BLOCK}",
                step=6,
                blob=name,
                offset=device_table(superblock)[0] + number * DEVICE_SLOT_SIZE,
            )
    return slots


def step7_devices(
    superblock: Superblock, slots: Sequence[DeviceSlot], descriptor: Descriptor, *, name: str
) -> tuple[DeviceInfo, ...]:
    """The expected digest of each data blob; the meta blob's verified algorithm decides a tag's form."""
    devices = []
    for number, slot in enumerate(slots):
        try:
            digest = Digest.from_tag(descriptor.params.algorithm, slot.tag)
        except FormatError as error:
            raise IntegrityError(
                f"tag of device slot {number + 1} is not a digest",
                step=7,
                blob=name,
                offset=device_table(superblock)[0] + number * DEVICE_SLOT_SIZE,
                hint="the image is not sealed as a whole",
            ) from error
        devices.append(DeviceInfo(digest, slot.blocks * superblock.block_size))
    return tuple(devices)


def step7_data_blob(seal: VerifiedSeal, device: DeviceInfo, meta: Descriptor) -> None:
    """A data blob's verified descriptor agrees with its device slot and with the meta blob's parameters."""
    if seal.descriptor.data_size != device.size:
        raise IntegrityError(
            f"data region has {seal.descriptor.data_size} bytes, its device slot says {device.size}",
            step=7,
            blob=seal.name,
        )
    if seal.descriptor.params != meta.params:
        raise IntegrityError(
            "hash algorithm or salt is not the meta blob's: all blobs of an image use the same",
            step=7,
            blob=seal.name,
        )
