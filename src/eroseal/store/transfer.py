"""Moving an image from any place to any other: its blobs, each once, then its document and record.

Nothing of the source is believed. Each blob proves itself under its digest before the target has it, and what the
document lists must be what the verified device tables list. Blobs that the target has are skipped, and blobs that it
can take over without moving them are. The image appears last; whatever ends a copy before leaves blobs, or parts of
them, that the next try builds on.

Small blobs go into a local store in groups that are synced together, because some images have thousands.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from eroseal.crypto.pieces import default_jobs
from eroseal.errors import ErosealError, UnsupportedError, UsageError
from eroseal.format.digest import Digest
from eroseal.format.statement import ImageDigest
from eroseal.readat import FileAt
from eroseal.store.atomic import exists_error, output_error
from eroseal.store.batch import BlobBatch
from eroseal.store.checked import checked_document
from eroseal.store.copying import copy_source
from eroseal.store.document import BlobInfo, Document, ImageDocument, StackDocument
from eroseal.store.lanes import Lanes, SharedFds
from eroseal.store.lease import lease
from eroseal.store.local import LocalStore
from eroseal.store.open import open_store
from eroseal.store.protocol import OpenBlob, Progress, Store
from eroseal.store.reference import FileReference, LayoutReference, Reference, RegistryReference
from eroseal.store.remote import DEFAULT_RANGES, RemoteOptions
from eroseal.store.resolve import StoredStack, resolve_layers
from eroseal.store.single import SingleWriter
from eroseal.store.staging import require_size
from eroseal.trust.image import open_blob
from eroseal.trust.scan import scan_blob

_LARGE_AT_ONCE: Final = 4
"""Large blobs under way at once: one is verified and synced while others arrive."""
_GROUP: Final = 128
"""Small blobs that are synced together at most: what a killed copy does not need to move again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """How an image is copied.

    Args:
        replace: take the place of an image of that name. The same image with the same record is no obstacle.
        durable: sync what is written to a disk of ours.
        jobs: threads that verify a blob; None means one for each processor.
        parallel: requests in flight at once.
        compress: store blobs compressed, in places in OCI form.
        begin: told the bytes of all blobs before the first one is moved.
        progress: told the bytes that were dealt with: moved, or found there.
    """

    replace: bool = False
    durable: bool = True
    jobs: int | None = None
    parallel: int = DEFAULT_RANGES
    compress: bool = False
    begin: Progress | None = None
    progress: Progress | None = None


