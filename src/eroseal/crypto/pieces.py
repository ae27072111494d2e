"""Pieces of a file in parallel: positional reads into reused buffers, threads, one deterministic error.

Each worker owns one buffer of a piece, so memory depends on the number of jobs only. Threads suffice: reading
and hashing release the interpreter's lock. Pieces are handed out in order; when one fails, all lower ones are
already taken and are finished first, so the error that comes out is always that of the lowest failing piece.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from eroseal.errors import OutputError, SourceError

PIECE_SIZE = 1 << 19
"""Bytes of a piece: large enough to hide the cost of a call, small enough for a core's second-level cache."""

Progress = Callable[[int], None]
"""Called with the number of bytes that have newly been done, never by two threads at once."""


def default_jobs() -> int:
    """Number of processors that this process may run on."""
    return max(1, len(os.sched_getaffinity(0)))


def read_into(fd: int, view: memoryview, offset: int) -> None:
    """Fill `view` from byte `offset` of a file.

    Raises:
        SourceError: the file ends before, or cannot be read.
    """
    done = 0
    try:
        while done < len(view):
            count = os.preadv(fd, [view[done:]], offset + done)
            if count == 0:
                raise SourceError(f"file ends at byte {offset + done}, {len(view) - done} bytes too early")
            done += count
    except OSError as error:
        raise SourceError(f"cannot read at byte {offset + done}: {error.strerror}") from error


def write_at(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data` at byte `offset` of a file; raises OutputError."""
    view = memoryview(data)
    done = 0
    try:
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)
    except OSError as error:
        raise OutputError(f"cannot write at byte {offset + done}: {error.strerror}") from error


def set_size(fd: int, size: int) -> None:
    """Truncate or extend a file to `size` bytes; raises OutputError."""
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        raise OutputError(f"cannot set the size to {size} bytes: {error.strerror}") from error


class _Run:
    """Shared state of one parallel run."""

    def __init__(self, count: int, work: Callable[[int, memoryview], int], progress: Progress | None) -> None:
        self.count = count
        self.work = work
        self.progress = progress
        self.lock = threading.Lock()
        self.next = 0
        self.failed: tuple[int, BaseException] | None = None

    def take(self) -> int | None:
        with self.lock:
            if self.failed is not None or self.next >= self.count:
                return None
            self.next += 1
            return self.next - 1

    def fail(self, piece: int, error: BaseException) -> None:
        with self.lock:
            if self.failed is None or piece < self.failed[0]:
                self.failed = (piece, error)

    def loop(self) -> None:
        buffer = memoryview(bytearray(PIECE_SIZE))
        while (piece := self.take()) is not None:
            try:
                done = self.work(piece, buffer)
                if self.progress is not None:
                    with self.lock:
                        self.progress(done)
            except BaseException as error:  # handed to the caller's thread, which raises it
                self.fail(piece, error)


def run_pieces(
    count: int,
    work: Callable[[int, memoryview], int],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Call `work(piece, buffer)` for pieces 0 to `count` - 1, in several threads.

    Args:
        count: number of pieces.
        work: does one piece with a scratch buffer of PIECE_SIZE bytes and returns the bytes it did; may run
            in several threads at once.
        jobs: threads, the calling one among them; None means one for each processor.
        progress: told what `work` returned.

    Raises:
        BaseException: what `work` raised for the lowest piece that failed.
    """
    run = _Run(count, work, progress)
    helpers = max(0, min(jobs or default_jobs(), count) - 1)
    threads = [threading.Thread(target=run.loop, name=f"pieces-{number}") for number in range(helpers)]
    try:
        for thread in threads:
            thread.start()
        run.loop()
    except BaseException as error:  # an interrupt between two pieces: stop the helpers before it goes on
        run.fail(-1, error)
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if run.failed is not None:
        raise run.failed[1]
