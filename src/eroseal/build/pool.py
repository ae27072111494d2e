"""Handing tasks to workers and collecting what they found, whether they are processes or not."""

from __future__ import annotations

import selectors
from collections import deque
from typing import Any, Final, Protocol

from eroseal.build.messages import marked
from eroseal.build.process import WorkerProcess, start_worker
from eroseal.build.wire import FileTask, ScanError, SegmentTask, StoredTask, WorkerConfig, Write
from eroseal.build.worker import Worker
from eroseal.errors import ErosealError

_TASKS_AHEAD: Final = 12
"""Tasks that a worker has in hand at once: the walk goes ahead while workers start, and what is queued is bounded."""

Body = FileTask | StoredTask | SegmentTask
Result = tuple[int, bool, int, Any]
"""(task number, whether it is the task's last part, arena number, records or chunk hashes)."""


class Pool(Protocol):
    """Something that works on tasks and settles their arenas."""

    def room(self) -> bool:
        """Whether another task may be submitted now."""
        ...

    def submit(self, task: int, kind: str, body: Body) -> None:
        """Start a task; kind "F" for files, "A" for files of archives, "S" for a segment."""
        ...

    def collect(self, task: int) -> Result:
        """Wait for the next part of this task."""
        ...

    def settle(
        self, result: Result, tails_at: int, packed_at: int, serial: int, dropped: list[int], writes: list[Write]
    ) -> None:
        """Have an arena written."""
        ...

    def finish(self) -> None:
        """Wait until all writes are done."""
        ...

    def stop(self) -> None:
        """End at once; never raises."""
        ...


class LocalPool:
    """One worker inside the calling process: for `--jobs 1`."""

    def __init__(self, config: WorkerConfig) -> None:
        self._worker = Worker(config)
        self._task: tuple[int, str, Any] | None = None
        self._scan: Any = None

    def room(self) -> bool:
        return self._task is None

    def submit(self, task: int, kind: str, body: Body) -> None:
        self._task = (task, kind, body)
        self._scan = self._results(task, kind, body)

    def _results(self, task: int, kind: str, body: Any) -> Any:
        if kind == "S":
            yield task, True, *self._worker.segment(body)
            return
        for arena, part, last in marked(self._worker.scan(kind, body)):
            yield task, last, arena, part

    def collect(self, task: int) -> Result:
        result: Result = next(self._scan)
        if result[1]:
            self._task = None
        return result

    def settle(
        self, result: Result, tails_at: int, packed_at: int, serial: int, dropped: list[int], writes: list[Write]
    ) -> None:
        self._worker.settle(result[2], tails_at, packed_at, serial, dropped, writes)

    def finish(self) -> None:
        """Nothing is under way."""

    def stop(self) -> None:
        """Nothing to stop."""


class ProcessPool:
    """Several worker processes.

    Args:
        config: for every worker.
        jobs: number of processes.
    """

    def __init__(self, config: WorkerConfig, jobs: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._workers: list[WorkerProcess] = []
        self._owner: dict[int, WorkerProcess] = {}
        self._parts: dict[int, deque[Result]] = {}
        try:
            for _ in range(jobs):
                worker = start_worker(config, self._workers)
                self._workers.append(worker)
                self._selector.register(worker.output_fd, selectors.EVENT_READ, worker)
        except BaseException:
            self.stop()
            raise

    def room(self) -> bool:
        return any(len(worker.tasks) < _TASKS_AHEAD for worker in self._workers)

    def submit(self, task: int, kind: str, body: Body) -> None:
        worker = min(self._workers, key=lambda item: len(item.tasks))
        worker.tasks.add(task)
        self._owner[task] = worker
        self._parts[task] = deque()
        worker.send((kind, task, body))

    def collect(self, task: int) -> Result:
        parts = self._parts[task]
        while not parts:
            for key, _ in self._selector.select():
                self._receive(key.data)
        result = parts.popleft()
        if result[1]:
            self._owner[task].tasks.discard(task)
        return result

    def settle(
        self, result: Result, tails_at: int, packed_at: int, serial: int, dropped: list[int], writes: list[Write]
    ) -> None:
        self._owner[result[0]].send(("W", result[2], (tails_at, packed_at, serial, dropped, writes)))
        if result[1]:
            del self._owner[result[0]], self._parts[result[0]]

    def finish(self) -> None:
        for worker in self._workers:
            worker.send(("Q", 0, None))
        for worker in self._workers:
            kind, *_ = message = worker.receive()
            if kind != "Q":
                raise _error(message)
        self.stop()

    def stop(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        self._selector.close()

    def _receive(self, worker: WorkerProcess) -> None:
        message = worker.receive()
        if message[0] != "P":
            raise _error(message)
        result: Result = message[1]
        self._parts[result[0]].append(result)


def _error(message: tuple[Any, ...]) -> Exception:
    if message[0] == "E":
        what, path, number, output = message[1]
        return ScanError(what, path, number, output=output)
    return ErosealError(f"a worker process failed: {message[1]}", hint="--jobs 1 works without processes")
