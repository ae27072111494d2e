"""From a source to a sealed image in a store or a single file.

Steps: bases give their chunks to the index; archives, if the source has any, are read into spools; each tree is read
through the workers; the data blobs (the data spool itself, in the store's own temporary file, where there is one) get
their trees and seals; each image is laid out, written and sealed; the document is published. Whatever fails on the way,
nothing appears under a final name.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eroseal.build.finish import MetaBlob, seal_data_blob
from eroseal.build.options import BlobLayout, BuildOptions, BuildResult, BuiltBlob, LayerMode, Progress, Warn
from eroseal.build.placement import Placement, Totals, check_devices
from eroseal.build.publish import Built, MakeRecord, publish, put_base_blobs, require_new, upload
from eroseal.build.reading import Reading, ReadTree
from eroseal.build.scratch import scratch_directory
from eroseal.build.sources import Context, DirectoryTree, Source, Trees
from eroseal.build.spools import Spools
from eroseal.build.wire import BLOCK
from eroseal.errors import UsageError
from eroseal.format.annex import encode_annex
from eroseal.image.layout import DeviceEntry, ImageOptions
from eroseal.seal.blob import SealedBlob
from eroseal.seal.chunker import BlobAllocator, ChunkIndex
from eroseal.store.atomic import output_error
from eroseal.store.document import BlobInfo, ImageDocument, StackDocument
from eroseal.store.local import LocalStore
from eroseal.store.protocol import BlobWriter
from eroseal.store.reference import FileReference, NamedReference, Reference, StoreReference
from eroseal.store.remote import RemoteOptions

if TYPE_CHECKING:
    from eroseal.build.bases import BaseBlob


def build(
    source: Source | str | bytes | os.PathLike[str],
    target: Reference,
    options: BuildOptions,
    *,
    bases: tuple[str, ...] = (),
    warn: Warn | None = None,
    progress: Progress | None = None,
    record: MakeRecord | None = None,
    remote: RemoteOptions | None = None,
) -> BuildResult:
    """Build a sealed image.

    Args:
        source: a directory, or what `parse_source` gave.
        target: a name in a store (a local one is made if it is not there), or a single file (`BlobLayout.NONE` only).
        options: see `BuildOptions`.
        bases: references of images whose chunks are reused; data is not read again.
        warn: called with a sentence for what is left out.
        progress: told files and bytes read; see `Progress`.
        record: makes the entries of the image record, such as signatures, from the image's digest; they appear
            together with the image, or neither does.
        remote: how servers are spoken to.

    Raises:
        SourceError: something cannot be read, or changes while it is read.
        OutputError: the target exists, or cannot be written.
        UsageError: options that do not fit together.
    """
    with contextlib.ExitStack() as stack, _without_collector():
        parsed = DirectoryTree(source) if isinstance(source, str | bytes | os.PathLike) else source
        job = _Build(parsed, options, remote or RemoteOptions(), warn or (lambda text: None), stack)
        job.progress = progress
        job.make_record = record or job.make_record
        if isinstance(target, FileReference):
            return job.to_file(target, bases)
        if isinstance(target, StoreReference):
            return job.to_store(target, bases)
        return job.to_remote(target, bases)


class _Build:
    """One build: its options, and what its steps leave for the next."""

    def __init__(
        self,
        source: Source,
        options: BuildOptions,
        remote: RemoteOptions,
        warn: Warn,
        stack: contextlib.ExitStack,
    ) -> None:
        self._source = source
        self._options = options
        self._remote = remote
        self._warn = warn
        self._stack = stack
        self._started = time.monotonic()
        index = ChunkIndex(options.params.algorithm.digest_size)
        self._placement = Placement(index, self._new_allocator, options.chunk_size, Totals())
        self._bases: list[BaseBlob] = []
        self._allocators: list[BlobAllocator] = []
        self._spooled = 0
        self.progress: Progress | None = None
        self.make_record: MakeRecord = lambda image, root_hash: ()

    # --- targets --------------------------------------------------------------------------------
    def to_file(self, target: FileReference, bases: tuple[str, ...]) -> BuildResult:
        """Everything in one file."""
        if bases or self._options.blobs is not BlobLayout.NONE:
            raise UsageError(
                "a single file has no data blobs, neither new ones nor those of a base",
                where=str(target),
                hint="build into a store: dir:PATH:NAME",
            )
        self._check_layers()
        from eroseal.store.single import SingleWriter  # noqa: PLC0415 - loads the verifier

        writer = self._stack.enter_context(
            SingleWriter(target.path, replace=self._options.replace, durable=self._options.durable)
        )
        with _full_disk(target.path):
            trees = self._read_source(target.path.parent)
            spools = Spools.create(writer.fd, target.path.parent, self._stack)
            [tree] = self._read_trees(trees, spools, target.path.parent)
            sealed = self._write_meta(writer.fd, tree, (), {}, annex=encode_annex(config=trees.config))
            writer.commit(self.make_record(sealed.digest, sealed.root_hash))
        blob = BuiltBlob.of(sealed)
        return self._result(Built(ImageDocument(blob.digest, (_info(blob),)), ((blob,),)))

    def to_store(self, target: StoreReference, bases: tuple[str, ...]) -> BuildResult:
        """Blobs and a document in a native store."""
        store = LocalStore.create(target.store, durable=self._options.durable)
        # Called when everything else is closed: it removes a store that was made here and stayed empty.
        self._stack.callback(store.abandon)
        if not self._options.replace:
            store.require_new(target.name)
        self._load_bases(bases)
        with _full_disk(target.store):
            built = self._into(store, with_bases=True)
            publish(store, target.name, built, self.make_record, replace=self._options.replace)
        return self._result(built)

    def to_remote(self, target: NamedReference, bases: tuple[str, ...]) -> BuildResult:
        """Blobs and a document in any other store: built in a directory of our own first."""
        from eroseal.store.lease import lease  # noqa: PLC0415 - loads what clients need
        from eroseal.store.open import open_store  # noqa: PLC0415 - loads clients

        store = self._stack.enter_context(open_store(target, self._remote, create=True, durable=self._options.durable))
        if not self._options.replace:
            require_new(store, target)
        self._load_bases(bases)
        scratch = self._stack.enter_context(scratch_directory(self._options.work))
        with _full_disk(scratch):
            local = LocalStore.create(scratch / "store", durable=False)
            built = self._into(local, with_bases=False)
        with lease(store, (blob.digest for blob in built.document.blobs)):
            upload(store, local, built, self._bases, parallel=self._remote.parallel, progress=self.progress)
            publish(store, target.name, built, self.make_record, replace=self._options.replace)
        return self._result(built)

    def _load_bases(self, bases: tuple[str, ...]) -> None:
        if not bases:
            return
        from eroseal.build.bases import load_bases  # noqa: PLC0415 - most builds have none

        self._bases = load_bases(bases, self._options.params, self._placement.index, self._stack, remote=self._remote)

    def _check_layers(self) -> None:
        if self._options.layers is LayerMode.STACK and self._options.blobs is BlobLayout.NONE:
            raise UsageError(
                "a stack of layers needs data blobs, which they share", hint="build into a store: dir:PATH:NAME"
            )

    # --- steps ----------------------------------------------------------------------------------
    def _into(self, store: LocalStore, *, with_bases: bool) -> Built:
        """Everything but the document in a local store; the bases' blobs too, if wanted.

        These come first: where one of them is spoiled, nothing of this build enters the store.
        """
        self._check_layers()
        directory = store.path / "blobs"
        layout = self._options.blobs
        trees = self._read_source(directory)
        several = layout is BlobLayout.FILE or (layout is BlobLayout.LAYER and len(trees.source_fds) > 1)
        one_file = None if several else self._stack.enter_context(store.new_blob())
        spools = Spools.create(one_file.fd if one_file else None, directory, self._stack)
        read = self._read_trees(trees, spools, directory)
        used = {number for tree in read for number in tree.devices}
        self._bases = [base for base in self._bases if base.number in used]
        if with_bases:
            put_base_blobs(store, self._bases, jobs=self._options.job_count)
        in_itself = one_file if layout is BlobLayout.NONE else None
        new: list[BuiltBlob] = [] if in_itself else self._new_blobs(store, one_file, spools)
        blobs = []
        for number, tree in enumerate(read, 1):
            data, numbers = self._data_blobs(tree, new)
            check_devices(len(data))
            writer = in_itself or self._stack.enter_context(store.new_blob())
            devices = tuple(DeviceEntry(blob.digest.tag(), blob.data_size // BLOCK) for blob in data)
            annex = encode_annex(config=trees.config if number == len(read) else None)
            sealed = self._write_meta(writer.fd, tree, devices, numbers, annex=annex)
            blobs.append((replace(BuiltBlob.of(sealed), size=writer.commit(sealed.digest)), *data))
        layers = tuple(ImageDocument(item[0].digest, tuple(map(_info, item))) for item in blobs)
        document = StackDocument(layers) if self._options.layers is LayerMode.STACK else layers[0]
        return Built(document, tuple(blobs))

    def _read_source(self, directory: Path) -> Trees:
        context = Context(self._options, directory, self._stack, self._warn, self.progress)
        return self._source.read(context)

    def _read_trees(self, trees: Trees, spools: Spools, directory: Path) -> list[ReadTree]:
        """Read every tree of the source; all share the spools of chunk data."""
        options = self._options
        stacked = len(trees.walks) > 1
        reading = Reading(
            options=options,
            placement=self._placement,
            # Only next to blocks of the image itself.
            tails=options.blobs is BlobLayout.NONE and not self._bases,
            source_fds=trees.source_fds,
            by_source=options.blobs is BlobLayout.LAYER and not stacked,
            warn=self._warn,
            progress=self.progress,
        )
        read = []
        for number, walk in enumerate(trees.walks):
            if number:
                spools = spools.for_another_tree(directory, self._stack)
                if options.blobs is BlobLayout.LAYER:
                    self._placement.start_blob()
            read.append(reading.read(walk, spools))
        return read

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

    def _data_blobs(self, tree: ReadTree, new: list[BuiltBlob]) -> tuple[list[BuiltBlob], dict[int, int]]:
        """The blobs that a tree refers to, bases' first, and their device numbers."""
        known = {
            base.number: BuiltBlob(base.digest, base.data_size, base.size, base.root_hash, False)
            for base in self._bases
        }
        if new:
            known |= {item.device: blob for item, blob in zip(self._allocators, new, strict=True)}
        used = [number for number in known if number in tree.devices]
        return [known[number] for number in used], {number: place for place, number in enumerate(used, 1)}

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
        self, fd: int, tree: ReadTree, devices: tuple[DeviceEntry, ...], numbers: dict[int, int], *, annex: bytes
    ) -> SealedBlob:
        """Lay out, write and seal a meta blob."""
        options = self._options
        in_itself = options.blobs is BlobLayout.NONE and self._allocators
        image_options = ImageOptions(
            devices=devices,
            device_numbers=numbers,
            chunk_size=options.chunk_size,
            epoch=options.epoch,
            data_blocks=1 + self._allocators[0].blocks if in_itself else 1,
            uuid=options.uuid,
            packed_files=tree.packed_files,
            packed_serials=tree.packed_serials,
            packed_blocks=tree.packed_blocks,
        )
        return MetaBlob(fd, image_options, options.params, tree.spools, options.job_count, annex).write(tree.root)

    def _result(self, built: Built) -> BuildResult:
        totals = self._placement.totals
        return BuildResult(
            built.document.image,
            tuple(dict.fromkeys(blob for blobs in built.blobs for blob in blobs)),
            tuple(blobs[0].digest for blobs in built.blobs),
            totals.files,
            totals.bytes_in,
            totals.bytes_new,
            totals.bytes_shared,
            time.monotonic() - self._started,
        )


def _info(blob: BuiltBlob) -> BlobInfo:
    return BlobInfo(blob.digest, blob.data_size, blob.size)


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
