"""Reading one tree of a source: workers, spools, and afterwards a tree whose inodes say where their content lies."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from eroseal.build.options import BlobLayout, BuildOptions, Progress, Warn
from eroseal.build.pipeline import Ingest
from eroseal.build.placement import Placement
from eroseal.build.pool import LocalPool, Pool, ProcessPool
from eroseal.build.sources import Walk
from eroseal.build.spools import Spools
from eroseal.build.wire import ScanError, WorkerConfig
from eroseal.errors import SourceError
from eroseal.tree.attributes import apply_attributes
from eroseal.tree.model import Directory


@dataclass(frozen=True, slots=True)
class ReadTree:
    """A tree that was read.

    Args:
        root: of the tree.
        packed_files, packed_serials, packed_blocks: what lies in the packed spool, see `ImageOptions`.
        spools: that its content went to.
        devices: provisional numbers of the devices that it refers to.
    """

    root: Directory
    packed_files: int
    packed_serials: int
    packed_blocks: int
    spools: Spools
    devices: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Reads trees, one after the other, into one placement.

    Args:
        options: of the build.
        placement: of chunks; it counts what is read.
        tails: whether files of a block or more may have inline tails.
        source_fds: spools that archives were read into.
        by_source: start a new data blob for each of these.
        warn, progress: as for `build`.
    """

    options: BuildOptions
    placement: Placement
    tails: bool
    source_fds: tuple[int, ...]
    by_source: bool
    warn: Warn
    progress: Progress | None

    def read(self, walk: Walk, spools: Spools) -> ReadTree:
        """Read one tree.

        Raises:
            SourceError: something cannot be read, or changed meanwhile.
            OSError: a spool cannot be written.
        """
        options, placement = self.options, self.placement
        placement.used_devices = set()
        with contextlib.ExitStack() as stack:
            config = self._config(spools)
            jobs = options.job_count
            pool: Pool = LocalPool(config) if jobs == 1 else ProcessPool(config, jobs)
            stack.callback(pool.stop)
            ingest = Ingest(
                pool=pool,
                packed_fd=spools.packed,
                source_fds=self.source_fds,
                placement=placement,
                blob_per_file=options.blobs is BlobLayout.FILE,
                blob_per_source=self.by_source,
                tails=self.tails,
                inline_max=options.inline_max,
                adjust=options.adjust if options.adjusts else None,
                warn=self.warn,
                progress=self.progress,
            )
            try:
                root = ingest.run(walk())
            except ScanError as error:
                if error.output:
                    raise OSError(error.number, os.strerror(error.number)) from error
                raise _source_error(error) from error
        if options.by_path:
            apply_attributes(root, owners=options.owners, file_contexts=options.file_contexts)
        return ReadTree(
            root,
            ingest.packed_files,
            ingest.packed_serial,
            ingest.packed_blocks,
            spools,
            frozenset(placement.used_devices),
        )

    def _config(self, spools: Spools) -> WorkerConfig:
        options = self.options
        return WorkerConfig(
            data_fd=spools.data,
            leaves_fd=spools.leaves,
            tails_fd=spools.tails,
            packed_fd=spools.packed,
            algorithm=options.params.algorithm.name_text,
            salt=options.params.salt,
            chunk_size=options.chunk_size,
            inline_max=options.inline_max,
            tails=self.tails,
            epoch=options.epoch,
            all_root=options.all_root,
            timestamp=options.timestamp,
            clamp=options.clamp,
            pack=not options.by_path,
            source_fds=self.source_fds,
        )


def _source_error(error: ScanError) -> SourceError:
    """A file that a worker could not read, as one of our own."""
    changed = not error.number
    what = error.what if changed else f"{error.what}: {os.strerror(error.number)}"
    hint = "build from a snapshot, or when nothing writes there" if changed else "--exclude leaves it out"
    return SourceError(what, where=os.fsdecode(error.path), hint=hint)
