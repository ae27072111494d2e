"""Reading an OCI image layout, be it a directory or the inside of an archive.

Content is found by its digest alone, and is what its digest says before its last byte is given. The index and the
manifests are small, bounded documents.

Source: the OCI image specification (image-layout.md, image-index.md, annotations.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

import msgspec

from eroseal.errors import FormatError, NotFoundError, UnsupportedError, UsageError
from eroseal.limits import IO_CHUNK, MAX_JSON_BODY, MAX_MANIFEST, MAX_TAGS
from eroseal.store.oci.content import digest_of, verified, whole
from eroseal.store.oci.documents import Descriptor, Index, check_digest, parse, shape_of
from eroseal.store.protocol import OpenBlob
from eroseal.store.reference import is_tag

REF_NAME: Final = "org.opencontainers.image.ref.name"
"""Annotation of an entry of the index: its tag."""
MARK: Final = "oci-layout"
INDEX: Final = "index.json"
VERSION: Final = "1.0.0"
_MAX_MARK: Final = 4 << 10
"""Bytes of the file that says that this is a layout: it has one field."""
_SHOWN_TAGS: Final = 10


class LayoutFiles(Protocol):
    """The files of a layout, by their paths in it."""

    def read(self, path: str, *, limit: int) -> bytes | None:
        """A small file whole, None for none; raises FormatError for more than `limit` bytes."""
        ...

    def open(self, path: str) -> OpenBlob | None:
        """A file's bytes, None for none."""
        ...


class Mark(msgspec.Struct, frozen=True, rename="camel"):
    """The file that says that a directory is a layout."""

    image_layout_version: str


class _Typed(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = ""


class _Listed:
    """An index, and its entries by what they are asked for by."""

    def __init__(self, data: bytes, index: Index) -> None:
        self.data = data
        self.index = index
        self.by_digest: dict[str, Descriptor] = {}
        self.by_tag: dict[str, dict[str, Descriptor]] = {}
        for entry in index.manifests:
            self.by_digest.setdefault(entry.digest, entry)
            self.by_tag.setdefault(entry.annotations.get(REF_NAME, ""), {})[entry.digest] = entry


class LayoutReader:
    """An image layout to read from; the reading half of `Repository`.

    Args:
        files: of the layout.
        where: what messages call it.
    """

    def __init__(self, files: LayoutFiles, where: str) -> None:
        self._files = files
        self._where = where
        self._last: _Listed | None = None

    @property
    def where(self) -> str:
        return self._where

    def is_marked(self) -> bool:
        """Whether it says that it is a layout; raises FormatError, and UnsupportedError for another version."""
        data = self._files.read(MARK, limit=_MAX_MARK)
        if data is None:
            return False
        try:
            version = msgspec.json.decode(data, type=Mark).image_layout_version
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise FormatError(f"{MARK} is not the mark of an OCI image layout", where=self.where) from error
        if version != VERSION:
            raise UnsupportedError(f"a layout of version {version[:20]!r}, not {VERSION}", where=self.where)
        return True

    def manifest(self, reference: str) -> tuple[bytes, Descriptor]:
        entry = self._known(reference) if ":" in reference else self._named(reference)
        digest = reference if entry is None else entry.digest
        data = self._files.read(self._path(digest), limit=MAX_MANIFEST)
        if data is None:
            raise NotFoundError(f"manifest {digest} is not there", where=self.where)
        if digest_of(data, like=digest) != digest or (entry is not None and entry.size != len(data)):
            raise FormatError(
                f"manifest {digest} has other content", where=self.where, hint="it is damaged or replaced"
            )
        media_type = _media_type(data, digest) if entry is None else entry.media_type
        return data, Descriptor(media_type=media_type, digest=digest, size=len(data))

    def tags(self) -> list[str]:
        names = {entry.annotations.get(REF_NAME, "") for entry in self.index().manifests}
        return sorted(name for name in names if is_tag(name))

    def sole(self) -> Descriptor:
        """The only thing that the index lists; raises NotFoundError for an empty index, UsageError for more."""
        entries = {entry.digest: entry for entry in self.index().manifests}
        if len(entries) != 1:
            error = UsageError if entries else NotFoundError
            raise error(f"lists {len(entries)} images", where=self.where, hint=self._known_tags())
        return next(iter(entries.values()))

    def has_blob(self, descriptor: Descriptor) -> bool:
        file = self._files.open(self._path(descriptor.digest))
        if file is None:
            return False
        size = file.size
        file.close()
        return size == descriptor.size

    def open_blob(self, descriptor: Descriptor) -> OpenBlob:
        file = self._files.open(self._path(descriptor.digest))
        if file is None:
            raise NotFoundError(f"blob {descriptor.digest} is not there", where=self.where)
        return file

    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        return verified(self._pieces(descriptor), descriptor, where=self.where)

    def read_blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        return whole(self.stream_blob(descriptor), descriptor, limit=limit, where=self.where)

    def close(self) -> None:
        """Nothing is held open."""

    def _path(self, digest: str) -> str:
        try:
            algorithm, _, encoded = check_digest(digest).partition(":")
        except ValueError as error:
            raise FormatError(str(error), where=self.where) from error
        return f"blobs/{algorithm}/{encoded}"

    def _pieces(self, descriptor: Descriptor) -> Iterator[bytes]:
        file = self.open_blob(descriptor)
        try:
            # One byte more than there should be is enough to be refused.
            size = min(file.size, descriptor.size + 1)
            for offset in range(0, size, IO_CHUNK):
                yield file.read_at(offset, min(IO_CHUNK, size - offset))
        finally:
            file.close()

    def _index_bytes(self) -> bytes:
        data = self._files.read(INDEX, limit=MAX_JSON_BODY)
        if data is None:
            raise FormatError(f"an image layout without {INDEX}", where=self.where)
        return data

    def index(self) -> Index:
        """What the layout lists; raises FormatError."""
        return self._listed().index

    def _listed(self) -> _Listed:
        """The index as it is now, parsed anew only if it changed: whoever looks at all tags asks for each."""
        data, last = self._index_bytes(), self._last
        if last is not None and last.data == data:
            return last
        index = parse(data, Index, where=self.where, limit=MAX_JSON_BODY)
        if len(index.manifests) > MAX_TAGS:
            raise FormatError(f"lists more than {MAX_TAGS} manifests", where=self.where)
        self._last = _Listed(data, index)
        return self._last

    def _named(self, tag: str) -> Descriptor:
        """The entry of a tag; raises NotFoundError, FormatError for several."""
        entries = self._listed().by_tag.get(tag, {})
        if len(entries) > 1:
            raise FormatError(f"several images are tagged {tag!r}", where=self.where, hint="name one by its digest")
        for entry in entries.values():
            return entry
        raise NotFoundError(f"there is no image tagged {tag!r}", where=self.where, hint=self._known_tags())

    def _known(self, digest: str) -> Descriptor | None:
        return self._listed().by_digest.get(digest)

    def _known_tags(self) -> str:
        tags = self.tags()
        more = ", ..." if len(tags) > _SHOWN_TAGS else ""
        return f"there are: {', '.join(tags[:_SHOWN_TAGS])}{more}" if tags else "nothing in it has a tag"


def _media_type(data: bytes, where: str) -> str:
    """What a manifest that no index lists says that it is, or what its fields show."""
    try:
        found = msgspec.json.decode(data, type=_Typed).media_type or shape_of(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError("is not a manifest", where=where) from error
    if not found:
        raise FormatError("does not say what kind of manifest it is", where=where)
    return found
