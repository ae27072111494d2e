"""What an image is built from: a directory, an archive, or the layers of a container image.

Archives and layers are read as streams, into spools: unnamed files beside what is being built. Their trees are merged
or stacked in memory, where a file is a place in a spool. From there on they are read like a directory, in the same
order, so that a tree gives the same image however it came.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from eroseal.build.options import UNPACKING, BuildOptions, LayerMode, Progress, Warn
from eroseal.build.spools import spool
from eroseal.errors import FormatError, NotFoundError, SourceError, UsageError
from eroseal.limits import IO_CHUNK, MAX_ARCHIVE_ENTRIES, MAX_ARCHIVE_HOLES
from eroseal.store.remote import RemoteOptions
from eroseal.tree.directory import DirectorySource, ScannedDirectory

if TYPE_CHECKING:
    from eroseal.store.oci.select import SourceImage, SourceLayer
    from eroseal.tree.layer import Layer

Walk = Callable[[], Iterator[ScannedDirectory]]

_IMAGE_PREFIXES: Final = ("oci:", "oci-archive:", "docker-archive:", "docker://")
_STDIN: Final = "-"
_LAYERS_AT_ONCE: Final = 8
"""Layers that are unpacked at once, on any machine: each decoder may need MAX_DECODER_MEMORY."""
_OTHER_REFERENCE: Final = re.compile(r"dir:|[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Trees:
    """What a source gives.

    Args:
        walks: one, or of a stack one for each layer, the lowest first.
        source_fds: spools that archives were read into.
        config: of the container image, byte for byte.
    """

    walks: tuple[Walk, ...]
    source_fds: tuple[int, ...] = ()
    config: bytes | None = None


@dataclass(slots=True)
class Context:
    """What reading a source needs.

    Args:
        options: of the build.
        directory: for spools.
        stack: closes them.
        warn: called with a sentence for what is left out.
        progress: told what was read of archives.
    """

    options: BuildOptions
    directory: Path
    stack: contextlib.ExitStack
    warn: Warn
    progress: Progress | None = None
    _read: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, size: int) -> None:
        """Note that so many bytes of an archive were read; threads may call it."""
        if self.progress is not None:
            with self._lock:
                self._read += size
                self.progress(UNPACKING, self._read)

    def spool(self) -> int:
        """A new spool; OSError passes through."""
        return spool(self.directory, self.stack)


class Source(Protocol):
    """Something that an image can be built from."""

    def read(self, context: Context) -> Trees:
        """Read archives, if there are any; a directory is read by the walk alone.

        Raises:
            SourceError, NotFoundError: it cannot be read.
            FormatError: a broken or hostile archive.
            OSError: a spool cannot be written.
        """
        ...


@dataclass(frozen=True, slots=True)
class DirectoryTree:
    """A directory on disk."""

    path: str | bytes | os.PathLike[str]

    def read(self, context: Context) -> Trees:
        """The directory's walk."""
        return Trees((DirectorySource(self.path, exclude=context.options.exclude).walk,))


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar archive: plain, gzip, zstd or xz.

    Args:
        path: of the file; `-` is standard input.
    """

    path: str

    def read(self, context: Context) -> Trees:
        """Read the archive to its end."""
        from eroseal.tree.archive import read_archive  # noqa: PLC0415 - most builds read directories

        name = "standard input" if self.path == _STDIN else self.path
        fd = context.spool()
        with contextlib.closing(_pieces(self.path)) as pieces:
            layer = read_archive(
                pieces, spool=fd, source=0, container=False, name=name, tap=None, progress=context.count
            )
        return _trees([layer], (fd,), context)


@dataclass(frozen=True, slots=True)
class ContainerImage:
    """A container image: in a registry, in an image layout, or saved to a file.

    Args:
        text: `docker://…`, `oci:…`, `oci-archive:…` or `docker-archive:…`.
        remote: how servers are spoken to.
        platform: `os/arch[/variant]` to choose; None means Linux on this machine's processor.
    """

    text: str
    remote: RemoteOptions
    platform: str | None = None

    def read(self, context: Context) -> Trees:
        """Fetch, check and read all layers, several at once."""
        from eroseal.store.oci.select import open_source  # noqa: PLC0415 - loads the HTTP client

        with open_source(self.text, self.remote, platform=self.platform) as image:
            fds = tuple(context.spool() for _ in image.layers)
            layers = _Layers(image, fds, context).read()
            return _trees(layers, fds, context, config=image.config)


def parse_source(text: str, *, remote: RemoteOptions, platform: str | None = None) -> Source:
    """What the user named: a container image by its prefix, a file or `-` as an archive, else a directory.

    Raises:
        UsageError: a reference to something else.
        NotFoundError: no such file.
    """
    if text.startswith(_IMAGE_PREFIXES):
        return ContainerImage(text, remote, platform)
    if text == _STDIN:
        return Archive(text)
    try:
        found = os.stat(text)
    except (FileNotFoundError, NotADirectoryError) as error:
        if _OTHER_REFERENCE.match(text):
            raise UsageError(
                "is no source of builds", where=text, hint="eroseal copy takes images elsewhere"
            ) from error
        raise NotFoundError("no such file or directory", where=text) from error
    except (OSError, ValueError):
        return DirectoryTree(text)  # whoever reads it says why that cannot be done
    return DirectoryTree(text) if stat.S_ISDIR(found.st_mode) else Archive(text)


class _Layers:
    """Reads a container image's layers in threads; the first error stops the others."""

    def __init__(self, image: SourceImage, fds: Sequence[int], context: Context) -> None:
        self._image = image
        self._fds = fds
        self._count = context.count
        self._jobs = context.options.job_count
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._entries = 0

    def read(self) -> list[Layer]:
        count = len(self._image.layers)
        if self._jobs == 1 or count == 1:
            return [self._layer(number) for number in range(count)]
        with ThreadPoolExecutor(min(self._jobs, count, _LAYERS_AT_ONCE)) as executor:
            futures = [executor.submit(self._layer, number) for number in range(count)]
            try:
                # Not in their order: the first layer may stream for an hour after the last one was refused.
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future in done:
                        future.result()
                return [future.result() for future in futures]
            except BaseException:
                self._stop.set()
                executor.shutdown(wait=False, cancel_futures=True)
                raise

    def _layer(self, number: int) -> Layer:
        from eroseal.tree.archive import read_archive  # noqa: PLC0415 - most builds read directories

        layer = self._image.layers[number]
        name = f"{self._image.where}, layer {number + 1}"
        tap = _DiffId(layer, name)
        found = read_archive(
            self._stoppable(layer.open()),
            spool=self._fds[number],
            source=number,
            container=True,
            name=name,
            tap=tap.update,
            progress=None,
        )
        tap.check()
        self._count_entries(found.entries, name)
        return found

    def _count_entries(self, number: int, name: str) -> None:
        """All layers are in memory together, so together they have no more entries than a single archive."""
        with self._lock:
            self._entries += number
            if self._entries > MAX_ARCHIVE_ENTRIES:
                raise FormatError(f"the image's layers have more than {MAX_ARCHIVE_ENTRIES} entries", where=name)

    def _stoppable(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._stop.is_set():
                raise SourceError("stopped: another layer could not be read")
            self._count(len(piece))
            yield piece


class _DiffId:
    """Checks that an unpacked layer is the one that the image's config names."""

    def __init__(self, layer: SourceLayer, name: str) -> None:
        self._name = name
        algorithm, _, expected = (layer.diff_id or "").partition(":")
        self._expected = expected
        self._hash = hashlib.new(algorithm) if algorithm else None

    def update(self, data: bytes) -> None:
        if self._hash is not None:
            self._hash.update(data)

    def check(self) -> None:
        if self._hash is not None and self._hash.hexdigest() != self._expected:
            raise FormatError(
                f"unpacked, it is not what the image's config names: {self._hash.name}:{self._hash.hexdigest()} "
                f"instead of {self._expected}",
                where=self._name,
            )


def _trees(layers: Sequence[Layer], fds: tuple[int, ...], context: Context, *, config: bytes | None = None) -> Trees:
    from eroseal.tree.overlay import merge, stacked  # noqa: PLC0415 - most builds read directories
    from eroseal.tree.walk import TreeSource  # noqa: PLC0415

    for layer in layers:
        for warning in layer.warnings:
            more = f" and {warning.count - 1} more" if warning.count > 1 else ""
            context.warn(f"{layer.name}: {warning.what}: {os.fsdecode(warning.path)}{more}")
    if sum(layer.hole_bytes for layer in layers) > MAX_ARCHIVE_HOLES:
        raise FormatError(f"more than {MAX_ARCHIVE_HOLES} bytes of holes in files", where=layers[-1].name)
    options = context.options
    roots = stacked(layers) if options.layers is LayerMode.STACK else [merge(layers)]
    return Trees(tuple(TreeSource(root, exclude=options.exclude).walk for root in roots), fds, config)


def _pieces(path: str) -> Generator[bytes, None, None]:
    try:
        with contextlib.ExitStack() as stack:
            file = sys.stdin.buffer if path == _STDIN else stack.enter_context(Path(path).open("rb", buffering=0))
            while piece := file.read(IO_CHUNK):
                yield piece
    except FileNotFoundError as error:
        raise NotFoundError("no such file", where=path) from error
    except OSError as error:
        raise SourceError(f"cannot read: {error.strerror}", where=path) from error
