"""The native store: a directory of sealed blobs and named images.

::

    blobs/ab/cdef…                  a sealed blob; its path is its digest (64 hex digits SHA-256, 128 SHA-512)
    images/NAME                     image document (document.py)
    images/NAME.<32 hex>.record     image record; the digits are the first of the image digest
    leases/<32 hex>                 keeps blobs that no document names yet (lease.py)
    .lock                           taken while documents and records change

A record's file is bound to the image that it is about, because two files cannot be replaced in one step: a
new image's record is written first, under a name that nothing reads yet; renaming the document then
switches both at once; the old record goes last. A crash leaves at most a record that no document uses,
which fsck reports and the next writer removes.

Blobs need no lock: they are written under a temporary name and renamed, and a blob that is there stays, unless a
collection (gc.py) finds that nobody needs it. That takes the lock, so what `put_image` finds there stays there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from eroseal.errors import NotFoundError, OutputError
from eroseal.format.record import RecordEntry
from eroseal.format.statement import ImageDigest
from eroseal.limits import MAX_IMAGE_RECORD
from eroseal.store.atomic import (
    exclusive_lock,
    exists_error,
    note_finished,
    note_unfinished,
    output_error,
    sync_directory,
    write_atomic,
)
from eroseal.store.document import MAX_IMAGE_DOCUMENT, Document, parse_document
from eroseal.store.layout import (
    LEASES_NAME,
    LOCK_NAME,
    listing,
    parse_whole_record,
    read_small,
    record_name,
    record_owner,
)
from eroseal.store.local_blobs import LocalBlobs
from eroseal.store.protocol import RecordChange, encode_image_record, replaced_error
from eroseal.store.reference import check_name, is_image_name


class LocalStore(LocalBlobs):
    """A store in a directory; implements `Store`.

    Made by `open` or `create`. Methods may be called from several threads and processes at once.
    """

    __slots__ = ("_created",)

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        super().__init__(path, durable=durable)
        self._created: list[Path] = []

    @property
    def where(self) -> str:
        return f"dir:{self.path}"

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

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
            if path.is_dir() and set(os.listdir(path)) - {"blobs", "images", LEASES_NAME, LOCK_NAME}:
                raise OutputError(
                    "not a store, and not empty", where=str(path), hint="name a new or an empty directory"
                )
            for directory in (path, path / "blobs", path / "images"):
                if not os.path.isdir(directory):
                    note_unfinished(directory)
                try:
                    os.mkdir(directory)
                    store._created.append(directory)
                except FileExistsError:
                    note_finished(directory)  # somebody else's
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
                for directory in self._created:
                    note_finished(directory)  # a store stays one, empty directories or not
                return
            if self.path in self._created:
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(self.path / LEASES_NAME)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path / LOCK_NAME)
            for directory in reversed(self._created):
                os.rmdir(directory)
        self._created = []

    # --- images ---

    def image(self, name: str) -> tuple[Document, list[RecordEntry]]:
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
            raise exists_error(self.image_path(name), replaceable=True)

    def image_path(self, name: str) -> Path:
        """Where the image's document is, or would be; raises UsageError for names that cannot be."""
        return self.path / "images" / check_name(name)

    def record_path(self, name: str, image: ImageDigest) -> Path:
        """Where the record of this image under this name is, or would be."""
        return self.path / "images" / record_name(check_name(name), image)

    def put_image(
        self, name: str, document: Document, record: Sequence[RecordEntry] = (), *, replace: bool = False
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
        with self._locked():
            # Under the lock: a collection must not take a blob between this look and the document's appearance.
            self._require_blobs(document)
            if not replace:
                self.require_new(name)
            self._write_record(name, document.image, record_data)
            write_atomic(path, document.encode(), replace=replace, durable=self._durable)
            self._remove_records(name, keep=document.image)

    def update_record(self, name: str, change: RecordChange, *, expect: ImageDigest | None = None) -> list[RecordEntry]:
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

    def _document(self, name: str) -> Document:
        path = self.image_path(name)
        data = read_small(path, limit=MAX_IMAGE_DOCUMENT)
        if data is None:
            raise _no_image(path)
        return parse_document(data, where=str(path))

    def _record(self, name: str, image: ImageDigest) -> list[RecordEntry]:
        path = self.record_path(name, image)
        data = read_small(path, limit=MAX_IMAGE_RECORD)
        return [] if data is None else parse_whole_record(data, where=str(path))

    def _write_record(self, name: str, image: ImageDigest, data: bytes) -> None:
        path = self.record_path(name, image)
        if data:
            write_atomic(path, data, replace=True, durable=self._durable)
        else:
            _unlink_if_there(path)

    def _remove_records(self, name: str, *, keep: ImageDigest | None) -> None:
        kept = None if keep is None else self.record_path(name, keep).name
        for entry in listing(self.path / "images"):
            if record_owner(entry) == name and entry != kept:
                _unlink_if_there(self.path / "images" / entry)

    def _require_blobs(self, document: Document) -> None:
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
