"""What a build can be told, and what it answers."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from eroseal.errors import UsageError
from eroseal.format.digest import Digest, TreeParams
from eroseal.format.statement import ImageDigest
from eroseal.seal.blob import SealedBlob
from eroseal.seal.chunker import check_chunk_size
from eroseal.tree.attributes import Owner
from eroseal.tree.model import Inode
from eroseal.tree.rules import Scope

Warn = Callable[[str], None]
Progress = Callable[[int, int], None]
"""Called with (files, bytes) read so far; with UNPACKING and bytes read of archives, or UPLOADING and bytes sent."""
UNPACKING: Final = 0
UPLOADING: Final = -1


class BlobLayout(enum.Enum):
    """How chunk data is spread over data blobs (`--blobs`)."""

    NONE = "none"
    BUILD = "build"
    LAYER = "layer"
    FILE = "file"


class LayerMode(enum.Enum):
    """What becomes of a source's layers (`--layers`)."""

    MERGE = "merge"
    STACK = "stack"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Options of a build; all of them, the source and the bases decide the bytes, and nothing else does.

    Args:
        blobs: NONE puts chunks into the image itself, BUILD into one new data blob, LAYER into one for each layer of
            the source (a directory is one layer), FILE into one for each file.
        layers: MERGE makes one image of a source's layers, STACK one of each, to be mounted on top of each other.
        params: hash algorithm and salt of all trees.
        chunk_size: bytes, a power of two from 4 KiB to 1 MiB.
        inline_max: longest file or tail that goes into the meta blob, in bytes, 0 to 4095.
        timestamp: sets all times and the image's own, in seconds since the epoch.
        clamp: latest file time that is kept, and the image's own time (SOURCE_DATE_EPOCH).
        uuid: 16 bytes; None derives one from the content.
        all_root: make root the owner of everything.
        owners: owners and permissions by path, after `all_root`.
        file_contexts: SELinux contexts by path, in place of the source's.
        exclude: glob patterns of paths or names to leave out.
        jobs: worker processes; 1 works in the calling process, None means one for each processor.
        durable: sync what is written to disk.
        replace: take the place of an image of the same name.
        work: directory for what is built before it goes to a remote target; None means the system's for such files.
    """

    blobs: BlobLayout = BlobLayout.BUILD
    layers: LayerMode = LayerMode.MERGE
    params: TreeParams = field(default_factory=TreeParams)
    chunk_size: int = 65536
    inline_max: int = 4095
    timestamp: int | None = None
    clamp: int | None = None
    uuid: bytes | None = None
    all_root: bool = False
    owners: Scope[Owner] | None = None
    file_contexts: Scope[bytes | None] | None = None
    exclude: tuple[str, ...] = ()
    jobs: int | None = None
    durable: bool = True
    replace: bool = False
    work: Path | None = None

    def __post_init__(self) -> None:
        check_chunk_size(self.chunk_size)
        if not 0 <= self.inline_max <= 4095:
            raise UsageError(f"longest inlined file of {self.inline_max} bytes is not from 0 to 4095")
        if self.uuid is not None and len(self.uuid) != 16:
            raise UsageError("a UUID has 16 bytes")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"{self.jobs} jobs are not at least 1")

    @property
    def epoch(self) -> int:
        """The image's own time, in seconds."""
        return self.timestamp if self.timestamp is not None else self.clamp or 0

    @property
    def job_count(self) -> int:
        """Worker processes to use."""
        return self.jobs if self.jobs is not None else len(os.sched_getaffinity(0))

    def adjust(self, inode: Inode) -> None:
        """Apply ownership and time options to an inode."""
        if self.all_root:
            inode.uid = inode.gid = 0
        if self.timestamp is not None:
            inode.mtime, inode.mtime_nsec = self.timestamp, 0
        elif self.clamp is not None and (inode.mtime, inode.mtime_nsec) > (self.clamp, 0):
            inode.mtime, inode.mtime_nsec = self.clamp, 0

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` does anything."""
        return self.all_root or self.timestamp is not None or self.clamp is not None

    @property
    def by_path(self) -> bool:
        """Whether attributes depend on paths, which only the parent of the workers knows as a whole."""
        return self.owners is not None or self.file_contexts is not None


@dataclass(frozen=True, slots=True)
class BuiltBlob:
    """A blob of a built image.

    Args:
        sealed: what sealing gave; for a base's blob, what its seal says.
        new: whether this build wrote it.
    """

    digest: Digest
    data_size: int
    size: int
    root_hash: bytes
    new: bool

    @classmethod
    def of(cls, sealed: SealedBlob) -> BuiltBlob:
        """A blob that was just sealed."""
        return cls(sealed.digest, sealed.descriptor.data_size, sealed.size, sealed.root_hash, True)


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What a build made.

    Args:
        image: the image or stack digest.
        blobs: the meta blob, then the data blobs in device order; of a stack, those of each layer, the lowest first.
        layers: digest of each meta blob, the lowest first.
        files: inodes of any kind, names of hard links counted.
        bytes_in: content bytes of regular files.
        bytes_new, bytes_shared: bytes of chunks stored, and of chunks found.
        seconds: wall time.
    """

    image: ImageDigest
    blobs: tuple[BuiltBlob, ...]
    layers: tuple[Digest, ...]
    files: int
    bytes_in: int
    bytes_new: int
    bytes_shared: int
    seconds: float
