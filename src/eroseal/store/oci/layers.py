"""One layer of an EROFS image's manifest: media types, annotations, and what they claim about the blob inside.

No I/O. Besides the annotations of the EROFS image layer specification (erofs/erofs-image-spec, a draft) each layer
of ours carries `dev.eroseal.digest`, by which readers find the blobs that a device table names. All of it is a hint:
the verifier decides.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from eroseal.errors import FormatError, UsageError
from eroseal.format.digest import BLOCK, Digest
from eroseal.format.fsverity import Descriptor as SealDescriptor
from eroseal.limits import MAX_DATA_SIZE
from eroseal.store.document import MAX_BLOB_SIZE, BlobInfo
from eroseal.store.oci.documents import EROFS_LAYER, EROFS_ZSTD_LAYER, Descriptor

CHUNK_INDEX_LAYER: Final = "application/vnd.erofs.chunk-index.v1"

# Annotations of the specification (2.3).
ROLE: Final = "org.erofs.role"
HASH_OFFSET: Final = "org.erofs.dmverity.hash_offset"
ROOT_DIGEST: Final = "org.erofs.dmverity.root_digest"
BLOCK_SIZE: Final = "org.erofs.dmverity.block_size"
UNCOMPRESSED_DIGEST: Final = "org.erofs.uncompressed-digest"
INDEX_RANGE: Final = "org.erofs.chunk-index.range"
INDEX_DIGEST: Final = "org.erofs.chunk-index.digest"
INDEX_MEDIA_TYPE: Final = "org.erofs.chunk-index.mediaType"
INDEX_TARGET: Final = "org.erofs.chunk-index.target"
# Our own.
BLOB_DIGEST: Final = "dev.eroseal.digest"
"""The blob's digest."""
BLOB_SIZE: Final = "dev.eroseal.size"
"""Bytes of the sealed blob in a compressed layer."""

DEVICE: Final = "device"
LOWER: Final = "overlay-lower"

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_RANGE: Final = re.compile(r"([0-9]{1,19})(?::([0-9]{1,19}))?", re.ASCII)
_ROOT: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", re.ASCII)


def raw_layer(seal: SealDescriptor, *, size: int, oci_digest: str) -> Descriptor:
    """The descriptor of a sealed blob as it is.

    Args:
        seal: the blob's verified fs-verity descriptor.
        size: bytes of the sealed blob.
        oci_digest: SHA-256 of all of it.
    """
    return Descriptor(media_type=EROFS_LAYER, digest=oci_digest, size=size, annotations=seal_annotations(seal))


def seal_annotations(seal: SealDescriptor) -> dict[str, str]:
    """What a layer says about the seal inside it."""
    return {
        BLOB_DIGEST: str(seal.digest),
        BLOCK_SIZE: str(BLOCK),
        HASH_OFFSET: str(seal.data_size),
        ROOT_DIGEST: f"{seal.params.algorithm.name_text}:{seal.root_hash.hex()}",
    }


def diff_id(layer: Descriptor) -> str:
    """Digest of a layer's uncompressed bytes (specification, 5.2)."""
    return layer.annotations.get(UNCOMPRESSED_DIGEST, layer.digest)


def with_role(layer: Descriptor, role: str | None) -> Descriptor:
    """The layer as it stands in a manifest: with this role and no other, its annotations sorted."""
    annotations = {key: value for key, value in layer.annotations.items() if key != ROLE}
    if role is not None:
        annotations[ROLE] = role
    return msgspec.structs.replace(layer, annotations=dict(sorted(annotations.items())))


def blob_info(layer: Descriptor) -> BlobInfo | None:
    """What a layer's annotations say about the blob in it; None if they do not tell all of it.

    Raises:
        FormatError: they contradict each other, or cannot be true.
    """
    digest, data_size, size = claimed_digest(layer), hash_offset(layer), sealed_size(layer)
    return None if digest is None or data_size is None or size is None else BlobInfo(digest, data_size, size)


def claimed_digest(layer: Descriptor) -> Digest | None:
    """The digest that the blob in a layer is said to have."""
    text = layer.annotations.get(BLOB_DIGEST)
    try:
        return None if text is None else Digest.parse(text)
    except UsageError as error:
        raise FormatError(f"annotation {BLOB_DIGEST}: {error.what}") from error


def hash_offset(layer: Descriptor) -> int | None:
    """D in bytes, as the dm-verity annotations of a layer give it."""
    offset = _number(layer, HASH_OFFSET)
    if offset is not None and (not 0 < offset <= MAX_DATA_SIZE or offset % BLOCK):
        raise FormatError(f"annotation {HASH_OFFSET}: {offset} is not a positive multiple of {BLOCK}")
    return offset


def sealed_size(layer: Descriptor) -> int | None:
    """Bytes of the sealed blob in a layer; None for a compressed one that does not say."""
    if layer.media_type == EROFS_ZSTD_LAYER:
        return _number(layer, BLOB_SIZE)
    embedded = index_range(layer)
    return layer.size if embedded is None else embedded[0]


def index_range(layer: Descriptor) -> tuple[int, int] | None:
    """Where in a layer its chunk index starts and ends, in bytes; None without one.

    Raises:
        FormatError: not inside the layer.
    """
    text = layer.annotations.get(INDEX_RANGE)
    if text is None:
        return None
    match = _RANGE.fullmatch(text)
    start, end = (int(match[1]), int(match[2] or layer.size)) if match is not None else (0, 0)
    if not 0 < start < end <= layer.size:
        raise FormatError(f"annotation {INDEX_RANGE}: {text[:80]!r} is no range of {layer.size} bytes")
    return start, end


def check_claims(layer: Descriptor) -> None:
    """Refuse annotations that contradict each other or the layer; raises FormatError."""
    if _number(layer, BLOCK_SIZE) not in (None, BLOCK):
        raise FormatError(f"annotation {BLOCK_SIZE}: a sealed blob's is {BLOCK}")
    offset, size = hash_offset(layer), sealed_size(layer)
    if offset is not None and size is not None and offset >= size:
        raise FormatError(f"annotation {HASH_OFFSET}: {offset} leaves the layer of {size} bytes")
    root, digest = layer.annotations.get(ROOT_DIGEST), claimed_digest(layer)
    if root is not None and not _ROOT.fullmatch(root):
        raise FormatError(f"annotation {ROOT_DIGEST}: not a digest: {root[:80]!r}")
    if root is not None and digest is not None and not root.startswith(f"{digest.algorithm.name_text}:"):
        raise FormatError(f"annotation {ROOT_DIGEST}: another algorithm than the blob's digest")


def _number(layer: Descriptor, name: str) -> int | None:
    text = layer.annotations.get(name)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text) or int(text) > MAX_BLOB_SIZE:
        raise FormatError(f"annotation {name}: not a number of bytes: {text[:80]!r}")
    return int(text)
