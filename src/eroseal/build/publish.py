"""The last step of a build: what was built goes to its place and appears under its name."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eroseal.build.options import UPLOADING, BuiltBlob, Progress
from eroseal.errors import ErosealError
from eroseal.format.digest import Digest
from eroseal.format.record import RecordEntry
from eroseal.format.statement import ImageDigest
from eroseal.store.atomic import exists_error
from eroseal.store.document import Document, ImageDocument
from eroseal.store.lanes import Lanes
from eroseal.store.local import LocalStore
from eroseal.store.protocol import Store
from eroseal.store.reference import NamedReference

if TYPE_CHECKING:
    from eroseal.build.bases import BaseBlob

MakeRecord = Callable[[ImageDigest, bytes | None], Sequence[RecordEntry]]
"""Makes the entries of an image record from the image's digest and the meta blob's root hash (None for a stack)."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a build made, before it is published.

    Args:
        document: of the image or stack.
        blobs: for each layer its meta blob and data blobs in device order.
    """

    document: Document
    blobs: tuple[tuple[BuiltBlob, ...], ...]


def require_new(store: Store, target: NamedReference) -> None:
    """Refuse a name that is taken, before anything is built; raises OutputError."""
    if store.has_image(target.name):
        raise exists_error(str(target), replaceable=True)


def put_base_blobs(store: Store, bases: Sequence[BaseBlob], *, jobs: int | None = None) -> None:
    """Have the blobs of bases in the store, too.

    Raises:
        NotFoundError, VerificationError: a base that changed meanwhile.
        OutputError: the store cannot be written.
    """
    for base in bases:
        _put_base(store, base, jobs)


def _put_base(store: Store, base: BaseBlob, jobs: int | None) -> None:
    # In a directory the look makes it young, so that no collection takes it before the image is published.
    there = store.stored_size(base.digest) if isinstance(store, LocalStore) else store.has_blob(base.digest)
    if there:
        return
    origin = base.image.store
    if origin is not None and store.adopt_blob(base.digest, origin):
        return
    with contextlib.closing(base.image.open_data(base.digest)) as source:
        store.put_blob(base.digest, source, jobs=jobs)


def upload(
    store: Store,
    built_in: LocalStore,
    built: Built,
    bases: Sequence[BaseBlob],
    *,
    parallel: int,
    progress: Progress | None = None,
) -> None:
    """Send what was built to a store; what is there already is not sent, and the first error stops the rest.

    Args:
        store: where it goes.
        built_in: has the new blobs.
        built: names them.
        bases: whose blobs the image refers to.
        parallel: blobs under way at once, at most.
        progress: told UPLOADING and the bytes sent.
    """
    lanes, lock, sent = Lanes(parallel), threading.Lock(), 0

    def told(amount: int) -> None:
        nonlocal sent
        lanes.check()  # an upload that nobody waits for any more ends here
        if progress is not None:
            with lock:
                sent += amount
                progress(UPLOADING, sent)

    def send(item: Digest | BaseBlob) -> None:
        lanes.check()
        if isinstance(item, Digest):
            with contextlib.closing(built_in.open_blob(item)) as source:
                store.put_blob(item, source, jobs=1, progress=told)
        else:
            _put_base(store, item, 1)

    new = dict.fromkeys(blob.digest for blobs in built.blobs for blob in blobs if blob.new)
    items: list[Digest | BaseBlob] = [*new, *bases]
    lanes.run(send, items, workers=min(parallel, len(items)))


def publish(store: Store, name: str, built: Built, make_record: MakeRecord, *, replace: bool) -> None:
    """Make the image appear, with its record."""
    document = built.document
    root_hash = built.blobs[0][0].root_hash if isinstance(document, ImageDocument) else None
    record = [*_kept_record(store, name, document, replace=replace), *make_record(document.image, root_hash)]
    store.put_image(name, document, record, replace=replace)


def _kept_record(store: Store, name: str, document: Document, *, replace: bool) -> Sequence[RecordEntry]:
    """What signatures and other entries an image has that is replaced by the same image."""
    if not replace or not store.has_image(name):
        return ()
    try:
        kept, entries = store.image(name)
    except ErosealError:
        return ()  # broken: it is replaced whole
    return entries if kept.image == document.image else ()
