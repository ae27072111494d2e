"""An OCI image layout: a directory with content by digest, and an index of what has a name.

The index belongs to every tool that uses the layout. It is changed under a lock of ours, and what others put into it
stays byte for byte. Content is a plain file under its digest; nothing else in the directory is followed or read.

Source: the OCI image specification (image-layout.md, image-index.md, annotations.md).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from eroseal.errors import FormatError, NotFoundError, OutputError
from eroseal.limits import IO_CHUNK, MAX_JSON_BODY, MAX_MANIFEST
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
from eroseal.store.oci.content import check_made, digest_of, new_hash
from eroseal.store.oci.documents import MANIFESTS, Descriptor, Manifest, edit_index, parse
from eroseal.store.oci.layout_reader import INDEX, MARK, REF_NAME, VERSION, LayoutReader, Mark
from eroseal.store.oci.referrers import artifact_descriptor
from eroseal.store.oci.repository import Repository
from eroseal.store.protocol import Progress
from eroseal.store.reference import check_tag

LOCK_NAME: Final = ".eroseal-lock"
_EMPTY_INDEX: Final = b'{"schemaVersion":2,"manifests":[]}'


class _DirectoryFiles:
    """Plain files below a directory; nothing else in it is followed or read."""

    def __init__(self, path: Path) -> None:
        self._directory = path

    def read(self, path: str, *, limit: int) -> bytes | None:
        return read_small(self._directory / path, limit=limit)

    def open(self, path: str) -> FileAt | None:
        file = self._directory / path
        return FileAt(file) if is_plain_file(file) else None


class LayoutRepository(LayoutReader):
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
        super().__init__(_DirectoryFiles(path), f"oci:{path}")
        if self.is_marked():
            return
        if not create:
            raise NotFoundError("is not an OCI image layout", where=str(path), hint=f"it has no file {MARK!r}")
        self._create()

    def put_manifest(self, data: bytes, media_type: str, *, tag: str | None = None) -> Descriptor:
        """Store a manifest or index, also in the layout's index, by which other tools find what they must keep."""
        descriptor = Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))
        self._put_manifest(descriptor, data)
        contents = [descriptor]
        if media_type in MANIFESTS:
            manifest = parse(data, Manifest, where=descriptor.digest)
            contents += [manifest.config, *manifest.layers]
        if tag is not None:
            named = msgspec.structs.replace(descriptor, annotations={REF_NAME: check_tag(tag)})
            self._change(lambda entry: entry.annotations.get(REF_NAME) == tag, named, contents)
        elif self._known(descriptor.digest) is None:
            self._change(lambda entry: entry.digest == descriptor.digest, descriptor, contents)
        return descriptor

    def delete_tag(self, tag: str) -> None:
        self._named(tag)
        self._change(lambda entry: entry.annotations.get(REF_NAME) == tag, None)

    def put_blob(self, descriptor: Descriptor, source: ReadAt, *, progress: Progress | None = None) -> None:
        if self.has_blob(descriptor):
            with contextlib.suppress(OSError):  # a collection must not find it old; nor may we touch what others own
                os.utime(self.path / self._path(descriptor.digest), follow_symlinks=False)
            if progress is not None:
                progress(descriptor.size)
            return
        final = self.path / self._path(descriptor.digest)
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
            check_made(made, descriptor.digest, where=self.where)
            # What is there has another size, or is another writer's, and the same.
            temporary.commit(final, replace=True)

    def mount_blob(self, descriptor: Descriptor, origin: Repository) -> bool:
        """Nothing moves without a copy here: files with two names would be damaged together."""
        return False

    def delete_blob(self, descriptor: Descriptor) -> None:
        """Remove content; whether something needs it is for the caller to know. Raises NotFoundError."""
        path = self.path / self._path(descriptor.digest)
        try:
            os.unlink(path)
        except FileNotFoundError as error:
            raise NotFoundError(f"blob {descriptor.digest} is not there", where=self.where) from error
        except OSError as error:
            raise output_error(error, path, "cannot remove") from error

    def referrers(self, subject: str, *, artifact_type: str) -> list[Descriptor]:
        listed = (entry for entry in self.index().manifests if entry.artifact_type == artifact_type)
        return [entry for entry in listed if self._subject(entry) == subject]

    def put_referrer(self, data: bytes, subject: str, *, artifact_type: str, replaces: str | None = None) -> Descriptor:
        """Store a manifest that has a subject; the layout's index names its type, so that it is found."""
        manifest = parse(data, Manifest, where="artifact")
        stored = Descriptor(media_type=manifest.media_type, digest=digest_of(data), size=len(data))
        self._put_manifest(stored, data)
        descriptor = artifact_descriptor(data, stored, artifact_type)
        gone = {descriptor.digest, replaces}
        contents = [stored, manifest.config, *manifest.layers]
        self._change(lambda entry: entry.digest in gone and REF_NAME not in entry.annotations, descriptor, contents)
        return descriptor

    def blob_path(self, digest: str) -> Path:
        """Where content lies, if it is there; raises FormatError for what is no digest."""
        return self.path / self._path(digest)

    def drop_entries(self, digests: Collection[str]) -> None:
        """Take manifests out of the index; for a collection, which holds the lock. Raises FormatError, OutputError."""
        if digests:
            path = self.path / INDEX
            data = self._index_bytes()
            edited = edit_index(
                data, drop=lambda entry: entry.digest in digests, add=None, where=str(path), limit=MAX_JSON_BODY
            )
            write_atomic(path, edited, replace=True, durable=self._durable)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _create(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            ours = {INDEX, MARK, "blobs", LOCK_NAME}
            others = [name for name in os.listdir(self.path) if name not in ours and not is_temporary(name)]
            if others:
                raise OutputError(
                    "exists already, and is not an OCI image layout", where=str(self.path), hint="choose another name"
                )
            with exclusive_lock(self.path / LOCK_NAME):
                make_directory(self.path / "blobs", durable=self._durable)
                if not is_plain_file(self.path / INDEX):
                    write_atomic(self.path / INDEX, _EMPTY_INDEX, durable=self._durable)
                # Last, because it says that all else is there.
                mark = msgspec.json.encode(Mark(VERSION))
                write_atomic(self.path / MARK, mark, replace=True, durable=self._durable)
        except OSError as error:
            raise output_error(error, self.path, "cannot make an image layout") from error

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

    def _put_manifest(self, descriptor: Descriptor, data: bytes) -> None:
        if len(data) > MAX_MANIFEST:
            raise OutputError(f"a manifest of {len(data)} bytes, at most {MAX_MANIFEST} are allowed", where=self.where)
        self.put_blob(descriptor, BytesAt(data, descriptor.digest))

    def _change(
        self, drop: Callable[[Descriptor], bool], add: Descriptor | None, contents: Sequence[Descriptor] = ()
    ) -> None:
        path = self.path / INDEX
        with exclusive_lock(self.path / LOCK_NAME):
            # Under the lock: a collection must not take them between this look and the index's change.
            for content in dict.fromkeys(item.digest for item in contents):
                if not is_plain_file(self.path / self._path(content)):
                    raise NotFoundError(f"{content} is not there", where=self.where, hint="copy the image again")
            data = edit_index(self._index_bytes(), drop=drop, add=add, where=str(path), limit=MAX_JSON_BODY)
            write_atomic(path, data, replace=True, durable=self._durable)

    def _subject(self, entry: Descriptor) -> str | None:
        """The digest of a manifest's subject; None for what is missing, damaged, or has none."""
        try:
            manifest = parse(self.read_blob(entry, limit=MAX_MANIFEST), Manifest, where=entry.digest)
        except (FormatError, NotFoundError):
            return None
        return None if manifest.subject is None else manifest.subject.digest
