"""What the tests of seals share: a naive reference of the tree, small sealed blobs, and sources that can be altered."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

from eroseal.format.digest import BLOCK, HashAlgorithm, TreeParams
from eroseal.format.erofs import (
    COMPAT_MTIME,
    DEVICE_SLOT_SIZE,
    INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE,
    SUPER_OFFSET,
    DeviceSlot,
    Superblock,
)
from eroseal.readat import check_range
from eroseal.seal.blob import SealedBlob, seal_in_place

SHA256 = HashAlgorithm.SHA256
SHA512 = HashAlgorithm.SHA512
PARAMS = [
    TreeParams(SHA256),
    TreeParams(SHA256, b"\x01salt of 32 bytes, all of them!!"),
    TreeParams(SHA512),
    TreeParams(SHA512, b"pinch"),
]


PARAM_IDS = ["sha256", "sha256-salt", "sha512", "sha512-salt"]


def noise(blocks: int, seed: int = 1) -> bytes:
    """Blocks of bytes that look random and are the same every time."""
    return random.Random(seed).randbytes(blocks * BLOCK)


def reference_tree(data: bytes, params: TreeParams) -> tuple[bytes, bytes]:
    """The tree (root level first) and the root hash, straight from the definition."""

    def hashes(level: bytes) -> bytes:
        blocks = [level[at : at + BLOCK] for at in range(0, len(level), BLOCK)]
        return b"".join(
            hashlib.new(params.algorithm.name_text, params.padded_salt + block).digest() for block in blocks
        )

    tree, level = b"", data
    while len(level) > BLOCK:
        level = hashes(level)
        level += bytes(-len(level) % BLOCK)
        tree = level + tree
    return tree, hashes(level)


class Changeable:
    """A source in memory that a test can alter at any time."""

    def __init__(self, data: bytes | bytearray, name: str = "test blob") -> None:
        self.data = bytearray(data)
        self.name = name
        self.closed = False
        self.reads: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(self.name, self.size, offset, length)
        self.reads.append((offset, length))
        return bytes(self.data[offset : offset + length])

    def flip(self, offset: int, bit: int = 0) -> None:
        self.data[offset] ^= 1 << bit

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True, slots=True)
class Sample:
    """A sealed blob in memory."""

    sealed: SealedBlob
    data: bytes
    blob: bytes

    def source(self, name: str = "test blob") -> Changeable:
        return Changeable(self.blob, name)


def seal_bytes(
    directory: Path, data: bytes, params: TreeParams = PARAMS[0], chunk_blocks: list[int] | None = None
) -> Sample:
    """Seal some data, through a file."""
    path = directory / "sealing"
    path.write_bytes(data)
    with path.open("r+b") as file:
        sealed = seal_in_place(file.fileno(), len(data), params, jobs=1, chunk_blocks=chunk_blocks)
    sample = Sample(sealed, data, path.read_bytes())
    path.unlink()
    return sample


def meta_region(tags: list[tuple[bytes, int]], *, blocks: int = 2) -> bytes:
    """The data region of a meta blob, so far as the trust layer looks: a superblock and a device table.

    Args:
        tags: tag and number of blocks of each data blob.
        blocks: blocks of the region.
    """
    superblock = Superblock(
        blkszbits=12,
        root_nid=100,
        inos=1,
        blocks=blocks,
        feature_compat=COMPAT_MTIME,
        feature_incompat=(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE) if tags else 0,
        extra_devices=len(tags),
        devt_slotoff=BLOCK // DEVICE_SLOT_SIZE if tags else 0,
    )
    table = b"".join(DeviceSlot(tag, count, 0).encode() for tag, count in tags)
    region = bytes(SUPER_OFFSET) + superblock.encode()
    return (region.ljust(BLOCK, b"\0") + table).ljust(blocks * BLOCK, b"\0")
