"""Stacks of layers made by hand: a directory for each layer, with overlayfs's own marks; needs root."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.kernel import mounted, unmount

from eroseal.build.builder import build
from eroseal.build.options import BuildOptions
from eroseal.format.statement import StackDigest
from eroseal.image.stack import StackReader
from eroseal.store.document import ImageDocument, StackDocument
from eroseal.store.local import LocalStore
from eroseal.store.reference import StoreReference
from eroseal.store.resolve import resolve_layers
from eroseal.trust.policy import Policy
from eroseal.trust.stack import LayerSource, open_stack

_MS_RDONLY = 1
_libc = ctypes.CDLL(None, use_errno=True)

OPAQUE = "trusted.overlay.opaque"


def whiteout(path: Path) -> None:
    """Take a name of lower layers away."""
    os.mknod(path, 0o020000, os.makedev(0, 0))


def opaque(directory: Path, value: bytes = b"y") -> None:
    """Hide what lower layers have in a directory."""
    os.setxattr(directory, OPAQUE, value)


def build_stack(store: Path, layers: Sequence[Path], name: str = "app") -> StackDocument:
    """Build each directory, the lowest first, and publish them as one; every layer reuses what lower ones hold."""
    documents = []
    bases: list[str] = []
    for number, layer in enumerate(layers, 1):
        target = StoreReference(store, f"{name}-{number}")
        build(layer, target, BuildOptions(jobs=1, durable=False, chunk_size=4096), bases=tuple(bases))
        bases.append(str(target))
        document, _ = LocalStore.open(store).image(target.name)
        assert isinstance(document, ImageDocument)
        documents.append(document)
    return publish(store, documents, name)


def publish(store: Path, layers: Sequence[ImageDocument], name: str = "app") -> StackDocument:
    """Give images that are in a store a common name."""
    document = StackDocument(tuple(layers))
    LocalStore.open(store).put_image(name, document, replace=True)
    return document


@contextlib.contextmanager
def reading(reference: str, digest: StackDigest) -> Iterator[StackReader]:
    """A verified reader of a stack."""
    with resolve_layers(reference) as stored:
        sources = [
            LayerSource(layer.document.image, layer.meta, layer.open_data)
            for layer in stored.layers
            if layer.document is not None
        ]
        with open_stack(sources, policy=Policy(time=0, digests=(digest,))) as stack:
            yield StackReader(stack.layers)


@contextlib.contextmanager
def mounted_stack(store: Path, document: StackDocument, place: Path) -> Iterator[Path]:
    """All layers, each mounted by the kernel's EROFS, on each other by its overlayfs; `place` is on a disk."""
    blob_path = LocalStore.open(store).blob_path
    place.mkdir()
    with contextlib.ExitStack() as stack:
        points = []
        for number, layer in enumerate(document.layers):
            meta, *data = [blob_path(blob.digest) for blob in layer.blobs]
            points.append(stack.enter_context(mounted(meta, data, place / str(number))))
        if len(points) == 1:
            # overlayfs wants two layers, and an empty one below changes nothing.
            (place / "empty").mkdir()
            points.insert(0, place / "empty")
        yield stack.enter_context(overlay(points, place / "all"))


@contextlib.contextmanager
def overlay(layers: Sequence[Path], target: Path) -> Iterator[Path]:
    """Directories, the lowest first, mounted on each other, read only."""
    target.mkdir()
    options = "lowerdir=" + ":".join(str(layer) for layer in reversed(layers))
    if _libc.mount(b"overlay", os.fsencode(target), b"overlay", _MS_RDONLY, os.fsencode(options)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))
    try:
        yield target
    finally:
        unmount(target)