_DEFAULTS: Final = CopyOptions()


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What a copy did.

    Args:
        image: digest of the image or stack.
        copied: blobs that were moved, or the rest of which was.
        skipped: blobs that the target had.
        adopted: blobs that the target took over without moving them.
        bytes_moved: of blobs, as they arrived.
        bytes_skipped: of blobs and parts of blobs that did not have to be moved.
    """

    image: ImageDigest
    copied: int
    skipped: int
    adopted: int
    bytes_moved: int
    bytes_skipped: int


def copy(
    source: Reference,
    target: Reference,
    options: CopyOptions = _DEFAULTS,
    *,
    data_files: Sequence[Path] = (),
    remote: RemoteOptions,
) -> CopyResult:
    """Copy an image or stack from one place to another.

    Args:
        source: of any kind.
        target: of any kind; a single file takes an image of one blob.
        options: of the copy.
        data_files: for a single file, the sealed files that hold its data blobs, in any order.
        remote: how servers are spoken to.

    Raises:
        UsageError: the target cannot be one.
        ErosealError: as of `copy_image` and `copy_to_file`, and of opening the two places.
    """
    if isinstance(target, RegistryReference) and target.is_digest:
        raise UsageError("an image cannot be given a digest, it has one", where=str(target), hint="name a tag")
    if options.compress and not isinstance(target, LayoutReference | RegistryReference):
        raise UsageError("only blobs in OCI form can be compressed", where=str(target), hint="oci: or docker://")
    with resolve_layers(source, data_files=data_files, durable=options.durable, remote=remote) as stored:
        if isinstance(target, FileReference):
            return copy_to_file(stored, target.path, options)
        with open_store(target, remote, create=True, durable=options.durable, compress=options.compress) as store:
            try:
                return copy_image(stored, store, target.name, options)
            except BaseException:
                if isinstance(store, LocalStore):
                    store.abandon()
                raise


def copy_image(source: StoredStack, target: Store, name: str, options: CopyOptions = _DEFAULTS) -> CopyResult:
    """Copy an image or stack into a store, where it appears once all its blobs are there.

    Args:
        source: opened; of any kind.
        target: where it goes.
        name: that it gets there.
        options: of the copy.

    Raises:
        FormatError: its document is not what its device tables say.
        IntegrityError: a blob is not what its digest says.
        NotFoundError: the source lacks a blob.
        OutputError: the name is taken, or the target cannot be written.
        RemoteError, AccessError: of a server.
    """
    document = checked_document(source, parallel=options.parallel)
    publish = options.replace or _is_new(target, name, document, source)
    blobs = tuple(dict.fromkeys(document.blobs))
    copying = _Copy(source, target, options)
    with lease(target, (blob.digest for blob in blobs)):
        copying.run(blobs)
        if publish:
            target.put_image(name, copying.with_sizes(document), source.record, replace=options.replace)
    return copying.result(document.image)


def copy_to_file(source: StoredStack, path: Path, options: CopyOptions = _DEFAULTS) -> CopyResult:
    """Copy an image of one blob to a single file, which appears when it is complete and verified.

    Args:
        source: opened; of any kind.
        path: of the file.
        options: of the copy.

    Raises:
        UnsupportedError: the image has data blobs, or is a stack.
        ErosealError: otherwise as of `copy_image`.
    """
    document = checked_document(source, parallel=options.parallel)
    if isinstance(document, StackDocument) or document.data:
        more = "data blobs" if isinstance(document, ImageDocument) else "layers"
        raise UnsupportedError(
            f"a single file holds one blob, and this image has {more}",
            where=str(source.reference),
            hint="copy it into a store: dir:PATH:NAME",
        )
    meta = source.layers[0].meta
    size = open_blob(meta, document.image).seal.sealed_size
    if options.begin is not None:
        options.begin(size)
    with SingleWriter(path, replace=options.replace, durable=options.durable) as writer:
        try:
            _fill(writer.fd, meta, size, options)
        except OSError as error:
            raise output_error(error, path) from error
        with FileAt(writer.path) as copied:
            blob = open_blob(copied, document.image, name=str(document.image))
            require_size(blob.seal, size)
            scan_blob(copied, blob, jobs=options.jobs)
        writer.commit(source.record)
    return CopyResult(document.image, 1, 0, 0, size, 0)


class _Copy:
    """The blobs of one copy on their way."""

    def __init__(self, source: StoredStack, target: Store, options: CopyOptions) -> None:
        self._open = source.layers[0].open_data
        self._origin = source.store
        self._target = target
        self._lanes = Lanes(options.parallel)
        self._jobs = options.jobs
        self._begin = options.begin
        self._progress = options.progress
        self._lock = threading.Lock()
        self._sizes: dict[Digest, int] = {}
        self._copied = self._skipped = self._adopted = 0
        self._moved = self._found = 0

    def run(self, blobs: Sequence[BlobInfo]) -> None:
        """Have all blobs in the target; the first error stops the others."""
        if self._begin is not None:
            self._begin(sum(blob.size for blob in blobs))
        small = [blob for blob in blobs if blob.size <= self._lanes.read_size]
        large = [blob for blob in blobs if blob.size > self._lanes.read_size]
        # What is read from a disk is a matter of processors, what comes from afar of latency.
        near = self._origin is None or isinstance(self._origin, LocalStore)
        near = near and isinstance(self._target, LocalStore)
        workers = (self._jobs or default_jobs()) if near else self._lanes.count
        size = min(_GROUP, -(-len(small) // workers)) if isinstance(self._target, LocalStore) else 1
        groups = [small[start : start + size] for start in range(0, len(small), size)] if small else []
        self._lanes.run(self._put_group, groups, workers=min(workers, len(groups)))
        self._lanes.run(self._put, large, workers=min(workers, _LARGE_AT_ONCE, len(large)))

    def with_sizes(self, document: Document) -> Document:
        """The document with the sizes that the target's blobs have: their chunk maps may be others."""
        layers = tuple(
            ImageDocument(layer.image, tuple(replace(blob, size=self._sizes[blob.digest]) for blob in layer.blobs))
            for layer in document.layers
        )
        return StackDocument(layers) if isinstance(document, StackDocument) else layers[0]

    def result(self, image: ImageDigest) -> CopyResult:
        """What was done."""
        return CopyResult(image, self._copied, self._skipped, self._adopted, self._moved, self._found)

    def _put_group(self, blobs: Sequence[BlobInfo]) -> None:
        if not isinstance(self._target, LocalStore):
            for blob in blobs:
                self._put(blob)
            return
        with self._target.batch() as batch:
            try:
                for blob in blobs:
                    self._put(blob, batch)
            finally:
                batch.publish()  # what arrived stays, whatever befell the others

    def _put(self, blob: BlobInfo, batch: BlobBatch | None = None) -> None:
        """Have one blob in the target."""
        self._lanes.check()
        size = self._size_there(blob)
        if size is not None:
            self._count(blob, size)
        elif self._origin is not None and self._target.adopt_blob(blob.digest, self._origin):
            self._count(blob, blob.size, adopted=True)
        else:
            moved = 0

            def told(amount: int) -> None:
                nonlocal moved
                with self._lock:
                    moved += amount
                    self._moved += amount
                    self._tell(amount)

            with contextlib.closing(self._open(blob.digest)) as opened:
                size = self._send(blob.digest, opened, told, batch)
            self._count(blob, size, moved=moved)

    def _send(self, digest: Digest, source: OpenBlob, progress: Progress, batch: BlobBatch | None) -> int:
        if isinstance(self._target, LocalStore):
            return self._target.put_blob(
                digest, source, jobs=self._jobs, progress=progress, lanes=self._lanes, batch=batch
            )
        guarded = source if isinstance(source, FileAt) else _Guarded(source, self._lanes)
        return self._target.put_blob(digest, guarded, jobs=self._jobs, progress=progress)

    def _size_there(self, blob: BlobInfo) -> int | None:
        if isinstance(self._target, LocalStore):
            return self._target.stored_size(blob.digest)  # one that was cut short is put again
        return blob.size if self._target.has_blob(blob.digest) else None

    def _count(self, blob: BlobInfo, size: int, *, moved: int = 0, adopted: bool = False) -> None:
        rest = max(0, blob.size - moved)
        with self._lock:
            self._sizes[blob.digest] = size
            self._adopted += adopted
            self._copied += moved > 0
            self._skipped += not moved and not adopted
            self._found += rest
            self._tell(rest)

    def _tell(self, amount: int) -> None:
        if self._progress is not None and amount:
            self._progress(amount)


