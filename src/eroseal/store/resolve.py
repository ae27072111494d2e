"""From a reference to an image, whatever kind of place it is in."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from eroseal.errors import NotFoundError, UnsupportedError, UsageError
from eroseal.format.digest import Digest
from eroseal.store.document import StackDocument
from eroseal.store.local import LocalStore
from eroseal.store.protocol import OpenBlob, StoredImage
from eroseal.store.reference import FileReference, Reference, StoreReference, parse_reference
from eroseal.store.single import open_sealed, read_layout, update_record


def resolve(reference: str | Reference, *, data_files: Sequence[Path] = (), durable: bool = True) -> StoredImage:
    """Open the image that a reference names; nothing of it is verified yet.

    Args:
        reference: as the user typed it, or parsed.
        data_files: for a single file, the sealed files that hold its data blobs, in any order.
        durable: sync what `update_record` writes.

    Raises:
        UsageError: a reference that cannot be used, or data files for an image in a store.
        NotFoundError: no such store, image, meta blob or file.
        IntegrityError: a file that is not sealed.
        FormatError: a broken image document or record.
    """
    parsed = parse_reference(reference) if isinstance(reference, str) else reference
    if isinstance(parsed, FileReference):
        return _resolve_file(parsed, data_files, durable=durable)
    if not isinstance(parsed, StoreReference):
        raise UnsupportedError("this kind of reference cannot be opened yet", where=str(parsed))
    if data_files:
        raise UsageError("an image in a store has its data blobs there: no data files can be given")
    return _resolve_stored(parsed, durable=durable)


def _resolve_stored(reference: StoreReference, *, durable: bool) -> StoredImage:
    store = LocalStore.open(reference.store, durable=durable)
    document, record = store.image(reference.name)
    if isinstance(document, StackDocument):
        raise UnsupportedError(f"a stack of {len(document.layers)} layers, not one image", where=str(reference))

    def blob_path(digest: Digest) -> Path | None:
        return store.blob_path(digest) if store.has_blob(digest) else None

    return StoredImage(
        reference=reference,
        meta=store.open_blob(document.image),
        record=tuple(record),
        document=document,
        open_data=store.open_blob,
        blob_path=blob_path,
        update_record=functools.partial(store.update_record, reference.name, expect=document.image),
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
