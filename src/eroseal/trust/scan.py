"""Checking a whole blob: all data and every tree level, streaming and in parallel.

What is reported does not depend on timing: levels come in order, and within a level the lowest bad block
decides. Tree blocks are verified again on the way to the data below them (they are under one percent of it),
so a file that changes while it is scanned cannot slip through between two passes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from eroseal.crypto.blocks import BlockHasher
from eroseal.crypto.pieces import PIECE_SIZE, Progress, read_into, run_pieces
from eroseal.errors import FormatError, IntegrityError, SourceError
from eroseal.format.digest import BLOCK
from eroseal.limits import MAX_BAD_BLOCKS
from eroseal.readat import ReadAt
from eroseal.trust.blob import SelfConsistentBlob
from eroseal.trust.image import read_seal
from eroseal.trust.verifier import (
    SealLocation,
    bad_blocks,
    block_kind,
    block_offset,
    step2_tree_padding,
    verify_seal,
)

_PIECE_BLOCKS: Final = PIECE_SIZE // BLOCK
_WINDOW_BLOCKS: Final = 32 * _PIECE_BLOCKS
"""Blocks whose hashes are looked up at once: few parents at a time keep wide hash kernels idle."""
_WINDOWS: Final = 4


@dataclass(frozen=True, slots=True, order=True)
class BadBlock:
    """A block that is not what its verified parent says.

    Args:
        level: 0 for data, 1 and above for the tree.
        index: number of the block in its level.
        offset: byte offset in the blob.
        what: why it was refused.
    """

    level: int
    index: int
    offset: int
    what: str


def scan_blob(
    source: ReadAt,
    blob: SelfConsistentBlob,
    *,
    jobs: int | None = None,
    keep_going: bool = False,
    progress: Progress | None = None,
) -> list[BadBlock]:
    """Verify all blocks of a blob, its padding and its dm-verity superblock.

    Args:
        source: the blob, whole; a file with `fileno()` is read without copies.
        blob: the same blob, opened (a `VerifiedBlob`, or a merely self-consistent one).
        jobs: threads; None means one for each processor.
        keep_going: list bad blocks, the tree's first, instead of raising for the first one. Blocks below a
            bad tree block cannot be judged and are not listed. At most MAX_BAD_BLOCKS are listed, then the
            scan ends.
        progress: told the bytes of data that were checked.

    Returns:
        The bad blocks by falling level and rising offset; empty when all is well.

    Raises:
        IntegrityError: without `keep_going`: the first bad block, from the top level down, by rising offset.
    """
    location = SealLocation(blob.size, blob.seal.shape.record_offset)
    # Opened anew: tree blocks that `blob` has in its cache may have changed in the source since.
    seal = verify_seal(read_seal(source, location, name=blob.name), name=blob.name, expected=blob.digest)
    blob = SelfConsistentBlob(source, seal)
    changed: IntegrityError | None = None
    if not keep_going:
        # Every tree block is some data block's ancestor: this pass alone verifies them all.
        try:
            _LevelScan(source, blob, 0, set()).run(jobs=jobs, keep_going=False, progress=progress)
            return []
        except IntegrityError as error:
            changed = error
    bad = _scan_levels(source, blob, jobs=jobs, keep_going=keep_going, progress=progress if keep_going else None)
    if changed is not None:
        raise changed  # a second look found nothing: the blob was altered and put back meanwhile
    return bad


def _scan_levels(
    source: ReadAt, blob: SelfConsistentBlob, *, jobs: int | None, keep_going: bool, progress: Progress | None
) -> list[BadBlock]:
    """Judge level by level, from the top, so that what is wrong with a parent is not put down to its children."""
    bad: list[BadBlock] = []
    unjudged: set[int] = set()
    for level in range(max(len(blob.seal.shape.levels) - 1, 0), -1, -1):
        scan = _LevelScan(source, blob, level, unjudged)
        scan.run(jobs=jobs, keep_going=keep_going, progress=progress if level == 0 else None)
        bad += sorted(scan.bad)
        if len(bad) >= MAX_BAD_BLOCKS:
            return bad[:MAX_BAD_BLOCKS]
        unjudged = scan.unjudged
    return bad


class _LevelScan:
    """One level of one blob, piece by piece."""

    def __init__(self, source: ReadAt, blob: SelfConsistentBlob, level: int, unjudged_parents: set[int]) -> None:
        self.blob = blob
        self.level = level
        self.shape = blob.seal.shape
        self.blocks = self.shape.levels[level - 1] if level else self.shape.data_size // BLOCK
        self.per_block = BLOCK // self.shape.digest_size
        self.unjudged_parents = unjudged_parents
        self.unjudged: set[int] = set()
        self.bad: list[BadBlock] = []
        self.lock = threading.Lock()
        self.windows: dict[int, bytes] = {}
        self.hasher = BlockHasher(blob.params)
        self.fill = _filler(source)

    def run(self, *, jobs: int | None, keep_going: bool, progress: Progress | None) -> None:
        def work(piece: int, buffer: memoryview) -> int:
            first = piece * _PIECE_BLOCKS
            count = min(_PIECE_BLOCKS, self.blocks - first)
            try:
                self._check(first, count, buffer[: count * BLOCK])
            except IntegrityError:
                if not keep_going:
                    raise
                self._sift(first, count, buffer)
            return count * BLOCK

        run_pieces(-(-self.blocks // _PIECE_BLOCKS), work, jobs=jobs, progress=progress)

    def _check(self, first: int, count: int, view: memoryview) -> None:
        """Check some blocks in one go; raises for the lowest bad one."""
        expected = self._expected(first, count)
        try:
            self.fill(view, block_offset(self.shape, self.level, first))
        except (SourceError, FormatError) as error:
            raise self._refusal(first, f"{block_kind(self.level)} cannot be read: {error.what}") from error
        hashes = self.hasher.hash_blocks(view)
        if hashes != expected:
            index = first + bad_blocks(expected, hashes, self.shape.digest_size)[0]
            raise self._refusal(index, f"{block_kind(self.level)} does not match the hash in its parent")
        if self.level:
            step2_tree_padding(self.shape, level=self.level, first=first, blocks=view, name=self.blob.name)

    def _expected(self, first: int, count: int) -> bytes:
        """Verified hashes of some blocks of one piece, looked up together with those of its neighbours."""
        window, at = divmod(first, _WINDOW_BLOCKS)
        with self.lock:
            hashes = self.windows.get(window)
            if hashes is None:
                start = window * _WINDOW_BLOCKS
                try:
                    hashes = self.blob.hashes(self.level, start, min(_WINDOW_BLOCKS, self.blocks - start))
                except IntegrityError:
                    hashes = b""  # some parent is bad: only who needs that one shall fail
                self.windows[window] = hashes
                # The lowest goes; for a thread that fell behind all others it may be the very one it asked for.
                if len(self.windows) > _WINDOWS:
                    del self.windows[min(self.windows)]
        if not hashes:
            return self.blob.hashes(self.level, first, count)
        size = self.shape.digest_size
        return hashes[at * size : (at + count) * size]

    def _sift(self, first: int, count: int, buffer: memoryview) -> None:
        """Check blocks one by one, and note the bad ones and those that cannot be judged."""
        for index in range(first, first + count):
            if len(self.bad) >= MAX_BAD_BLOCKS:
                return
            found = None
            if index // self.per_block not in self.unjudged_parents:
                try:
                    self._check(index, 1, buffer[:BLOCK])
                    continue
                except IntegrityError as error:
                    offset = block_offset(self.shape, self.level, index)
                    found = BadBlock(self.level, index, offset, error.what)
            with self.lock:
                self.unjudged.add(index)
                if found is not None:
                    self.bad.append(found)

    def _refusal(self, index: int, what: str) -> IntegrityError:
        offset = block_offset(self.shape, self.level, index)
        return IntegrityError(what, step=5, blob=self.blob.name, offset=offset, level=self.level)


def _filler(source: ReadAt) -> Callable[[memoryview, int], None]:
    """How to fill a buffer from a source: straight from a file, or by copying."""
    fileno = getattr(source, "fileno", None)
    if fileno is not None:
        fd: int = fileno()
        return lambda view, offset: read_into(fd, view, offset)

    def copy(view: memoryview, offset: int) -> None:
        view[:] = source.read_at(offset, len(view))

    return copy
