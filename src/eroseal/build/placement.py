"""Where chunks go: found in the index, or given the next place in a new data blob."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from eroseal.build.wire import BLOCK, Write
from eroseal.errors import UnsupportedError
from eroseal.limits import MAX_DEVICES
from eroseal.seal.chunker import BlobAllocator, ChunkIndex, compact
from eroseal.tree.model import DEVICE_SHIFT, NULL_CHUNK, Inode


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
class Placement:
    """Finds or allocates the chunks of files.

    Args:
        index: known chunks; new ones are added.
        new_allocator: gives the allocator for the next new data blob.
        chunk_size: bytes.
        totals: counts chunks.

    `used_devices` has the provisional device numbers of all blobs that the files refer to.
    """

    index: ChunkIndex
    new_allocator: Callable[[], BlobAllocator]
    chunk_size: int
    totals: Totals
    used_devices: set[int] = field(default_factory=set)
    _allocator: BlobAllocator | None = None

    def start_blob(self) -> None:
        """The next new chunk begins a new data blob."""
        self._allocator = None

    def place(
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
        if alternative is not None and not self._stays_together(ids, blocks, step):
            # Its chunks will not lie side by side, so it needs chunk indexes, and those leave no room for a tail.
            inode.tail_at = -1
            separate, last_id = alternative
            ids = [*ids, last_id] if separate else [*ids[:-1], last_id]
            blocks += 1
        if len(ids) == 1:
            inode.chunks = self.chunk(ids[0], blocks, first, writes)
            return
        locations = array("Q")
        for number, chunk_id in enumerate(ids):
            start = number * step
            locations.append(self.chunk(chunk_id, min(step, blocks - start), first + start, writes))
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

    def chunk(self, chunk_id: bytes | None, blocks: int, source: int, writes: list[Write]) -> int:
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


def check_devices(count: int) -> None:
    """Refuse more data blobs than an image can name."""
    if count > MAX_DEVICES:
        raise UnsupportedError(
            f"this build needs {count} data blobs, an image can name {MAX_DEVICES}",
            hint="--blobs build puts all new chunks into one",
        )
