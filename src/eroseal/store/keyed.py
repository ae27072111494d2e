"""A native store over keys and values: the directory's files (`local.py`), as keys of the same names.

Servers lock nothing, so what the lock does in a directory is done by conditions on single keys and by the order of
steps. A new image's record is written first, under a key that nothing reads yet; the document then switches both;
the record of the image that it replaced goes last. Two that create one name meet at the document, which one of them
creates; two that change one record meet at its version, and the later one begins again from what the earlier wrote.
An image that loses its name to another writer at that very moment leaves at most a record that no document
uses; the next writers of that name remove such records once they are old.

A server that ignores conditions (some small imitations of S3 do) loses updates that come at the same time.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self

from eroseal.errors import FormatError, NotFoundError, OutputError, RemoteError
from eroseal.format.digest import Digest
from eroseal.format.record import FOOTER_SIZE, IMAGE_MAGIC, Footer, RecordEntry, encode_record
from eroseal.format.statement import ImageDigest
from eroseal.limits import MAX_IMAGE_RECORD, MAX_WRITE_CONFLICTS
from eroseal.readat import ReadAt
from eroseal.store.atomic import exists_error
from eroseal.store.document import MAX_IMAGE_DOCUMENT, BlobInfo, Document, parse_document
from eroseal.store.keys import (
    BLOBS,
    IMAGES,
    KeyInfo,
    Keys,
    ReadKeys,
    Value,
    blob_key,
    digest_of_key,
    image_key,
    record_key,
)
from eroseal.store.lanes import Lanes
from eroseal.store.layout import parse_whole_record, record_owner
from eroseal.store.protocol import (
    BlobStore,
    OpenBlob,
    Progress,
    RecordChange,
    encode_image_record,
    replaced_error,
)
from eroseal.store.reference import is_image_name
from eroseal.store.remote import DEFAULT_RANGES
from eroseal.store.staging import provable, require_size

_ORPHAN_AGE: Final = 24 * 3600.0
"""Seconds after which a record without a document is nobody's: no writer takes so long, and no clock is so wrong."""
_PAUSE_MS: Final = 20
"""Milliseconds that a writer waits at most after its first conflict; twice as many after each further one."""
_NO_ENTRIES: Final = encode_record(IMAGE_MAGIC, ())
"""A record without entries takes an old one's place where servers cannot delete on a condition."""


class KeyedReader:
    """A native store that is read by key; what needs no listing.

    Args:
        keys: where it is.
    """

    def __init__(self, keys: ReadKeys) -> None:
        self.keys = keys

    @property
    def where(self) -> str:
        return self.keys.where

    def close(self) -> None:
        """Give connections back; closing twice does no harm."""
        self.keys.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def open_blob(self, digest: Digest) -> OpenBlob:
        """The blob's bytes, unverified; safe for reads by several threads; raises NotFoundError."""
        info = self.keys.head(blob_key(digest))
        if info is None:
            raise self._no_blob(digest)
        return self.keys.open(info)

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is there; says nothing about its bytes."""
        return self.keys.head(blob_key(digest)) is not None

    def image(self, name: str) -> tuple[Document, list[RecordEntry]]:
        """The document and the record's entries, which belong together; raises NotFoundError, FormatError."""
        for _ in range(MAX_WRITE_CONFLICTS):
            document, value = self._document(name)
            record = self._record(name, document.image)
            if record is not None:
                return document, self._entries(name, document.image, record)
            # A replaced image takes its record with it: look again rather than report no signatures. The bytes are
            # compared, because web servers give the same tag to what they had a moment before.
            again = self.keys.get(image_key(name), limit=MAX_IMAGE_DOCUMENT)
            if again is not None and again.data == value.data:
                return document, []
        raise RemoteError("the image is replaced faster than it can be read", where=self._at(image_key(name)))

    def has_image(self, name: str) -> bool:
        """Whether an image has this name."""
        return self.keys.head(image_key(name)) is not None

    def _document(self, name: str) -> tuple[Document, Value]:
        key = image_key(name)
        value = self.keys.get(key, limit=MAX_IMAGE_DOCUMENT)
        if value is None:
            raise self._no_image(name)
        return parse_document(value.data, where=self._at(key)), value

    def _record(self, name: str, image: ImageDigest) -> Value | None:
        return self.keys.get(record_key(name, image), limit=MAX_IMAGE_RECORD)

    def _entries(self, name: str, image: ImageDigest, record: Value | None) -> list[RecordEntry]:
        if record is None:
            return []
        return parse_whole_record(record.data, where=self._at(record_key(name, image)))

    def _at(self, key: str) -> str:
        return f"{self.where}/{key}"

    def _no_image(self, name: str) -> NotFoundError:
        return NotFoundError("no image has this name", where=self._at(image_key(name)))

    def _no_blob(self, digest: Digest) -> NotFoundError:
        return NotFoundError(
            f"blob {digest} is not in the store", where=self.where, hint="copy or build the image again"
        )