class _Guarded:
    """A source whose reader is stopped with the rest of the copy."""

    def __init__(self, source: OpenBlob, lanes: Lanes) -> None:
        self._source = source
        self._lanes = lanes
        self.name = str(getattr(source, "name", "blob"))

    @property
    def size(self) -> int:
        return self._source.size

    def read_at(self, offset: int, length: int) -> bytes:
        self._lanes.check()
        return self._source.read_at(offset, length)


def _is_new(target: Store, name: str, document: Document, source: StoredStack) -> bool:
    """Whether no image has this name; False if it is the same one, with the same record."""
    if not target.has_image(name):
        return True
    with contextlib.suppress(ErosealError):
        there, record = target.image(name)
        if there.image == document.image and tuple(record) == source.record:
            return False
    raise exists_error(f"{target.where}:{name}", replaceable=True)


def _fill(fd: int, source: OpenBlob, length: int, options: CopyOptions) -> None:
    """Copy a blob to an empty file of ours; OSError passes through."""
    if isinstance(source, FileAt):
        copy_source(source, fd, length)
        if options.progress is not None:
            options.progress(length)
        return
    lanes, lock, shared = Lanes(options.parallel), threading.Lock(), SharedFds(os.dup(fd))

    def told(amount: int) -> None:
        with lock:
            if options.progress is not None:
                options.progress(amount)

    def work(start: int) -> None:
        with shared.use() as (target,):
            lanes.fetch(source, target, start, min(start + lanes.read_size, length), progress=told)

    try:
        starts = range(0, length, lanes.read_size)
        lanes.run(work, starts, workers=min(lanes.count, len(starts)))
    finally:
        shared.close()
