"""Content by its OCI digest: the check that everything passes which comes out of a repository.

Source: the OCI image specification (descriptor.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from eroseal.errors import FormatError
from eroseal.store.oci.documents import Descriptor

if TYPE_CHECKING:
    from hashlib import _Hash


def new_hash(digest: str) -> _Hash:
    """A hash object of the algorithm that a digest names."""
    return hashlib.new(digest.partition(":")[0])


def digest_of(data: bytes, *, like: str = "sha256:") -> str:
    """The digest of some bytes, by the algorithm of the digest `like`."""
    made = new_hash(like)
    made.update(data)
    return f"{made.name}:{made.hexdigest()}"


def verified(pieces: Iterator[bytes], descriptor: Descriptor, *, where: str) -> Iterator[bytes]:
    """The pieces as they come; at their end, or as soon as there are too many, they are what the descriptor says.

    Args:
        pieces: of the content, from its begin.
        descriptor: with its digest and its size in bytes.
        where: for messages.

    Raises:
        FormatError: other content, at the latest in place of the end.
    """
    made = new_hash(descriptor.digest)
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > descriptor.size:
            break
        made.update(piece)
        yield piece
    if size != descriptor.size:
        raise FormatError(f"{descriptor.digest} does not have {descriptor.size} bytes", where=where)
    check_made(made, descriptor.digest, where=where)


def check_made(made: _Hash, digest: str, *, where: str) -> None:
    """Refuse a hash other than the digest; raises FormatError."""
    found = f"{made.name}:{made.hexdigest()}"
    if found != digest:
        raise FormatError(f"has the digest {found}, not {digest}", where=where, hint="it is damaged or replaced")


def whole(pieces: Iterator[bytes], descriptor: Descriptor, *, limit: int, where: str) -> bytes:
    """Small content that is checked as it comes; raises FormatError for more than `limit` bytes."""
    if descriptor.size > limit:
        raise FormatError(f"{descriptor.digest} has {descriptor.size} bytes, more than {limit}", where=where)
    return b"".join(pieces)
