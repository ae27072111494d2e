"""From a walk to a tree whose content lies in spools: hand out work, settle it in order.

Batches of files go to the workers as the walk names them; their results are settled in the walk's order, whatever
order they come back in, so that the addresses of new chunks depend on the tree alone. Large files follow when the
walk is over, in the same order. What a worker gets back for an arena is a list of writes (see `worker.settle`).
"""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Final

from eroseal.build.links import PackedLinks
from eroseal.build.pool import Pool
from eroseal.build.segments import data_segments
from eroseal.build.wire import BLOCK, LARGE_FILE, LONGEST_TAIL, FileTask, Record, SegmentTask, Write
from eroseal.errors import SourceError, UnsupportedError
from eroseal.format.xattr import split_name
from eroseal.limits import MAX_DEVICES, MAX_XATTR_VALUE
from eroseal.seal.chunker import BlobAllocator, ChunkIndex, compact
from eroseal.tree.directory import PENDING, ScannedDirectory
from eroseal.tree.model import DEVICE_SHIFT, NULL_CHUNK, Directory, Inode, Packed, Xattrs

_PACKED_FIELDS: Final = 3
_PACKED_LINK_FIELDS: Final = 6
_BATCH_FILES: Final = 256
"""Files of one task: large enough that messages cost little, small enough to keep workers evenly busy."""

Progress = Callable[[int, int], None]
"""Called with (files, bytes) read so far."""


@dataclass(slots=True)
class Totals:
    """What a build read and stored.

    Args:
        files: inodes of any kind.
        bytes_in: content bytes of regular files.
        bytes_new, bytes_shared: bytes of chunks that were stored, and that were there already.
    """

    files: int = 0
    bytes_in: int = 0
    bytes_new: int = 0
    bytes_shared: int = 0


@dataclass(slots=True)
class _Large:
    inode: Inode
    path: bytes
    identity: tuple[int, int, int, int]
    unsettled: int = 0
    complete: bool = False


@dataclass(frozen=True, slots=True)
class _Segment:
    task: int
    large: _Large
    first_chunk: int
    length: int


