"""Image records in an OCI repository: an artifact each, whose subject is the image's manifest.

The artifact's only layer is the record, byte for byte. Writing one takes the place of the one before; its revision
tells them apart where a registry keeps both, and the highest one counts. A repository has no lock: whoever writes
looks again, and says so when somebody else's record came between. On registries without the referrers API two writers
can still miss each other, because the fallback tag itself is read, changed and written: sign from one place at a
time.

A record belongs to the manifest, not to the tag: tags of the same manifest share it.

Source: the OCI distribution specification ("Listing Referrers"), the OCI image specification ("Guidelines for
Artifact Usage").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from eroseal.errors import FormatError, NotFoundError, OutputError
from eroseal.format.record import ACCESS_TRACE, IMAGE_MAGIC, RecordEntry, encode_record
from eroseal.format.statement import ImageDigest
from eroseal.limits import MAX_IMAGE_RECORD, MAX_REFERRERS
from eroseal.readat import BytesAt
from eroseal.store.layout import parse_whole_record
from eroseal.store.oci.content import digest_of
from eroseal.store.oci.documents import OCI_EMPTY, OCI_MANIFEST, Descriptor, Manifest, encode, parse
from eroseal.store.oci.form import IMAGE
from eroseal.store.oci.repository import Repository
from eroseal.store.protocol import encode_image_record

RECORD_TYPE: Final = "application/vnd.eroseal.image-record.v1"
REVISION: Final = "dev.eroseal.record.revision"
"""Annotation of the artifact: 1 for an image's first record, and one more for each that follows."""

MAX_REVISION: Final = 10**18
"""Above all revisions: as many digits as a signed 64-bit number always has room for."""

_REVISION: Final = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_EMPTY: Final = b"{}"
_MAX_ARTIFACT: Final = 64 << 10
"""Bytes of a record's manifest: ours have a thousand, and MAX_REFERRERS of them may be in memory."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """An image record as a repository has it.

    Args:
        entries: of the record.
        revision: number of the record; 0 where there is none.
        digest: of the artifact's manifest; None where there is none.
    """

    entries: tuple[RecordEntry, ...] = ()
    revision: int = 0
    digest: str | None = None


def read_record(repository: Repository, subject: Descriptor, image: ImageDigest) -> StoredRecord:
    """The record of an image; empty where there is none.

    Args:
        repository: that the image is in.
        subject: of the image's manifest.
        image: its digest; records of other images are passed over.

    Raises:
        FormatError: the record is broken.
    """
    found = _newest(repository, subject, image)
    if not found:
        return StoredRecord()
    revision, digest, manifest = found[0]
    where = f"{repository.where}@{digest}"
    if len(manifest.layers) != 1 or manifest.layers[0].media_type != RECORD_TYPE:
        raise FormatError("an image record's artifact has one layer, the record", where=where)
    data = repository.read_blob(manifest.layers[0], limit=MAX_IMAGE_RECORD)
    return StoredRecord(tuple(parse_whole_record(data, where=where)), revision, digest)


def write_record(
    repository: Repository,
    subject: Descriptor,
    image: ImageDigest,
    entries: Sequence[RecordEntry],
    *,
    before: StoredRecord,
) -> None:
    """Put a record in the place of the one that was read.

    Args:
        repository: that the image is in.
        subject: of the image's manifest.
        image: its digest.
        entries: of the new record.
        before: the record that they were made from.

    Raises:
        OutputError: entries that cannot be written, or another writer came between.
    """
    encode_image_record(entries)  # refuses what could not be read again
    found = _newest(repository, subject, image)
    if (found[0][1] if found else None) != before.digest:
        raise _changed(repository, subject)
    record = _put(repository, RECORD_TYPE, encode_record(IMAGE_MAGIC, entries))
    manifest = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        artifact_type=RECORD_TYPE,
        config=_put(repository, OCI_EMPTY, _EMPTY),
        layers=[record],
        subject=Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size),
        annotations={IMAGE: str(image), REVISION: str(before.revision + 1)},
    )
    written = repository.put_referrer(
        encode(manifest), subject.digest, artifact_type=RECORD_TYPE, replaces=before.digest
    )
    if [digest for _, digest, _ in _newest(repository, subject, image)] != [written.digest]:
        raise _changed(repository, subject)


def merged(first: Sequence[RecordEntry], second: Sequence[RecordEntry]) -> list[RecordEntry]:
    """The entries of two records of one image, each once; of two access traces the second one's stays."""
    traced = any(entry.type == ACCESS_TRACE for entry in second)
    kept = [entry for entry in first if entry not in second and not (traced and entry.type == ACCESS_TRACE)]
    return [*kept, *second]


def _newest(repository: Repository, subject: Descriptor, image: ImageDigest) -> list[tuple[int, str, Manifest]]:
    """Revision, digest and manifest of the records of the highest revision; of several the first one counts.

    There is one, or none, unless two writers met.
    """
    listed = repository.referrers(subject.digest, artifact_type=RECORD_TYPE)
    if len(listed) > MAX_REFERRERS:
        raise FormatError(
            f"has {len(listed)} image records, more than {MAX_REFERRERS}", where=f"{repository.where}@{subject.digest}"
        )
    newest: list[tuple[int, str, Manifest]] = []
    # Registries copy annotations into their lists: then most records need not be fetched.
    for descriptor in sorted(listed, key=lambda item: -(_revision(item.annotations) or MAX_REVISION)):
        hint = _revision(descriptor.annotations)
        if newest and hint is not None and hint < newest[0][0]:
            break
        manifest = _fetch(repository, descriptor, subject, image)
        revision = 0 if manifest is None else _revision(manifest.annotations) or 0
        if manifest is not None and revision >= (newest[0][0] if newest else 1):
            newest = [item for item in newest if item[0] == revision] + [(revision, descriptor.digest, manifest)]
    return sorted(newest, key=lambda item: item[1])


def _fetch(repository: Repository, descriptor: Descriptor, subject: Descriptor, image: ImageDigest) -> Manifest | None:
    """The manifest of a record of this image; None for others, for what none of ours is, and for what is gone."""
    try:
        data, _ = repository.manifest(descriptor.digest)
    except NotFoundError:
        return None
    if len(data) > _MAX_ARTIFACT:
        return None
    manifest = parse(data, Manifest, where=f"{repository.where}@{descriptor.digest}")
    ours = manifest.subject is not None and manifest.subject.digest == subject.digest
    return manifest if ours and manifest.annotations.get(IMAGE) == str(image) else None


def _changed(repository: Repository, subject: Descriptor) -> OutputError:
    return OutputError(
        "another writer changed the image record at the same time",
        where=f"{repository.where}@{subject.digest}",
        hint="look at it, and try again",
    )


def _revision(annotations: Mapping[str, str]) -> int | None:
    text = annotations.get(REVISION, "")
    return int(text) if _REVISION.fullmatch(text) else None


def _put(repository: Repository, media_type: str, data: bytes) -> Descriptor:
    descriptor = Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))
    repository.put_blob(descriptor, BytesAt(data, media_type))
    return descriptor
