"""The native store: a directory of sealed blobs and named images.

::

    blobs/ab/cdef…                  a sealed blob; its path is its digest (64 hex digits SHA-256, 128 SHA-512)
    images/NAME                     image document (document.py)
    images/NAME.<32 hex>.record     image record; the digits are the first of the image digest
    .lock                           taken while documents and records change

A record's file is bound to the image that it is about, because two files cannot be replaced in one step: a
new image's record is written first, under a name that nothing reads yet; renaming the document then
switches both at once; the old record goes last. A crash leaves at most a record that no document uses,
which fsck reports and the next writer removes.

Blobs need no lock: they are written under a temporary name and renamed, and a blob that is there stays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from eroseal.errors import NotFoundError, OutputError
from eroseal.format.digest import Digest
from eroseal.format.record import RecordEntry
from eroseal.limits import MAX_IMAGE_RECORD
from eroseal.readat import FileAt, ReadAt
from eroseal.store.atomic import (
    exclusive_lock,
    exists_error,
    note_unfinished,
    output_error,
    remove_abandoned,
    sync_directory,
    write_atomic,
)
from eroseal.store.batch import BlobBatch
from eroseal.store.blobwriter import LocalBlobWriter
from eroseal.store.copying import copy_source
from eroseal.store.document import MAX_IMAGE_DOCUMENT, ImageDocument
from eroseal.store.layout import (
    BINDING_DIGITS,
    LOCK_NAME,
    complete_size,
    digest_of_path,
    is_blob_prefix,
    is_plain_file,
    listing,
    parse_whole_record,
    read_small,
    record_owner,
)
from eroseal.store.protocol import RecordChange, encode_image_record, replaced_error
from eroseal.store.reference import RECORD_SUFFIX, check_name, is_image_name


class LocalStore:
    """A store in a directory; implements `BlobStore` and `ImageStore`.

    Made by `open` or `create`. Methods may be called from several threads and processes at once.
    """

    __slots__ = ("_cleaned", "_created", "_durable", "path")

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path
        self._durable = durable
        self._cleaned = False
        self._created: list[Path] = []

    @classmethod
    def open(cls, path: Path, *, durable: bool = True) -> Self:
        """The store in an existing directory.

        Args:
            path: of the store.
            durable: sync what is written; False is for benchmarks and tests.

        Raises:
            NotFoundError: there is no store at `path`.
        """
        if not _is_store(path):
            try:
                os.stat(path / "blobs")
            except PermissionError as error:
                raise NotFoundError("cannot look for a store: permission denied", where=str(path)) from error
            except (OSError, ValueError):
                pass
            raise NotFoundError(
                "no store here", where=str(path), hint="a store is a directory that holds blobs/ and images/"
            )
        return cls(path, durable=durable)

    @classmethod
    def create(cls, path: Path, *, durable: bool = True) -> Self:
        """The store at `path`, made where nothing or an empty directory is; its parent must exist.

        Raises:
            OutputError: something else is there, or the directory cannot be made.
        """
        store = cls(path, durable=durable)
        if _is_store(path):
            return store
        try:
            if path.is_dir() and set(os.listdir(path)) - {"blobs", "images", LOCK_NAME}:
                raise OutputError(
                    "not a store, and not empty", where=str(path), hint="name a new or an empty directory"
                )
            for directory in (path, path / "blobs", path / "images"):
                if not os.path.isdir(directory):
                    note_unfinished(directory)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory)
                    store._created.append(directory)
            if durable:
                sync_directory(path)
                sync_directory(path.parent)
        except OSError as error:
            store.abandon()
            raise output_error(error, path, "cannot make a store") from error
        return store

    def abandon(self) -> None:
        """After a failure: remove the directories that `create` made, unless they are used; never raises."""
        with contextlib.suppress(OSError):
            if any(os.listdir(directory) for directory in self._created if directory != self.path):
                return
            if self.path in self._created:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path / LOCK_NAME)
            for directory in reversed(self._created):
                os.rmdir(directory)
        self._created = []

    # --- blobs ---

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

    def put_blob(self, digest: Digest, source: ReadAt, *, jobs: int | None = None) -> int:
        """Copy a blob into the store, unless it is there; it appears only after every block of the copy was verified.

        Args:
            digest: that it must have.
            source: the sealed blob; what follows its records is left behind.
            jobs: threads that verify; None means one for each processor.

        Returns:
            Bytes of the blob that the store has then.

        Raises:
            IntegrityError: it is not that blob, or damaged.
            OutputError: it cannot be written.
        """
        kept = complete_size(self.blob_path(digest))
        if kept is not None:
            return kept
        from eroseal.trust.image import open_blob  # noqa: PLC0415 - builds seldom copy blobs
        from eroseal.trust.scan import scan_blob  # noqa: PLC0415

        length = open_blob(source, digest).seal.sealed_size
        with self.new_blob() as blob:
            try:
                copy_source(source, blob.fd, length)
            except OSError as error:
                raise output_error(error, self.blob_path(digest)) from error
            with FileAt(blob.path) as copied:
                scan_blob(copied, open_blob(copied, digest, name=str(digest)), jobs=jobs)
            return blob.commit(digest)

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
        """Remove the temporary files of writers that were killed; those of living ones stay."""
        self._cleaned = True
        return remove_abandoned(self.path / "blobs") + remove_abandoned(self.path / "images")

    # --- images ---

    def image(self, name: str) -> tuple[ImageDocument, list[RecordEntry]]:
        """The document and the record's entries, which belong together.

        Raises:
            NotFoundError: no image has this name.
            FormatError: the document or the record is broken.
        """
        while True:
            stamp = self._stamp(name)
            document = self._document(name)
            record = self._record(name, document.image)
            # A replaced image takes its record with it: read again rather than report no signatures.
            if record or self._stamp(name) == stamp:
                return document, record

    def has_image(self, name: str) -> bool:
        """Whether an image has this name."""
        return os.path.lexists(self.image_path(name))

    def require_new(self, name: str) -> None:
        """Refuse a name that is taken, for callers that ask before they start; raises OutputError."""
        if self.has_image(name):
            raise exists_error(self.image_path(name))

    def image_path(self, name: str) -> Path:
        """Where the image's document is, or would be; raises UsageError for names that cannot be."""
        return self.path / "images" / check_name(name)

    def record_path(self, name: str, image: Digest) -> Path:
        """Where the record of this image under this name is, or would be."""
        return self.path / "images" / f"{check_name(name)}.{image.hex[:BINDING_DIGITS]}{RECORD_SUFFIX}"

    def put_image(
        self, name: str, document: ImageDocument, record: Sequence[RecordEntry] = (), *, replace: bool = False
    ) -> None:
        """Publish an image whose blobs are all in the store.

        Args:
            name: as `check_name` accepts it.
            document: its blobs, with the sizes that the store has.
            record: entries of the image record; none for an unsigned image.
            replace: take the place of an image of that name, and of its record.

        Raises:
            NotFoundError: a blob is missing.
            OutputError: the name is taken, a blob has another size, or the system refuses.
        """
        path, record_data = self.image_path(name), encode_image_record(record)
        self._require_blobs(document)
        with self._locked():
            if not replace:
                self.require_new(name)
            self._write_record(name, document.image, record_data)
            write_atomic(path, document.encode(), replace=replace, durable=self._durable)
            self._remove_records(name, keep=document.image)

    def update_record(self, name: str, change: RecordChange, *, expect: Digest | None = None) -> list[RecordEntry]:
        """Replace the record by what `change` makes of it, while other writers wait; gives the new entries.

        Args:
            name: of the image.
            change: from the entries there are to those wanted.
            expect: the image that the change is about; another one of that name keeps its record.

        Raises:
            NotFoundError: no image has this name.
            FormatError: the document or the record is broken.
            OutputError: it cannot be written, or it is another image by now; the old record stays.
        """
        self._document(name)
        with self._locked():
            image = self._document(name).image
            if expect is not None and image != expect:
                raise replaced_error(self.image_path(name), expect)
            entries = list(change(self._record(name, image)))
            self._write_record(name, image, encode_image_record(entries))
        return entries

    def list_images(self) -> list[str]:
        """All image names, sorted."""
        return [name for name in listing(self.path / "images") if is_image_name(name)]

    def delete_image(self, name: str) -> None:
        """Remove an image's document and record; blobs stay, as other images may share them."""
        path = self.image_path(name)
        with self._locked():
            try:
                os.unlink(path)
            except FileNotFoundError as error:
                raise _no_image(path) from error
            except OSError as error:
                raise output_error(error, path, "cannot remove") from error
            self._remove_records(name, keep=None)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return exclusive_lock(self.path / LOCK_NAME)

    def _stamp(self, name: str) -> tuple[int, int] | None:
        """What differs once the document's file is another one."""
        try:
            status = os.lstat(self.image_path(name))
        except OSError:
            return None
        return status.st_ino, status.st_ctime_ns

    def _document(self, name: str) -> ImageDocument:
        path = self.image_path(name)
        data = read_small(path, limit=MAX_IMAGE_DOCUMENT)
        if data is None:
            raise _no_image(path)
        return ImageDocument.parse(data, where=str(path))

    def _record(self, name: str, image: Digest) -> list[RecordEntry]:
        path = self.record_path(name, image)
        data = read_small(path, limit=MAX_IMAGE_RECORD)
        return [] if data is None else parse_whole_record(data, where=str(path))

    def _write_record(self, name: str, image: Digest, data: bytes) -> None:
        path = self.record_path(name, image)
        if data:
            write_atomic(path, data, replace=True, durable=self._durable)
        else:
            _unlink_if_there(path)

    def _remove_records(self, name: str, *, keep: Digest | None) -> None:
        kept = None if keep is None else self.record_path(name, keep).name
        for entry in listing(self.path / "images"):
            if record_owner(entry) == name and entry != kept:
                _unlink_if_there(self.path / "images" / entry)

    def _require_blobs(self, document: ImageDocument) -> None:
        for blob in document.blobs:
            path = self.blob_path(blob.digest)
            try:
                size = os.stat(path, follow_symlinks=False).st_size
            except FileNotFoundError as error:
                raise NotFoundError(f"blob {blob.digest} is not in the store", where=str(self.path)) from error
            except OSError as error:
                raise output_error(error, path, "cannot look at") from error
            if size != blob.size:
                raise OutputError(
                    f"blob has {size} bytes, but the image's document says {blob.size}",
                    where=str(path),
                    hint="run fsck on the store",
                )


def _is_store(path: Path) -> bool:
    # Not Path.is_dir, which raises where a part of the path is closed to us.
    return os.path.isdir(path / "blobs") and os.path.isdir(path / "images")


def _no_image(path: Path) -> NotFoundError:
    return NotFoundError("no image has this name", where=str(path))


def _unlink_if_there(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise output_error(error, path, "cannot remove") from error
