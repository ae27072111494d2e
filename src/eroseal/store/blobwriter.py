"""A blob on its way into a native store.

The builder writes into the store's own directory, so that finishing a blob is a rename and never a copy.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from eroseal.format.digest import Digest
from eroseal.store.atomic import TemporaryFile, make_directory, output_error, sync_directory
from eroseal.store.layout import kept_size

Places = Callable[[Digest], tuple[Path, ...]]
"""Where a blob may be already; the last place is where it is put if it is in none of them."""


class LocalBlobWriter:
    """A blob in the making, in the store's own directory; implements `BlobWriter`.

    Args:
        directory: that the file is made in; on the same file system as the places.
        places: where blobs go.
        durable: sync to disk before the blob appears.

    Raises:
        OutputError: no file can be made there.
    """

    __slots__ = ("_durable", "_file", "_places")

    def __init__(self, directory: Path, places: Places, *, durable: bool) -> None:
        self._places = places
        self._durable = durable
        self._file = TemporaryFile(directory, durable=durable)

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
        *_, final = places = self._places(digest)
        with self._file as file:
            try:
                for place in places:
                    kept = kept_size(place)
                    if kept is not None:
                        # Its writer may have renamed but not yet synced it, and our image will count on it.
                        if self._durable:
                            sync_directory(place.parent)
                        return kept
                # Its age counts from now, not from its last byte: see eroseal.store.gc.
                os.utime(file.fd)
                status = os.fstat(file.fd)
                make_directory(final.parent, durable=self._durable)
            except OSError as error:
                raise output_error(error, final) from error
            file.commit(final, replace=True, mode=stat.S_IMODE(status.st_mode) & 0o444)
            return status.st_size

    def discard(self) -> None:
        """Drop it; never raises."""
        self._file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.discard()