@dataclass(slots=True)
class Ingest:
    """Reads a walk's files through a pool; afterwards every inode says where its content lies.

    Args:
        pool: the workers.
        packed_fd: the spool that they write packed blocks to.
        index: known chunks; new ones are added.
        new_allocator: gives the allocator for the next new data blob.
        blob_per_file: start a new blob for each file that has new chunks.
        chunk_size: bytes.
        tails: as for the workers.
        adjust: applies ownership and time options to the inodes that the walk made; workers do so to theirs.
        warn: called with a sentence for what is left out.
    """

    pool: Pool
    packed_fd: int
    index: ChunkIndex
    new_allocator: Callable[[], BlobAllocator]
    blob_per_file: bool
    chunk_size: int
    tails: bool
    inline_max: int
    adjust: Callable[[Inode], None] | None
    warn: Callable[[str], None]
    progress: Progress | None = None
    totals: Totals = field(default_factory=Totals)
    tail_bytes: int = 0
    packed_files: int = 0
    packed_serial: int = 0
    packed_blocks: int = 0
    used_devices: set[int] = field(default_factory=set)
    _allocator: BlobAllocator | None = None
    _links: dict[tuple[int, int], Inode] = field(default_factory=dict)
    _packed_links: PackedLinks = field(default_factory=PackedLinks)
    _xattrs: dict[Xattrs, Xattrs] = field(default_factory=dict)
    _large: list[_Large] = field(default_factory=list)
    _task: int = 0

    def run(self, walk: Iterable[ScannedDirectory]) -> Directory:
        """Read everything; returns the root.

        Raises:
            SourceError, ScanError: what a worker met.
        """
        root: Directory | None = None
        waiting: deque[tuple[int, list[tuple[ScannedDirectory, int]]]] = deque()
        batch: FileTask = []
        places: list[tuple[ScannedDirectory, int]] = []
        count = 0
        for scanned in walk:
            directory = scanned.directory
            if root is None:
                root = directory
            self._own(directory, scanned)
            files = scanned.files
            for start in range(0, len(files), _BATCH_FILES):
                part = files[start : start + _BATCH_FILES]
                batch.append((scanned.path, part))
                places.append((scanned, start))
                count += len(part)
                if count >= _BATCH_FILES:
                    self._hand_out(batch, places, waiting)
                    batch, places, count = [], [], 0
        if batch:
            self._hand_out(batch, places, waiting)
        while waiting:
            self._settle_files(*waiting.popleft())
        self._read_large()
        self.pool.finish()
        self._packed_links.write_counts(self.packed_fd)
        if root is None:
            raise SourceError("the source is empty: not even a root directory")
        return root

    def _hand_out(
        self,
        batch: FileTask,
        places: list[tuple[ScannedDirectory, int]],
        waiting: deque[tuple[int, list[tuple[ScannedDirectory, int]]]],
    ) -> None:
        while not self.pool.room():
            self._settle_files(*waiting.popleft())
        self._task += 1
        self.pool.submit(self._task, "F", batch)
        waiting.append((self._task, places))

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
    def _settle_files(self, task: int, places: list[tuple[ScannedDirectory, int]]) -> None:
        ends = [(scanned, start, min(start + _BATCH_FILES, len(scanned.files))) for scanned, start in places]
        directories = chain.from_iterable(repeat(scanned, end - start) for scanned, start, end in ends)
        slots = chain.from_iterable(scanned.slots[start:end] for scanned, start, end in ends)
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
            for record, scanned, slot in zip(records, directories, slots, strict=False):
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
                    scanned.directory.children[slot] = self._settle_file(record, scanned, slot, writes)
            self.totals.files += len(records)
            self.pool.settle(result, tails_at, self.packed_blocks, serial, dropped, writes)
            self.packed_blocks += packed_blocks
        if self.progress is not None:
            self.progress(self.totals.files, self.totals.bytes_in)

    def _settle_file(self, record: Record, scanned: ScannedDirectory, slot: int, writes: list[Write]) -> Inode:
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
            assert link is not None
            path = os.path.join(scanned.path, scanned.directory.names[slot])
            self._large.append(_Large(inode, path, (link[0], link[1], size, mtime)))
            if self.adjust is not None:  # only now: its segments are read under the mtime that it has
                self.adjust(inode)
        elif ids is not None:
            self._place(inode, ids, alternative, first, writes)
        return inode

    def _place(
        self,
        inode: Inode,
        ids: list[bytes | None],
        alternative: tuple[bool, bytes | None] | None,
        first: int,
        writes: list[Write],
    ) -> None:
        """Find or allocate the chunks of a file that lies in an arena from block `first` on."""
        step = self.chunk_size // BLOCK
        blocks = -(-inode.size // BLOCK) if inode.tail_at < 0 else inode.size // BLOCK
        if self.blob_per_file:
            self._allocator = None
        if alternative is not None and not self._stays_together(ids, blocks, step):
            # Its chunks will not lie side by side, so it needs chunk indexes, and those leave no room for a tail.
            inode.tail_at = -1
            separate, last_id = alternative
            ids = [*ids, last_id] if separate else [*ids[:-1], last_id]
            blocks += 1
        if len(ids) == 1:
            inode.chunks = self._chunk(ids[0], blocks, first, writes)
            return
        locations = array("Q")
        for number, chunk_id in enumerate(ids):
            start = number * step
            locations.append(self._chunk(chunk_id, min(step, blocks - start), first + start, writes))
        inode.chunks = compact(locations, step)

    def _stays_together(self, ids: list[bytes | None], blocks: int, step: int) -> bool:
        """Whether all chunks are new and different, or all are known and follow each other."""
        found: list[int | None] = []
        for number, chunk_id in enumerate(ids):
            if chunk_id is None:
                return False
            found.append(self.index.find(min(step, blocks - number * step), chunk_id))
        if found[0] is None:
            return all(item is None for item in found) and len(set(ids)) == len(ids)
        return all(item == found[0] + number * step for number, item in enumerate(found))

    def _chunk(self, chunk_id: bytes | None, blocks: int, source: int, writes: list[Write]) -> int:
        """Location of one chunk; adds to `writes` what must be stored."""
        if chunk_id is None:
            return NULL_CHUNK
        known = self.index.find(blocks, chunk_id)
        if known is not None:
            self.totals.bytes_shared += blocks * BLOCK
            self.used_devices.add(known >> DEVICE_SHIFT)
            return known
        if self._allocator is None:
            self._allocator = self.new_allocator()
        allocator = self._allocator
        location = allocator.next_location
        self.index.add(blocks, chunk_id, location)
        target = allocator.take(blocks)
        self.totals.bytes_new += blocks * BLOCK
        self.used_devices.add(allocator.device)
        if writes:
            start, length, block = writes[-1]
            if start + length == source and block + length == target:
                writes[-1] = (start, length + blocks, block)
                return location
        writes.append((source, blocks, target))
        return location

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

    # --- large files ----------------------------------------------------------------------------
    def _read_large(self) -> None:
        """Read what was put aside, segment by segment, with several segments under way."""
        waiting: deque[_Segment] = deque()
        for large in self._large:
            if self.blob_per_file:
                while waiting:
                    self._settle_segment(waiting.popleft())
                self._allocator = None
            large.inode.chunks = NULL_CHUNK  # until a segment holds data
            for offset, length in data_segments(large.path, large.identity):
                while not self.pool.room():
                    self._settle_segment(waiting.popleft())
                self._task += 1
                task: SegmentTask = (large.path, offset, length, large.identity)
                self.pool.submit(self._task, "S", task)
                large.unsettled += 1
                waiting.append(_Segment(self._task, large, offset // self.chunk_size, length))
            large.complete = True
            self._compact(large)
        while waiting:
            self._settle_segment(waiting.popleft())
        self._large.clear()

    def _settle_segment(self, segment: _Segment) -> None:
        result = self.pool.collect(segment.task)
        inode, step = segment.large.inode, self.chunk_size // BLOCK
        if not isinstance(inode.chunks, array):
            inode.chunks = array("Q", [NULL_CHUNK]) * -(-inode.size // self.chunk_size)
        blocks = -(-segment.length // BLOCK)
        writes: list[Write] = []
        for number, chunk_id in enumerate(result[3]):
            start = number * step
            location = self._chunk(chunk_id, min(step, blocks - start), start, writes)
            inode.chunks[segment.first_chunk + number] = location
        self.pool.settle(result, self.tail_bytes, self.packed_blocks, 0, [], writes)
        segment.large.unsettled -= 1
        self._compact(segment.large)
        if self.progress is not None:
            self.progress(self.totals.files, self.totals.bytes_in)

    def _compact(self, large: _Large) -> None:
        """Keep one location instead of a list, if one says it all and no segment is missing."""
        if large.complete and not large.unsettled and isinstance(large.inode.chunks, array):
            large.inode.chunks = compact(large.inode.chunks, self.chunk_size // BLOCK)


def check_devices(count: int) -> None:
    """Refuse more data blobs than an image can name."""
    if count > MAX_DEVICES:
        raise UnsupportedError(
            f"this build needs {count} data blobs, an image can name {MAX_DEVICES}",
            hint="--blobs build puts all new chunks into one",
        )