class KeyedStore(KeyedReader):
    """A native store over keys and values; implements `Store`.

    Args:
        keys: where it is.
        parallel: requests in flight at once.
    """

    keys: Keys

    def __init__(self, keys: Keys, *, parallel: int = DEFAULT_RANGES) -> None:
        super().__init__(keys)
        self._parallel = parallel

    # --- blobs ---

    def put_blob(
        self, digest: Digest, source: ReadAt, *, jobs: int | None = None, progress: Progress | None = None
    ) -> int:
        """Put a sealed blob into the store, unless it is there; its object appears after every block was verified.

        A source that is no local file is brought here first, into a file without a name, so that the bytes that
        were verified are the bytes that go up.

        Args:
            digest: that it must have.
            source: the sealed blob; what follows its records is left behind. Several threads read from it.
            jobs: threads that verify; None means one for each processor.
            progress: told the bytes that went up, as they do.

        Returns:
            Bytes of the blob that the store has then.

        Raises:
            IntegrityError: it is not that blob, or damaged.
            OutputError: it cannot be written.
        """
        key = blob_key(digest)
        kept = self._complete_size(key)
        if kept is not None:
            return kept
        from eroseal.trust.image import open_blob  # noqa: PLC0415 - readers seldom copy blobs
        from eroseal.trust.scan import scan_blob  # noqa: PLC0415

        size = open_blob(source, digest, name=str(digest)).seal.sealed_size
        with provable(source, size, parallel=self._parallel) as file:
            blob = open_blob(file, digest, name=str(digest))
            require_size(blob.seal, size)
            scan_blob(file, blob, jobs=jobs)
            self.keys.upload(key, file, size, progress=progress)
        return size

    def adopt_blob(self, digest: Digest, origin: BlobStore) -> bool:
        """Have the server copy a blob from another store that it holds; False where it cannot.

        The seal is verified, and that the blob is as long as it says (steps 1 to 4); the server is trusted to
        copy it as it was, and readers verify each block anyway.
        """
        if not isinstance(origin, KeyedReader):
            return False
        key = blob_key(digest)
        if self._complete_size(key) is not None:
            return True
        from eroseal.trust.image import open_blob  # noqa: PLC0415 - readers seldom copy blobs

        with contextlib.closing(origin.open_blob(digest)) as source:
            if open_blob(source, digest, name=str(digest)).seal.sealed_size != source.size:
                return False
        return self.keys.copy(key, origin.keys)

    def list_blobs(self) -> Iterator[Digest]:
        """The digests of all blobs, in order of their hex digits; other objects are passed over."""
        for info in self.keys.below(BLOBS):
            digest = digest_of_key(info.key)
            if digest is not None:
                yield digest

    def delete_blob(self, digest: Digest) -> None:
        """Remove a blob; raises NotFoundError."""
        if not self.has_blob(digest):
            raise self._no_blob(digest)
        self.keys.delete(blob_key(digest))

    # --- images ---

    def put_image(
        self, name: str, document: Document, record: Sequence[RecordEntry] = (), *, replace: bool = False
    ) -> None:
        """Publish an image whose blobs are all in the store.

        Args:
            name: as `check_name` accepts it.
            document: its blobs, with the sizes that the store has.
            record: entries of the image record; none for an unsigned image.
            replace: take the place of an image of that name, and of its record.

        Raises:
            NotFoundError: a blob is missing.
            OutputError: the name is taken, a blob has another size, or the server refuses.
        """
        data = encode_image_record(record)
        if not replace:
            self._require_new(name)
            self._require_blobs(document)
            self._create_image(name, document, data)
            return
        self._require_blobs(document)
        old = self._image_digest(name)
        if data:
            self.keys.put(record_key(name, document.image), data)
        else:
            self.keys.delete(record_key(name, document.image))
        self.keys.put(image_key(name), document.encode())
        self._remove_records(name, gone=old)

    def update_record(self, name: str, change: RecordChange, *, expect: ImageDigest | None = None) -> list[RecordEntry]:
        """Replace the record by what `change` makes of it; where another writer came between, `change` is asked again.

        Args:
            name: of the image.
            change: from the entries there are to those wanted.
            expect: the image that the change is about; another one of that name keeps its record.

        Raises:
            NotFoundError: no image has this name.
            FormatError: the document or the record is broken.
            OutputError: it cannot be written, or it is another image by now; the old record stays.
        """
        wanted: bytes | None = None
        entries: list[RecordEntry] = []
        for attempt in range(MAX_WRITE_CONFLICTS):
            image = self._document(name)[0].image
            if expect is not None and image != expect:
                raise replaced_error(self._at(image_key(name)), expect)
            found = self._record(name, image)
            # A conflict may be with ourselves: the write arrived, its answer did not, and the client sent it again.
            if found is not None and found.data == wanted:
                return entries
            entries = list(change(self._entries(name, image, found)))
            wanted = encode_image_record(entries) or _NO_ENTRIES
            if self._exchange_record(name, image, found, wanted):
                return entries
            time.sleep(secrets.randbelow(_PAUSE_MS << min(attempt, 6)) / 1000)
        raise OutputError(
            "others change the record all the time", where=self._at(image_key(name)), hint="try again later"
        )

    def list_images(self) -> list[str]:
        """All image names, sorted."""
        names = (info.key.removeprefix(IMAGES) for info in self.keys.below(IMAGES))
        return [name for name in names if is_image_name(name)]

    def delete_image(self, name: str) -> None:
        """Remove an image's document and record; blobs stay, as other images may share them."""
        if not self.has_image(name):
            raise self._no_image(name)
        old = self._image_digest(name)
        self.keys.delete(image_key(name))
        self._remove_records(name, gone=old)

    def _create_image(self, name: str, document: Document, data: bytes) -> None:
        """Give a new name to an image; whoever loses the race for it leaves the winner's record as it was."""
        wanted, image = data or _NO_ENTRIES, document.image
        before = self._record(name, image)
        while not self._exchange_record(name, image, before, wanted):
            self._require_new(name)
            before = self._record(name, image)
        if self.keys.create(image_key(name), document.encode()):
            return
        if before is None or before.data != wanted:
            self._take_back(name, image, before, wanted)
        raise exists_error(self._at(image_key(name)), replaceable=True)

    def _take_back(self, name: str, image: ImageDigest, before: Value | None, ours: bytes) -> None:
        """After a lost race: undo our record, which the winner's image may have for its own by now."""
        key, found = record_key(name, image), self._record(name, image)
        if found is None or found.data != ours:
            return
        if before is None and self._image_digest(name) != image:
            self.keys.delete(key)
        else:
            self.keys.replace(key, _NO_ENTRIES if before is None else before.data, found.version)

    def _require_new(self, name: str) -> None:
        if self.has_image(name):
            raise exists_error(self._at(image_key(name)), replaceable=True)

    def _exchange_record(self, name: str, image: ImageDigest, found: Value | None, wanted: bytes) -> bool:
        key = record_key(name, image)
        if found is None:
            return wanted == _NO_ENTRIES or self.keys.create(key, wanted)
        return found.data == wanted or self.keys.replace(key, wanted, found.version)

    def _remove_records(self, name: str, *, gone: ImageDigest | None) -> None:
        """Remove the record of an image that lost its name, and old ones that no document uses."""
        mine = None if gone is None else record_key(name, gone)
        past = time.time() - _ORPHAN_AGE
        doomed = [info.key for info in self._records_of(name) if info.key == mine or info.modified < past]
        if not doomed:
            return
        # Looked at last: an image that came back under its old name meanwhile needs its record.
        image = self._image_digest(name)
        kept = None if image is None else record_key(name, image)
        for key in doomed:
            if key != kept:
                self.keys.delete(key)

    def _records_of(self, name: str) -> Iterator[KeyInfo]:
        start = f"{IMAGES}{name}."
        for info in self.keys.below(IMAGES, after=start):
            if not info.key.startswith(start):
                return
            if record_owner(info.key.removeprefix(IMAGES)) == name:
                yield info

    def _image_digest(self, name: str) -> ImageDigest | None:
        """The image that has this name; None for none, and for a broken document, which may be replaced."""
        try:
            return self._document(name)[0].image
        except (NotFoundError, FormatError):
            return None

    def _complete_size(self, key: str) -> int | None:
        """As `layout.complete_size`: a cheap look, which lets a copy heal an object that was cut short."""
        info = self.keys.head(key)
        if info is None or info.size < FOOTER_SIZE:
            return None
        with contextlib.closing(self.keys.open(info)) as value:
            footer = Footer.parse(value.read_at(info.size - FOOTER_SIZE, FOOTER_SIZE))
        whole = footer is not None and footer.record_offset + footer.record_length == info.size
        return info.size if whole else None

    def _require_blobs(self, document: Document) -> None:
        blobs = tuple(dict.fromkeys(document.blobs))
        Lanes(self._parallel).run(self._require_blob, blobs, workers=self._parallel)

    def _require_blob(self, blob: BlobInfo) -> None:
        info = self.keys.head(blob_key(blob.digest))
        if info is None:
            raise self._no_blob(blob.digest)
        if info.size != blob.size:
            raise OutputError(
                f"blob has {info.size} bytes, but the image's document says {blob.size}",
                where=self._at(blob_key(blob.digest)),
                hint="remove it, and copy the image again",
            )
