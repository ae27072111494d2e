"""Collecting an OCI image layout: content goes that nothing in its index reaches.

Manifests and indexes are followed as deep as they go: configs, layers, nested indexes, and the artifacts that the index
lists beside images. What a manifest names as its subject is not kept by that: a subject may be missing. A
document of an unknown kind may name anything, so then nothing goes. An image record of ours goes with the image that it
is about, and its entry in the index with it: other tools follow subjects, and stumble over one that is gone.

As in a native store, garbage moves into a temporary directory under the lock that our own writers take to change the
index, after the index was read again, and is deleted when the lock was released. `put_manifest` looks under that lock
whether the contents of a manifest are there. Other tools know no lock of ours: the grace period protects what they
store anew, and a blob that they found there and count on is safe only if something names it. Collect when they rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from eroseal.errors import FormatError, NotFoundError, UnsupportedError
from eroseal.limits import MAX_MANIFEST
from eroseal.store.atomic import TemporaryDirectory, exclusive_lock, output_error
from eroseal.store.garbage import Collected, CollectOptions, Garbage, Judge, refusal
from eroseal.store.layout import listing, read_small
from eroseal.store.oci.content import digest_of
from eroseal.store.oci.documents import INDEXES, MANIFESTS, Descriptor, check_digest
from eroseal.store.oci.layout import LOCK_NAME, LayoutRepository
from eroseal.store.oci.record import RECORD_TYPE
from eroseal.store.trash import file_status, move_out, plain_status, sweep_abandoned

_ALGORITHMS: Final = ("sha256", "sha512")
_ARTIFACT: Final = "application/vnd.oci.artifact.manifest.v1+json"
"""A kind of manifest that was in drafts of version 1.1, and in some layouts since; its contents are `blobs`."""
_FOLLOWED: Final = MANIFESTS | INDEXES | {_ARTIFACT}


class _Names(msgspec.Struct, frozen=True):
    """All that a manifest or index of any kind names."""

    config: Descriptor | None = None
    layers: list[Descriptor] = msgspec.field(default_factory=list)
    manifests: list[Descriptor] = msgspec.field(default_factory=list)
    blobs: list[Descriptor] = msgspec.field(default_factory=list)
    subject: Descriptor | None = None


class _Content(NamedTuple):
    """A file below `blobs/` as it was seen."""

    digest: str
    path: Path
    size: int
    modified: float


def collect_layout(layout: LayoutRepository, options: CollectOptions) -> Collected:
    """Collect an image layout; our own writers may go on using it.

    Args:
        layout: to collect.
        options: of the collection.

    Raises:
        FormatError: the index, or something that it reaches, is broken; nothing was collected.
        UnsupportedError: it reaches a document of an unknown kind; nothing was collected.
        OutputError: something cannot be removed.
    """
    return _Collection(layout, options).run()


class _Collection:
    """One run over one layout."""

    def __init__(self, layout: LayoutRepository, options: CollectOptions) -> None:
        self._layout = layout
        self._options = options
        self._judge: Judge[str] = Judge(options.grace, time.time())
        self._read: set[str] = set()
        self._orphans: set[str] = set()

    def run(self) -> Collected:
        self._reach()
        candidates = [item for item in self._contents() if self._judge.condemns(item.digest, item.modified)]
        gone = candidates if self._options.dry_run else self._take(candidates)
        places = [self._layout.path, *(self._layout.path / "blobs" / name for name in _ALGORITHMS)]
        leftovers = sweep_abandoned(places, dry_run=self._options.dry_run)
        return self._judge.result([Garbage(item.digest, item.size) for item in gone], leftovers)

    def _take(self, candidates: list[_Content]) -> list[_Content]:
        """Delete what is still garbage; gives it."""
        trash = TemporaryDirectory(self._layout.path)
        try:
            with exclusive_lock(self._layout.path / LOCK_NAME):
                self._judge.now = os.stat(trash.path).st_mtime
                self._reach()
                # First: whenever we are killed, the index names nothing that we took.
                self._layout.drop_entries(self._orphans - self._judge.named)
                return [item for item in candidates if self._move(item, trash.path)]
        except OSError as error:
            raise output_error(error, self._layout.path, "cannot collect") from error
        finally:
            trash.discard()

    def _move(self, item: _Content, trash: Path) -> bool:
        """Move content out of the layout, unless something reaches it now; OSError passes through."""

        def condemned(modified: float) -> bool:
            return self._judge.condemns(item.digest, modified)

        if not move_out(item.path, trash / item.path.name, condemned):
            return False
        self._tell()
        return True

    def _reach(self) -> None:
        """Find all that the index reaches."""
        entries = self._layout.index().manifests
        records = [entry for entry in entries if entry.artifact_type == RECORD_TYPE]
        self._follow([entry for entry in entries if entry.artifact_type != RECORD_TYPE])
        self._orphans = {entry.digest for entry in records if self._is_orphan(entry)}
        self._follow([entry for entry in records if entry.digest not in self._orphans])

    def _is_orphan(self, record: Descriptor) -> bool:
        """Whether a record's image is gone, or goes now, and nobody was at either lately."""
        names = self._names(record)
        if names is None or names.subject is None or names.subject.digest in self._judge.named:
            return False
        files = [plain_status(self._layout.blob_path(digest)) for digest in (record.digest, names.subject.digest)]
        return all(status is None or self._judge.is_old(status.st_mtime) for status in files)

    def _follow(self, found: list[Descriptor]) -> None:
        """Note all that is reached from there; what was read once under its digest is not read again."""
        while found:
            descriptor = found.pop()
            self._judge.named.add(descriptor.digest)
            if descriptor.digest in self._read:
                continue
            names = self._names(descriptor)
            if names is None:
                continue  # a part of a larger image that is not here, and may come yet
            self._read.add(descriptor.digest)
            contents = [*names.layers, *names.blobs, *([] if names.config is None else [names.config])]
            self._judge.named.update(content.digest for content in contents)
            found += names.manifests

    def _names(self, descriptor: Descriptor) -> _Names | None:
        """What a manifest or index names; None for one that is not there."""
        where = f"{self._layout.where}@{descriptor.digest}"
        try:
            if descriptor.media_type not in _FOLLOWED:
                raise UnsupportedError(f"a document of the type {descriptor.media_type[:80]!r}", where=where)
            data = self._document(descriptor.digest)
            return None if data is None else msgspec.json.decode(data, type=_Names)
        except (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError) as error:
            broken = FormatError(f"not a manifest: {error}", where=where)
            raise refusal(broken, "a manifest") from error
        except (FormatError, NotFoundError, UnsupportedError) as error:
            raise refusal(error, "a manifest") from error

    def _document(self, digest: str) -> bytes | None:
        path = self._layout.blob_path(digest)
        data = read_small(path, limit=MAX_MANIFEST)
        if data is not None and digest_of(data, like=digest) != digest:
            raise FormatError(f"is not {digest}", where=str(path))
        return data

    def _contents(self) -> Iterator[_Content]:
        for algorithm in _ALGORITHMS:
            directory = self._layout.path / "blobs" / algorithm
            if file_status(directory) is None:
                continue
            for name in listing(directory):
                status = plain_status(directory / name)
                if status is not None and _is_digest(f"{algorithm}:{name}"):
                    self._tell()
                    yield _Content(f"{algorithm}:{name}", directory / name, status.st_size, status.st_mtime)

    def _tell(self) -> None:
        if self._options.progress is not None:
            self._options.progress(1)


def _is_digest(text: str) -> bool:
    try:
        check_digest(text)
    except ValueError:
        return False
    return True
