"""The documents of `digest`, `build` and `verify`: a contract with scripts, see docs/cli.md.

Fields are only ever added; anything else gets a new number in `schema`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from eroseal.format.digest import Digest
from eroseal.format.fsverity import Descriptor
from eroseal.format.statement import StackDigest
from eroseal.report.document import Document

Role = Literal["meta", "data"]


class BlobEntry(Document, frozen=True, kw_only=True):
    """One blob of an image.

    Args:
        digest: its name, ``fsverity-sha256-12:HEX``.
        role: an image's first blob is its meta blob, the others are data blobs in device order.
        data_size: bytes of the data region.
        root_hash: of its Merkle tree, in hex.
        size: bytes of the whole blob, seal included.
        path: where it lies; local stores only.
    """

    digest: str
    role: Role
    data_size: int
    root_hash: str
    size: int
    path: str | msgspec.UnsetType = msgspec.UNSET


class DigestDocument(Document, frozen=True, kw_only=True):
    """What `digest --json` prints.

    Args:
        image: the image digest, or that of a stack.
        encrypted: whether it has key envelopes.
        blobs: those of the image; of a stack those of the lowest layer, then of the next one, and so on.
    """

    schema: Literal["eroseal.digest/1"] = "eroseal.digest/1"
    image: str
    encrypted: bool
    blobs: list[BlobEntry]


class BuildDocument(Document, frozen=True, kw_only=True):
    """What `build --json` prints.

    Args:
        image: the image digest.
        blobs: as in `DigestDocument`.
        files: names of any kind in the source.
        bytes_in: bytes of regular files in the source.
        bytes_new: bytes of chunks that were stored.
        bytes_shared: bytes of chunks that were there already, in bases or earlier in this build.
        seconds: wall time.
    """

    schema: Literal["eroseal.build/1"] = "eroseal.build/1"
    image: str
    blobs: list[BlobEntry]
    files: int
    bytes_in: int
    bytes_new: int
    bytes_shared: int
    seconds: float


class BadBlockEntry(Document, frozen=True, kw_only=True):
    """A block that differs from what its parent says.

    Args:
        level: 0 data, 1 and up the Merkle tree.
        index: number of the block in its level.
        offset: byte offset in the blob.
    """

    level: int
    index: int
    offset: int


class BlobVerdict(Document, frozen=True, kw_only=True):
    """What `verify` found out about one blob."""

    digest: str
    ok: bool
    bad_blocks: list[BadBlockEntry]


class VerifyDocument(Document, frozen=True, kw_only=True):
    """What `verify --json` prints.

    Args:
        ok: everything that was asked for holds.
        trusted_by: the option that decided, such as ``digest`` or ``cert``; null with ``--insecure``.
        blobs: the meta blob first, data blobs in device order; of a stack layer by layer, the lowest first.
        seconds: wall time.
    """

    schema: Literal["eroseal.verify/1"] = "eroseal.verify/1"
    ok: bool
    trusted_by: str | None
    blobs: list[BlobVerdict]
    seconds: float


def blob_entry(
    descriptor: Descriptor, *, role: Role, size: int, digest: Digest | None = None, path: str | None = None
) -> BlobEntry:
    """The entry of one blob.

    Args:
        descriptor: of the blob.
        role: ``meta`` or ``data``.
        size: bytes of the whole blob.
        digest: the descriptor's digest, if it is at hand.
        path: where the blob lies, if it is a local file.
    """
    return BlobEntry(
        digest=str(digest or descriptor.digest),
        role=role,
        data_size=descriptor.data_size,
        root_hash=descriptor.root_hash.hex(),
        size=size,
        path=msgspec.UNSET if path is None else path,
    )


def digest_document(
    blobs: Sequence[BlobEntry], *, stack: StackDigest | None = None, encrypted: bool = False
) -> DigestDocument:
    """The document for an image's blobs, the meta blob first, or for those of all layers of a stack."""
    return DigestDocument(image=str(stack or blobs[0].digest), encrypted=encrypted, blobs=list(blobs))


def digest_text(document: DigestDocument) -> str:
    """What `digest` prints without ``--json``: the image digest alone."""
    return document.image
