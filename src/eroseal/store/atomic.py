"""Files that appear whole or not at all.

A result is written under a temporary name in the directory of its final one, synced, and moved there by one
rename; then the directory is synced. The writer holds an flock on its temporary for as long as it lives, so
what a killed writer left can be told from what a running one still needs without looking at ages or process
numbers.

`O_TMPFILE` was rejected: it cannot replace a file, some network file systems lack it, and worker processes
could not open the file by name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from eroseal.errors import OutputError

TEMPORARY_PREFIX: Final = ".eroseal-tmp-"
"""How every temporary name begins; image and blob names cannot begin with a dot."""

_REASONS: Final = {
    errno.ENOSPC: (
        "the disk is full",
        "free some space and run it again; nothing was left under the final name",
    ),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run it again"),
    errno.EFBIG: ("the file system does not take files of this size", "write to another file system"),
    errno.EACCES: ("permission denied", "choose a place that you may write to"),
    errno.EPERM: ("operation not permitted", "choose a place that you may write to"),
    errno.EROFS: ("the file system is read-only", "choose a place that you may write to"),
    errno.ENOENT: ("no such directory", "create the directory first"),
    errno.ENOTDIR: ("a part of the path is not a directory", "check the path"),
    errno.EISDIR: ("it is a directory", "name a file"),
}
# What link(2) says where the file system has no hard links, or (EPERM) where fs.protected_hardlinks objects.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


_unfinished: dict[Path, None] = {}
"""Temporary names in use, noted before they are made, and directories that stay only if something comes into them."""


def output_error(error: OSError, path: str | os.PathLike[str], doing: str = "cannot write") -> OutputError:
    """An OSError met while writing, as one of our own.

    Args:
        error: what the system said.
        path: what was being written.
        doing: what failed, as "cannot write".
    """
    reason, hint = _REASONS.get(error.errno or 0, (error.strerror or str(error), None))
    return OutputError(f"{doing}: {reason}", where=os.fspath(path), hint=hint)


def exists_error(path: str | os.PathLike[str], *, replaceable: bool = False) -> OutputError:
    """The refusal to write over something that is there.

    Args:
        path: of what is there.
        replaceable: whether the user may ask for it to be replaced.
    """
    way = "--replace it" if replaceable else "remove it first"
    return OutputError(
        "exists already", where=os.fspath(path), hint=f"choose another name or {way}; nothing was changed"
    )


class TemporaryFile:
    """A file under a temporary name, which `commit` moves to its final one and anything else removes.

    Args:
        directory: of the final name, or on the same file system.
        durable: sync to disk before the file appears; False is for benchmarks and tests.

    Raises:
        OutputError: the file cannot be created.
    """

    __slots__ = ("_durable", "_fd", "path")

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self._durable = durable
        try:
            self._fd, self.path = _create_locked(directory)
        except OSError as error:
            raise output_error(error, directory, "cannot create a file in it") from error

    @property
    def fd(self) -> int:
        """The descriptor, open for reading and writing; -1 once committed or discarded."""
        return self._fd

    def commit(self, final: Path, *, replace: bool = False, mode: int | None = None) -> None:
        """Give the file its final name.

        Args:
            final: on the same file system as the temporary.
            replace: take the place of a file that is there.
            mode: permission bits; None keeps 0666 less the umask.

        Raises:
            OutputError: `final` exists and `replace` is not set, or the system refuses; nothing is left.
        """
        try:
            if mode is not None:
                os.fchmod(self._fd, mode)
            if self._durable:
                os.fsync(self._fd)
            _move(self.path, final, replace=replace)
            if self._durable:
                sync_directory(final.parent)
        except FileExistsError as error:
            raise exists_error(final) from error
        except OSError as error:
            raise output_error(error, final) from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the temporary name, if it is still there, and close the file; never raises."""
        if self._fd < 0:
            return
        # While the lock is held: once it is released the name may be another writer's.
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        _unfinished.pop(self.path, None)
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.discard()


class TemporaryDirectory:
    """A directory under a temporary name for files that become results together; `discard` removes it.

    Args:
        parent: directory that it is made in.

    Raises:
        OutputError: it cannot be made.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, parent: Path) -> None:
        try:
            while True:
                self.path = _temporary_path(parent)
                os.mkdir(self.path, 0o777)
                with contextlib.suppress(FileNotFoundError):
                    self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
                    if _lock_new(self._fd, self.path):
                        return
        except OSError as error:
            raise output_error(error, parent, "cannot create a directory in it") from error

    def discard(self) -> None:
        """Remove it with the files in it; never raises."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            _remove(self.path, self._fd)
        _unfinished.pop(self.path, None)
        os.close(self._fd)
        self._fd = -1


