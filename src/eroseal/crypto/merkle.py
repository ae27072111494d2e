"""Merkle trees in files: hash the data region in parallel, then fold level by level.

Leaf hashes go straight to their place in the tree (level 1), so memory does not grow with the data. Each
upper level is folded from the one below, which is 128 (SHA-256) or 64 (SHA-512) times larger: all of them
together are under one percent of the work and need no threads. The levels are fs-verity's (docs/format.md,
"Merkle tree").
"""

from __future__ import annotations

from collections.abc import Callable

from eroseal.crypto.blocks import BlockHasher
from eroseal.crypto.pieces import PIECE_SIZE, Progress, read_into, run_pieces, write_at
from eroseal.errors import FormatError
from eroseal.format.digest import BLOCK
from eroseal.format.sealed import TreeShape


def hash_region(
    fd: int,
    data_size: int,
    hasher: BlockHasher,
    *,
    write_leaves: Callable[[int, bytes], None],
    start: int = 0,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Hash every block of a data region, streaming and in parallel.

    Args:
        fd: descriptor of the file; read at positions, its cursor is not touched.
        data_size: bytes, a positive multiple of 4096.
        hasher: hashes blocks with the tree's algorithm and salt.
        write_leaves: given the number of a first block and the joined hashes from it on; called from several
            threads, in any order.
        start: byte offset of the first block to hash, a multiple of 4096: what lies before was hashed
            elsewhere.
        jobs: threads; None means one for each processor.
        progress: told the bytes hashed.

    Raises:
        SourceError: the file is shorter than `data_size`, or cannot be read.
    """

    def work(piece: int, buffer: memoryview) -> int:
        offset = start + piece * PIECE_SIZE
        view = buffer[: min(PIECE_SIZE, data_size - offset)]
        read_into(fd, view, offset)
        write_leaves(offset // BLOCK, hasher.hash_blocks(view))
        return len(view)

    run_pieces(-(-(data_size - start) // PIECE_SIZE), work, jobs=jobs, progress=progress)


def write_tree(fd: int, shape: TreeShape, hasher: BlockHasher) -> bytes:
    """Compute and write the upper levels of a tree whose level 1 is in place; returns the root hash.

    Args:
        fd: descriptor of the blob; the hashes of its data blocks are at `shape.level_offset(1)`. What pads a
            level to whole blocks is written here, so the space behind the hashes may hold anything.
        shape: levels of the tree; a single data block has no tree, its hash is the root.
        hasher: hashes blocks with the tree's algorithm and salt.

    Raises:
        FormatError: a tree without levels.
        SourceError, OutputError: the file cannot be read or written.
    """
    if not shape.levels:
        raise FormatError("a single data block has no tree: its hash is the root")
    _pad(fd, shape, 1, shape.data_size // BLOCK)
    for level in range(1, len(shape.levels)):
        _fold(fd, shape, level, hasher)
        _pad(fd, shape, level + 1, shape.levels[level - 1])
    top = memoryview(bytearray(BLOCK))
    read_into(fd, top, shape.level_offset(len(shape.levels)))
    return hasher.hash_blocks(top)


def _fold(fd: int, shape: TreeShape, level: int, hasher: BlockHasher) -> None:
    """Write the hashes of a level's blocks into the level above."""
    buffer = memoryview(bytearray(min(PIECE_SIZE, shape.levels[level - 1] * BLOCK)))
    source, target = shape.level_offset(level), shape.level_offset(level + 1)
    end = source + shape.levels[level - 1] * BLOCK
    while source < end:
        view = buffer[: min(len(buffer), end - source)]
        read_into(fd, view, source)
        hashes = hasher.hash_blocks(view)
        write_at(fd, hashes, target)
        source += len(view)
        target += len(hashes)


def _pad(fd: int, shape: TreeShape, level: int, hashes: int) -> None:
    """Zero what follows the last hash of a level up to the end of its last block."""
    used = hashes * shape.digest_size
    if padding := -used % BLOCK:
        write_at(fd, bytes(padding), shape.level_offset(level) + used)
