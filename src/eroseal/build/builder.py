"""From a directory to a sealed image in a store or a single file.

Steps: bases give their chunks to the index; the walk is read through the workers into spools; the data blob (the
data spool itself, in the store's own temporary file) gets its tree and seal; the image is laid out, written and
sealed; the document is published. Whatever fails on the way, nothing appears under a final name.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from eroseal.build.bases import BaseBlob, bring_in, load_bases
from eroseal.build.options import BlobLayout, BuildOptions, BuildResult, BuiltBlob, Progress, Warn
from eroseal.build.pipeline import Ingest, check_devices
from eroseal.build.pool import LocalPool, Pool, ProcessPool
from eroseal.build.wire import BLOCK, ScanError, WorkerConfig
from eroseal.crypto.blocks import BlockHasher
from eroseal.crypto.merkle import hash_region
from eroseal.crypto.pieces import read_into, write_at
from eroseal.errors import SourceError
from eroseal.format.record import RecordEntry
from eroseal.format.sealed import TreeShape
from eroseal.image.layout import DeviceEntry, ImageOptions, plan
from eroseal.image.writer import ImageWriter, ReadTail, write_superblock
from eroseal.seal.blob import SealedBlob, finish_seal
from eroseal.seal.chunker import BlobAllocator, ChunkIndex
from eroseal.store.atomic import output_error
from eroseal.store.document import BlobInfo, ImageDocument
from eroseal.store.local import LocalStore
from eroseal.store.protocol import BlobWriter
from eroseal.store.reference import FileReference, Reference
from eroseal.store.single import SingleWriter
from eroseal.tree.directory import DirectorySource
from eroseal.tree.model import Directory

MakeRecord = Callable[[SealedBlob], Sequence[RecordEntry]]
"""Makes the entries of an image record from the sealed meta blob."""
_UUID_LABEL: Final = b"eroseal-image-uuid-v1\0"
_FLAT_DEVICES: Final = 64
"""Data blobs up to which files are addressed through the unified space: the kernel searches it linearly."""
_COPY: Final = 1 << 20


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
        self._hasher = BlockHasher(options.params)
        self._index = ChunkIndex(options.params.algorithm.digest_size)
        self._bases: list[BaseBlob] = []
        self._allocators: list[BlobAllocator] = []
        self._spooled = 0
        self.make_record: MakeRecord = lambda sealed: ()
        self._packed_fd = -1

    # --- targets --------------------------------------------------------------------------------
    def to_file(self, target: FileReference, bases: tuple[str, ...]) -> BuildResult:
        """Everything in one file."""
        if bases:
            raise SourceError(
                "a single file cannot refer to the data blobs of a base",
                hint="build into a store: dir:PATH:NAME",
            )
        writer = SingleWriter(target.path, replace=self._options.replace, durable=self._options.durable)
        self._stack.enter_context(writer)
        with _full_disk(target.path):
            ingest, root, tails, leaves = self._ingest(writer.fd, target.path.parent)
            sealed = self._write_image(writer.fd, ingest, root, tails, (), {}, leaves)
            writer.commit(self.make_record(sealed))
        return self._result(ingest, [BuiltBlob.of(sealed)])

    def to_store(self, path: Path, name: str, bases: tuple[str, ...]) -> BuildResult:
        """Blobs and a document in a native store."""
        store = LocalStore.create(path, durable=self._options.durable)
        try:
            if not self._options.replace:
                store.require_new(name)
            self._bases = load_bases(bases, self._options.params, self._index, self._stack)
            with _full_disk(path):
                return self._into(store, name)
        except BaseException:
            store.abandon()
            raise

    def _into(self, store: LocalStore, name: str) -> BuildResult:
        layout = self._options.blobs
        if layout is BlobLayout.FILE:
            spool_fd = self._spool(store.path / "blobs")
            data_writer: BlobWriter | None = None
        else:
            data_writer = self._stack.enter_context(store.new_blob())
            spool_fd = data_writer.fd
        ingest, root, tails, leaves = self._ingest(spool_fd, store.path / "blobs")
        used = [base for base in self._bases if base.number in ingest.used_devices]
        check_devices(len(used) + (0 if layout is BlobLayout.NONE else len(self._allocators)))
        for base in used:
            bring_in(base, store)
        data = [BuiltBlob(base.digest, base.data_size, base.size, base.root_hash, False) for base in used]
        numbers = {base.number: position for position, base in enumerate(used, 1)}
        if layout is not BlobLayout.NONE:
            for allocator in self._allocators:
                numbers[allocator.device] = len(data) + 1
                data.append(self._finish_data(store, allocator, data_writer, spool_fd, leaves))
        meta_writer = data_writer if layout is BlobLayout.NONE else None
        if meta_writer is None:
            meta_writer = self._stack.enter_context(store.new_blob())
        devices = tuple(DeviceEntry(blob.digest.tag(), blob.data_size // BLOCK) for blob in data)
        sealed = self._write_image(meta_writer.fd, ingest, root, tails, devices, numbers, leaves)
        size = meta_writer.commit(sealed.digest)
        blobs = [replace(BuiltBlob.of(sealed), size=size), *data]
        document = ImageDocument(
            sealed.digest, tuple(BlobInfo(blob.digest, blob.data_size, blob.size) for blob in blobs)
        )
        store.put_image(name, document, self.make_record(sealed), replace=self._options.replace)
        return self._result(ingest, blobs)

    # --- reading --------------------------------------------------------------------------------
    def _ingest(self, data_fd: int, spool_directory: Path) -> tuple[Ingest, Directory, int, int]:
        """Read the source; gives the ingest, the root, and the descriptors of tail and leaf spools."""
        options = self._options
        tails, leaves = self._spool(spool_directory), self._spool(spool_directory)
        self._packed_fd = self._spool(spool_directory)
        flat = self._flat
        config = WorkerConfig(
            data_fd,
            leaves,
            tails,
            self._packed_fd,
            options.params.algorithm.name_text,
            options.params.salt,
            options.chunk_size,
            options.inline_max,
            flat,
            options.epoch,
            options.all_root,
            options.timestamp,
            options.clamp,
        )
        pool = self._pool(config)
        self._stack.callback(pool.stop)
        ingest = Ingest(
            pool=pool,
            index=self._index,
            new_allocator=self._new_allocator,
            blob_per_file=options.blobs is BlobLayout.FILE,
            chunk_size=options.chunk_size,
            tails=flat,
            inline_max=options.inline_max,
            adjust=options.adjust if options.adjusts else None,
            warn=self._warn,
            progress=self._progress,
        )
        source = DirectorySource(self._source, exclude=options.exclude)
        try:
            root = ingest.run(source.walk())
        except ScanError as error:
            raise _scan_error(error) from error
        return ingest, root, tails, leaves

    def _spool(self, directory: Path) -> int:
        """Descriptor of an unnamed file, which goes when the build does."""
        return self._stack.enter_context(tempfile.TemporaryFile(dir=directory)).fileno()

    @property
    def _flat(self) -> bool:
        return self._options.blobs is not BlobLayout.FILE and len(self._bases) < _FLAT_DEVICES

    def _pool(self, config: WorkerConfig) -> Pool:
        jobs = self._options.job_count
        return LocalPool(config) if jobs == 1 else ProcessPool(config, jobs)

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
    def _finish_data(
        self,
        store: LocalStore,
        allocator: BlobAllocator,
        writer: BlobWriter | None,
        spool_fd: int,
        leaves_fd: int,
    ) -> BuiltBlob:
        """Seal one new data blob and put it into the store."""
        with contextlib.ExitStack() as stack:
            if writer is None:
                writer = stack.enter_context(store.new_blob())
                _copy(spool_fd, allocator.spool_start * BLOCK, writer.fd, 0, allocator.blocks * BLOCK)
            data_size = allocator.blocks * BLOCK
            self._place_leaves(leaves_fd, allocator.spool_start, writer.fd, data_size, allocator.blocks)
            sealed = finish_seal(writer.fd, data_size, self._options.params, chunk_blocks=allocator.chunk_blocks)
            size = writer.commit(sealed.digest)
        return replace(BuiltBlob.of(sealed), size=size)

    def _place_leaves(self, leaves_fd: int, first: int, fd: int, data_size: int, count: int, at: int = 0) -> None:
        """Copy leaf hashes of blocks from the spool to level 1 of a blob's tree, from block `at` on."""
        shape = TreeShape.of(data_size, self._options.params)
        if shape.levels:
            width = shape.digest_size
            _copy(leaves_fd, first * width, fd, shape.level_offset(1) + at * width, count * width)

    def _write_image(
        self,
        fd: int,
        ingest: Ingest,
        root: Directory,
        tails_fd: int,
        devices: tuple[DeviceEntry, ...],
        numbers: dict[int, int],
        leaves_fd: int,
    ) -> SealedBlob:
        """Lay out, write and seal the meta blob."""
        options = self._options
        in_front = self._allocators[0].blocks if options.blobs is BlobLayout.NONE and self._allocators else 0
        image_options = ImageOptions(
            devices=devices,
            device_numbers=numbers,
            chunk_size=options.chunk_size,
            epoch=options.epoch,
            flat=self._flat,
            data_blocks=1 + in_front,
            uuid=options.uuid,
            packed_files=ingest.packed_files,
            packed_blocks=ingest.packed_blocks,
        )
        layout = plan(root, image_options)
        writer = ImageWriter(layout, image_options, _tail_reader(tails_fd))
        superblock = writer.write(fd)
        packed_at = layout.meta_blkaddr * BLOCK + layout.packed_at
        _copy(self._packed_fd, 0, fd, packed_at, ingest.packed_blocks * BLOCK)
        data_size = writer.blocks * BLOCK
        shape = TreeShape.of(data_size, options.params)
        width = shape.digest_size
        # What follows the data region's end may be left of an earlier, longer spool: nothing is, it only grows.
        leaf_level = shape.level_offset(1) if shape.levels else data_size
        self._place_leaves(leaves_fd, 1, fd, data_size, in_front, at=1)

        def write_leaves(block: int, hashes: bytes) -> None:
            write_at(fd, hashes, leaf_level + block * width)

        start = (1 + in_front) * BLOCK if in_front else 0
        hash_region(fd, data_size, self._hasher, write_leaves=write_leaves, start=start, jobs=options.job_count)
        if in_front or options.uuid is None:
            if options.uuid is None:
                superblock = replace(superblock, uuid=self._derive_uuid(fd, leaf_level, data_size // BLOCK * width))
                write_superblock(fd, superblock)
            first = memoryview(bytearray(BLOCK))
            read_into(fd, first, 0)
            write_at(fd, self._hasher.hash_blocks(first), leaf_level)
        return finish_seal(fd, data_size, options.params)

    def _derive_uuid(self, fd: int, leaf_level: int, length: int) -> bytes:
        """A UUID of version 8 from the hashes of all blocks; the first is hashed anew with the UUID in it."""
        digest = hashlib.sha256(_UUID_LABEL)
        width = self._options.params.algorithm.digest_size
        for start in range(width, length, _COPY):
            piece = memoryview(bytearray(min(_COPY, length - start)))
            read_into(fd, piece, leaf_level + start)
            digest.update(piece)
        first = memoryview(bytearray(BLOCK))
        read_into(fd, first, 0)
        digest.update(first)
        uuid = bytearray(digest.digest()[:16])
        uuid[6] = uuid[6] & 0x0F | 0x80
        uuid[8] = uuid[8] & 0x3F | 0x80
        return bytes(uuid)

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


def _tail_reader(fd: int) -> ReadTail:
    """Reads tails in rising order through one buffer of the spool."""
    buffer = b""
    start = 0

    def read(at: int, length: int) -> bytes:
        nonlocal buffer, start
        offset = at - start
        if offset < 0 or offset + length > len(buffer):
            buffer = os.pread(fd, _COPY, at)
            start, offset = at, 0
        return buffer[offset : offset + length]

    return read


def _copy(source: int, source_at: int, target: int, target_at: int, length: int) -> None:
    """Copy bytes between files."""
    while length:
        piece = os.pread(source, min(_COPY, length), source_at)
        if not piece:
            raise SourceError("a spool file ended too early")
        write_at(target, piece, target_at)
        source_at += len(piece)
        target_at += len(piece)
        length -= len(piece)


@contextlib.contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise output_error(error, path) from error


def _scan_error(error: ScanError) -> Exception:
    """What a worker met, as one of our own."""
    reason = os.strerror(error.number) if error.number else ""
    what = f"{error.what}: {reason}" if reason else error.what
    if error.output:
        return output_error(OSError(error.number, reason), Path("."), error.what)
    hint = "build from a snapshot, or when nothing writes there" if "changed" in error.what else None
    return SourceError(what, where=os.fsdecode(error.path), hint=hint)
