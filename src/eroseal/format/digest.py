"""Blob digests and the parameters of the tree behind them.

A digest is written ``fsverity-sha256-12:<hex>`` (12 = log2 of the tree's block size), as composefs does.
"""

from __future__ import annotations

import enum
import string
from dataclasses import dataclass
from typing import Final

from eroseal.errors import FormatError, UsageError
from eroseal.limits import MAX_SALT

BLOCK: Final = 4096
"""Bytes of a tree block and of a hashed data block, whatever the EROFS block size."""
LOG_BLOCK: Final = 12


class HashAlgorithm(enum.Enum):
    """The hash algorithms that fs-verity and dm-verity share (FS_VERITY_HASH_ALG_*)."""

    SHA256 = ("sha256", 1, 32, 64)
    SHA512 = ("sha512", 2, 64, 128)

    def __init__(self, name_text: str, fsverity_id: int, digest_size: int, block_size: int) -> None:
        self.name_text = name_text
        self.fsverity_id = fsverity_id
        self.digest_size = digest_size
        self.block_size = block_size

    @classmethod
    def from_name(cls, name: str) -> HashAlgorithm:
        """The algorithm called `name`; raises UsageError for others."""
        for item in cls:
            if item.name_text == name:
                return item
        raise UsageError(f"unknown hash algorithm {name!r}", hint="sha256 and sha512 are supported")

    @classmethod
    def from_fsverity_id(cls, number: int) -> HashAlgorithm:
        """The algorithm with this FS_VERITY_HASH_ALG_ number; raises FormatError for others."""
        for item in cls:
            if item.fsverity_id == number:
                return item
        raise FormatError(f"unknown fs-verity hash algorithm {number}")

    @property
    def hashes_per_block(self) -> int:
        """Hashes that one 4096-byte tree block holds."""
        return BLOCK // self.digest_size


@dataclass(frozen=True, slots=True)
class Digest:
    """The fs-verity digest of a data region: a blob's name.

    Args:
        algorithm: of the tree and of the descriptor's hash.
        value: 32 (SHA-256) or 64 (SHA-512) raw bytes.
    """

    algorithm: HashAlgorithm
    value: bytes

    def __post_init__(self) -> None:
        if len(self.value) != self.algorithm.digest_size:
            raise FormatError(
                f"a {self.algorithm.name_text} digest has {self.algorithm.digest_size} bytes, not {len(self.value)}"
            )

    @property
    def hex(self) -> str:
        """Lowercase hexadecimal digits alone."""
        return self.value.hex()

    def __str__(self) -> str:
        return f"fsverity-{self.algorithm.name_text}-{LOG_BLOCK}:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``fsverity-sha256-12:<hex>``, strictly; raises UsageError."""
        kind, colon, digits = text.partition(":")
        for algorithm in HashAlgorithm:
            if colon and kind == f"fsverity-{algorithm.name_text}-{LOG_BLOCK}":
                if len(digits) != 2 * algorithm.digest_size or set(digits) - set(string.hexdigits.lower()[:16]):
                    break
                return cls(algorithm, bytes.fromhex(digits))
        raise UsageError(
            f"not an image digest: {text!r}",
            hint=f"expected fsverity-sha256-{LOG_BLOCK}: and 64 lowercase hex digits, or -sha512- and 128",
        )

    def tag(self) -> bytes:
        """The 64 bytes of an EROFS device slot's tag: hex for SHA-256, raw for SHA-512."""
        return self.hex.encode() if self.algorithm is HashAlgorithm.SHA256 else self.value

    @classmethod
    def from_tag(cls, algorithm: HashAlgorithm, tag: bytes) -> Digest:
        """The digest in a device slot's tag; the meta blob's verified algorithm decides the form."""
        if len(tag) != 64:
            raise FormatError(f"a device tag has 64 bytes, not {len(tag)}")
        if algorithm is HashAlgorithm.SHA512:
            return cls(algorithm, tag)
        if set(tag) - set(b"0123456789abcdef"):
            raise FormatError("device tag is not a lowercase hex digest", hint="the image is not sealed")
        return cls(algorithm, bytes.fromhex(tag.decode()))


@dataclass(frozen=True, slots=True)
class TreeParams:
    """What decides a Merkle tree besides the data.

    Args:
        algorithm: hash algorithm.
        salt: 0 to 32 bytes.
    """

    algorithm: HashAlgorithm = HashAlgorithm.SHA256
    salt: bytes = b""

    def __post_init__(self) -> None:
        if len(self.salt) > MAX_SALT:
            raise UsageError(f"a salt has at most {MAX_SALT} bytes, not {len(self.salt)}")

    @property
    def padded_salt(self) -> bytes:
        """The salt as it is hashed: zero-padded to the hash's input block (fs/verity/hash_algs.c)."""
        if not self.salt:
            return b""
        return self.salt.ljust(self.algorithm.block_size, b"\0")
