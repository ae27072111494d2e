"""OCI documents: descriptors, manifests, indexes and configs, and Docker's older spellings of them.

Parsing checks shapes and bounds; what is accepted for which purpose is for the callers. Unknown fields are kept out
of the way, as the specification asks.

Source: the OCI image specification (descriptor.md, manifest.md, image-index.md, config.md), and the Docker image
manifest version 2, schema 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from eroseal.errors import FormatError, OutputError
from eroseal.limits import MAX_MANIFEST

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_NONDISTRIBUTABLE: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"

MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})

EROFS_LAYER: Final = "application/vnd.erofs"
EROFS_ZSTD_LAYER: Final = "application/vnd.erofs+zstd"
OCTET_STREAM: Final = "application/octet-stream"

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)
_MAX_SIZE: Final = (1 << 63) - 1


class Platform(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an image runs on; fields as in Go's GOARCH and GOOS."""

    architecture: str
    os: str
    variant: str = ""
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: list[str] = msgspec.field(name="os.features", default_factory=list)


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A typed, sized link to content by its digest."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    platform: Platform | None = None
    artifact_type: str | None = None
    urls: list[str] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        check_digest(self.digest)
        if not 0 <= self.size <= _MAX_SIZE:
            raise ValueError(f"a descriptor's size of {self.size} bytes")


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """An image manifest (or an artifact's)."""

    schema_version: int
    media_type: str = ""
    artifact_type: str | None = None
    config: Descriptor
    layers: list[Descriptor]
    subject: Descriptor | None = None
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


class Index(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """An image index, Docker's manifest list, or a layout's index.json."""

    schema_version: int
    media_type: str = ""
    manifests: list[Descriptor]
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


class RootFs(msgspec.Struct, frozen=True, kw_only=True):
    """The layers of a config: digests of the uncompressed archives, the lowest first."""

    type: str
    diff_ids: list[str]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What of an image's config is looked at; the rest travels as it is."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    rootfs: RootFs


_Document = TypeVar("_Document", Manifest, Index, Config)


def check_digest(text: str) -> str:
    """The digest itself, if it is a sha256 or sha512 one in its only spelling; raises ValueError."""
    if not _DIGEST.fullmatch(text):
        raise ValueError(f"not a sha256 or sha512 digest: {text[:80]!r}")
    return text


def parse(data: bytes, kind: type[_Document], *, where: str, limit: int = MAX_MANIFEST) -> _Document:
    """Read a document.

    Args:
        data: its bytes.
        kind: Manifest, Index or Config.
        where: for messages: the reference or digest that it came under.
        limit: bytes that it may have.

    Raises:
        FormatError: too large, no JSON, of another shape, or of two shapes at once.
    """
    if len(data) > limit:
        raise FormatError(f"has {len(data)} bytes, more than {limit}", where=where)
    try:
        document = msgspec.json.decode(data, type=kind)
        if not isinstance(document, Config) and shape_of(data) is None:
            raise FormatError("is a manifest and an index at once", where=where)
        return document
    except (msgspec.MsgspecError, UnicodeError, ValueError, RecursionError) as error:
        raise FormatError(f"not a valid {kind.__name__.lower()}: {error}", where=where) from error


class _Shape(msgspec.Struct, frozen=True):
    layers: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    manifests: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def shape_of(data: bytes) -> str | None:
    """The OCI media type of a manifest or index by what is in it, where it says none; None for both and neither.

    What is both can be read as two different images (CVE-2021-41190). JSON errors pass through.
    """
    shape = msgspec.json.decode(data, type=_Shape)
    layers, manifests = shape.layers is not msgspec.UNSET, shape.manifests is not msgspec.UNSET
    if layers == manifests:
        return None
    return OCI_MANIFEST if layers else OCI_INDEX


def edit_index(
    data: bytes, *, drop: Callable[[Descriptor], bool], add: Descriptor | None, where: str, limit: int = MAX_MANIFEST
) -> bytes:
    """An index with other entries; those that stay, and all other fields, stay byte for byte.

    Args:
        data: of the index.
        drop: whether an entry goes.
        add: one that comes last.
        where: for messages.
        limit: bytes that an index may have.

    Raises:
        FormatError: it is no index.
        OutputError: it would become too large.
    """
    index = parse(data, Index, where=where, limit=limit)
    fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    entries = msgspec.json.decode(fields["manifests"], type=list[msgspec.Raw])
    kept = [raw for raw, entry in zip(entries, index.manifests, strict=True) if not drop(entry)]
    added = [msgspec.Raw(msgspec.json.encode(add))] if add is not None else []
    fields["manifests"] = msgspec.Raw(msgspec.json.encode([*kept, *added]))
    edited = msgspec.json.encode(fields)
    if len(edited) > limit:
        raise OutputError(f"an index of {len(edited)} bytes, at most {limit} are allowed", where=where)
    return edited


def encode(document: Manifest | Index | dict[str, Any]) -> bytes:
    """The document's bytes: compact JSON, fields in the order of the specification."""
    return msgspec.json.encode(document)
