"""Many blobs at once: written one by one, synced together, and in the store all in a moment.

An image may have tens of thousands of small data blobs. Syncing each before its rename costs a disk flush a blob, many
minutes in all. A batch keeps them in a temporary directory under their final digits, syncs the file system once,
and then moves them; only so many descriptors are open as there are blobs in the making. The rule stays: a
blob that is under its name is complete and on disk.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from eroseal.format.digest import Digest
from eroseal.store.atomic import TemporaryDirectory, is_temporary, make_directory, output_error, sync_directory
from eroseal.store.blobwriter import LocalBlobWriter

_SYNC_EACH: Final = 16
"""Up to so many files are synced one by one: syncfs also waits for what other programs have written."""
_libc: Final = ctypes.CDLL(None, use_errno=True)


class BlobBatch:
    """Blobs that a store takes together; a context manager that drops those not published.

    Made by `LocalStore.batch`. Writers may be used by several threads at once; `publish` comes after all commits.

    Args:
        blobs: the store's directory of blobs.
        blob_path: where a blob goes.
        durable: sync to disk before the blobs appear.

    Raises:
        OutputError: no directory can be made there.
    """

    __slots__ = ("_blob_path", "_blobs", "_directory", "_durable", "_prefixes")

    def __init__(self, blobs: Path, blob_path: Callable[[Digest], Path], *, durable: bool) -> None:
        self._blobs = blobs
        self._blob_path = blob_path
        self._durable = durable
        self._prefixes: set[str] = set()
        self._directory = TemporaryDirectory(blobs)

    def new_blob(self) -> LocalBlobWriter:
        """A context manager for a blob to be written; its `commit` adds it to the batch."""
        return LocalBlobWriter(self._directory.path, self._places, durable=False)

    def publish(self) -> int:
        """Sync the committed blobs and put them into the store; the batch is empty then, and may be used again.

        Returns:
            Number of blobs that were moved; those that the store had are not among them.

        Raises:
            OutputError: the system refuses; blobs that were moved are complete, none of the others is left.
        """
        try:
            names = [name for name in sorted(os.listdir(self._directory.path)) if not is_temporary(name)]
            if self._durable:
                self._sync(names)
            for prefix in {name[:2] for name in names}:
                make_directory(self._blobs / prefix, durable=False)
            for name in names:
                os.rename(self._directory.path / name, self._blobs / name[:2] / name[2:])
            if self._durable:
                # Those too that had our blobs already: their writer may not have come to it yet.
                for directory in (self._blobs, *(self._blobs / prefix for prefix in sorted(self._prefixes))):
                    sync_directory(directory)
        except OSError as error:
            self.discard()
            raise output_error(error, self._blobs, "cannot store blobs") from error
        return len(names)

    def discard(self) -> None:
        """Drop what was not published; never raises."""
        self._directory.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.discard()

    def _places(self, digest: Digest) -> tuple[Path, ...]:
        place = self._blob_path(digest)
        self._prefixes.add(place.parent.name)
        return place, self._directory.path / digest.hex

    def _sync(self, names: list[str]) -> None:
        if len(names) > _SYNC_EACH and _sync_file_system(self._blobs):
            return
        for name in names:
            fd = os.open(self._directory.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def _sync_file_system(directory: Path) -> bool:
    """syncfs(2), which Python does not have; False where the C library lacks it, OSError where it fails."""
    syncfs = getattr(_libc, "syncfs", None)
    if syncfs is None:
        return False
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(fd)
    return True
