"""Checking a native store: every document, record and block of a blob, and what does not belong.

Nothing is changed. Each finding says what to do. *Damage* makes an image unreadable or is a reason to
distrust the disk; *litter* takes space only: what killed writers left, and files that are not the store's.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from eroseal.errors import ErosealError, FormatError, NotFoundError
from eroseal.format.digest import Digest
from eroseal.limits import MAX_IMAGE_RECORD
from eroseal.readat import FileAt
from eroseal.store.atomic import is_abandoned, is_temporary
from eroseal.store.document import MAX_IMAGE_DOCUMENT, BlobInfo, Document, ImageDocument, parse_document
from eroseal.store.findings import Finding, Kind, StoreReport
from eroseal.store.layout import (
    LEASES_NAME,
    LOCK_NAME,
    complete_size,
    digest_of_path,
    is_blob_prefix,
    listing,
    parse_whole_record,
    read_small,
    record_owner,
)
from eroseal.store.lease_places import DirectoryLeases, is_lease_name, read_leases
from eroseal.store.local import LocalStore
from eroseal.store.partial import is_partial, is_partial_in_use
from eroseal.store.reference import is_image_name
from eroseal.store.trash import file_status, plain_status
from eroseal.trust.blob import VerifiedBlob
from eroseal.trust.image import open_blob, open_self_consistent, open_self_consistent_image
from eroseal.trust.scan import scan_blob

__all__ = ["Finding", "StoreReport", "check_store"]

_LOOKS: Final = 3
"""Looks for a blob and its image until it counts as missing."""
_AGAIN: Final = "delete it, then copy or build the image again"


def check_store(
    store: LocalStore,
    *,
    data: bool = True,
    jobs: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> StoreReport:
    """Check a store; others may go on using it.

    Args:
        store: to check.
        data: verify every block of every blob; without it, only that blobs are there and have the right size.
        jobs: threads that hash; None means one for each processor.
        progress: told the bytes of data that were verified.

    Raises:
        NotFoundError: the store's own directories cannot be listed.
    """
    check = _Check(store)
    check.run(data=data, jobs=jobs, progress=progress)
    return check.report()


class _Check:
    """One run over one store."""

    def __init__(self, store: LocalStore) -> None:
        self.store = store
        self.findings: list[Finding] = []
        self.images = 0
        self.in_progress = 0
        self.sizes: dict[Digest, int] = {}
        self.documents: dict[str, Document] = {}
        self.documented: dict[Digest, BlobInfo] = {}

    def run(self, *, data: bool, jobs: int | None, progress: Callable[[int], None] | None) -> None:
        self._top()
        self.sizes = dict(self._blob_files())
        # Images after blobs: a blob that was stored in between is looked up again, never reported missing.
        self.documents.update(self._documents())
        for name, document in self.documents.items():
            self._image(name, document)
        self._records()
        self._lease_files()
        for digest in list(self.sizes) if data else ():
            self._blob(digest, jobs=jobs, progress=progress)

    def report(self) -> StoreReport:
        unreferenced = [size for digest, size in self.sizes.items() if digest not in self.documented]
        findings = tuple(sorted(self.findings, key=lambda finding: (finding.path, finding.kind)))
        return StoreReport(
            schema="eroseal.fsck/1",
            store=str(self.store.path),
            ok=all(finding.is_litter for finding in findings),
            images=self.images,
            blobs=len(self.sizes),
            bytes=sum(self.sizes.values()),
            unreferenced=len(unreferenced),
            unreferenced_bytes=sum(unreferenced),
            in_progress=self.in_progress,
            findings=findings,
        )

    def _add(self, kind: Kind, path: Path, what: str, hint: str) -> None:
        self.findings.append(Finding(kind=kind, path=str(path), what=what, hint=hint))

    def _foreign(self, path: Path) -> None:
        """Something whose name is not the store's: a temporary, or not ours at all."""
        if is_partial(path.name):
            self._partial(path)
        elif not is_temporary(path.name):
            self._add("foreign-file", path, "does not belong to the store", "move it elsewhere")
        elif is_abandoned(path):
            what = "left behind by a writer that was killed"
            self._add("stray-temporary", path, what, "delete it; the next build into this store does so too")
        else:
            self.in_progress += 1

    def _partial(self, path: Path) -> None:
        """A blob that has not arrived as a whole."""
        if is_partial_in_use(path):
            self.in_progress += 1
        else:
            what = "a blob that has arrived in part"
            self._add("stray-temporary", path, what, "copy the image again, which continues it; gc removes it")

    def _top(self) -> None:
        for name in listing(self.store.path):
            if name not in ("blobs", "images", LEASES_NAME, LOCK_NAME):
                self._foreign(self.store.path / name)

    def _blob_files(self) -> Iterator[tuple[Digest, int]]:
        blobs = self.store.path / "blobs"
        for prefix in listing(blobs):
            status = file_status(blobs / prefix)
            if status is None:
                continue
            if not is_blob_prefix(prefix) or not stat.S_ISDIR(status.st_mode):
                self._foreign(blobs / prefix)
                continue
            for rest in listing(blobs / prefix):
                status, digest = file_status(blobs / prefix / rest), digest_of_path(prefix, rest)
                if status is None:
                    continue
                if digest is None or not stat.S_ISREG(status.st_mode):
                    self._foreign(blobs / prefix / rest)
                else:
                    yield digest, status.st_size

    def _documents(self) -> Iterator[tuple[str, Document]]:
        for name in listing(self.store.path / "images"):
            path = self.store.path / "images" / name
            if record_owner(name) is not None:
                continue
            if not is_image_name(name):
                self._foreign(path)
                continue
            try:
                data = read_small(path, limit=MAX_IMAGE_DOCUMENT)
                if data is not None:
                    self.images += 1
                    yield name, parse_document(data, where=str(path))
            except FormatError as error:
                self._add("broken-document", path, error.what, "copy or build the image again")
            except ErosealError as error:
                self._add("unreadable", path, error.what, "check permissions and the disk")

    def _image(self, name: str, document: Document) -> None:
        path = self.store.image_path(name)
        for blob in dict.fromkeys(document.blobs):
            self.documented[blob.digest] = blob
            size = self.sizes.get(blob.digest)
            status = plain_status(self.store.blob_path(blob.digest)) if size is None else None
            if status is not None:
                size = status.st_size
            if size is None and self._is_lost(blob.digest):
                what = f"blob {blob.digest} is missing"
                self._add("missing-blob", path, what, "copy or build the image again")
            elif size not in (None, blob.size):
                what = f"blob {blob.digest} has {size} bytes, the document says {blob.size}"
                self._add("wrong-size", path, what, "delete the blob, then copy or build the image again")
        for layer in document.layers:
            self._devices(path, layer)

    def _is_current(self, name: str, document: Document) -> bool:
        """Whether an image is still there: what it named may have been collected since it was deleted."""
        try:
            return self.store.image(name)[0] == document
        except NotFoundError:
            return False
        except ErosealError:
            return True

    def _is_lost(self, digest: Digest) -> bool:
        """Whether an image misses a blob. Images, and then their blobs, come and go while we look: so look again."""
        path = self.store.blob_path(digest)
        naming = [item for item in self.documents.items() if digest in {blob.digest for blob in item[1].blobs}]
        return all(
            plain_status(path) is None and any(self._is_current(name, document) for name, document in naming)
            for _ in range(_LOOKS)
        )

    def _devices(self, path: Path, document: ImageDocument) -> None:
        """The verified device table decides what an image consists of; its document must say the same."""
        if document.image not in self.sizes:
            return
        expected: list[tuple[Digest | None, int]] = [(blob.digest, blob.data_size) for blob in document.blobs]
        try:
            with (
                FileAt(self.store.blob_path(document.image)) as source,
                open_self_consistent_image(source, open_data=self.store.open_blob) as image,
            ):
                found = [(image.digest, image.meta.size)]
                found += [(device.digest, device.size) for device in image.devices]
        except ErosealError:
            return  # the blob's own check says what is wrong with it
        if found[0][0] == document.image and found != expected:
            what = "the document's blobs or their data sizes are not those of the image's device table"
            self._add("wrong-devices", path, what, "copy or build the image again")

    def _records(self) -> None:
        for entry in listing(self.store.path / "images"):
            name = record_owner(entry)
            if name is None:
                continue
            path = self.store.path / "images" / entry
            document = self.documents.get(name)
            if document is None or self.store.record_path(name, document.image) != path:
                self._add("stray-record", path, "no image uses this record", "delete it")
                continue
            try:
                data = read_small(path, limit=MAX_IMAGE_RECORD)
                if data is not None:  # else its image was replaced meanwhile
                    parse_whole_record(data, where=str(path))
            except FormatError as error:
                self._add("broken-record", path, error.what, "delete it and sign the image again")
            except ErosealError as error:
                self._add("unreadable", path, error.what, "check permissions and the disk")

    def _lease_files(self) -> None:
        place = self.store.path / LEASES_NAME
        try:
            dead = read_leases(DirectoryLeases(self.store), time.time()).dead
        except ErosealError as error:
            hint = "remove it: nothing is collected while it is there"
            self._add("stray-lease", Path(error.where or place), error.what, hint)
            return
        for name in dead:
            self._add("stray-lease", place / name, "of a writer that is gone", "gc removes it")
        for name in listing(place) if place.is_dir() else ():
            if not is_lease_name(name):
                self._foreign(place / name)

    def _blob(
        self, digest: Digest, *, jobs: int | None, progress: Callable[[int], None] | None, again: bool = True
    ) -> None:
        path = self.store.blob_path(digest)
        try:
            with FileAt(path) as source:
                self._scan(path, digest, source, jobs=jobs, progress=progress)
        except ErosealError as error:
            if plain_status(path) is None and not self._is_lost(digest):
                del self.sizes[digest]  # collected meanwhile
            elif again and isinstance(error, NotFoundError):
                self._blob(digest, jobs=jobs, progress=progress, again=False)
            else:
                self._add("unreadable", path, error.what, "check permissions and the disk")

    def _scan(
        self,
        path: Path,
        digest: Digest,
        source: FileAt,
        *,
        jobs: int | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        try:
            blob = self._open(source, digest)
            bad = scan_blob(source, blob, jobs=jobs, keep_going=True, progress=progress)
        except ErosealError as error:
            self._refused(path, digest, source, error)
            return
        if bad:
            first = min(bad, key=lambda block: block.offset)
            what = f"{len(bad)} bad blocks, the first at byte {first.offset} (level {first.level})"
            self._add("corrupt-blob", path, what, _AGAIN)
        elif source.size != blob.seal.sealed_size:
            what = f"{source.size - blob.seal.sealed_size} bytes follow the seal record"
            self._add("wrong-size", path, what, _AGAIN)

    def _open(self, source: FileAt, digest: Digest) -> VerifiedBlob:
        try:
            return open_blob(source, digest)
        except ErosealError:
            # Its end may be hidden behind other bytes. A document may lie, so it is asked only now.
            documented = self.documented.get(digest)
            if documented is None:
                raise
            return open_blob(source, digest, data_size=documented.data_size)

    def _refused(self, path: Path, digest: Digest, source: FileAt, error: ErosealError) -> None:
        try:
            other = open_self_consistent(source).digest
        except ErosealError:
            # Cut short as far as one can tell: no seal ends here, and no document knows better.
            documented = self.documented.get(digest)
            short = (documented is None or source.size < documented.size) and complete_size(path) is None
            what = f"{error.what}; {source.size} bytes are there" if short else error.what
            self._add("truncated-blob" if short else "corrupt-blob", path, what, _AGAIN)
        else:
            what = f"this is blob {other} under another blob's name" if other != digest else error.what
            self._add("misnamed-blob" if other != digest else "corrupt-blob", path, what, _AGAIN)
