"""Files that are sealed: the file itself, or a copy that appears under its name when all is done.

A target is a context manager. `commit` makes the result final; whatever else ends the block puts things back
as they were: a file in place gets its overwritten bytes and its length again, a copy vanishes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from eroseal.crypto.pieces import read_into, set_size, write_at
from eroseal.errors import NotFoundError, OutputError, SourceError

PathLike = str | bytes | os.PathLike[str]

_COPY_CHUNK = 64 << 20


class Target(ABC):
    """A file to seal.

    Attributes:
        name: what errors call it.
        path: where it can be read until it is committed.
        fd: its descriptor, open for reading and writing.
        size: bytes that it had when it was opened.
    """

    name: str
    path: str
    fd: int
    size: int

    @abstractmethod
    def patch(self, data: bytes, offset: int) -> None:
        """Overwrite some bytes within the original size; raises OutputError."""

    @abstractmethod
    def commit(self, *, durable: bool) -> None:
        """Make the result final, synced to disk where `durable`; raises OutputError."""

    @abstractmethod
    def abort(self) -> None:
        """Put things back as they were, even after a commit."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if error is not None:
                self.abort()
        finally:
            os.close(self.fd)


class _InPlace(Target):
    def __init__(self, path: PathLike) -> None:
        self.name = self.path = os.fsdecode(path)
        self.fd, self.size = _open_regular(self.path, os.O_RDWR)
        self._old: list[tuple[bytes, int]] = []

    def patch(self, data: bytes, offset: int) -> None:
        old = bytearray(len(data))
        read_into(self.fd, memoryview(old), offset)
        self._old.append((bytes(old), offset))
        write_at(self.fd, data, offset)

    def commit(self, *, durable: bool) -> None:
        if durable:
            with _wrapped(self.name, "cannot sync"):
                os.fsync(self.fd)

    def abort(self) -> None:
        set_size(self.fd, self.size)
        for data, offset in reversed(self._old):
            write_at(self.fd, data, offset)


class _Copy(Target):
    def __init__(self, source: PathLike, output: PathLike) -> None:
        self.name = os.fsdecode(source)
        self._output = os.path.abspath(os.fsdecode(output))
        self._committed = False
        if os.path.lexists(self._output):
            raise _exists(self._output)
        directory, base = os.path.split(self._output)
        original, self.size = _open_regular(self.name, os.O_RDONLY)
        try:
            mode = stat.S_IMODE(os.fstat(original).st_mode) & 0o777
            with _wrapped(self._output, "cannot create"):
                self.fd, self.path = _temporary(directory, base)
            try:
                with _wrapped(self._output, "cannot write"):
                    os.fchmod(self.fd, mode)
                    _copy(original, self.fd, self.size)
            except BaseException:
                os.close(self.fd)
                os.unlink(self.path)
                raise
        finally:
            os.close(original)

    def patch(self, data: bytes, offset: int) -> None:
        write_at(self.fd, data, offset)

    def commit(self, *, durable: bool) -> None:
        with _wrapped(self._output, "cannot write"):
            if durable:
                os.fsync(self.fd)
            # A link, unlike a rename, never replaces what someone else put there meanwhile.
            try:
                os.link(self.path, self._output)
            except FileExistsError:
                raise _exists(self._output) from None
            self._committed = True
            os.unlink(self.path)
            if durable:
                _sync_directory(os.path.dirname(self._output))

    def abort(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        if self._committed:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._output)


def in_place(path: PathLike) -> Target:
    """Seal a file as it lies there; raises NotFoundError or OutputError."""
    return _InPlace(path)


def copy_of(path: PathLike, output: PathLike) -> Target:
    """Seal a copy of a file.

    Raises:
        NotFoundError: the file is missing.
        SourceError: it is no regular file, or cannot be read.
        OutputError: `output` exists, or cannot be written.
    """
    return _Copy(path, output)


def _open_regular(path: str, flags: int) -> tuple[int, int]:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError("no such file", where=path) from error
    except OSError as error:
        kind = SourceError if flags == os.O_RDONLY else OutputError
        raise kind(f"cannot open: {error.strerror}", where=path) from error
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise SourceError("not a regular file", where=path)
    return fd, info.st_size


def _temporary(directory: str, base: str) -> tuple[int, str]:
    """A new file that is locked: whoever cleans up after killed programs takes an unlocked one for a leftover."""
    while True:
        fd, path = tempfile.mkstemp(prefix=f".eroseal-tmp-{base[:64]}-", dir=directory)
        try:
            with contextlib.suppress(OSError):  # no locks on this file system: then nobody removes anything there
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):  # it was cleaned away before it was locked
                if os.path.samestat(os.fstat(fd), os.lstat(path)):
                    return fd, path
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _copy(source: int, target: int, size: int) -> None:
    """Copy a whole file, by sharing its blocks where the file system can."""
    done = 0
    while done < size:
        try:
            count = os.copy_file_range(source, target, min(_COPY_CHUNK, size - done))
        except OSError:  # other file systems, old kernels: sendfile copies between any files
            os.lseek(target, done, os.SEEK_SET)
            count = os.sendfile(target, source, done, min(_COPY_CHUNK, size - done))
            os.lseek(source, done + count, os.SEEK_SET)
        if count == 0:
            raise SourceError(f"file shrank to {done} bytes while it was copied")
        done += count


def _exists(path: str) -> OutputError:
    return OutputError("exists already", where=path, hint="choose another name, or remove it first")


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _wrapped(path: str, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{doing}: {error.strerror}", where=path) from error
