"""Keys and values: the little that an object store or a web server must do to hold a native store.

Keys are the paths below a native store's directory (`layout.py`), so that a store may be moved between the two by
any tool that copies files to objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from eroseal.format.digest import Digest
from eroseal.format.statement import ImageDigest
from eroseal.readat import ReadAt
from eroseal.store.layout import digest_of_path, record_name
from eroseal.store.protocol import OpenBlob, Progress
from eroseal.store.reference import check_name

BLOBS = "blobs/"
IMAGES = "images/"


@dataclass(frozen=True, slots=True)
class Version:
    """Which of the values is meant that a key has had; for the server, which is the only one that can tell.

    Args:
        tag: the entity tag.
        number: the server's own number, where it counts.
    """

    tag: str | None
    number: str | None


@dataclass(frozen=True, slots=True)
class Value:
    """A small value, whole.

    Args:
        data: the bytes.
        version: of the key when they were read.
    """

    data: bytes
    version: Version


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What is known of a key without its value.

    Args:
        key: below the store's place.
        size: bytes of its value, as the server says.
        modified: seconds since the epoch, 0 where the server does not say.
    """

    key: str
    size: int
    modified: float


class ReadKeys(Protocol):
    """Values by key, to be read; methods may be called from several threads at once.

    All of them raise RemoteError where the server fails or says too much, and AccessError where it does not let us.
    """

    @property
    def where(self) -> str:
        """What messages call the place, without a slash at its end."""
        ...

    def get(self, key: str, *, limit: int) -> Value | None:
        """A small value, or None for none; raises FormatError for more than `limit` bytes."""
        ...

    def head(self, key: str) -> KeyInfo | None:
        """What is known of a key, or None for none."""
        ...

    def open(self, info: KeyInfo) -> OpenBlob:
        """The value's bytes by offset."""
        ...

    def close(self) -> None:
        """Give connections back; closing twice does no harm."""
        ...


class Keys(ReadKeys, Protocol):
    """Values by key, to be written too. A value appears whole or not at all."""

    def put(self, key: str, data: bytes) -> None:
        """Set a small value, whatever was there."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Set a small value where none is; False if there was one."""
        ...

    def replace(self, key: str, data: bytes, version: Version) -> bool:
        """Set a small value in place of this version; False if it is not there any more."""
        ...

    def upload(self, key: str, source: ReadAt, size: int, *, progress: Progress | None = None) -> None:
        """Set a large value: the first `size` bytes of a source."""
        ...

    def copy(self, key: str, origin: ReadKeys) -> bool:
        """Have the server take the value of the same key over from another place; False where it cannot."""
        ...

    def delete(self, key: str) -> None:
        """Remove a key; one that is not there does no harm."""
        ...

    def below(self, prefix: str, *, after: str = "") -> Iterator[KeyInfo]:
        """The keys that begin with `prefix`, which ends with a slash, and are greater than `after`; in byte order."""
        ...


def blob_key(digest: Digest) -> str:
    """Where a blob is."""
    return f"{BLOBS}{digest.hex[:2]}/{digest.hex[2:]}"


def digest_of_key(key: str) -> Digest | None:
    """The digest of the blob whose key this is, or None for other keys."""
    prefix, _, rest = key.removeprefix(BLOBS).partition("/")
    return digest_of_path(prefix, rest) if key.startswith(BLOBS) else None


def image_key(name: str) -> str:
    """Where an image's document is; raises UsageError for names that cannot be."""
    return IMAGES + check_name(name)


def record_key(name: str, image: ImageDigest) -> str:
    """Where the record of this image under this name is."""
    return IMAGES + record_name(check_name(name), image)
