"""The dm-verity superblock that follows a data region.

Source: cryptsetup, lib/verity/verity.c (struct verity_sb) and
Documentation/admin-guide/device-mapper/verity.rst. It is a function of the descriptor, so that a sealed blob
stays canonical and the verifier can demand equality.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from eroseal.format.digest import BLOCK
from eroseal.format.fsverity import Descriptor

# signature[8], version, hash_type, uuid[16], algorithm[32], data_block_size, hash_block_size, data_blocks,
# salt_size, pad[6], salt[256], pad[168]
_SUPERBLOCK: Final = struct.Struct("<8sII16s32sIIQH6x256s168x")
assert _SUPERBLOCK.size == 512

_UUID_LABEL: Final = b"eroseal-dm-verity-uuid-v1\0"


def derived_uuid(descriptor: Descriptor) -> bytes:
    """16 bytes: SHA-256 over a label and the blob digest, marked as a UUID of version 8 (RFC 9562, 5.8)."""
    raw = bytearray(hashlib.sha256(_UUID_LABEL + descriptor.digest.value).digest()[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return bytes(raw)


def superblock(descriptor: Descriptor) -> bytes:
    """The 512-byte superblock for a blob, zero-padded to one block of 4096 bytes."""
    params = descriptor.params
    packed = _SUPERBLOCK.pack(
        b"verity\0\0",
        1,
        1,
        derived_uuid(descriptor),
        params.algorithm.name_text.encode(),
        BLOCK,
        BLOCK,
        descriptor.data_size // BLOCK,
        len(params.padded_salt),
        params.padded_salt,
    )
    return packed.ljust(BLOCK, b"\0")
