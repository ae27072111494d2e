"""From a walk to a tree whose content lies in spools: hand out work, settle it in order.

Batches of files go to the workers as the walk names them; their results are settled in the walk's order, whatever
order they come back in, so that the addresses of new chunks depend on the tree alone. Large files follow when the
walk is over, in the same order. What a worker gets back for an arena is a list of writes (see `worker.settle`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, repeat
from typing import Final, cast

from eroseal.build.large import LargeFiles
from eroseal.build.links import PackedLinks
from eroseal.build.placement import Placement, Totals
from eroseal.build.pool import Pool
from eroseal.build.wire import BLOCK, LARGE_FILE, LONGEST_TAIL, FileTask, Record, StoredTask, Write
from eroseal.errors import SourceError
from eroseal.format.xattr import split_name
from eroseal.limits import MAX_XATTR_VALUE
from eroseal.tree.directory import PENDING, ScannedDirectory
from eroseal.tree.model import Directory, Inode, Packed, StoredFile, Xattrs

_PACKED_FIELDS: Final = 3
_PACKED_LINK_FIELDS: Final = 6
_BATCH_FILES: Final = 256
"""Files of one task: large enough that messages cost little, small enough to keep workers evenly busy."""

Progress = Callable[[int, int], None]
"""Called with (files, bytes) read so far."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some regular files of one directory.

    Args:
        slots: their indexes in the directory's children.
        body: their names, or where archives hold them.
    """

    scanned: ScannedDirectory
    slots: Sequence[int]
    body: Sequence[bytes | StoredFile]


@dataclass(slots=True)
class Ingest:
    """Reads a walk's files through a pool; afterwards every inode says where its content lies.

    Args:
        pool: the workers.
        packed_fd: the spool that they write packed blocks to.
        source_fds: spools that archives were read into.
        placement: finds or allocates chunks.
        blob_per_file: start a new blob for each file that has new chunks.
        blob_per_source: start a new blob for each of the source's spools, whose files are then read one spool after
            the other.
        tails: as for the workers.
        adjust: applies ownership and time options to the inodes that the walk made; workers do so to theirs.
        warn: called with a sentence for what is left out.
    """

    pool: Pool
    packed_fd: int
    source_fds: Sequence[int]
    placement: Placement
    blob_per_file: bool
    blob_per_source: bool
    tails: bool
    inline_max: int
    adjust: Callable[[Inode], None] | None
    warn: Callable[[str], None]
    progress: Progress | None = None
    tail_bytes: int = 0
    packed_files: int = 0
    packed_serial: int = 0
    packed_blocks: int = 0
    _links: dict[tuple[int, int], Inode] = field(default_factory=dict)
    _packed_links: PackedLinks = field(default_factory=PackedLinks)
    _xattrs: dict[Xattrs, Xattrs] = field(default_factory=dict)
    _tasks: Iterator[int] = field(default_factory=lambda: count(1))
    _batch: list[_Piece] = field(default_factory=list)
    _batch_files: int = 0
    _waiting: deque[tuple[int, list[_Piece]]] = field(default_factory=deque)
    _large: LargeFiles = field(init=False)

    def __post_init__(self) -> None:
        self._large = LargeFiles(
            self.pool, self.placement, self.source_fds, self._tasks, self._show, blob_per_file=self.blob_per_file
        )

    @property
    def totals(self) -> Totals:
        """What was read and stored."""
        return self.placement.totals

    def run(self, walk: Iterable[ScannedDirectory]) -> Directory:
        """Read everything; returns the root.

        Raises:
            SourceError, ScanError: what a worker met.
        """
        root: Directory | None = None
        by_source: dict[int, list[_Piece]] = {}
        for scanned in walk:
            if root is None:
                root = scanned.directory
            self._own(scanned.directory, scanned)
            if self.blob_per_source and scanned.contents is not None:
                _sort_out(scanned, scanned.contents, by_source)
            else:
                self._hand_out(_Piece(scanned, scanned.slots, scanned.contents or scanned.files))
        self._settle_all()
        for number in sorted(by_source):
            self.placement.start_blob()
            for piece in by_source.pop(number):
                self._hand_out(piece)
            self._settle_all()
        self.pool.finish()
        self._packed_links.write_counts(self.packed_fd)
        if root is None:
            raise SourceError("the source is empty: not even a root directory")
        return root

    def _hand_out(self, piece: _Piece) -> None:
        """Put files into batches, and full batches to work."""
        for start in range(0, len(piece.slots), _BATCH_FILES):
            end = start + _BATCH_FILES
            part = _Piece(piece.scanned, piece.slots[start:end], piece.body[start:end])
            self._batch.append(part)
            self._batch_files += len(part.slots)
            if self._batch_files >= _BATCH_FILES:
                self._submit_batch()

    def _submit_batch(self) -> None:
        while not self.pool.room():
            self._settle_files(*self._waiting.popleft())
        batch, self._batch, self._batch_files = self._batch, [], 0
        task = next(self._tasks)
        if batch[0].scanned.contents is None:
            names: FileTask = [(part.scanned.path, cast(list[bytes], part.body)) for part in batch]
            self.pool.submit(task, "F", names)
        else:
            stored: StoredTask = [item for part in batch for item in cast(list[StoredFile], part.body)]
            self.pool.submit(task, "A", stored)
        self._waiting.append((task, batch))

    def _settle_all(self) -> None:
        if self._batch:
            self._submit_batch()
        while self._waiting:
            self._settle_files(*self._waiting.popleft())
        self._large.read()

    def _own(self, directory: Directory, scanned: ScannedDirectory) -> None:
        """Account for what the walk itself read."""
        directory.xattrs = self._clean(directory.xattrs, scanned.path)
        self.totals.files += 1
        if self.adjust is not None:
            self.adjust(directory)
        for name, child in zip(directory.names, directory.children, strict=True):
            if child is PENDING or isinstance(child, Directory):
                continue
            assert isinstance(child, Inode)
            child.xattrs = self._clean(child.xattrs, os.path.join(scanned.path, name))
            self.totals.files += 1
            if self.adjust is not None:
                self.adjust(child)

    # --- files ----------------------------------------------------------------------------------
    def _settle_files(self, task: int, pieces: list[_Piece]) -> None:
        directories = chain.from_iterable(repeat(piece.scanned, len(piece.slots)) for piece in pieces)
        slots = chain.from_iterable(piece.slots for piece in pieces)
        items: Iterable[bytes | StoredFile] = chain.from_iterable(piece.body for piece in pieces)
        last = False
        while not last:
            result = self.pool.collect(task)
            last = result[1]
            records, packed_blocks = result[3]
            writes: list[Write] = []
            dropped: list[int] = []
            tails_at, serial = self.tail_bytes, self.packed_serial + 1
            start = self.packed_blocks * BLOCK
            # The records come first: zip must not take from the others when a part's records end.
            for record, scanned, slot, item in zip(records, directories, slots, items, strict=False):
                if len(record) == _PACKED_FIELDS:
                    mode, size, offset = record
                    self.packed_files += 1
                    self.packed_serial += 1
                    self.totals.bytes_in += size
                    scanned.directory.children[slot] = Packed(mode, start + offset)
                elif len(record) == _PACKED_LINK_FIELDS:
                    self.packed_serial += 1
                    packed, first = self._packed_links.settle(record, start)
                    if first:
                        self.packed_files += 1
                        self.totals.bytes_in += record[1]
                    else:
                        dropped.append(record[5])
                    scanned.directory.children[slot] = packed
                else:
                    scanned.directory.children[slot] = self._settle_file(record, scanned, slot, item, writes)
            self.totals.files += len(records)
            self.pool.settle(result, tails_at, self.packed_blocks, serial, dropped, writes)
            self.packed_blocks += packed_blocks
        self._show()

    def _show(self) -> None:
        if self.progress is not None:
            self.progress(self.totals.files, self.totals.bytes_in)

    def _settle_file(
        self, record: Record, scanned: ScannedDirectory, slot: int, item: bytes | StoredFile, writes: list[Write]
    ) -> Inode:
        mode, uid, gid, mtime, size, link, xattrs, first, ids, alternative = record
        tail = size % BLOCK
        if ids is None:
            has_tail = first != LARGE_FILE and tail > 0
        else:
            has_tail = self.tails and 0 < tail <= min(self.inline_max, LONGEST_TAIL)
        tail_at = self.tail_bytes
        if has_tail:
            self.tail_bytes += tail
        if link is not None and link[2] > 1:
            known = self._links.get(link[:2])
            if known is not None:
                known.nlink += 1
                return known
        inode = Inode(mode, uid, gid, *divmod(mtime, 1_000_000_000), size)
        if xattrs is not None:
            inode.xattrs = self._clean(xattrs, os.path.join(scanned.path, scanned.directory.names[slot]))
        if link is not None and link[2] > 1:
            self._links[link[:2]] = inode
        self.totals.bytes_in += size
        if has_tail:
            inode.tail_at = tail_at
        if first == LARGE_FILE:
            if isinstance(item, tuple):
                self._large.add(inode, item[:2])
            elif link is not None:
                path = os.path.join(scanned.path, item)
                self._large.add(inode, (path, (link[0], link[1], size, mtime)))
            if self.adjust is not None:  # only now: its segments are read under the mtime that it has
                self.adjust(inode)
        elif ids is not None:
            if self.blob_per_file:
                self.placement.start_blob()
            self.placement.place(inode, ids, alternative, first, writes)
        return inode

    def _clean(self, xattrs: Xattrs, path: bytes) -> Xattrs:
        """One shared copy of these xattrs, without those that EROFS cannot hold."""
        if not xattrs:
            return xattrs
        known = self._xattrs.get(xattrs)
        if known is not None:
            return known
        kept = []
        for name, value in xattrs:
            split = split_name(name)
            if split is None:
                self.warn(
                    f"{os.fsdecode(path)}: extended attribute {os.fsdecode(name)} left out: EROFS has no place for it"
                )
                continue
            if len(value) > MAX_XATTR_VALUE or len(split[1]) > 255:
                raise SourceError(f"extended attribute {os.fsdecode(name)} is too large", where=os.fsdecode(path))
            kept.append((name, value))
        result = tuple(kept)
        self._xattrs[xattrs] = result
        return result


def _sort_out(scanned: ScannedDirectory, contents: list[StoredFile], by_source: dict[int, list[_Piece]]) -> None:
    """Add a directory's files to the pieces of the sources that hold their content."""
    found: dict[int, tuple[list[int], list[StoredFile]]] = {}
    for slot, stored in zip(scanned.slots, contents, strict=True):
        slots, body = found.setdefault(stored[0], ([], []))
        slots.append(slot)
        body.append(stored)
    for number, (slots, body) in found.items():
        by_source.setdefault(number, []).append(_Piece(scanned, slots, body))
