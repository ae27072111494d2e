"""File contents for unpacking: small files by the caller, large ones by threads, holes left as holes.

Reading, verifying and writing a megabyte releases the interpreter's lock nearly all of the time, so threads
pay for large files. For small ones they do not: a walk with 50,000 files took twice as long when threads
shared it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from eroseal.format.erofs import LAYOUT_FLAT_INLINE
from eroseal.image.inode import Inode
from eroseal.image.reader import ImageReader
from eroseal.limits import IO_CHUNK

MAX_JOBS: Final = 16
"""Threads: a disk is busy with fewer."""
LARGE_FILE: Final = 1 << 20
"""Bytes from which on a file is worth a thread's while."""


class Stopped(Exception):
    """The unpacking was given up while this file was written; the reason is another exception."""


@dataclass(frozen=True, slots=True)
class FileJob:
    """A file that was made and waits for its contents.

    Args:
        path: relative to the image's root.
        inode: its inode in the image.
        fd: a descriptor to write to; whoever ends the job closes it.
    """

    path: bytes
    inode: Inode
    fd: int


class Writers:
    """Writes files, large ones on threads, with a bound on what is in flight.

    Args:
        write: writes one file and returns its bytes; runs in any thread.
        jobs: number of threads; 1 = none.
    """

    def __init__(self, write: Callable[[FileJob, threading.Event], int], jobs: int) -> None:
        self._write = write
        self._stop = threading.Event()
        self._pending: deque[tuple[Future[int], FileJob]] = deque()
        self._jobs = jobs
        self._pool = ThreadPoolExecutor(jobs, thread_name_prefix="unpack") if jobs > 1 else None
        self.bytes_written = 0

    def add(self, job: FileJob) -> None:
        """Take a file; may wait for earlier ones, and raises what they raised."""
        if self._pool is None or job.inode.size < LARGE_FILE:
            self.bytes_written += self._run(job)
            return
        try:
            while len(self._pending) > self._jobs:
                self._wait_for_one()
            self._pending.append((self._pool.submit(self._run, job), job))
        except BaseException:
            os.close(job.fd)
            raise

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
        while self._pending:
            future, job = self._pending.popleft()
            if future.cancelled():
                os.close(job.fd)

    def _wait_for_one(self) -> None:
        written = self._pending[0][0].result()
        self._pending.popleft()
        self.bytes_written += written

    def _run(self, job: FileJob) -> int:
        try:
            return self._write(job, self._stop)
        finally:
            os.close(job.fd)


def write_contents(reader: ImageReader, inode: Inode, fd: int, stop: threading.Event) -> int:
    """Write a file's bytes and leave its holes; gives the number of bytes written.

    Args:
        reader: of the image; verifies what it reads if its source does.
        inode: a regular file.
        fd: an empty file.
        stop: when set, the writing ends with `Stopped`.
    """
    if inode.layout == LAYOUT_FLAT_INLINE and inode.size <= IO_CHUNK:
        # The shape of nearly all files, and it has no holes: no need to ask for extents first.
        _write_all(fd, reader.read(inode, 0, inode.size), 0)
        return inode.size
    written = 0
    end = 0
    for extent in reader.extents(inode):
        if extent.device is None:
            continue
        at, end = extent.logical, extent.logical + extent.length
        while at < end:
            if stop.is_set():
                raise Stopped
            piece = reader.read(inode, at, min(IO_CHUNK, end - at))
            _write_all(fd, piece, at)
            at += len(piece)
        written += extent.length
    if end != inode.size:
        os.ftruncate(fd, inode.size)
    return written


def _write_all(fd: int, data: bytes, offset: int) -> None:
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)
