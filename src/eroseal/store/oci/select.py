"""A container image as the source of a build: found, chosen for a platform, and its layers checked as they come.

Nothing here decides what is in a layer. What an image is made of is settled first: known media types, as many
layers as its config names, and not too many of them; then each layer streams, and is what its descriptor says before
its last byte is given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from eroseal.errors import FormatError, NotFoundError, UnsupportedError, UsageError
from eroseal.limits import MAX_MANIFEST, MAX_STACK_LAYERS
from eroseal.store.oci.archive import open_saved
from eroseal.store.oci.documents import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    EROFS_LAYER,
    INDEXES,
    MANIFESTS,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_NONDISTRIBUTABLE,
    Config,
    Descriptor,
    Index,
    Manifest,
    check_digest,
    parse,
)
from eroseal.store.oci.layout import LayoutRepository
from eroseal.store.oci.layout_reader import LayoutReader
from eroseal.store.oci.platform import Target, choose, machine_target, parse_platform
from eroseal.store.oci.tarfiles import TarFiles
from eroseal.store.reference import RegistryReference, check_tag, parse_reference
from eroseal.store.remote import RemoteOptions

OCI_PREFIX: Final = "oci:"
OCI_ARCHIVE_PREFIX: Final = "oci-archive:"
DOCKER_ARCHIVE_PREFIX: Final = "docker-archive:"
REGISTRY_PREFIX: Final = "docker://"

_DOCKER_FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_COMPRESSIONS: Final = ("", "+gzip", "+zstd")
_ELSEWHERE: Final = frozenset(
    {OCI_NONDISTRIBUTABLE + suffix for suffix in _COMPRESSIONS} | {_DOCKER_FOREIGN, f"{_DOCKER_FOREIGN}.gzip"}
)
"""Layers that may lie somewhere else."""
_LAYERS: Final = (
    frozenset({OCI_LAYER + suffix for suffix in _COMPRESSIONS})
    | {DOCKER_LAYER, f"{DOCKER_LAYER}.gzip", f"{DOCKER_LAYER}.zstd"}
    | _ELSEWHERE
)
_CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_MAX_NESTING: Final = 4
"""Indexes in indexes: builders make one level, some registries two."""


class _Images(Protocol):
    """What images are read from."""

    @property
    def where(self) -> str: ...
    def manifest(self, reference: str) -> tuple[bytes, Descriptor]: ...
    def has_blob(self, descriptor: Descriptor) -> bool: ...
    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]: ...
    def read_blob(self, descriptor: Descriptor, *, limit: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """A layer of a source image.

    Args:
        descriptor: of its bytes as they are stored, mostly compressed.
        diff_id: digest of its uncompressed bytes, by the image's config.
        open: starts a stream of the stored bytes, which raises FormatError at the latest in place of its end if they
            are not what the descriptor says. Several threads may read several layers.
    """

    descriptor: Descriptor
    diff_id: str | None
    open: Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class SourceImage:
    """A container image to build from; a context manager that closes what it is read from.

    Args:
        where: what messages call it.
        digest: of its manifest; of its config where there is no manifest (docker save).
        config: byte for byte.
        layers: the lowest first.
    """

    where: str
    digest: str
    config: bytes
    layers: tuple[SourceLayer, ...]
    _close: Callable[[], None] = field(repr=False)

    def close(self) -> None:
        """Give connections and files back; closing twice does no harm."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def open_source(text: str, options: RemoteOptions, *, platform: str | None = None) -> SourceImage:
    """Find the image that the user names, and settle what it consists of; its layers are not read yet.

    Args:
        text: `docker://HOST/REPO:TAG`, `oci:PATH[:TAG]`, `oci-archive:PATH[:TAG]` or `docker-archive:PATH[:NAME]`.
        options: how servers are spoken to.
        platform: `os/arch[/variant]`; None chooses Linux on this machine's processor where there is a choice.

    Raises:
        UsageError: malformed, or not clear which image is meant.
        NotFoundError: no such image, none for the platform, or a part of it is missing.
        UnsupportedError: it is made of something that this version does not know.
        FormatError: malformed, or not what its digests say.
        RemoteError, AccessError: of a registry.
    """
    target = None if platform is None else parse_platform(platform)
    if text.startswith(DOCKER_ARCHIVE_PREFIX):
        path, name = _split_first(text.removeprefix(DOCKER_ARCHIVE_PREFIX))
        return _saved(path, name, target, text)
    if text.startswith(OCI_ARCHIVE_PREFIX):
        path, tag = _split_last(text.removeprefix(OCI_ARCHIVE_PREFIX))
        files = TarFiles(path)
        reader = LayoutReader(files, f"{OCI_ARCHIVE_PREFIX}{path}")
        return _guarded(lambda: _from_layout(reader, tag, target, text, files.close), files.close)
    if text.startswith(OCI_PREFIX):
        path, tag = _split_last(text.removeprefix(OCI_PREFIX))
        layout = LayoutRepository(path)
        return _from_layout(layout, tag, target, text, layout.close)
    reference = parse_reference(text)
    if not isinstance(reference, RegistryReference):
        raise UsageError(
            f"not a container image: {text!r}", hint="use oci:, oci-archive:, docker-archive: or docker://"
        )
    from eroseal.store.oci.registry import RegistryRepository  # noqa: PLC0415 - loads the HTTP client

    registry = RegistryRepository(reference.host, reference.repository, options)
    return _guarded(lambda: _resolve(registry, reference.name, target, text, registry.close), registry.close)


