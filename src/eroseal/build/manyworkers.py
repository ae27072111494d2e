"""Executors for many images: threads, processes, a Dask cluster, or whatever the caller has.

Threads end when an event is set, at the next file that their builds read. Processes hold one end of a pipe, whose other
end only the parent has: when it closes it, or is killed, they end their builds as Ctrl-C would, and clean up. Ctrl-C
itself, which a terminal sends to all, is for the parent alone to answer. What runs on a cluster can only be forgotten;
it ends in its own time, and the next run finds what it made.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, Final, ParamSpec, TypeVar

from eroseal.build.manyjob import JobStopped, stoppable
from eroseal.errors import RemoteError, UnsupportedError
from eroseal.store.atomic import remove_unfinished

_P = ParamSpec("_P")
_T = TypeVar("_T")

_PATIENCE: Final = 8.0
"""Seconds that a worker process gets to clean up before it ends without."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)
_CLUSTER_PARALLEL: Final = 256
"""Jobs that a cluster has at once: it may grow while they wait there."""
_CONNECT_TIMEOUT: Final = 10.0
"""Seconds in which a scheduler must answer."""


class AnyExecutor:
    """Workers from executors that the caller makes.

    Args:
        make: gives a new executor; called again when one broke.
        parallel: jobs in it at once: its number of workers, so that those that share a broken pool are few.
    """

    def __init__(self, make: Callable[[], Executor], parallel: int) -> None:
        self.parallel = parallel
        self._make = make
        self._executor: Executor | None = None

    def start(self) -> Executor:
        """A new executor, once the one before has ended."""
        self._end()
        self._executor = self._make()
        return self._executor

    def stop(self) -> None:
        """Running jobs cannot be ended."""

    def close(self) -> None:
        """Wait for what runs, where that can be waited for."""
        self._end()

    def _end(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None


class Threads(AnyExecutor):
    """Threads of this process.

    Args:
        parallel: number of threads.
    """

    def __init__(self, parallel: int) -> None:
        self._stop = threading.Event()
        super().__init__(lambda: _ThreadExecutor(parallel, self._stop), parallel)

    def stop(self) -> None:
        """Builds end at the next file."""
        self._stop.set()


class _ThreadExecutor(ThreadPoolExecutor):
    def __init__(self, parallel: int, stop: threading.Event) -> None:
        super().__init__(parallel)
        self._stop = stop

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        def call() -> _T:
            with stoppable(self._stop):
                return fn(*args, **kwargs)

        return super().submit(call)


class Processes(AnyExecutor):
    """Fresh processes of this machine: forking is not safe beside the threads of HTTP clients.

    Args:
        parallel: number of processes.
    """

    def __init__(self, parallel: int) -> None:
        self._pipes: list[Connection] = []
        super().__init__(self._pool, parallel)

    def _pool(self) -> Executor:
        context = multiprocessing.get_context("spawn")
        theirs, ours = context.Pipe(duplex=False)
        self._pipes += [theirs, ours]
        return _ProcessExecutor(self.parallel, mp_context=context, initializer=_begin, initargs=(theirs,))

    def stop(self) -> None:
        """Builds end at once, and their processes."""
        for pipe in self._pipes:
            pipe.close()

    def close(self) -> None:
        """Wait for what runs, and for the processes."""
        super().close()
        self.stop()


class _ProcessExecutor(ProcessPoolExecutor):
    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        # Processes start here. With SIGINT blocked, which they inherit: one that is not ready would print a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(_call, fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- inside a worker process ---
class _State:
    """Whether a job runs in this process, and whether it is to end."""

    busy = False


def _begin(parent: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for number in _SIGNALS:
        signal.signal(number, _end)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        parent.recv_bytes()
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _end(_number: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if not _State.busy:
        os._exit(1)
    # What no exception interrupts must not keep a process alive that nobody waits for any more.
    last_resort = threading.Timer(_PATIENCE, os._exit, (1,))
    last_resort.daemon = True
    last_resort.start()
    raise JobStopped


def _call(fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    try:
        _State.busy = True
        return fn(*args, **kwargs)
    except JobStopped:
        remove_unfinished()
        os._exit(1)
    finally:
        _State.busy = False


# --- clusters ---
class Cluster(AnyExecutor):
    """Workers of a Dask cluster, which must have this package in this version, and the same files.

    Args:
        address: of the scheduler, as `tcp://HOST:PORT`.

    Raises:
        UnsupportedError: Dask is not installed.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._client: Any = None
        try:
            self._distributed: Any = importlib.import_module("distributed")
        except ImportError as error:
            raise UnsupportedError("Dask is not installed", hint="pip install 'eroseal[cluster]'") from error
        super().__init__(self._connect, _CLUSTER_PARALLEL)

    def _connect(self) -> Executor:
        # A client that never connected would wait for its connection's end, in the collector, and complain.
        quiet = type("QuietClient", (self._distributed.Client,), {"__del__": lambda client: None})
        failures: list[Exception] = []

        def connect() -> None:
            try:
                self._client = quiet(self._address, timeout=_CONNECT_TIMEOUT, set_as_default=False)
            except Exception as error:  # whatever a client says of an address
                failures.append(error)

        # In a thread of its own: with a server that is no scheduler, a client tries again and again.
        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        thread.join(_CONNECT_TIMEOUT + _PATIENCE)
        if self._client is None:
            cause = failures[0] if failures else None
            raise RemoteError(
                "no Dask scheduler answers", where=self._address, hint="--scheduler tcp://HOST:PORT"
            ) from cause
        executor: Executor = self._client.get_executor(pure=False)
        return executor

    def _end(self) -> None:
        """Forget what runs, and disconnect."""
        self._executor = None
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):  # the other side may be gone: nothing is left to close then
                client.close()
