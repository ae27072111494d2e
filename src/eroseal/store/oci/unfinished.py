"""What a killed upload's successor needs to know: where the registry keeps it.

One small file for each blob and repository, readable by its owner alone, because an upload's address is all that
somebody needs to write to it. The file is locked while the upload runs, so that two pushes of one blob do not get
into each other's way. It is written in place: half a file says nothing, and costs only what was to be saved. What
nobody went on with goes when the next upload begins, as registries give unfinished uploads up, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

_MAX_FILE: Final = 64 << 10
"""Bytes of such a file: addresses of uploads have a few hundred."""
_MAX_AGE: Final = 7 * 24 * 3600.0
"""Seconds after which nobody goes on with an upload: docker-registry purges them then, unless it is told otherwise."""
_PREFIX: Final = "upload-"


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    repository: str
    digest: str
    location: str


class Unfinished:
    """The memory of one upload; a context manager. Where it cannot be kept, nothing is remembered, and no error.

    Args:
        directory: of all such files, made if it is missing; None remembers nothing.
        repository: where the blob goes, as `docker://HOST/REPO`.
        digest: of the blob.
    """

    __slots__ = ("_digest", "_fd", "_path", "_repository")

    def __init__(self, directory: Path | None, repository: str, digest: str) -> None:
        name = hashlib.sha256(f"{repository}@{digest}".encode()).hexdigest()[:40]
        self._path = None if directory is None else directory / f"{_PREFIX}{name}.json"
        self._repository = repository
        self._digest = digest
        self._fd = -1

    def load(self) -> str | None:
        """Where the upload goes on, if there is one."""
        try:
            state = msgspec.json.decode(os.pread(self._fd, _MAX_FILE, 0), type=_State)
        except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError):
            return None
        return state.location if (state.repository, state.digest) == (self._repository, self._digest) else None

    def save(self, location: str) -> None:
        """Remember where the upload goes on."""
        data = msgspec.json.encode(_State(self._repository, self._digest, location))
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, os.pwrite(self._fd, data, 0))

    def forget(self) -> None:
        """There is nothing to go on with."""
        if self._fd >= 0 and self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def __enter__(self) -> Self:
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _prune(self._path.parent)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
                self._fd = os.open(self._path, flags, 0o600)
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self
            self._close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._fd >= 0 and self._path is not None:
            with contextlib.suppress(OSError):
                # Made, but nothing to remember.
                if os.fstat(self._fd).st_size == 0:
                    os.unlink(self._path)
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _prune(directory: Path) -> None:
    """Remove what killed uploads left that says nothing, or is too old; OSError passes through."""
    for name in os.listdir(directory):
        if name.startswith(_PREFIX):
            with contextlib.suppress(OSError):
                _prune_one(directory / name)


def _prune_one(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(fd)
        if status.st_size == 0 or status.st_mtime < time.time() - _MAX_AGE:
            os.unlink(path)
    finally:
        os.close(fd)
