"""Calls into obstore: where they may be made, what they may hold, and how they are interrupted.

Its native threads do not survive fork(): a request would hang in the child. And a call that blocks in native code
does not see Ctrl-C, which Python handles in the main thread between two steps of its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import ClassVar, Final, TypeVar

from eroseal.errors import RemoteError
from eroseal.limits import MAX_UPLOAD_MEMORY

_PATIENCE: Final = 5.0
"""Seconds that an interrupted upload gets to take its parts back."""

_T = TypeVar("_T")


class Runtime:
    """The process that the native threads live in."""

    process: ClassVar[int | None] = None

    @classmethod
    def enter(cls) -> None:
        """Refuse to go on in a process that was forked after a first request; raises RemoteError."""
        if cls.process is None:
            cls.process = os.getpid()
        elif cls.process != os.getpid():
            raise RemoteError("object stores cannot be reached from a forked process", hint="start a fresh one")


class Memory:
    """Bytes that all uploads of the process may hold at once."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Hold `amount` bytes, at most the limit, for as long as the context lasts."""
        with self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


UPLOADS: Final = Memory(MAX_UPLOAD_MEMORY)


def interruptibly(work: Callable[[], _T], stop: threading.Event | None = None) -> _T:
    """Do what blocks in native code, so that the main thread can be interrupted meanwhile.

    Args:
        work: goes on in the background after an interrupt, until it ends by itself.
        stop: set on an interrupt; work that looks at it gets some time to end.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # handed to the main thread, which raises it
            future.set_exception(error)

    threading.Thread(target=run, name="object-store", daemon=True).start()
    try:
        return future.result()
    except BaseException:
        if stop is not None and not future.done():
            stop.set()
            wait_for([future], timeout=_PATIENCE)
        raise
