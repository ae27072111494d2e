"""Requests in flight: how many, how large, and how they all end together.

Threads, because sources are read by blocking calls. They are daemons of our own, not those of an executor: a request
to a silent server cannot be interrupted, and neither Ctrl-C nor the first error should wait for it. So a thread may
outlive the transfer that started it by one request; what it writes to is shared with it (`SharedFds`), never closed
under it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, TypeVar

from eroseal.errors import ErosealError, OutputError, RemoteError
from eroseal.limits import MAX_IN_FLIGHT, MAX_READ, MIN_READ
from eroseal.readat import ReadAt
from eroseal.store.atomic import write_fully
from eroseal.store.protocol import Progress
from eroseal.store.remote import DEFAULT_RANGES

_TICK: Final = 0.2
"""Seconds after which a thread that waits looks whether it should stop."""
_PATIENCE: Final = 1.0
"""Seconds that threads get to end by themselves: the next look comes after each request."""

_T = TypeVar("_T")


class TransferStopped(ErosealError):
    """Something else failed, so this part of the transfer ended early; never what a user gets to see."""


class _Budget:
    """Bytes that all transfers of the process may hold at once."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._changed = threading.Condition()

    def take(self, amount: int, check: Callable[[], None]) -> None:
        with self._changed:
            while self._left < amount:
                self._changed.wait(_TICK)
                check()
            self._left -= amount

    def give(self, amount: int) -> None:
        with self._changed:
            self._left += amount
            self._changed.notify_all()


_BUDGET: Final = _Budget(MAX_IN_FLIGHT)


class Lanes:
    """How many requests are in flight at once, shared by all blobs of a transfer; and the order to stop.

    Args:
        count: requests in flight, at least 1.

    Attributes:
        read_size: bytes of the largest single request, so that all of them together stay within MAX_IN_FLIGHT.
    """

    __slots__ = ("_free", "_stopped", "count", "read_size")

    def __init__(self, count: int = DEFAULT_RANGES) -> None:
        self.count = count
        self.read_size = max(MIN_READ, min(MAX_READ, MAX_IN_FLIGHT // count))
        self._free = threading.Semaphore(count)
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Have every thread of the transfer end at its next look."""
        self._stopped.set()

    def check(self) -> None:
        """Raise TransferStopped if the transfer has been stopped."""
        if self._stopped.is_set():
            raise TransferStopped("stopped")

    def pause(self, seconds: float) -> None:
        """Wait; raises TransferStopped if the transfer is stopped meanwhile."""
        self._stopped.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def lane(self) -> Iterator[None]:
        """A request's place, with room for `read_size` bytes, for as long as the bytes are held."""
        while not self._free.acquire(timeout=_TICK):
            self.check()
        try:
            self.check()
            _BUDGET.take(self.read_size, self.check)
            try:
                yield
            finally:
                _BUDGET.give(self.read_size)
        finally:
            self._free.release()

    def fetch(self, source: ReadAt, fd: int, start: int, stop: int, *, progress: Progress | None = None) -> None:
        """Read bytes `start` to `stop` of a source, and write them to the same place in a file.

        OSError of the file passes through; the source's errors are its own.
        """
        for offset in range(start, stop, self.read_size):
            with self.lane():
                data = read_exactly(source, offset, min(self.read_size, stop - offset))
                write_fully(fd, data, offset)
            if progress is not None:
                progress(len(data))
            del data  # not held while the next lane is waited for

    def run(self, work: Callable[[_T], None], items: Iterable[_T], *, workers: int) -> None:
        """Do `work` for every item, in several threads; the first error stops the whole transfer.

        Args:
            work: may run in several threads at once, and looks at `check` now and then.
            items: in the order in which they are begun.
            workers: threads; not more than there are items.

        Raises:
            BaseException: the first that `work` raised, or what interrupted the caller's thread.
        """
        run = _Run(work, items)
        try:
            for _ in range(workers):
                run.start()
            run.wait()
        except BaseException as error:
            run.fail(error)
        if run.error is not None:
            self.stop()
            run.settle()
            raise run.error


class _Run(Generic[_T]):
    """Threads that take items from one list."""

    def __init__(self, work: Callable[[_T], None], items: Iterable[_T]) -> None:
        self.error: BaseException | None = None
        self._work = work
        self._items = iter(items)
        self._changed = threading.Condition()
        self._running = 0

    def start(self) -> None:
        with self._changed:
            self._running += 1
        try:
            threading.Thread(target=self._loop, name="transfer", daemon=True).start()
        except RuntimeError as error:
            self._left()
            raise OutputError(f"cannot start a thread: {error}", hint="lower --parallel") from error

    def wait(self) -> None:
        """Until all is done or something failed."""
        with self._changed:
            while self.error is None and self._running:
                self._changed.wait(_TICK)  # a signal that another thread received interrupts no endless wait

    def settle(self) -> None:
        """Until all threads have ended, or patience has."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running, _PATIENCE)

    def fail(self, error: BaseException) -> None:
        with self._changed:
            # A thread that was told to stop knows less than the one that met the reason.
            if self.error is None or isinstance(self.error, TransferStopped):
                self.error = error
            self._changed.notify_all()

    def _loop(self) -> None:
        try:
            while (item := self._take()) is not None:
                self._work(item)
        except BaseException as error:  # handed to the caller's thread, which raises it
            self.fail(error)
        finally:
            self._left()

    def _take(self) -> _T | None:
        with self._changed:
            return None if self.error is not None else next(self._items, None)

    def _left(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()


class SharedFds:
    """Descriptors that threads use which may outlive their owner: the last one to leave closes them.

    A descriptor that was closed under a thread may be another file's by the time the thread writes to it. A lock on
    one of them lasts as long.
    """

    __slots__ = ("_fds", "_lock", "_open", "_users")

    def __init__(self, *fds: int) -> None:
        self._fds = fds
        self._lock = threading.Lock()
        self._users = 1
        self._open = True

    @contextlib.contextmanager
    def use(self) -> Iterator[tuple[int, ...]]:
        """The descriptors, open for as long as the context lasts; raises TransferStopped once the owner has left."""
        with self._lock:
            if not self._open:
                raise TransferStopped("stopped")
            self._users += 1
        try:
            yield self._fds
        finally:
            self._leave()

    def close(self) -> None:
        """The owner leaves; closing twice does no harm."""
        with self._lock:
            was_open, self._open = self._open, False
        if was_open:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = not self._users
        for fd in self._fds if last else ():
            os.close(fd)


def read_exactly(source: ReadAt, offset: int, length: int) -> bytes:
    """As `source.read_at`, but what gives another number of bytes is refused; raises RemoteError."""
    data = source.read_at(offset, length)
    if len(data) != length:
        where = str(getattr(source, "name", "blob"))
        raise RemoteError(f"{len(data)} bytes came instead of {length} at byte {offset}", where=where)
    return data
