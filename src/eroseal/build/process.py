"""Worker processes, as the parent sees them.

A process with a single thread forks its workers, which then have nothing to import and cost a few milliseconds.
Forking beside other threads is not safe, in a library least of all, so any other process starts fresh interpreters.
Either way a worker ends when its pipe does, so that a killed parent leaves none behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

from eroseal.build.messages import receive, send
from eroseal.build.serve import worker_main
from eroseal.build.wire import WorkerConfig


class WorkerProcess:
    """The parent's end of one worker process.

    Args:
        pid: of the process, a child of this one.
        input_fd: where its tasks are written.
        output_fd: where its results are read.
    """

    def __init__(self, pid: int, input_fd: int, output_fd: int) -> None:
        self.pid = pid
        self.input_fd = input_fd
        self.output_fd = output_fd
        self.tasks: set[int] = set()

    def send(self, message: tuple[Any, ...]) -> None:
        """Give it a message; one that ended already is not told so: its last message says what went wrong."""
        with contextlib.suppress(BrokenPipeError):
            send(self.input_fd, message)

    def receive(self) -> tuple[Any, ...]:
        """Its next message; ("X", why) if it ended without one."""
        message: tuple[Any, ...] | None = receive(self.output_fd)
        return ("X", "it ended without a word") if message is None else message

    def kill(self) -> None:
        """End it at once and wait for that."""
        if self.pid < 0:
            return
        pid, self.pid = self.pid, -1  # first: whoever is interrupted here may call it again
        os.kill(pid, signal.SIGKILL)
        os.close(self.input_fd)
        os.close(self.output_fd)
        os.waitpid(pid, 0)


def start_worker(config: WorkerConfig, others: Sequence[WorkerProcess]) -> WorkerProcess:
    """Start a worker process.

    Args:
        config: for the worker.
        others: workers that run already; a forked one must not hold their pipes open.
    """
    task_read, task_write = os.pipe()
    result_read, result_write = os.pipe()
    ours = [task_write, result_read, *(fd for other in others for fd in (other.input_fd, other.output_fd))]
    try:
        # With SIGINT blocked: whoever is still starting would answer it with a traceback.
        with _undisturbed():
            if _single_threaded():
                pid = _fork(config, task_read, result_write, ours)
            else:
                pid = _spawn(config, task_read, result_write)
    except BaseException:
        os.close(task_write)
        os.close(result_read)
        raise
    finally:
        os.close(task_read)
        os.close(result_write)
    return WorkerProcess(pid, task_write, result_read)


def _single_threaded() -> bool:
    """Whether this process has one thread, those of native libraries counted."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False  # no /proc: nobody knows


def _fork(config: WorkerConfig, task_fd: int, result_fd: int, not_its_own: Sequence[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        for fd in not_its_own:
            os.close(fd)
        worker_main(astuple(config), task_fd, result_fd)
        status = 0
    finally:
        os._exit(status)  # nothing that the parent has prepared for its own end may run here


def _spawn(config: WorkerConfig, task_fd: int, result_fd: int) -> int:
    code = "import sys; sys.path[:] = {!r}; from eroseal.build.serve import worker_main; worker_main({!r}, {}, {})"
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", code.format(sys.path, astuple(config), task_fd, result_fd)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(task_fd, result_fd, *config.fds),
    )
    process.returncode = 0  # it is waited for by its pid
    return process.pid


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
