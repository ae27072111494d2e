"""What a store can do, and what it gives.

Blobs and images are two capabilities: a cache is a store of blobs alone. Remote kinds implement the same
protocols, so that commands never ask which kind they work on. Nothing that comes out of a store is trusted;
the verifier decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from eroseal.errors import ErosealError, OutputError
from eroseal.format.digest import Digest
from eroseal.format.record import IMAGE_MAGIC, RecordEntry, encode_record, parse_record
from eroseal.format.statement import ImageDigest
from eroseal.limits import MAX_IMAGE_RECORD
from eroseal.readat import ReadAt
from eroseal.store.document import Document, ImageDocument
from eroseal.store.reference import Reference

Progress = Callable[[int], None]
"""Called with numbers of bytes that have just been dealt with."""
RecordChange = Callable[[list[RecordEntry]], Sequence[RecordEntry]]
"""Takes an image record's entries as they are and gives them as they should be, again if another writer was first."""


class OpenBlob(ReadAt, Protocol):
    """A blob's bytes, held open until closed."""

    def close(self) -> None:
        """Give the descriptor or connection back; closing twice does no harm."""
        ...


class BlobWriter(Protocol):
    """A blob in the making: a local file that becomes a blob of the store, or nothing."""

    @property
    def fd(self) -> int:
        """A descriptor, open for reading and writing."""
        ...

    @property
    def path(self) -> Path:
        """The file's temporary name, for worker processes that open it themselves."""
        ...

    def commit(self, digest: Digest) -> int:
        """Put the sealed blob into the store; gives the size in bytes of the blob that the store then has."""
        ...

    def discard(self) -> None:
        """Drop it; never raises."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


class BlobStore(Protocol):
    """Blobs by digest."""

    def open_blob(self, digest: Digest) -> OpenBlob:
        """The blob's bytes, unverified; safe for reads by several threads; raises NotFoundError."""
        ...

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is there; says nothing about its bytes."""
        ...

    def put_blob(
        self, digest: Digest, source: ReadAt, *, jobs: int | None = None, progress: Progress | None = None
    ) -> int:
        """Put a sealed blob into the store, unless it is there; it appears only after every block was verified.

        Args:
            digest: that it must have.
            source: the sealed blob; what follows its records is left behind. Several threads read from it.
            jobs: threads that verify; None means one for each processor.
            progress: told the bytes that arrived, as they do.

        Returns:
            Bytes of the blob that the store has then.

        Raises:
            IntegrityError: it is not that blob, or damaged.
            OutputError: it cannot be written.
        """
        ...

    def adopt_blob(self, digest: Digest, origin: BlobStore) -> bool:
        """Take a blob over from another store without moving its bytes; False where that cannot be done."""
        ...

    def list_blobs(self) -> Iterator[Digest]:
        """The digests of all blobs, in order of their hex digits."""
        ...

    def delete_blob(self, digest: Digest) -> None:
        """Remove a blob; raises NotFoundError."""
        ...


class ImageStore(Protocol):
    """Images by name: a document each, and an image record beside it."""

    def image(self, name: str) -> tuple[Document, list[RecordEntry]]:
        """The document and the record's entries, which belong together; raises NotFoundError, FormatError."""
        ...

    def has_image(self, name: str) -> bool:
        """Whether an image has this name."""
        ...

    def put_image(
        self, name: str, document: Document, record: Sequence[RecordEntry] = (), *, replace: bool = False
    ) -> None:
        """Publish an image whose blobs are all in the store; raises NotFoundError, OutputError."""
        ...

    def update_record(self, name: str, change: RecordChange, *, expect: ImageDigest | None = None) -> list[RecordEntry]:
        """Replace the record of the image `expect` by what `change` makes of it, excluding other writers."""
        ...

    def list_images(self) -> list[str]:
        """All image names, sorted; raises UnsupportedError where a store cannot tell."""
        ...

    def delete_image(self, name: str) -> None:
        """Remove an image's document and record, not its blobs; raises NotFoundError."""
        ...


class Store(BlobStore, ImageStore, Protocol):
    """A place for images, local or not; a context manager that gives connections back.

    Methods may be called from several threads at once.
    """

    @property
    def where(self) -> str:
        """What messages call it, as a user would write it."""
        ...

    def close(self) -> None:
        """Give connections back; closing twice does no harm."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as a reference gave it, in a store or in a single file; a context manager that closes `meta`.

    Args:
        reference: what was asked for.
        meta: the meta blob's bytes, unverified.
        record: entries of the image record.
        document: the image document; None for a single file.
        open_data: opens a data blob by digest; raises NotFoundError. The caller closes what it gives.
        blob_path: the local file of a blob; None where there is none.
        update_record: replaces the image record where the image lives; refuses if another image lives there by now.
        store: that the image is in; None for a single file.
    """

    reference: Reference
    meta: OpenBlob
    record: tuple[RecordEntry, ...]
    document: ImageDocument | None
    open_data: Callable[[Digest], OpenBlob]
    blob_path: Callable[[Digest], Path | None]
    update_record: Callable[[RecordChange], list[RecordEntry]]
    store: BlobStore | None = None

    def close(self) -> None:
        """Close the meta blob."""
        self.meta.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def replaced_error(path: Path | str, expect: ImageDigest) -> OutputError:
    """The refusal to change the record of an image that has taken another one's place."""
    return OutputError(
        f"this is no longer {expect}: replaced meanwhile", where=str(path), hint="look at it, and try again"
    )


def encode_image_record(entries: Sequence[RecordEntry]) -> bytes:
    """The image record's bytes, or b"" for no entries.

    Raises:
        OutputError: entries that `parse_record` would refuse, so that nothing unreadable is ever written.
    """
    if not entries:
        return b""
    data = encode_record(IMAGE_MAGIC, entries)
    try:
        parse_record(IMAGE_MAGIC, data, limit=MAX_IMAGE_RECORD)
    except ErosealError as error:
        raise OutputError(f"image record cannot be written: {error.what}") from error
    return data
