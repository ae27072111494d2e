"""An OCI image layout: a directory with content by digest, and an index of what has a name.

The index belongs to every tool that uses the layout. It is changed under a lock of ours, and what others put into it
stays byte for byte. Content is a plain file under its digest; nothing else in the directory is followed or read.

Source: the OCI image specification (image-layout.md, image-index.md, annotations.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from eroseal.errors import FormatError, NotFoundError, OutputError, UnsupportedError
from eroseal.limits import IO_CHUNK, MAX_JSON_BODY, MAX_MANIFEST, MAX_TAGS
from eroseal.readat import BytesAt, FileAt, ReadAt
from eroseal.store.atomic import (
    TemporaryFile,
    exclusive_lock,
    is_temporary,
    make_directory,
    output_error,
    remove_abandoned,
    write_atomic,
    write_fully,
)
from eroseal.store.layout import is_plain_file, read_small
from eroseal.store.oci.content import check_made, digest_of, new_hash, verified, whole
from eroseal.store.oci.documents import Descriptor, Index, Manifest, check_digest, edit_index, parse, shape_of
from eroseal.store.oci.referrers import artifact_descriptor
from eroseal.store.oci.repository import Repository
from eroseal.store.protocol import Progress
from eroseal.store.reference import check_tag, is_tag

REF_NAME: Final = "org.opencontainers.image.ref.name"
"""Annotation of an entry of the index: its tag."""
LOCK_NAME: Final = ".eroseal-lock"
_MARK: Final = "oci-layout"
_INDEX: Final = "index.json"
_VERSION: Final = "1.0.0"
_EMPTY_INDEX: Final = b'{"schemaVersion":2,"manifests":[]}'
_MAX_MARK: Final = 4 << 10
"""Bytes of the file that says that this is a layout: it has one field."""


class _Mark(msgspec.Struct, frozen=True, rename="camel"):
    image_layout_version: str


class _Typed(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = ""


class LayoutRepository:
    """An image layout; implements `Repository`.

    Args:
        path: of its directory.
        create: make what is missing.
        durable: sync what is written.

    Raises:
        NotFoundError: there is no layout.
        FormatError: it is of another version.
        OutputError: it cannot be made, or something else is there.
    """

    def __init__(self, path: Path, *, create: bool = False, durable: bool = True) -> None:
        self.path = path
        self._durable = durable
        self._cleaned = False
        mark = read_small(path / _MARK, limit=_MAX_MARK)
        if mark is None and create:
            self._create()
        elif mark is None:
            raise NotFoundError("is not an OCI image layout", where=str(path), hint=f"it has no file {_MARK!r}")
        else:
            _check_mark(mark, str(path / _MARK))

    @property
    def where(self) -> str:
        return f"oci:{self.path}"

    def manifest(self, reference: str) -> tuple[bytes, Descriptor]:
        named = self._known(reference) if ":" in reference else self._named(reference)
        digest = reference if named is None else named.digest
        data = read_small(self._blob_path(digest), limit=MAX_MANIFEST)
        if data is None:
            raise NotFoundError(f"manifest {digest} is not there", where=self.where)
        if digest_of(data, like=digest) != digest or (named is not None and named.size != len(data)):
            raise FormatError(f"is not {digest}", where=str(self._blob_path(digest)), hint="it is damaged or replaced")
        if named is None:
            return data, Descriptor(media_type=_media_type(data, digest), digest=digest, size=len(data))
        return data, Descriptor(media_type=named.media_type, digest=digest, size=len(data))

    def put_manifest(self, data: bytes, media_type: str, *, tag: str | None = None) -> Descriptor:
        """Store a manifest or index, also in the layout's index, by which other tools find what they must keep."""
        descriptor = Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))
        self._put_manifest(descriptor, data)
        if tag is not None:
            named = msgspec.structs.replace(descriptor, annotations={REF_NAME: check_tag(tag)})
            self._change(lambda entry: entry.annotations.get(REF_NAME) == tag, named)
        elif self._known(descriptor.digest) is None:
            self._change(lambda entry: entry.digest == descriptor.digest, descriptor)
        return descriptor

    def tags(self) -> list[str]:
        names = {entry.annotations.get(REF_NAME, "") for entry in self._index().manifests}
        return sorted(name for name in names if is_tag(name))

    def delete_tag(self, tag: str) -> None:
        self._named(tag)
        self._change(lambda entry: entry.annotations.get(REF_NAME) == tag, None)

    def has_blob(self, descriptor: Descriptor) -> bool:
        path = self._blob_path(descriptor.digest)
        return is_plain_file(path) and path.stat().st_size == descriptor.size

    def open_blob(self, descriptor: Descriptor) -> FileAt:
        path = self._blob_path(descriptor.digest)
        if not is_plain_file(path):
            raise NotFoundError(f"blob {descriptor.digest} is not there", where=self.where)
        return FileAt(path)

    def stream_blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        return verified(self._pieces(descriptor), descriptor, where=str(self._blob_path(descriptor.digest)))

    def read_blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        return whole(self.stream_blob(descriptor), descriptor, limit=limit, where=self.where)

    def put_blob(self, descriptor: Descriptor, source: ReadAt, *, progress: Progress | None = None) -> None:
        if not self.has_blob(descriptor):
            final = self._blob_path(descriptor.digest)
            with TemporaryFile(self._blob_directory(final), durable=self._durable) as temporary:
                made = new_hash(descriptor.digest)
                for offset in range(0, descriptor.size, IO_CHUNK):
                    piece = source.read_at(offset, min(IO_CHUNK, descriptor.size - offset))
                    made.update(piece)
                    try:
                        write_fully(temporary.fd, piece, offset)
                    except OSError as error:
                        raise output_error(error, final) from error
                    if progress is not None:
                        progress(len(piece))
                check_made(made, descriptor.digest, where=descriptor.digest)
                # What is there has another size, or another writer's is the same.
                temporary.commit(final, replace=True)
        elif progress is not None:
            progress(descriptor.size)

    def mount_blob(self, descriptor: Descriptor, origin: Repository) -> bool:
        """Nothing moves without a copy here: files with two names would be damaged together."""
        return False

    def delete_blob(self, descriptor: Descriptor) -> None:
        """Remove content; whether something needs it is for the caller to know. Raises NotFoundError."""
        path = self._blob_path(descriptor.digest)
        try:
            os.unlink(path)
        except FileNotFoundError as error:
            raise NotFoundError(f"blob {descriptor.digest} is not there", where=self.where) from error
        except OSError as error:
            raise output_error(error, path, "cannot remove") from error

    def referrers(self, subject: str, *, artifact_type: str) -> list[Descriptor]:
        listed = (entry for entry in self._index().manifests if entry.artifact_type == artifact_type)
        return [entry for entry in listed if self._subject(entry) == subject]

    def put_referrer(self, data: bytes, subject: str, *, artifact_type: str, replaces: str | None = None) -> Descriptor:
        """Store a manifest that has a subject; the layout's index names its type, so that it is found."""
        manifest = parse(data, Manifest, where="artifact")
        stored = Descriptor(media_type=manifest.media_type, digest=digest_of(data), size=len(data))
        self._put_manifest(stored, data)
        descriptor = artifact_descriptor(data, stored, artifact_type)
        gone = {descriptor.digest, replaces}
        self._change(lambda entry: entry.digest in gone and REF_NAME not in entry.annotations, descriptor)
        return descriptor

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            ours = {_INDEX, "blobs", LOCK_NAME}
            others = [name for name in os.listdir(self.path) if name not in ours and not is_temporary(name)]
            if others:
                raise OutputError(
                    "exists already, and is not an OCI image layout", where=str(self.path), hint="choose another name"
                )
            with exclusive_lock(self.path / LOCK_NAME):
                make_directory(self.path / "blobs", durable=self._durable)
                if not is_plain_file(self.path / _INDEX):
                    write_atomic(self.path / _INDEX, _EMPTY_INDEX, durable=self._durable)
                # Last, because it says that all else is there.
                mark = msgspec.json.encode(_Mark(_VERSION))
                write_atomic(self.path / _MARK, mark, replace=True, durable=self._durable)
        except OSError as error:
            raise output_error(error, self.path, "cannot make an image layout") from error

    def _blob_path(self, digest: str) -> Path:
        try:
            algorithm, _, encoded = check_digest(digest).partition(":")
        except ValueError as error:
            raise FormatError(str(error), where=self.where) from error
        return self.path / "blobs" / algorithm / encoded

    def _blob_directory(self, final: Path) -> Path:
        directory = final.parent
        try:
            make_directory(directory, durable=self._durable)
        except OSError as error:
            raise output_error(error, directory) from error
        if not self._cleaned:
            self._cleaned = True
            remove_abandoned(directory)
        return directory

    def _pieces(self, descriptor: Descriptor) -> Iterator[bytes]:
        with self.open_blob(descriptor) as file:
            # One byte more than there should be is enough to be refused.
            size = min(file.size, descriptor.size + 1)
            for offset in range(0, size, IO_CHUNK):
                yield file.read_at(offset, min(IO_CHUNK, size - offset))

    def _put_manifest(self, descriptor: Descriptor, data: bytes) -> None:
        if len(data) > MAX_MANIFEST:
            raise OutputError(f"a manifest of {len(data)} bytes, at most {MAX_MANIFEST} are allowed", where=self.where)
        self.put_blob(descriptor, BytesAt(data, descriptor.digest))

    def _index_bytes(self) -> bytes:
        data = read_small(self.path / _INDEX, limit=MAX_JSON_BODY)
        if data is None:
            raise FormatError("an image layout without its index", where=str(self.path / _INDEX))
        return data

    def _index(self) -> Index:
        index = parse(self._index_bytes(), Index, where=str(self.path / _INDEX), limit=MAX_JSON_BODY)
        if len(index.manifests) > MAX_TAGS:
            raise FormatError(f"lists more than {MAX_TAGS} manifests", where=str(self.path / _INDEX))
        return index

    def _named(self, tag: str) -> Descriptor:
        """The entry of a tag; raises NotFoundError, FormatError for several."""
        entries = [entry for entry in self._index().manifests if entry.annotations.get(REF_NAME) == tag]
        if not entries:
            known = ", ".join(self.tags()[:10])
            hint = f"there are: {known}" if known else "nothing in it has a tag"
            raise NotFoundError(f"there is no image tagged {tag!r}", where=self.where, hint=hint)
        if len({entry.digest for entry in entries}) > 1:
            raise FormatError(f"several images are tagged {tag!r}", where=self.where, hint="name one by its digest")
        return entries[0]

    def _known(self, digest: str) -> Descriptor | None:
        return next((entry for entry in self._index().manifests if entry.digest == digest), None)

    def _change(self, drop: Callable[[Descriptor], bool], add: Descriptor | None) -> None:
        path = self.path / _INDEX
        with exclusive_lock(self.path / LOCK_NAME):
            data = edit_index(self._index_bytes(), drop=drop, add=add, where=str(path), limit=MAX_JSON_BODY)
            write_atomic(path, data, replace=True, durable=self._durable)

    def _subject(self, entry: Descriptor) -> str | None:
        """The digest of a manifest's subject; None for what is missing, damaged, or has none."""
        try:
            manifest = parse(self.read_blob(entry, limit=MAX_MANIFEST), Manifest, where=entry.digest)
        except (FormatError, NotFoundError):
            return None
        return None if manifest.subject is None else manifest.subject.digest


def _check_mark(data: bytes, where: str) -> None:
    try:
        version = msgspec.json.decode(data, type=_Mark).image_layout_version
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError("is not the mark of an OCI image layout", where=where) from error
    if version != _VERSION:
        raise UnsupportedError(f"an image layout of version {version[:20]!r}, not {_VERSION}", where=where)


def _media_type(data: bytes, where: str) -> str:
    """What a manifest that no index lists says that it is, or what its fields show."""
    try:
        found = msgspec.json.decode(data, type=_Typed).media_type or shape_of(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError("is not a manifest", where=where) from error
    if not found:
        raise FormatError("does not say what kind of manifest it is", where=where)
    return found
