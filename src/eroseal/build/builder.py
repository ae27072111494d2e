"""From a directory to a sealed image in a store or a single file.

Steps: bases give their chunks to the index; the walk is read through the workers into spools; the data blob (the
data spool itself, in the store's own temporary file) gets its tree and seal; the image is laid out, written and
sealed; the document is published. Whatever fails on the way, nothing appears under a final name.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eroseal.build.finish import MetaBlob, seal_data_blob
from eroseal.build.options import BlobLayout, BuildOptions, BuildResult, BuiltBlob, Progress, Warn
from eroseal.build.pipeline import Ingest, check_devices
from eroseal.build.pool import LocalPool, Pool, ProcessPool
from eroseal.build.spools import Spools
from eroseal.build.wire import BLOCK, ScanError, WorkerConfig
from eroseal.errors import ErosealError, SourceError, UnsupportedError, UsageError
from eroseal.format.record import RecordEntry
from eroseal.image.layout import DeviceEntry, ImageOptions
from eroseal.seal.blob import SealedBlob
from eroseal.seal.chunker import BlobAllocator, ChunkIndex
from eroseal.store.atomic import output_error
from eroseal.store.document import BlobInfo, ImageDocument
from eroseal.store.local import LocalStore
from eroseal.store.protocol import BlobWriter
from eroseal.store.reference import FileReference, Reference, StoreReference
from eroseal.tree.attributes import apply_attributes
from eroseal.tree.directory import DirectorySource
from eroseal.tree.model import Directory

if TYPE_CHECKING:
    from eroseal.build.bases import BaseBlob

MakeRecord = Callable[[SealedBlob], Sequence[RecordEntry]]
"""Makes the entries of an image record from the sealed meta blob."""


def build(
    source: str | bytes | os.PathLike[str],
    target: Reference,
    options: BuildOptions,
    *,
    bases: tuple[str, ...] = (),
    warn: Warn | None = None,
    progress: Progress | None = None,
    record: MakeRecord | None = None,
) -> BuildResult:
    """Build a sealed image of a directory.

    Args:
        source: the directory.
        target: a name in a native store (made if it is not there), or a single file (`BlobLayout.NONE` only).
        options: see `BuildOptions`.
        bases: references of images whose chunks are reused; data is not read again.
        warn: called with a sentence for what is left out.
        progress: told files and bytes read.
        record: makes the entries of the image record, such as signatures, from the sealed meta blob; they appear
            together with the image, or neither does.

    Raises:
        SourceError: something cannot be read, or changes while it is read.
        OutputError: the target exists, or cannot be written.
        UsageError: options that do not fit together.
    """
    with contextlib.ExitStack() as stack, _without_collector():
        job = _Build(source, options, warn or (lambda text: None), progress, stack)
        job.make_record = record or job.make_record
        if isinstance(target, FileReference):
            return job.to_file(target, bases)
        if not isinstance(target, StoreReference):
            raise UnsupportedError("cannot build into this kind of place yet", where=str(target))
        return job.to_store(target.store, target.name, bases)


class _Build:
    """One build: its options, and what its steps leave for the next."""

    def __init__(
        self,
        source: str | bytes | os.PathLike[str],
        options: BuildOptions,
        warn: Warn,
        progress: Progress | None,
        stack: contextlib.ExitStack,
    ) -> None:
        self._source = source
        self._options = options
        self._warn = warn
        self._progress = progress
        self._stack = stack
        self._started = time.monotonic()
        self._index = ChunkIndex(options.params.algorithm.digest_size)
        self._bases: list[BaseBlob] = []
        self._allocators: list[BlobAllocator] = []
        self._spooled = 0
        self.make_record: MakeRecord = lambda sealed: ()

    # --- targets --------------------------------------------------------------------------------
    def to_file(self, target: FileReference, bases: tuple[str, ...]) -> BuildResult:
        """Everything in one file."""
        if bases or self._options.blobs is not BlobLayout.NONE:
            raise UsageError(
                "a single file has no data blobs, neither new ones nor those of a base",
                where=str(target),
                hint="build into a store: dir:PATH:NAME",
            )
        from eroseal.store.single import SingleWriter  # noqa: PLC0415 - loads the verifier

        writer = self._stack.enter_context(
            SingleWriter(target.path, replace=self._options.replace, durable=self._options.durable)
        )
        with _full_disk(target.path):
            spools = Spools.create(writer.fd, target.path.parent, self._stack)
            ingest, root = self._ingest(spools)
            sealed = self._write_meta(writer.fd, ingest, root, spools, (), {})
            writer.commit(self.make_record(sealed))
        return self._result(ingest, [BuiltBlob.of(sealed)])

    def to_store(self, path: Path, name: str, bases: tuple[str, ...]) -> BuildResult:
        """Blobs and a document in a native store."""
        store = LocalStore.create(path, durable=self._options.durable)
        # Called when everything else is closed: it removes a store that was made here and stayed empty.
        self._stack.callback(store.abandon)
        if not self._options.replace:
            store.require_new(name)
        if bases:
            from eroseal.build.bases import load_bases  # noqa: PLC0415 - most builds have none

            self._bases = load_bases(bases, self._options.params, self._index, self._stack)
        with _full_disk(path):
            return self._into(store, name)

    def _into(self, store: LocalStore, name: str) -> BuildResult:
        layout = self._options.blobs
        one_file = None if layout is BlobLayout.FILE else self._stack.enter_context(store.new_blob())
        spools = Spools.create(one_file.fd if one_file else None, store.path / "blobs", self._stack)
        ingest, root = self._ingest(spools)
        data, numbers = self._shared_blobs(store, ingest)
        check_devices(len(data) + len(self._allocators))
        if layout is not BlobLayout.NONE:
            new = self._new_blobs(store, one_file, spools)
            for allocator, blob in zip(self._allocators, new, strict=True):
                data.append(blob)
                numbers[allocator.device] = len(data)
        in_itself = one_file if layout is BlobLayout.NONE else None
        writer = in_itself or self._stack.enter_context(store.new_blob())
        devices = tuple(DeviceEntry(blob.digest.tag(), blob.data_size // BLOCK) for blob in data)
        sealed = self._write_meta(writer.fd, ingest, root, spools, devices, numbers)
        blobs = [replace(BuiltBlob.of(sealed), size=writer.commit(sealed.digest)), *data]
        document = ImageDocument(
            sealed.digest, tuple(BlobInfo(blob.digest, blob.data_size, blob.size) for blob in blobs)
        )
        record = [*self._kept_record(store, name, sealed), *self.make_record(sealed)]
        store.put_image(name, document, record, replace=self._options.replace)
        return self._result(ingest, blobs)

    def _kept_record(self, store: LocalStore, name: str, sealed: SealedBlob) -> Sequence[RecordEntry]:
        """What signatures and other entries an image has that is replaced by the same image."""
        if not self._options.replace or not store.has_image(name):
            return ()
        try:
            document, entries = store.image(name)
        except ErosealError:
            return ()  # broken: it is replaced whole
        return entries if document.image == sealed.digest else ()

    # --- reading --------------------------------------------------------------------------------
    def _ingest(self, spools: Spools) -> tuple[Ingest, Directory]:
        """Read the source; gives what was read, and the root."""
        options = self._options
        config = WorkerConfig(
            spools.data,
            spools.leaves,
            spools.tails,
            spools.packed,
            options.params.algorithm.name_text,
            options.params.salt,
            options.chunk_size,
            options.inline_max,
            self._tails,
            options.epoch,
            options.all_root,
            options.timestamp,
            options.clamp,
            not options.by_path,
        )
        jobs = options.job_count
        pool: Pool = LocalPool(config) if jobs == 1 else ProcessPool(config, jobs)
        self._stack.callback(pool.stop)
        ingest = Ingest(
            pool=pool,
            packed_fd=spools.packed,
            index=self._index,
            new_allocator=self._new_allocator,
            blob_per_file=options.blobs is BlobLayout.FILE,
            chunk_size=options.chunk_size,
            tails=self._tails,
            inline_max=options.inline_max,
            adjust=options.adjust if options.adjusts else None,
            warn=self._warn,
            progress=self._progress,
        )
        try:
            root = ingest.run(DirectorySource(self._source, exclude=options.exclude).walk())
        except ScanError as error:
            if error.output:
                raise OSError(error.number, os.strerror(error.number)) from error
            raise _source_error(error) from error
        if options.by_path:
            apply_attributes(root, owners=options.owners, file_contexts=options.file_contexts)
        return ingest, root

    @property
    def _tails(self) -> bool:
        """Whether files of a block or more may have inline tails: only next to blocks of the image itself."""
        return self._options.blobs is BlobLayout.NONE and not self._bases

    def _new_allocator(self) -> BlobAllocator:
        if self._options.blobs is BlobLayout.NONE:
            allocator = BlobAllocator(0, first_block=1, spool_start=1)
        else:
            if self._allocators:
                self._spooled += self._allocators[-1].blocks
            number = len(self._bases) + len(self._allocators) + 1
            check_devices(len(self._allocators) + 1)
            allocator = BlobAllocator(number, spool_start=self._spooled)
        self._allocators.append(allocator)
        return allocator

    # --- writing --------------------------------------------------------------------------------
    def _shared_blobs(self, store: LocalStore, ingest: Ingest) -> tuple[list[BuiltBlob], dict[int, int]]:
        """The bases' blobs that the image refers to, now in the store, and their device numbers."""
        used = [base for base in self._bases if base.number in ingest.used_devices]
        for base in used:
            if not store.has_blob(base.digest):
                with contextlib.closing(base.image.open_data(base.digest)) as source:
                    store.put_blob(base.digest, source, jobs=self._options.job_count)
        blobs = [BuiltBlob(base.digest, base.data_size, base.size, base.root_hash, False) for base in used]
        return blobs, {base.number: position for position, base in enumerate(used, 1)}

    def _new_blobs(self, store: LocalStore, one_file: BlobWriter | None, spools: Spools) -> list[BuiltBlob]:
        """Seal the new data blobs and put them into the store."""
        params = self._options.params
        blobs = []
        if one_file is not None:
            for allocator in self._allocators:
                sealed = seal_data_blob(one_file.fd, allocator, spools, params)
                blobs.append(replace(BuiltBlob.of(sealed), size=one_file.commit(sealed.digest)))
            return blobs
        with store.batch() as batch:
            for allocator in self._allocators:
                with batch.new_blob() as writer:
                    sealed = seal_data_blob(writer.fd, allocator, spools, params)
                    blobs.append(replace(BuiltBlob.of(sealed), size=writer.commit(sealed.digest)))
            batch.publish()
        return blobs

    def _write_meta(
        self,
        fd: int,
        ingest: Ingest,
        root: Directory,
        spools: Spools,
        devices: tuple[DeviceEntry, ...],
        numbers: dict[int, int],
    ) -> SealedBlob:
        """Lay out, write and seal the meta blob."""
        options = self._options
        in_itself = options.blobs is BlobLayout.NONE and self._allocators
        image_options = ImageOptions(
            devices=devices,
            device_numbers=numbers,
            chunk_size=options.chunk_size,
            epoch=options.epoch,
            data_blocks=1 + self._allocators[0].blocks if in_itself else 1,
            uuid=options.uuid,
            packed_files=ingest.packed_files,
            packed_serials=ingest.packed_serial,
            packed_blocks=ingest.packed_blocks,
        )
        return MetaBlob(fd, image_options, options.params, spools, options.job_count).write(root)

    def _result(self, ingest: Ingest, blobs: list[BuiltBlob]) -> BuildResult:
        totals = ingest.totals
        return BuildResult(
            blobs[0].digest,
            tuple(blobs),
            totals.files,
            totals.bytes_in,
            totals.bytes_new,
            totals.bytes_shared,
            time.monotonic() - self._started,
        )


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the cycle collector away: it would walk the growing tree again and again, and finds nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise output_error(error, path) from error


def _source_error(error: ScanError) -> SourceError:
    """A file that a worker could not read, as one of our own."""
    changed = not error.number
    what = error.what if changed else f"{error.what}: {os.strerror(error.number)}"
    hint = "build from a snapshot, or when nothing writes there" if changed else "--exclude leaves it out"
    return SourceError(what, where=os.fsdecode(error.path), hint=hint)
