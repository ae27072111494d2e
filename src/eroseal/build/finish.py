"""The last steps of a build: data blobs get their seals, and the meta blob is laid out, written and sealed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from eroseal.build.spools import Spools, copy_bytes
from eroseal.build.wire import BLOCK
from eroseal.crypto.blocks import BlockHasher
from eroseal.crypto.merkle import hash_region
from eroseal.crypto.pieces import read_into, write_at
from eroseal.format.digest import TreeParams
from eroseal.format.sealed import TreeShape
from eroseal.image.layout import ImageOptions, plan
from eroseal.image.writer import ImageWriter, write_superblock
from eroseal.seal.blob import SealedBlob, finish_seal
from eroseal.seal.chunker import BlobAllocator
from eroseal.tree.model import Directory

_UUID_LABEL: Final = b"eroseal-image-uuid-v1\0"
_PIECE: Final = 1 << 20


def seal_data_blob(fd: int, allocator: BlobAllocator, spools: Spools, params: TreeParams) -> SealedBlob:
    """Seal a new data blob whose leaf hashes are in the spool.

    Args:
        fd: the blob; its data is copied from the data spool unless it is that.
        allocator: says which blocks of the spools are the blob's.
    """
    data_size = allocator.blocks * BLOCK
    if fd != spools.data:
        copy_bytes(spools.data, allocator.spool_start * BLOCK, fd, 0, data_size)
    shape = TreeShape.of(data_size, params)
    if shape.levels:
        width = shape.digest_size
        copy_bytes(spools.leaves, allocator.spool_start * width, fd, shape.level_offset(1), allocator.blocks * width)
    return finish_seal(fd, data_size, params, chunk_blocks=allocator.chunk_blocks)


@dataclass(frozen=True, slots=True)
class MetaBlob:
    """Writes and seals one meta blob.

    Args:
        fd: the file; with chunks in front, it holds them from block 1 on.
        options: of the image.
        params: hash algorithm and salt.
        spools: tails and packed blocks, and the leaf hashes of chunks in front.
        jobs: threads that hash.
        annex: what follows the file system inside the data region, a multiple of 4096 bytes.
    """

    fd: int
    options: ImageOptions
    params: TreeParams
    spools: Spools
    jobs: int
    annex: bytes = b""

    def write(self, root: Directory) -> SealedBlob:
        """Lay out, write and seal a tree."""
        options = replace(self.options, annex_blocks=len(self.annex) // BLOCK)
        layout = plan(root, options)
        writer = ImageWriter(layout, options, self.spools.tail_reader())
        superblock = writer.write(self.fd)
        packed_at = layout.meta_blkaddr * BLOCK + layout.packed_at
        copy_bytes(self.spools.packed, 0, self.fd, packed_at, options.packed_blocks * BLOCK)
        write_at(self.fd, self.annex, writer.blocks * BLOCK)
        data_size = writer.blocks * BLOCK + len(self.annex)
        leaves_at, leaves_length = self._hash(data_size)
        if options.uuid is None:
            uuid = self._derive_uuid(leaves_at, leaves_length)
            write_superblock(self.fd, replace(superblock, uuid=uuid))
        # The first block comes last: its superblock may name a UUID made from all other blocks.
        write_at(self.fd, BlockHasher(self.params).hash_blocks(self._first_block()), leaves_at)
        return finish_seal(self.fd, data_size, self.params)

    def _hash(self, data_size: int) -> tuple[int, int]:
        """Put the leaf hashes of all blocks but the first in place; gives their byte offset and length."""
        shape = TreeShape.of(data_size, self.params)
        width = shape.digest_size
        leaves_at = shape.level_offset(1) if shape.levels else data_size

        def write_leaves(block: int, hashes: bytes) -> None:
            write_at(self.fd, hashes, leaves_at + block * width)

        in_front = self.options.data_blocks - 1
        copy_bytes(self.spools.leaves, width, self.fd, leaves_at + width, in_front * width)
        hash_region(
            self.fd,
            data_size,
            BlockHasher(self.params),
            write_leaves=write_leaves,
            start=self.options.data_blocks * BLOCK,
            jobs=self.jobs,
        )
        return leaves_at, data_size // BLOCK * width

    def _derive_uuid(self, leaves_at: int, leaves_length: int) -> bytes:
        """A UUID of version 8 (RFC 9562) from the hashes of all blocks but the first, and from that block."""
        digest = hashlib.sha256(_UUID_LABEL)
        for start in range(self.params.algorithm.digest_size, leaves_length, _PIECE):
            piece = memoryview(bytearray(min(_PIECE, leaves_length - start)))
            read_into(self.fd, piece, leaves_at + start)
            digest.update(piece)
        digest.update(self._first_block())
        uuid = bytearray(digest.digest()[:16])
        uuid[6] = uuid[6] & 0x0F | 0x80
        uuid[8] = uuid[8] & 0x3F | 0x80
        return bytes(uuid)

    def _first_block(self) -> memoryview:
        block = memoryview(bytearray(BLOCK))
        read_into(self.fd, block, 0)
        return block
