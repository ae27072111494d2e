"""From a reference to an image, whatever kind of place it is in."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from eroseal.errors import NotFoundError, UnsupportedError, UsageError
from eroseal.format.digest import Digest
from eroseal.format.record import RecordEntry
from eroseal.store.document import Document, ImageDocument, StackDocument
from eroseal.store.local import LocalStore
from eroseal.store.open import open_store
from eroseal.store.protocol import OpenBlob, RecordChange, Store, StoredImage
from eroseal.store.reference import FileReference, NamedReference, Reference, parse_reference
from eroseal.store.remote import RemoteOptions
from eroseal.store.single import open_sealed, read_layout, update_record

_DEFAULTS: Final = RemoteOptions()


@dataclass(frozen=True, slots=True)
class StoredStack:
    """What a reference names, layer by layer; a context manager that closes the meta blobs and the store.

    Args:
        reference: what was asked for.
        document: of the image or stack; None for a single file.
        record: entries of its image record.
        layers: the lowest first; for a plain image that image alone. Those of a stack have no records of their own.
        update_record: replaces the image record where it lives; refuses if another image lives there by now.
        store: where it is; None for a single file.
    """

    reference: Reference
    document: Document | None
    record: tuple[RecordEntry, ...]
    layers: tuple[StoredImage, ...]
    update_record: Callable[[RecordChange], list[RecordEntry]]
    store: Store | None

    @property
    def is_stack(self) -> bool:
        """Whether it has a stack digest, be it of a single layer."""
        return isinstance(self.document, StackDocument)

    def close(self) -> None:
        """Close the meta blobs and the store."""
        for layer in self.layers:
            layer.meta.close()
        if self.store is not None:
            self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _OwningImage(StoredImage):
    """An image that nobody else uses the store of."""

    def close(self) -> None:
        StoredImage.close(self)
        close = getattr(self.store, "close", None)
        if close is not None:
            close()


def resolve(
    reference: str | Reference,
    *,
    data_files: Sequence[Path] = (),
    durable: bool = True,
    remote: RemoteOptions = _DEFAULTS,
) -> StoredImage:
    """Open the image that a reference names; nothing of it is verified yet.

    Args:
        reference: as the user typed it, or parsed.
        data_files: for a single file, the sealed files that hold its data blobs, in any order.
        durable: sync what `update_record` writes.
        remote: how servers are spoken to.

    Raises:
        UsageError: a reference that cannot be used, or data files for an image in a store.
        NotFoundError: no such store, image, meta blob or file.
        UnsupportedError: it is a stack.
        IntegrityError: a file that is not sealed.
        FormatError: a broken image document or record.
        RemoteError, AccessError: of a server.
    """
    parsed = parse_reference(reference) if isinstance(reference, str) else reference
    if isinstance(parsed, FileReference):
        return _resolve_file(parsed, data_files, durable=durable)
    _refuse_files(data_files)
    store, document, record = _look_up(parsed, remote, durable=durable)
    try:
        if isinstance(document, StackDocument):
            raise UnsupportedError(f"a stack of {len(document.layers)} layers, not one image", where=str(parsed))
        return _stored_image(_OwningImage, parsed, store, document, document, record)
    except BaseException:
        store.close()
        raise


def resolve_layers(
    reference: str | Reference,
    *,
    data_files: Sequence[Path] = (),
    durable: bool = True,
    remote: RemoteOptions = _DEFAULTS,
) -> StoredStack:
    """Open the image or stack that a reference names; nothing of it is verified yet. As `resolve` otherwise."""
    parsed = parse_reference(reference) if isinstance(reference, str) else reference
    if isinstance(parsed, FileReference):
        image = _resolve_file(parsed, data_files, durable=durable)
        return StoredStack(parsed, None, image.record, (image,), image.update_record, None)
    _refuse_files(data_files)
    store, document, record = _look_up(parsed, remote, durable=durable)
    with contextlib.ExitStack() as stack:
        stack.callback(store.close)
        layers = []
        for layer in document.layers:
            own_record = record if layer is document else []
            layers.append(_stored_image(StoredImage, parsed, store, layer, document, own_record))
            stack.callback(layers[-1].meta.close)
        change = functools.partial(store.update_record, parsed.name, expect=document.image)
        stack.pop_all()
    return StoredStack(parsed, document, tuple(record), tuple(layers), change, store)


def _refuse_files(data_files: Sequence[Path]) -> None:
    if data_files:
        raise UsageError("an image in a store has its data blobs there: no data files can be given")


def _look_up(
    reference: NamedReference, remote: RemoteOptions, *, durable: bool
) -> tuple[Store, Document, list[RecordEntry]]:
    store = open_store(reference, remote, durable=durable)
    try:
        return store, *store.image(reference.name)
    except BaseException:
        store.close()
        raise


def _stored_image(
    kind: type[StoredImage],
    reference: NamedReference,
    store: Store,
    image: ImageDocument,
    whole: Document,
    record: Sequence[RecordEntry],
) -> StoredImage:
    """One image of a store.

    Args:
        image: its document.
        whole: the document under the reference's name, which is the image's own unless that is a layer.
    """

    def blob_path(digest: Digest) -> Path | None:
        return store.blob_path(digest) if isinstance(store, LocalStore) and store.has_blob(digest) else None

    return kind(
        reference=reference,
        meta=store.open_blob(image.image),
        record=tuple(record),
        document=image,
        open_data=store.open_blob,
        blob_path=blob_path,
        update_record=functools.partial(store.update_record, reference.name, expect=whole.image),
        store=store,
    )


def _resolve_file(reference: FileReference, data_files: Sequence[Path], *, durable: bool) -> StoredImage:
    meta = open_sealed(reference.path)
    try:
        layout = read_layout(meta, name=str(reference.path))
        paths = {layout.digest: reference.path} | dict(_claimed(path) for path in data_files)
    except BaseException:
        meta.close()
        raise

    def open_data(digest: Digest) -> OpenBlob:
        if digest not in paths:
            raise NotFoundError(
                f"data blob {digest} is not there",
                where=str(reference),
                hint="a single file holds one blob; keep images with data blobs in a store",
            )
        return open_sealed(paths[digest])

    return StoredImage(
        reference=reference,
        meta=meta,
        record=layout.entries,
        document=None,
        open_data=open_data,
        blob_path=paths.get,
        update_record=functools.partial(update_record, reference.path, expect=layout.digest, durable=durable),
    )


def _claimed(path: Path) -> tuple[Digest, Path]:
    """What a sealed file claims to be; whoever opens it verifies that."""
    with open_sealed(path) as file:
        return read_layout(file, name=str(path)).digest, path
