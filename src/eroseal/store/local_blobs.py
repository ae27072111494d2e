"""The blobs of a native store: files that are called by their digests.

Blobs need no lock: they are written under a temporary name and renamed, and a blob that is there stays, unless
`eroseal.store.gc` finds that no image names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from eroseal.errors import NotFoundError
from eroseal.format.digest import Digest
from eroseal.readat import BytesAt, FileAt, ReadAt
from eroseal.store.atomic import output_error, remove_abandoned
from eroseal.store.batch import BlobBatch
from eroseal.store.blobwriter import LocalBlobWriter
from eroseal.store.copying import copy_source
from eroseal.store.layout import (
    LEASES_NAME,
    PARTIAL_PREFIX,
    digest_of_path,
    is_blob_prefix,
    is_plain_file,
    kept_size,
    listing,
)
from eroseal.store.protocol import BlobStore, Progress

if TYPE_CHECKING:
    from eroseal.store.lanes import Lanes


class LocalBlobs:
    """The blobs of a store in a directory; implements `BlobStore`.

    Args:
        path: of the store.
        durable: sync what is written.
    """

    __slots__ = ("_cleaned", "_durable", "path")

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path
        self._durable = durable
        self._cleaned = False

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        return self.path / "blobs" / digest.hex[:2] / digest.hex[2:]

    def open_blob(self, digest: Digest) -> FileAt:
        """The blob's bytes, unverified; raises NotFoundError, or FormatError for what is not a plain file."""
        path = self.blob_path(digest)
        if not is_plain_file(path):
            raise NotFoundError(
                f"blob {digest} is not in the store",
                where=str(self.path),
                hint="copy or build the image again; fsck lists all that is missing",
            )
        return FileAt(path)

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is there; says nothing about its bytes."""
        return os.path.isfile(self.blob_path(digest))

    def new_blob(self) -> LocalBlobWriter:
        """A context manager for a blob to be written in the store's own directory, dropped unless committed.

        Raises:
            OutputError: no file can be made there.
        """
        if not self._cleaned:
            # A killed build may have left gigabytes, and there may be no other chance to find them.
            self.remove_abandoned()
        return LocalBlobWriter(self.path / "blobs", lambda digest: (self.blob_path(digest),), durable=self._durable)

    def batch(self) -> BlobBatch:
        """A context manager for many blobs that are synced and appear together; dropped unless published.

        Raises:
            OutputError: no directory can be made in the store.
        """
        if not self._cleaned:
            self.remove_abandoned()
        return BlobBatch(self.path / "blobs", self.blob_path, durable=self._durable)

    def adopt_blob(self, digest: Digest, origin: BlobStore) -> bool:
        """Nothing moves without a copy here: `put_blob` shares extents where the file system can."""
        return False

    def stored_size(self, digest: Digest) -> int | None:
        """Bytes of a blob that the caller will count on, or None where it is missing or cut short.

        Says nothing else about its bytes. A collection then finds it as young as a new one.
        """
        return kept_size(self.blob_path(digest))

    def put_blob(
        self,
        digest: Digest,
        source: ReadAt,
        *,
        jobs: int | None = None,
        progress: Progress | None = None,
        lanes: Lanes | None = None,
        batch: BlobBatch | None = None,
    ) -> int:
        """Copy a blob into the store, unless it is there; it appears only after every block of the copy was verified.

        A local file is copied by the kernel. What is not one, and larger than a request, is fetched in pieces, and
        taken up again where it was interrupted.

        Args:
            digest: that it must have.
            source: the sealed blob; what follows its records is left behind.
            jobs: threads that verify; None means one for each processor.
            progress: told the bytes that arrived.
            lanes: for the source's requests.
            batch: that a blob of a local file or a single request joins, to appear with the others.

        Returns:
            Bytes of the blob that the store has then.

        Raises:
            IntegrityError: it is not that blob, or damaged.
            OutputError: it cannot be written.
        """
        kept = self.stored_size(digest)
        if kept is not None:
            return kept
        from eroseal.store.lanes import Lanes, read_exactly  # noqa: PLC0415 - builds seldom copy blobs

        lanes = lanes or Lanes()
        if isinstance(source, FileAt):
            return self._copy(digest, source, batch, jobs=jobs, progress=progress)
        if source.size <= lanes.read_size:
            with lanes.lane():
                data = read_exactly(source, 0, source.size)
                whole = BytesAt(data, str(getattr(source, "name", digest)))
                return self._copy(digest, whole, batch, jobs=1, progress=progress)
        from eroseal.store.partial import receive_blob  # noqa: PLC0415

        final = self.blob_path(digest)
        return receive_blob(
            self.path / "blobs", final, digest, source, lanes, durable=self._durable, jobs=jobs, progress=progress
        )

    def _copy(
        self, digest: Digest, source: ReadAt, batch: BlobBatch | None, *, jobs: int | None, progress: Progress | None
    ) -> int:
        """Write a blob in one go, and verify what was written."""
        from eroseal.trust.image import open_blob  # noqa: PLC0415
        from eroseal.trust.scan import scan_blob  # noqa: PLC0415

        length = open_blob(source, digest).seal.sealed_size
        with self.new_blob() if batch is None else batch.new_blob() as blob:
            try:
                copy_source(source, blob.fd, length)
            except OSError as error:
                raise output_error(error, self.blob_path(digest)) from error
            with FileAt(blob.path) as copied:
                scan_blob(copied, open_blob(copied, digest, name=str(digest)), jobs=jobs)
            size = blob.commit(digest)
        if progress is not None:
            progress(length)
        return size

    def list_blobs(self) -> Iterator[Digest]:
        """The digests of all blobs, in order of their hex digits; other files are passed over."""
        blobs = self.path / "blobs"
        for prefix in listing(blobs):
            if is_blob_prefix(prefix) and (blobs / prefix).is_dir():
                for rest in listing(blobs / prefix):
                    digest = digest_of_path(prefix, rest)
                    if digest is not None:
                        yield digest

    def delete_blob(self, digest: Digest) -> None:
        """Remove a blob; whether an image needs it is for the caller to know."""
        path = self.blob_path(digest)
        try:
            os.unlink(path)
        except FileNotFoundError as error:
            raise NotFoundError(f"blob {digest} is not in the store", where=str(self.path)) from error
        except OSError as error:
            raise output_error(error, path, "cannot remove") from error

    def remove_abandoned(self) -> list[Path]:
        """Remove the temporary files of writers that were killed; those of living ones stay. Never raises.

        What has arrived of a blob stays, too, for whoever wants the rest, unless the blob is there.
        """
        self._cleaned = True
        removed = [path for name in ("blobs", "images", LEASES_NAME) for path in remove_abandoned(self.path / name)]
        if any(self.path.glob(f"blobs/{PARTIAL_PREFIX}*")):
            from eroseal.store.partial import remove_needless  # noqa: PLC0415 - few stores have any

            removed += remove_needless(self.path / "blobs")
        return removed
