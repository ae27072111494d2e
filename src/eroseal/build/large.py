"""Large files: read segment by segment when all others are settled, with several segments under way."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from eroseal.build.placement import Placement
from eroseal.build.pool import Pool
from eroseal.build.segments import data_segments, stored_segments
from eroseal.build.wire import BLOCK, Identity, LargePlace, SegmentTask, Write
from eroseal.seal.chunker import compact
from eroseal.tree.model import NULL_CHUNK, Inode


@dataclass(slots=True)
class _Large:
    inode: Inode
    place: LargePlace
    unsettled: int = 0
    complete: bool = False


@dataclass(frozen=True, slots=True)
class _Segment:
    task: int
    large: _Large
    first_chunk: int
    length: int


class LargeFiles:
    """Large files that wait to be read, in the order in which they were added.

    Args:
        pool: the workers.
        placement: finds or allocates chunks.
        source_fds: spools that archives were read into.
        tasks: gives task numbers.
        settled: called when a segment is done.
        blob_per_file: start a new blob for each file that has new chunks.
    """

    def __init__(
        self,
        pool: Pool,
        placement: Placement,
        source_fds: Sequence[int],
        tasks: Iterator[int],
        settled: Callable[[], None],
        *,
        blob_per_file: bool,
    ) -> None:
        self._pool = pool
        self._placement = placement
        self._source_fds = source_fds
        self._tasks = tasks
        self._settled = settled
        self._blob_per_file = blob_per_file
        self._files: list[_Large] = []

    def add(self, inode: Inode, place: LargePlace) -> None:
        """Put a file aside."""
        self._files.append(_Large(inode, place))

    def read(self) -> None:
        """Read what was put aside."""
        waiting: deque[_Segment] = deque()
        chunk_size = self._placement.chunk_size
        for large in self._files:
            if self._blob_per_file:
                while waiting:
                    self._settle(waiting.popleft())
                self._placement.start_blob()
            large.inode.chunks = NULL_CHUNK  # until a segment holds data
            for offset, length in self._segments(large):
                while not self._pool.room():
                    self._settle(waiting.popleft())
                task = next(self._tasks)
                body: SegmentTask = (large.place, offset, length)
                self._pool.submit(task, "S", body)
                large.unsettled += 1
                waiting.append(_Segment(task, large, offset // chunk_size, length))
            large.complete = True
            self._compact(large)
        while waiting:
            self._settle(waiting.popleft())
        self._files.clear()

    def _segments(self, large: _Large) -> Iterator[tuple[int, int]]:
        path, where = large.place
        chunk_size = self._placement.chunk_size
        if isinstance(path, bytes):
            return data_segments(path, cast(Identity, where), chunk_size)
        return stored_segments(self._source_fds[path], cast(int, where), large.inode.size, chunk_size)

    def _settle(self, segment: _Segment) -> None:
        result = self._pool.collect(segment.task)
        inode, step = segment.large.inode, self._placement.chunk_size // BLOCK
        if not isinstance(inode.chunks, array):
            inode.chunks = array("Q", [NULL_CHUNK]) * -(-inode.size // self._placement.chunk_size)
        blocks = -(-segment.length // BLOCK)
        writes: list[Write] = []
        for number, chunk_id in enumerate(result[3]):
            start = number * step
            location = self._placement.chunk(chunk_id, min(step, blocks - start), start, writes)
            inode.chunks[segment.first_chunk + number] = location
        self._pool.settle(result, 0, 0, 0, [], writes)
        segment.large.unsettled -= 1
        self._compact(segment.large)
        self._settled()

    def _compact(self, large: _Large) -> None:
        """Keep one location instead of a list, if one says it all and no segment is missing."""
        if large.complete and not large.unsettled and isinstance(large.inode.chunks, array):
            large.inode.chunks = compact(large.inode.chunks, self._placement.chunk_size // BLOCK)