def write_atomic(path: Path, data: bytes, *, replace: bool = False, durable: bool = True) -> None:
    """Write a small file whole or not at all; raises OutputError."""
    with TemporaryFile(path.parent, durable=durable) as temporary:
        try:
            write_fully(temporary.fd, data, 0)
        except OSError as error:
            raise output_error(error, path) from error
        temporary.commit(path, replace=replace)


def write_fully(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at byte `offset`, however many calls it takes; OSError passes through."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def sync_directory(directory: Path) -> None:
    """Make the names in a directory last through a power cut; OSError passes through."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network and FUSE file systems have no such thing as syncing a directory.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)


def make_directory(directory: Path, *, durable: bool) -> None:
    """Make a directory whose parent is there, unless it is there itself; OSError passes through."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory)
        if durable:
            sync_directory(directory.parent)


def restore(path: Path, final: Path) -> None:
    """Give a file its name back, unless another one has it by now; OSError passes through."""
    with contextlib.suppress(FileExistsError):
        _move(path, final, replace=False)


def is_temporary(name: str) -> bool:
    """Whether a file name is one of ours for something unfinished."""
    return name.startswith(TEMPORARY_PREFIX)


def is_abandoned(path: Path) -> bool:
    """Whether a temporary's writer is gone; in doubt (no permission, no locks here) it is not."""
    fd = _lock_leftover(path)
    if fd is None:
        return False
    os.close(fd)
    return True


def remove_abandoned(directory: Path) -> list[Path]:
    """Remove what killed writers left in `directory`, never a living writer's file; never raises."""
    removed = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(directory)):
            path = directory / name
            fd = _lock_leftover(path) if is_temporary(name) else None
            if fd is None:
                continue
            with contextlib.suppress(OSError):
                _remove(path, fd)
                removed.append(path)
            os.close(fd)
    return removed


def note_unfinished(path: Path) -> None:
    """Have `remove_unfinished` remove a temporary file, or a directory that is still empty, if it is not finished."""
    _unfinished[path] = None


def note_finished(path: Path) -> None:
    """Have `remove_unfinished` leave it."""
    _unfinished.pop(path, None)


def remove_unfinished() -> None:
    """For a program that a signal ends: remove what nobody took charge of; never raises.

    The exception of a signal handler can come between the making of a file and the `with` that would remove it.
    """
    for path in reversed(list(_unfinished)):
        with contextlib.suppress(OSError):
            if not is_temporary(path.name):
                os.rmdir(path)  # whatever is there under another's name: only an empty directory goes
            elif path.is_dir():
                for entry in path.iterdir():
                    os.unlink(entry)
                os.rmdir(path)
            else:
                os.unlink(path)
    _unfinished.clear()


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`, made where it is missing; waits for other processes and threads.

    Raises:
        OutputError: the lock file cannot be made or locked.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise output_error(error, path, "cannot lock") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            raise output_error(error, path, "cannot lock") from error
        yield
    finally:
        os.close(fd)


def _create_locked(directory: Path) -> tuple[int, Path]:
    while True:
        path = _temporary_path(directory)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        if _lock_new(fd, path):
            return fd, path


def _temporary_path(directory: Path) -> Path:
    path = directory / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
    note_unfinished(path)
    return path


def _lock_new(fd: int, path: Path) -> bool:
    """Lock what was just made; closes it and gives False where a cleaner took it for a leftover before."""
    try:
        # A file system without locks still gets its file; its leftovers are then never seen as abandoned.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # A cleaner holds it that very moment, and may be about to remove it: it can have it.
                _remove(path, fd)
        if os.path.samestat(os.fstat(fd), os.lstat(path)):
            return True
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return False


def _lock_leftover(path: Path) -> int | None:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return None
        try:
            # NFS locks only what is open for writing; what was about to be committed may be open for reading only.
            fd = os.open(path, os.O_RDWR | flags)
        except (IsADirectoryError, PermissionError):
            fd = os.open(path, os.O_RDONLY | flags)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _remove(path: Path, fd: int) -> None:
    """Remove a temporary file, or a temporary directory with the files in it; OSError passes through."""
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        os.unlink(path)
        return
    for name in os.listdir(fd):
        os.unlink(name, dir_fd=fd)
    os.rmdir(path)


def _move(source: Path, final: Path, *, replace: bool) -> None:
    if replace:
        os.rename(source, final)
        return
    try:
        # link(2) never replaces, so of two writers one fails; rename(2) would let the later one win.
        os.link(source, final)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(final)) from error
        os.rename(source, final)
    # After link the temporary name is removed by discard, under the lock.
