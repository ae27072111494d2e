"""File contents for unpacking: small files by the caller, large ones in segments by threads, holes left as holes.

Reading, verifying and writing a megabyte releases the interpreter's lock nearly all of the time, so threads pay for
large files. For small ones they do not: a walk with 50,000 files took twice as long when threads shared it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from eroseal.format.erofs import LAYOUT_FLAT_INLINE
from eroseal.image.inode import Inode
from eroseal.image.unpack_restore import output_error
from eroseal.image.view import TreeView
from eroseal.limits import IO_CHUNK

MAX_JOBS: Final = 16
"""Threads: a disk is busy with fewer."""
LARGE_FILE: Final = 1 << 20
"""Bytes from which on a file is worth a thread's while."""
SEGMENT_BYTES: Final = 16 << 20
"""Bytes of a large file that one thread writes at a time."""
SEGMENT_RUNS: Final = 4096
"""Runs between holes in one segment, so that a hostile file's list of them stays small."""

Run = tuple[int, int]
"""Offset and length, in bytes of a file."""


class Stopped(Exception):
    """The unpacking was given up while this file was written; the reason is another exception."""


@dataclass(slots=True, eq=False)
class OpenFile:
    """A file that was made and waits for its contents.

    Args:
        path: relative to the image's root.
        inode: its inode in the image.
        fd: a descriptor to write to.
    """

    path: bytes
    inode: Inode
    fd: int
    _left: int = 1
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        """Note one more part that must end before the file is complete."""
        with self._lock:
            self._left += 1

    def end(self) -> bool:
        """Note the end of a part; says whether it was the last."""
        with self._lock:
            self._left -= 1
            return self._left == 0

    def close(self) -> None:
        """Close the descriptor, once."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Writers:
    """Writes contents, those of large files on threads, with a bound on what is in flight.

    Args:
        reader: of the image; safe to use from several threads.
        complete: called with a file whose contents are written, in any thread.
        jobs: number of threads; 1 = none.
    """

    def __init__(self, reader: TreeView, complete: Callable[[OpenFile], None], jobs: int) -> None:
        self._reader = reader
        self._complete = complete
        self._jobs = jobs
        self._pool: ThreadPoolExecutor | None = None
        self._stop = threading.Event()
        self._pending: deque[Future[None]] = deque()
        self._open: set[OpenFile] = set()
        self.bytes_written = 0

    def add(self, file: OpenFile) -> None:
        """Take a file, and close it in the end; may wait for earlier ones, and raises what they raised.

        Raises:
            OSError: this file cannot be written, for the caller to wrap with its path.
        """
        self._open.add(file)
        inode = file.inode
        if inode.layout == LAYOUT_FLAT_INLINE and inode.size <= IO_CHUNK:
            # The shape of nearly all files, and it has no holes: no need to ask for extents first.
            _write_all(file.fd, self._reader.read(inode, 0, inode.size), 0)
            self.bytes_written += inode.size
        else:
            end = 0
            for runs in _segments(self._reader, inode):
                self._write_segment(file, runs)
                self.bytes_written += sum(length for _, length in runs)
                end = sum(runs[-1])
            if end < inode.size:
                os.ftruncate(file.fd, inode.size)
        self._end_part(file)

    def finish(self) -> None:
        """Wait for everything; raises what went wrong first, in the order of the files."""
        while self._pending:
            self._wait_for_one()
        if self._pool is not None:
            self._pool.shutdown()

    def abort(self) -> None:
        """Give up: no thread runs and no descriptor is open afterwards."""
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        while self._open:
            self._open.pop().close()

    def _write_segment(self, file: OpenFile, runs: list[Run]) -> None:
        if self._jobs == 1 or file.inode.size < LARGE_FILE:
            self._copy(file, runs)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="unpack")
        while len(self._pending) > self._jobs:
            self._wait_for_one()
        file.begin()
        self._pending.append(self._pool.submit(self._copy_part, file, runs))

    def _wait_for_one(self) -> None:
        self._pending[0].result()
        self._pending.popleft()

    def _copy_part(self, file: OpenFile, runs: list[Run]) -> None:
        try:
            self._copy(file, runs)
            self._end_part(file)
        except OSError as error:  # here, because the caller is at another file by now
            raise output_error(error, file.path) from error

    def _copy(self, file: OpenFile, runs: list[Run]) -> None:
        for start, length in runs:
            for at in range(start, start + length, IO_CHUNK):
                if self._stop.is_set():
                    raise Stopped
                piece = self._reader.read(file.inode, at, min(IO_CHUNK, start + length - at))
                _write_all(file.fd, piece, at)

    def _end_part(self, file: OpenFile) -> None:
        if not file.end():
            return
        self._complete(file)
        self._open.discard(file)
        file.close()


def _segments(reader: TreeView, inode: Inode) -> Iterator[list[Run]]:
    """A file's bytes that are not holes, in lists of bounded length."""
    runs: list[Run] = []
    room = SEGMENT_BYTES
    for extent in reader.extents(inode):
        if extent.device is None:
            continue
        at, end = extent.logical, extent.logical + extent.length
        while at < end:
            length = min(end - at, room)
            runs.append((at, length))
            at += length
            room -= length
            if not room or len(runs) >= SEGMENT_RUNS:
                yield runs
                runs, room = [], SEGMENT_BYTES
    if runs:
        yield runs


def _write_all(fd: int, data: bytes, offset: int) -> None:
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)
