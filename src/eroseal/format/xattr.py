"""Extended attributes on disk: entries, name indexes, the bloom filter.

Source: fs/erofs/erofs_fs.h (struct erofs_xattr_ibody_header, erofs_xattr_entry) and fs/erofs/xattr.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import xxhash

HEADER_SIZE: Final = 12
# h_name_filter, h_shared_count
HEADER: Final = struct.Struct("<IB7x")
assert HEADER.size == HEADER_SIZE
# e_name_len, e_name_index, e_value_size
ENTRY: Final = struct.Struct("<BBH")
ENTRY_SIZE: Final = 4
assert ENTRY.size == ENTRY_SIZE
MAX_SHARED: Final = 255
"""Shared ids of one inode: h_shared_count has 8 bits."""

LONG_PREFIX: Final = 0x80
"""Name indexes from here on name a long prefix."""
HIDDEN: Final = 0
"""Name index of names without a visible prefix: no system call lists them."""
_PREFIX_LENGTH: Final = struct.Struct("<H")

FILTER_DEFAULT: Final = 0xFFFFFFFF
FILTER_SEED: Final = 0x25BBE08F

# The order matters to `split_name`: the ACL names are whole, the others are prefixes.
PREFIXES: Final[dict[int, bytes]] = {
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    1: b"user.",
    4: b"trusted.",
    6: b"security.",
}
"""Name index to prefix (EROFS_XATTR_INDEX_*)."""


@lru_cache(maxsize=1024)
def split_name(name: bytes) -> tuple[int, bytes] | None:
    """(name index, rest) of a full xattr name, or None for one that EROFS cannot hold."""
    for index, prefix in PREFIXES.items():
        if index in (2, 3):
            if name == prefix:
                return index, b""
        elif name.startswith(prefix) and len(name) > len(prefix):
            return index, name[len(prefix) :]
    return None


@lru_cache(maxsize=1024)
def filter_bit(index: int, rest: bytes) -> int:
    """The bit of h_name_filter that a name clears.

    Args:
        index: base name index (0 to 6), never a long prefix.
        rest: the name without its base prefix, infix of a long prefix included.
    """
    return 1 << (xxhash.xxh32_intdigest(rest, seed=FILTER_SEED + index) & 31)


def encode_entry(index: int, rest: bytes, value: bytes) -> bytes:
    """One entry, padded to 4 bytes."""
    raw = ENTRY.pack(len(rest), index, len(value)) + rest + value
    return raw + bytes(-len(raw) % 4)


@dataclass(frozen=True, slots=True)
class LongPrefix:
    """`struct erofs_xattr_long_prefix`: a base prefix and an infix that names share.

    Args:
        base_index: base name index (0 = hidden).
        infix: what follows the base prefix.
    """

    base_index: int
    infix: bytes

    def encode(self) -> bytes:
        """One record of the prefix table, padded to 4 bytes."""
        raw = _PREFIX_LENGTH.pack(1 + len(self.infix)) + bytes([self.base_index]) + self.infix
        return raw + bytes(-len(raw) % 4)


def prefix_length(head: bytes) -> int:
    """Bytes of a prefix record's payload (base index and infix), from the record's first two bytes."""
    (length,) = _PREFIX_LENGTH.unpack(head)
    return int(length) or 1 << 16


def base_prefix(index: int) -> bytes | None:
    """The visible prefix of a base name index; b"" for hidden names, None for an unknown index."""
    return b"" if index == HIDDEN else PREFIXES.get(index)
