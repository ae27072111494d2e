"""What a registry's repository and an image layout have in common.

Content is addressed by OCI digests here; that it has the digest and the size of its descriptor is checked by whoever
implements this, before the last byte is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from eroseal.readat import ReadAt
from eroseal.store.oci.documents import Descriptor
from eroseal.store.protocol import OpenBlob, Progress


class Repository(Protocol):
    """One repository of a registry, or one image layout; a context manager that gives connections back.

    Methods may be called from several threads at once. Besides what they name, those of a registry raise RemoteError
    and AccessError.
    """

    @property
    def where(self) -> str:
        """What messages call it, as a user would write it: `docker://HOST/REPO`, `oci:PATH`."""
        ...

    def manifest(self, reference: str) -> tuple[bytes, Descriptor]:
        """A manifest or index, by tag or by digest, checked against the digest where there is one.

        Returns:
            Its bytes, and a descriptor with media type, digest and size.

        Raises:
            NotFoundError: there is none.
            FormatError: too large, or other content than its digest says.
        """
        ...

    def put_manifest(self, data: bytes, media_type: str, *, tag: str | None = None) -> Descriptor:
        """Store a manifest or index whose contents are there, under its digest and, if given, a tag."""
        ...

    def tags(self) -> list[str]:
        """All tags, sorted; an empty list for a repository that is not there."""
        ...

    def delete_tag(self, tag: str) -> None:
        """Remove a tag; raises NotFoundError, UnsupportedError where a registry does not delete."""
        ...

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether content of this digest and size is there."""
        ...

    def open_blob(self, descriptor: Descriptor) -> OpenBlob:
        """Random access to content, *unchecked*: for blobs that prove themselves. Raises NotFoundError."""
        ...

    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The content from begin to end in pieces; size and digest are checked while it streams.

        Interrupted connections are taken up again where they broke.

        Raises:
            NotFoundError: it is not there.
            FormatError: other content than the descriptor says, raised at the latest in place of the end.
        """
        ...

    def read_blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        """Small content whole, checked; raises FormatError for more than `limit` bytes."""
        ...

    def put_blob(self, descriptor: Descriptor, source: ReadAt, *, progress: Progress | None = None) -> None:
        """Store the first `descriptor.size` bytes of `source`, unless they are there.

        An interrupted upload is taken up again where it broke, by a later process too.

        Raises:
            FormatError: `source` does not have the descriptor's digest; nothing is stored.
            OutputError: it cannot be written.
            RemoteError, AccessError: the registry fails or refuses.
        """
        ...

    def mount_blob(self, descriptor: Descriptor, origin: Repository) -> bool:
        """Take content over from a repository of the same registry without moving bytes; False where that fails."""
        ...

    def referrers(self, subject: str, *, artifact_type: str) -> list[Descriptor]:
        """Descriptors of manifests of this type whose subject has this digest."""
        ...

    def put_referrer(self, data: bytes, subject: str, *, artifact_type: str, replaces: str | None = None) -> Descriptor:
        """Store a manifest that has a subject, so that `referrers` finds it.

        Args:
            data: of the manifest, an OCI one.
            subject: digest of its subject.
            artifact_type: of the manifest.
            replaces: digest of a referrer whose place it takes.
        """
        ...

    def close(self) -> None:
        """Give connections back; closing twice does no harm."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...
