"""Lists of referrers: of the referrers API, and of the tag that stands for it where a registry has none. No I/O.

Source: the OCI distribution specification, "Listing Referrers" and "Referrers Tag Schema".
"""

from __future__ import annotations

import msgspec

from eroseal.store.oci.documents import OCI_INDEX, Descriptor, Index, Manifest, edit_index, encode, parse


def fallback_tag(subject: str) -> str:
    """The tag that lists the referrers of a digest."""
    algorithm, _, encoded = subject.partition(":")
    return f"{algorithm[:32]}-{encoded[:64]}"


def of_type(data: bytes | None, artifact_type: str, *, where: str) -> list[Descriptor]:
    """The referrers of one type in an index; none in none. Raises FormatError."""
    listed = [] if data is None else parse(data, Index, where=where).manifests
    return [item for item in listed if item.artifact_type == artifact_type]


def artifact_descriptor(data: bytes, stored: Descriptor, artifact_type: str) -> Descriptor:
    """How a list of referrers names a manifest: with its type and its annotations."""
    manifest = parse(data, Manifest, where=stored.digest)
    return msgspec.structs.replace(stored, artifact_type=artifact_type, annotations=manifest.annotations)


def with_referrer(data: bytes | None, descriptor: Descriptor, replaces: str | None, *, where: str) -> bytes:
    """A fallback tag's index with one more referrer.

    Args:
        data: the index as it is, or None; entries of others stay byte for byte as JSON values.
        descriptor: of the referrer.
        replaces: digest of one that it takes the place of.
        where: for messages.

    Raises:
        FormatError: what is there is no index.
        OutputError: it would become too large.
    """
    empty = encode(Index(schema_version=2, media_type=OCI_INDEX, manifests=[]))
    gone = {descriptor.digest, replaces}
    return edit_index(
        empty if data is None else data, drop=lambda item: item.digest in gone, add=descriptor, where=where
    )
