"""fs-verity's structures: the descriptor, and what is signed.

Source: include/uapi/linux/fsverity.h and Documentation/filesystems/fsverity.rst.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from eroseal.errors import FormatError
from eroseal.format.digest import BLOCK, LOG_BLOCK, Digest, HashAlgorithm, TreeParams
from eroseal.limits import MAX_DATA_SIZE, MAX_SALT

# struct fsverity_descriptor: version, hash_algorithm, log_blocksize, salt_size, sig_size, data_size,
# root_hash[64], salt[32], __reserved[144]
_DESCRIPTOR: Final = struct.Struct("<BBBBIQ64s32s144x")
DESCRIPTOR_SIZE: Final = 256
assert _DESCRIPTOR.size == DESCRIPTOR_SIZE

_FORMATTED_MAGIC: Final = b"FSVerity"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """`struct fsverity_descriptor`, version 1, without a signature.

    Args:
        params: hash algorithm and salt.
        data_size: bytes of the data region, a positive multiple of 4096.
        root_hash: hash of the tree's top block, or of the only data block.
    """

    params: TreeParams
    data_size: int
    root_hash: bytes

    def encode(self) -> bytes:
        """The 256 canonical bytes."""
        salt = self.params.salt
        return _DESCRIPTOR.pack(
            1,
            self.params.algorithm.fsverity_id,
            LOG_BLOCK,
            len(salt),
            0,
            self.data_size,
            self.root_hash,
            salt,
        )

    @classmethod
    def parse(cls, data: bytes) -> Descriptor:
        """Read 256 bytes; anything that `encode` would not write raises FormatError."""
        if len(data) != DESCRIPTOR_SIZE:
            raise FormatError(f"an fs-verity descriptor has {DESCRIPTOR_SIZE} bytes, not {len(data)}")
        version, algorithm_id, log_block, salt_size, _, data_size, root, salt = _DESCRIPTOR.unpack(data)
        if version != 1:
            raise FormatError(f"fs-verity descriptor has version {version}, not 1")
        if log_block != LOG_BLOCK:
            raise FormatError(f"fs-verity block size is 2^{log_block}, not {BLOCK}")
        if salt_size > MAX_SALT:
            raise FormatError(f"fs-verity salt has {salt_size} bytes, more than {MAX_SALT}")
        if not 0 < data_size <= MAX_DATA_SIZE or data_size % BLOCK:
            raise FormatError(f"fs-verity data size {data_size} is not a positive multiple of {BLOCK}")
        algorithm = HashAlgorithm.from_fsverity_id(algorithm_id)
        descriptor = cls(TreeParams(algorithm, salt[:salt_size]), data_size, root[: algorithm.digest_size])
        if descriptor.encode() != data:
            raise FormatError("fs-verity descriptor is not canonical: a reserved byte is not zero")
        return descriptor

    @property
    def digest(self) -> Digest:
        """The fs-verity digest: the plain hash of the descriptor."""
        algorithm = self.params.algorithm
        return Digest(algorithm, hashlib.new(algorithm.name_text, self.encode()).digest())


def formatted_digest(digest: Digest) -> bytes:
    """`struct fsverity_formatted_digest`: what the kernel's built-in signatures sign."""
    return _FORMATTED_MAGIC + struct.pack("<HH", digest.algorithm.fsverity_id, len(digest.value)) + digest.value
