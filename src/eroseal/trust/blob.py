"""Blobs to read from: verified, merely self-consistent, or unverified by name.

A `VerifiedBlob` checks every tree and data block against its parent before a byte of it is used (step 5),
whether the blob is whole or partly there. Verified tree blocks are kept in a bounded cache, so a sequential
reader hashes each of them once, and a random reader a few.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from eroseal.crypto.blocks import BlockHasher
from eroseal.errors import FormatError, IntegrityError, UsageError
from eroseal.format.digest import BLOCK, Digest, TreeParams
from eroseal.format.fsverity import Descriptor
from eroseal.limits import IO_CHUNK, TREE_CACHE_BLOCKS
from eroseal.readat import ReadAt, check_range
from eroseal.trust.verifier import VerifiedSeal, block_kind, block_offset, step2_tree_padding, step5_blocks

_READ_BLOCKS: Final = IO_CHUNK // BLOCK


def fetch(source: ReadAt, offset: int, length: int, *, step: int, name: str, level: int | None = None) -> bytes:
    """Bytes of a blob; a source that is too short or fails is refused in the name of `step`."""
    what = block_kind(level) if level is not None else "seal"
    try:
        data = source.read_at(offset, length)
    except FormatError as error:
        raise IntegrityError(
            f"{what} cannot be read: {error.what}", step=step, blob=name, offset=offset, level=level
        ) from error
    if len(data) != length:
        raise IntegrityError(
            f"{what} is truncated: {len(data)} of {length} bytes",
            step=step,
            blob=name,
            offset=offset,
            level=level,
        )
    return data


class SelfConsistentBlob:
    """A blob whose every block agrees with its own seal: whole and undamaged, but nobody vouches for it.

    Made by `eroseal.trust.open_self_consistent`. Safe for use by several threads.

    Args:
        source: the sealed blob; only its data region and tree are read.
        seal: passed steps 1 to 4.
    """

    __slots__ = ("__weakref__", "_cache", "_hasher", "_lock", "_seal", "_source")

    def __init__(self, source: ReadAt, seal: VerifiedSeal) -> None:
        if not isinstance(seal, VerifiedSeal):
            raise UsageError("a blob is read through a seal that the verifier made")
        self._source = source
        self._seal = seal
        self._hasher = BlockHasher(seal.descriptor.params)
        self._cache: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def seal(self) -> VerifiedSeal:
        """The verified seal."""
        return self._seal

    @property
    def digest(self) -> Digest:
        """The blob's digest."""
        return self._seal.digest

    @property
    def descriptor(self) -> Descriptor:
        """The verified fs-verity descriptor."""
        return self._seal.descriptor

    @property
    def params(self) -> TreeParams:
        """Hash algorithm and salt."""
        return self._seal.descriptor.params

    @property
    def name(self) -> str:
        """What errors call the blob."""
        return self._seal.name

    @property
    def size(self) -> int:
        """Bytes of the data region (D): all that can be read."""
        return self._seal.descriptor.data_size

    @property
    def chunk_map(self) -> bytes | None:
        """The encoded chunk map: a hint that nothing authenticates."""
        return self._seal.chunk_map

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` verified bytes from byte `offset` of the data region on.

        Raises:
            FormatError: the range leaves the data region.
            IntegrityError: a block of the range, or a tree block above it, is missing or altered.
        """
        check_range(self.name, self.size, offset, length)
        if length == 0:
            return b""
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        pieces = [
            self._data_blocks(block, min(_READ_BLOCKS, last + 1 - block))
            for block in range(first, last + 1, _READ_BLOCKS)
        ]
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        start = offset - first * BLOCK
        return data if len(data) == length else data[start : start + length]

    def read_tree_hashes(self, first_block: int, count: int) -> bytes:
        """Verified leaf hashes, joined, of `count` data blocks from `first_block` on; no data is read.

        Raises:
            FormatError: the range leaves the data region.
            IntegrityError: a tree block is missing or altered.
        """
        check_range(self.name, self.size // BLOCK, first_block, count)
        step = _READ_BLOCKS * (BLOCK // self._seal.shape.digest_size)
        end = first_block + count
        return b"".join(self.hashes(0, block, min(step, end - block)) for block in range(first_block, end, step))

    def hashes(self, level: int, first: int, count: int) -> bytes:
        """Verified hashes, joined, of `count` blocks of a level from block `first` on.

        Args:
            level: 0 for data, 1 and above for the tree.
            first: number of the first block in its level.
            count: blocks, at least 1, all inside the level.
        """
        shape = self._seal.shape
        if level >= len(shape.levels):
            return self._seal.descriptor.root_hash
        per_block = BLOCK // shape.digest_size
        parent = first // per_block
        parents = self._tree_blocks(level + 1, parent, (first + count - 1) // per_block + 1 - parent)
        start = (first - parent * per_block) * shape.digest_size
        return parents[start : start + count * shape.digest_size]

    def _data_blocks(self, first: int, count: int) -> bytes:
        expected = self.hashes(0, first, count)
        data = fetch(self._source, first * BLOCK, count * BLOCK, step=5, name=self.name, level=0)
        hashes = self._hasher.hash_blocks(data)
        step5_blocks(expected, hashes, self._seal.shape, level=0, first=first, name=self.name)
        return data

    def _tree_blocks(self, level: int, first: int, count: int) -> bytes:
        """Verified tree blocks, joined: from the cache, or read and checked against the level above."""
        if level == len(self._seal.shape.levels):
            return self._seal.top
        found = self._cached(level, first, count)
        missing = [number for number, block in enumerate(found) if block is None]
        if missing:
            low, high = missing[0], missing[-1] + 1
            fresh = self._read_tree(level, first + low, high - low)
            found[low:high] = [fresh[at : at + BLOCK] for at in range(0, len(fresh), BLOCK)]
        return b"".join([block for block in found if block is not None])

    def _read_tree(self, level: int, first: int, count: int) -> bytes:
        shape = self._seal.shape
        expected = self.hashes(level, first, count)
        data = fetch(
            self._source,
            block_offset(shape, level, first),
            count * BLOCK,
            step=5,
            name=self.name,
            level=level,
        )
        hashes = self._hasher.hash_blocks(data)
        step5_blocks(expected, hashes, shape, level=level, first=first, name=self.name)
        step2_tree_padding(shape, level=level, first=first, blocks=data, name=self.name)
        self._keep(level, first, data)
        return data

    def _cached(self, level: int, first: int, count: int) -> list[bytes | None]:
        with self._lock:
            found = [self._cache.get((level, number)) for number in range(first, first + count)]
            for number, block in enumerate(found, first):
                if block is not None:
                    self._cache.move_to_end((level, number))
        return found

    def _keep(self, level: int, first: int, data: bytes) -> None:
        with self._lock:
            for number, at in enumerate(range(0, len(data), BLOCK), first):
                self._cache[level, number] = data[at : at + BLOCK]
                self._cache.move_to_end((level, number))
            while len(self._cache) > TREE_CACHE_BLOCKS:
                self._cache.popitem(last=False)


class VerifiedBlob(SelfConsistentBlob):
    """A blob that passed steps 1 to 4 under an expected digest; its blocks are checked as they are read.

    Made by the verifier's openers (`open_blob`, `open_image`) only: it takes a seal that carries an expected
    digest.
    """

    __slots__ = ()

    def __init__(self, source: ReadAt, seal: VerifiedSeal) -> None:
        super().__init__(source, seal)
        if not seal.expected:
            raise UsageError("nobody vouched for this blob: it is only self-consistent", hint="open_blob")


class UnverifiedBlob:
    """A blob that is read as it is, because the caller asked for that by name.

    Args:
        source: where to read.
        size: bytes that may be read; None means all of the source.
    """

    __slots__ = ("__weakref__", "_size", "_source", "name")

    def __init__(self, source: ReadAt, size: int | None = None) -> None:
        self._source = source
        self._size = source.size if size is None else size
        self.name: str = getattr(source, "name", "unverified blob")
        if self._size > source.size:
            raise FormatError(
                f"truncated: {self._size} bytes wanted, but it ends at byte {source.size}", where=self.name
            )

    @property
    def size(self) -> int:
        """Bytes that can be read."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from byte `offset` on; raises FormatError past the end."""
        check_range(self.name, self._size, offset, length)
        return self._source.read_at(offset, length)
