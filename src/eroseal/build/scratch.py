"""The directory of our own that an image is built in before it goes to a server.

It is locked for as long as the build lives. So the next build beside it can tell what a killed one left, and removes
it: such a directory holds a whole image.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from eroseal.store.atomic import output_error

PREFIX: Final = "eroseal-build-"
"""How the names of these directories begin."""


@contextlib.contextmanager
def scratch_directory(parent: Path | None) -> Iterator[Path]:
    """A new directory that nobody else may look into; it goes with the context.

    Args:
        parent: directory that it is made in; None takes the system's place for temporary files.

    Raises:
        OutputError: it cannot be made.
    """
    place = Path(tempfile.gettempdir() if parent is None else parent)
    _remove_abandoned(place)
    while True:
        try:
            directory = tempfile.TemporaryDirectory(prefix=PREFIX, dir=place)
        except OSError as error:
            raise output_error(error, place, "cannot create a directory in it") from error
        with directory as name, contextlib.ExitStack() as stack:
            fd = _lock(Path(name))
            if fd is None:
                continue  # a cleaner came between its making and our lock
            stack.callback(os.close, fd)
            yield Path(name)
            return


def _lock(path: Path) -> int | None:
    """A locked descriptor; None where another holds the lock or the name is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.lstat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        return fd  # a file system without locks: what is left there is never seen as abandoned
    os.close(fd)
    return None


def _remove_abandoned(place: Path) -> None:
    """Remove what killed builds of this user left in `place`; never raises."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(place)):
            if name.startswith(PREFIX):
                _remove_if_abandoned(place / name)


def _remove_if_abandoned(path: Path) -> None:
    # Anybody may put names into a place for temporary files: only a directory of our own, by its descriptor.
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_uid == os.geteuid():
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)
