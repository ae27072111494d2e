"""A worker process: tasks come in through one pipe, results go out through another.

What is imported here is imported by every worker, so it is kept to what reading and hashing need.
"""

from __future__ import annotations

import contextlib
import gc
import queue
import signal
import threading
from collections import deque
from typing import Any, Final

from eroseal.build.messages import marked, receive, send
from eroseal.build.wire import ScanError, WorkerConfig
from eroseal.build.worker import SCANS, Worker

_ARENAS: Final = 3
"""Arenas of a worker that may wait for the parent's decision."""


def worker_main(config: tuple[Any, ...], task_fd: int, result_fd: int) -> None:
    """Entry point of a worker process.

    Args:
        config: fields of a `WorkerConfig`.
        task_fd: where messages come from.
        result_fd: where results go.
    """
    gc.disable()  # no cycles are made here, and the collector would walk every record
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    inbox: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
    # Messages are taken off the pipe at once: the parent must never block on one while this end blocks on a result.
    threading.Thread(target=_pump, args=(task_fd, inbox), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        try:
            _Server(Worker(WorkerConfig(*config)), inbox, result_fd).run()
        except ScanError as error:
            send(result_fd, ("E", (error.what, error.path, error.number, error.output)))
        except BrokenPipeError:
            raise
        except Exception as error:  # the parent reports it: a traceback on a user's terminal helps nobody
            send(result_fd, ("X", f"{type(error).__name__}: {error}"))


class _Server:
    """A worker's loop: tasks in the order they came, but writes first, since they free arenas."""

    def __init__(self, worker: Worker, inbox: queue.SimpleQueue[tuple[Any, ...] | None], result_fd: int) -> None:
        self._worker = worker
        self._result_fd = result_fd
        self._inbox = inbox
        self._tasks: deque[tuple[Any, ...] | None] = deque()
        self._unsettled = 0

    def run(self) -> None:
        while True:
            while not self._tasks or not self._inbox.empty():
                self._take()
            message = self._tasks.popleft()
            if message is None:
                return
            kind, number, body = message
            if kind in SCANS:
                for arena, records, last in marked(self._worker.scan(kind, body)):
                    self._answer(number, last, arena, records)
            elif kind == "S":
                self._answer(number, True, *self._worker.segment(body))
            else:
                send(self._result_fd, ("Q",))
                return

    def _answer(self, task: int, last: bool, arena: int, content: Any) -> None:
        send(self._result_fd, ("P", (task, last, arena, content)))
        self._unsettled += 1
        while self._unsettled > _ARENAS:
            self._take()

    def _take(self) -> None:
        message = self._inbox.get()
        if message is not None and message[0] == "W":
            self._worker.settle(message[1], *message[2])
            self._unsettled -= 1
        else:
            self._tasks.append(message)
            if message is None:
                self._unsettled = 0  # the parent is gone: end instead of waiting for it


def _pump(task_fd: int, inbox: queue.SimpleQueue[Any]) -> None:
    with contextlib.suppress(OSError):
        while (message := receive(task_fd)) is not None:
            inbox.put(message)
    inbox.put(None)
