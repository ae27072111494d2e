"""Images saved to one file: `docker save` and its like.

``manifest.json`` lists the images of the archive with their names, their configs and their layers. Mostly the layers
are uncompressed, as the config's digests name them. The archives of newer engines are OCI layouts at the same time,
where files are called by their digests. A compressed layer of any other name is hashed before it is used.

Source: the Docker image specification v1.2 ("Combined Image JSON + Filesystem Changeset Format").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from eroseal.errors import FormatError, NotFoundError, UsageError
from eroseal.limits import IO_CHUNK, MAX_JSON_BODY, MAX_MANIFEST, MAX_STACK_LAYERS
from eroseal.store.oci.content import digest_of, new_hash, verified
from eroseal.store.oci.documents import DOCKER_CONFIG, OCI_LAYER, Config, Descriptor, check_digest, parse
from eroseal.store.oci.tarfiles import Part, TarFiles
from eroseal.store.reference import RegistryReference, parse_reference

_MANIFEST: Final = "manifest.json"
_LAYOUT_BLOB: Final = re.compile(r"blobs/(sha256|sha512)/([0-9a-f]{64,128})", re.ASCII)
_NAMED_CONFIG: Final = re.compile(r"([0-9a-f]{64})\.json", re.ASCII)
_TYPES: Final = ((b"\x1f\x8b", "+gzip"), (b"\x28\xb5\x2f\xfd", "+zstd"))
_SHOWN: Final = 10


class _Entry(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None


@dataclass(frozen=True, slots=True)
class SavedLayer:
    """A layer of a saved image.

    Args:
        part: where it lies in the archive.
        descriptor: of its bytes as they are there.
        diff_id: digest of its uncompressed bytes.
    """

    part: Part
    descriptor: Descriptor
    diff_id: str

    def stream(self) -> Iterator[bytes]:
        """Its bytes, checked against the descriptor while they come; raises FormatError."""
        return verified(_pieces(self.part), self.descriptor, where=self.part.name)


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image of an archive.

    Args:
        config: byte for byte.
        descriptor: of the config.
        layers: the lowest first.
    """

    config: bytes
    descriptor: Descriptor
    layers: tuple[SavedLayer, ...]


def open_saved(files: TarFiles, name: str | None, *, where: str) -> SavedImage:
    """Find an image in an archive.

    Args:
        files: of the archive; they stay open as long as the image is used.
        name: as `docker save` was given it; None takes the only one.
        where: for messages.

    Raises:
        FormatError: a malformed archive, or one that contradicts itself.
        NotFoundError: no such image, or a part of it is missing.
        UsageError: it has several images, and no name is given.
    """
    data = files.read(_MANIFEST, limit=MAX_JSON_BODY)
    if data is None:
        raise FormatError(f"has no {_MANIFEST}: not a saved image", where=where, hint="was it made by docker save?")
    try:
        entries = msgspec.json.decode(data, type=list[_Entry])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError(f"{_MANIFEST} is malformed", where=where) from error
    return _open(files, _choose(entries, name, where), where)


def _choose(entries: list[_Entry], name: str | None, where: str) -> _Entry:
    names = sorted({tag for entry in entries for tag in entry.repo_tags or []})
    hint = f"there are: {', '.join(names[:_SHOWN])}" if names else "no image in it has a name"
    if name is None:
        if len(entries) != 1:
            raise UsageError(f"has {len(entries)} images", where=where, hint=hint)
        return entries[0]
    wanted = _full_name(name)
    if wanted is None:
        raise UsageError(f"not an image name: {name!r}", where=where, hint=hint)
    for entry in entries:
        if any(_full_name(tag) == wanted for tag in entry.repo_tags or []):
            return entry
    raise NotFoundError(f"there is no image {name!r}", where=where, hint=hint)


def _full_name(tag: str) -> str | None:
    """A name with its host and tag, so that `busybox` and `docker.io/library/busybox:latest` are the same."""
    try:
        reference = parse_reference(f"docker://{tag}")
    except UsageError:
        return None
    return str(reference) if isinstance(reference, RegistryReference) else None


def _open(files: TarFiles, entry: _Entry, where: str) -> SavedImage:
    config = files.read(entry.config, limit=MAX_MANIFEST)
    if config is None:
        raise NotFoundError(f"{entry.config!r} is missing", where=where)
    digest = _digest_in(entry.config) or digest_of(config)
    if digest_of(config, like=digest) != digest:
        raise FormatError(f"{entry.config!r} does not have the digest that its name says", where=where)
    diff_ids = parse(config, Config, where=f"{where}: {entry.config}").rootfs.diff_ids
    names = entry.layers or []
    if len(names) != len(diff_ids) or len(names) > MAX_STACK_LAYERS:
        raise FormatError(f"{len(names)} layers, of which the config names {len(diff_ids)}", where=where)
    layers = [_layer(files, name, diff_id, where) for name, diff_id in zip(names, diff_ids, strict=True)]
    descriptor = Descriptor(media_type=DOCKER_CONFIG, digest=digest, size=len(config))
    return SavedImage(config, descriptor, tuple(layers))


def _layer(files: TarFiles, name: str, diff_id: str, where: str) -> SavedLayer:
    part = files.open(name)
    if part is None:
        raise NotFoundError(f"layer {name!r} is missing", where=where)
    head = part.read_at(0, min(8, part.size))
    suffix = next((suffix for magic, suffix in _TYPES if head.startswith(magic)), "")
    try:
        check_digest(diff_id)
        digest = _digest_in(name) or (_hash(part, diff_id) if suffix else diff_id)
        return SavedLayer(part, Descriptor(media_type=OCI_LAYER + suffix, digest=digest, size=part.size), diff_id)
    except ValueError as error:
        raise FormatError(str(error), where=where) from error


def _digest_in(name: str) -> str | None:
    """The digest of a file that its name says, for files whose names say the digests of their very bytes."""
    match = _LAYOUT_BLOB.fullmatch(name)
    if match is not None:
        return f"{match[1]}:{match[2]}"
    match = _NAMED_CONFIG.fullmatch(name)
    return f"sha256:{match[1]}" if match is not None else None


def _hash(part: Part, like: str) -> str:
    made = new_hash(like)
    for piece in _pieces(part):
        made.update(piece)
    return f"{made.name}:{made.hexdigest()}"


def _pieces(part: Part) -> Iterator[bytes]:
    for offset in range(0, part.size, IO_CHUNK):
        yield part.read_at(offset, min(IO_CHUNK, part.size - offset))
