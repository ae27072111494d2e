"""Collecting a store in a directory.

Most of the work is done without the lock: a first look at documents, leases and blobs finds what may be garbage. Then,
under the lock that writers take to publish an image or to make a lease, documents that changed meanwhile and all leases
are read again, and what is still garbage moves into a temporary directory. It is deleted there, after the lock
was released: large files take their time.

So an image that is published has its blobs for good, because `put_image` looks for them under the same lock. A blob
that a writer finds and makes young (`layout.kept_size`) is not taken either: it is looked at once more after it moved,
and goes back if it became young. A collection that is killed leaves a temporary directory, which anybody's next
collection or build removes.

The directories `blobs/ab` stay when they are empty: there are 256 at most, and writers rename files into them.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from eroseal.errors import FormatError, NotFoundError
from eroseal.format.digest import Digest
from eroseal.store.atomic import (
    TemporaryDirectory,
    exclusive_lock,
    output_error,
)
from eroseal.store.document import MAX_IMAGE_DOCUMENT, parse_document
from eroseal.store.garbage import Collected, CollectOptions, Garbage, Judge, refusal
from eroseal.store.layout import (
    LEASES_NAME,
    LOCK_NAME,
    digest_of_path,
    is_blob_prefix,
    listing,
    read_small,
    record_owner,
)
from eroseal.store.lease_places import DirectoryLeases, read_leases
from eroseal.store.local import LocalStore
from eroseal.store.partial import is_partial, is_partial_in_use, remove_partial
from eroseal.store.trash import file_status, move_out, plain_status, sweep_abandoned


class _Blob(NamedTuple):
    """A blob's file as it was seen."""

    digest: Digest
    size: int
    modified: float


class _Documents:
    """The documents of a store: what they name, and which record each has."""

    def __init__(self, store: LocalStore, judge: Judge[Digest]) -> None:
        self._store = store
        self._judge = judge
        self._seen: dict[str, tuple[int, int]] = {}
        self.records: dict[str, str] = {}

    def read(self) -> None:
        """Read those that are new or changed since the last time; raises FormatError, NotFoundError."""
        records = {}
        for name in self._store.list_images():
            path = self._store.image_path(name)
            status = file_status(path)
            if status is None:
                continue
            stamp = (status.st_ino, status.st_ctime_ns)
            if self._seen.get(name) != stamp:
                self._read(name, path)
                self._seen[name] = stamp
            records[name] = self.records.get(name, "")
        self.records = records

    def _read(self, name: str, path: Path) -> None:
        try:
            data = read_small(path, limit=MAX_IMAGE_DOCUMENT)
            if data is None:
                return  # deleted meanwhile
            document = parse_document(data, where=str(path))
        except (FormatError, NotFoundError) as error:
            raise refusal(error, "an image's document") from error
        self._judge.named.update(blob.digest for blob in document.blobs)
        self.records[name] = self._store.record_path(name, document.image).name


def collect_local(store: LocalStore, options: CollectOptions) -> Collected:
    """Collect a store in a directory; others may go on using it.

    Args:
        store: to collect.
        options: of the collection.

    Raises:
        FormatError, NotFoundError: a document or lease that cannot be read; nothing was collected.
        OutputError: something cannot be removed.
    """
    return _Collection(store, options).run()


class _Collection:
    """One run over one store."""

    def __init__(self, store: LocalStore, options: CollectOptions) -> None:
        self._store = store
        self._blobs = store.path / "blobs"
        self._options = options
        self._judge: Judge[Digest] = Judge(options.grace, time.time())
        self._documents = _Documents(store, self._judge)
        self._leases = DirectoryLeases(store)
        self._dead: tuple[str, ...] = ()
        self._leftovers: list[str] = []

    def run(self) -> Collected:
        self._read_leases()
        self._documents.read()
        candidates = [blob for blob in self._blob_files() if self._judge.condemns(blob.digest, blob.modified)]
        if self._options.dry_run:
            self._leftovers += map(str, self._strays())
            gone = candidates
        else:
            gone = self._take(candidates)
        self._unfinished()
        return self._judge.result([Garbage(str(blob.digest), blob.size) for blob in gone], self._leftovers)

    def _take(self, candidates: list[_Blob]) -> list[_Blob]:
        """Delete what is still garbage; gives it."""
        trash = TemporaryDirectory(self._blobs)
        try:
            with exclusive_lock(self._store.path / LOCK_NAME):
                # By the clock that stamps the blobs, if they lie on another machine.
                self._judge.now = os.stat(trash.path).st_mtime
                self._read_leases()
                self._documents.read()
                gone = [blob for blob in candidates if self._move(blob, trash.path)]
                for path in self._strays():
                    with contextlib.suppress(FileNotFoundError):  # a lease that ended just now
                        os.unlink(path)
                        self._leftovers.append(str(path))
        except OSError as error:
            raise output_error(error, self._store.path, "cannot collect") from error
        finally:
            trash.discard()
        return gone

    def _move(self, blob: _Blob, trash: Path) -> bool:
        """Move a blob out of the store, unless somebody needs it now; OSError passes through."""

        def condemned(modified: float) -> bool:
            return self._judge.condemns(blob.digest, modified)

        if not move_out(self._store.blob_path(blob.digest), trash / blob.digest.hex, condemned):
            return False
        self._tell()
        return True

    def _read_leases(self) -> None:
        try:
            leases = read_leases(self._leases, self._judge.now)
        except (FormatError, NotFoundError) as error:
            raise refusal(error, "a lease") from error
        self._judge.leased, self._dead = leases.keep, leases.dead

    def _blob_files(self) -> Iterator[_Blob]:
        for prefix in filter(is_blob_prefix, listing(self._blobs)):
            directory = self._blobs / prefix
            status = file_status(directory)
            for rest in listing(directory) if status is not None and stat.S_ISDIR(status.st_mode) else ():
                digest, status = digest_of_path(prefix, rest), plain_status(directory / rest)
                if digest is not None and status is not None:
                    self._tell()
                    yield _Blob(digest, status.st_size, status.st_mtime)

    def _strays(self) -> Iterator[Path]:
        """Leases that ran out, and records that no image uses."""
        yield from (self._store.path / LEASES_NAME / name for name in self._dead)
        images = self._store.path / "images"
        for entry in listing(images):
            owner = record_owner(entry)
            if owner is None or self._documents.records.get(owner) == entry:
                continue
            status = plain_status(images / entry)
            if status is not None and self._judge.is_old(status.st_mtime):
                yield images / entry

    def _unfinished(self) -> None:
        """Remove what writers left that are gone: files at once, parts of blobs once they are old."""
        places = [self._blobs, self._store.path / "images", self._store.path / LEASES_NAME]
        self._leftovers += sweep_abandoned(places, dry_run=self._options.dry_run)
        for path in (self._blobs / name for name in listing(self._blobs) if is_partial(name)):
            if path.is_symlink() or not self._judge.is_old(_newest(path)) or is_partial_in_use(path):
                continue
            if self._options.dry_run or remove_partial(path):
                self._leftovers.append(str(path))

    def _tell(self) -> None:
        if self._options.progress is not None:
            self._options.progress(1)


def _newest(directory: Path) -> float:
    """When something in a directory, or its list of names, changed last; OSError becomes never old."""
    times = [status.st_mtime for path in (directory, *directory.glob("*")) if (status := file_status(path)) is not None]
    return max(times, default=float("inf"))
