"""Sealing one blob: its tree, dm-verity superblock and seal record, in the file that holds the data region.

`seal_in_place` reads the data once. A builder that has the leaf hashes anyway writes them to their place
itself and calls `finish_seal`, which never reads the data region (docs/format.md, "Layout of a sealed blob").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from eroseal.crypto.blocks import BlockHasher
from eroseal.crypto.merkle import hash_region, write_tree
from eroseal.crypto.pieces import Progress, read_into, set_size, write_at
from eroseal.format.digest import BLOCK, Digest, TreeParams
from eroseal.format.dmverity import superblock
from eroseal.format.fsverity import Descriptor
from eroseal.format.sealed import TreeShape, encode_seal


@dataclass(frozen=True, slots=True)
class SealedBlob:
    """What sealing a blob gave.

    Args:
        digest: the blob's digest, its name.
        descriptor: of its data region.
        size: bytes of the whole sealed blob.
        root_hash: of the tree; what dm-verity's tools take.
    """

    digest: Digest
    descriptor: Descriptor
    size: int
    root_hash: bytes


def finish_seal(
    fd: int, data_size: int, params: TreeParams, *, chunk_blocks: Iterable[int] | None = None
) -> SealedBlob:
    """Seal a blob whose leaf hashes (level 1 of the tree) are already in place.

    Writes the upper levels, the dm-verity superblock and the seal record, and truncates the file behind them.
    Nothing is flushed to the disk.

    Args:
        fd: descriptor of the blob, open for reading and writing.
        data_size: bytes of the data region (D), a positive multiple of 4096.
        params: hash algorithm and salt.
        chunk_blocks: length in blocks of each chunk of a plain data blob, in order; None leaves the chunk map
            out.

    Raises:
        FormatError: the size cannot be sealed, or the chunks cover more than the data region.
        SourceError, OutputError: the file cannot be read or written.
    """
    shape = TreeShape.of(data_size, params)
    hasher = BlockHasher(params)
    if shape.levels:
        root = write_tree(fd, shape, hasher)
    else:
        block = memoryview(bytearray(BLOCK))
        read_into(fd, block, 0)
        root = hasher.hash_blocks(block)
    descriptor = Descriptor(params, data_size, root)
    record = encode_seal(descriptor, chunk_blocks)
    write_at(fd, superblock(descriptor), data_size)
    write_at(fd, record, shape.record_offset)
    size = shape.record_offset + len(record)
    set_size(fd, size)
    return SealedBlob(descriptor.digest, descriptor, size, root)


def seal_in_place(
    fd: int,
    data_size: int,
    params: TreeParams,
    *,
    jobs: int | None = None,
    chunk_blocks: Iterable[int] | None = None,
    progress: Progress | None = None,
) -> SealedBlob:
    """Hash a data region and append its seal.

    Args:
        fd: descriptor of the file, open for reading and writing; what follows `data_size` bytes is replaced.
        data_size: bytes of the data region (D), a positive multiple of 4096.
        params: hash algorithm and salt.
        jobs: threads that hash; None means one for each processor.
        chunk_blocks: length in blocks of each chunk of a plain data blob, in order; None leaves the chunk map
            out.
        progress: told the bytes hashed.

    Raises:
        FormatError: the size cannot be sealed, or the chunks cover more than the data region.
        SourceError: the file is shorter than `data_size`, or cannot be read.
        OutputError: it cannot be written; what it holds behind the data region is then undefined.
    """
    shape = TreeShape.of(data_size, params)
    hasher = BlockHasher(params)
    leaves = shape.offset + sum(shape.levels[1:]) * BLOCK

    def write_leaves(block: int, hashes: bytes) -> None:
        write_at(fd, hashes, leaves + block * shape.digest_size)

    hash_region(fd, data_size, hasher, write_leaves=write_leaves, jobs=jobs, progress=progress)
    return finish_seal(fd, data_size, params, chunk_blocks=chunk_blocks)
