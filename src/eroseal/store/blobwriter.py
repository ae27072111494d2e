"""A blob on its way into a native store.

The builder writes into the store's own directory, so that finishing a blob is a rename and never a copy.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from eroseal.format.digest import Digest
from eroseal.store.atomic import TemporaryFile, output_error, sync_directory
from eroseal.store.layout import complete_size


class LocalBlobWriter:
    """A blob in the making, in the store's own directory; implements `BlobWriter`."""

    __slots__ = ("_blob_path", "_durable", "_file")

    def __init__(self, blobs: Path, blob_path: Callable[[Digest], Path], *, durable: bool) -> None:
        self._blob_path = blob_path
        self._durable = durable
        self._file = TemporaryFile(blobs, durable=durable)

    @property
    def fd(self) -> int:
        """The descriptor, open for reading and writing; -1 once committed or discarded."""
        return self._file.fd

    @property
    def path(self) -> Path:
        """The file's temporary name, for worker processes that open it themselves."""
        return self._file.path

    def commit(self, digest: Digest) -> int:
        """Move the sealed blob to its name, unless the store has it.

        Args:
            digest: of the blob; that it is right is for the caller, which computed it.

        Returns:
            Bytes of the blob that the store has then.

        Raises:
            OutputError: the system refuses; nothing is left.
        """
        final = self._blob_path(digest)
        with self._file as file:
            try:
                size = os.fstat(file.fd).st_size
                self._make_directory(final.parent)
                kept = complete_size(final)
                if kept is not None:
                    # Its writer may have renamed but not yet synced it, and our image will count on it.
                    if self._durable:
                        sync_directory(final.parent)
                    return kept
                mode = stat.S_IMODE(os.fstat(file.fd).st_mode) & 0o444
            except OSError as error:
                raise output_error(error, final) from error
            file.commit(final, replace=True, mode=mode)
            return size

    def _make_directory(self, directory: Path) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)
            if self._durable:
                sync_directory(directory.parent)

    def discard(self) -> None:
        """Drop it; never raises."""
        self._file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.discard()