def _guarded(work: Callable[[], SourceImage], close: Callable[[], None]) -> SourceImage:
    try:
        return work()
    except BaseException:
        close()
        raise


def _from_layout(
    layout: LayoutReader, tag: str | None, target: Target | None, text: str, close: Callable[[], None]
) -> SourceImage:
    if not layout.is_marked():
        raise FormatError("is not an OCI image layout", where=layout.where)
    reference = layout.sole().digest if tag is None else check_tag(tag)
    return _resolve(layout, reference, target, text, close)


def _resolve(
    images: _Images, reference: str, target: Target | None, where: str, close: Callable[[], None]
) -> SourceImage:
    """Follow indexes to one manifest, and read what it says."""
    data, descriptor = images.manifest(reference)
    chosen = False
    for _ in range(_MAX_NESTING):
        if descriptor.media_type not in INDEXES:
            break
        entries = parse(data, Index, where=where).manifests
        entry = choose(entries, target or machine_target(os.uname().machine), where=where)
        chosen = entry.platform is not None
        data, found = images.manifest(entry.digest)
        if found.media_type != entry.media_type or found.size != entry.size:
            raise FormatError(f"{entry.digest} is not what the index says", where=where)
        descriptor = found
    if descriptor.media_type not in MANIFESTS:
        raise UnsupportedError(f"not an image, but {descriptor.media_type[:100]!r}", where=where)
    manifest = parse(data, Manifest, where=where)
    _check_types(manifest, where)
    config = images.read_blob(manifest.config, limit=MAX_MANIFEST)
    diff_ids = _diff_ids(config, len(manifest.layers), None if chosen else target, where)
    layers = [_layer(images, layer, diff_id) for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)]
    return SourceImage(where, descriptor.digest, config, tuple(layers), close)


def _check_types(manifest: Manifest, where: str) -> None:
    if any(layer.media_type.startswith(EROFS_LAYER) for layer in manifest.layers):
        raise UnsupportedError(
            "is an EROFS image already, not one of tar layers", where=where, hint="copy it, or use it as a base"
        )
    if manifest.config.media_type not in _CONFIGS:
        raise UnsupportedError(f"not a container image, but {manifest.config.media_type[:100]!r}", where=where)
    for layer in manifest.layers:
        if layer.media_type not in _LAYERS:
            raise UnsupportedError(f"a layer of unknown type {layer.media_type[:100]!r}", where=where)
    if len(manifest.layers) > MAX_STACK_LAYERS:
        raise UnsupportedError(f"has {len(manifest.layers)} layers, more than {MAX_STACK_LAYERS}", where=where)


def _diff_ids(data: bytes, layers: int, target: Target | None, where: str) -> list[str]:
    """What the config says of each layer; a platform that was asked for must be the config's."""
    config = parse(data, Config, where=where)
    if target is not None and not target.accepts(config.os, config.architecture, config.variant):
        there = "/".join(part for part in (config.os, config.architecture, config.variant) if part)
        raise NotFoundError(f"no image for {target}", where=where, hint=f"it is for {there or 'no platform'}")
    if len(config.rootfs.diff_ids) != layers:
        raise FormatError(f"{layers} layers, of which the config names {len(config.rootfs.diff_ids)}", where=where)
    try:
        return [check_digest(diff_id) for diff_id in config.rootfs.diff_ids]
    except ValueError as error:
        raise FormatError(str(error), where=where) from error


def _layer(images: _Images, layer: Descriptor, diff_id: str) -> SourceLayer:
    if layer.media_type in _ELSEWHERE and not images.has_blob(layer):
        raise UnsupportedError(
            f"layer {layer.digest} is not distributed with the image",
            where=images.where,
            hint="push it with its foreign layers to a registry of your own, and use that",
        )
    return SourceLayer(layer, diff_id, lambda: images.stream_blob(layer))


def _saved(path: Path, name: str | None, target: Target | None, where: str) -> SourceImage:
    files = TarFiles(path)

    def read() -> SourceImage:
        image = open_saved(files, name, where=where)
        _diff_ids(image.config, len(image.layers), target, where)
        layers = tuple(SourceLayer(layer.descriptor, layer.diff_id, layer.stream) for layer in image.layers)
        return SourceImage(where, image.descriptor.digest, image.config, layers, files.close)

    return _guarded(read, files.close)


def _split_last(rest: str) -> tuple[Path, str | None]:
    """PATH[:TAG]; a part with a slash is no tag."""
    path, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        path, tag = rest, ""
    if not path or (colon and not tag and path != rest):
        raise UsageError(f"not an image: {rest!r}", hint="write PATH or PATH:TAG")
    return Path(path), tag or None


def _split_first(rest: str) -> tuple[Path, str | None]:
    """PATH[:NAME[:TAG]]."""
    path, colon, name = rest.partition(":")
    if not path or (colon and not name):
        raise UsageError(
            f"not a saved image: {rest!r}", hint="write docker-archive:PATH or docker-archive:PATH:NAME:TAG"
        )
    return Path(path), name or None
