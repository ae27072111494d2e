"""Collecting a native store in an object store, where nothing can be locked.

What is about to be deleted is announced first, a batch at a time. Then leases are read, then documents, and then what
is still garbage is deleted. The order is what makes it safe:

1. The announcement comes before the leases are read, and a writer puts its lease before it looks for announcements.
   So either we see the lease and pass over its blobs, or the writer sees the announcement and waits until we are done;
   only then does it look which blobs are there.
2. Leases come before documents, and a writer's lease ends after its document has appeared. A lease that had ended when
   we looked has left a document, which we then see; the other way round both could be missed.
3. A blob that no writer has a lease on is a new one, stored by somebody who knows nothing of leases: the grace period
   is for those.

This holds as long as a batch is deleted while its announcement lasts: no deletion is begun after a part of that time.
Only a process that is stopped for minutes between that look at the clock and the request, or whose request the network
delivers minutes late, could still delete what a writer has come to count on.

Ages are told by the server's clock alone, which stamps blobs, leases and announcements. Records that no image uses
stay: they are small, and the next writer of their name removes them.
"""

from __future__ import annotations

import threading
import time
from typing import Final, NamedTuple

from eroseal.errors import FormatError, RemoteError
from eroseal.format.digest import Digest
from eroseal.store.document import MAX_IMAGE_DOCUMENT, parse_document
from eroseal.store.garbage import Collected, CollectOptions, Garbage, Judge, refusal
from eroseal.store.keyed import KeyedStore
from eroseal.store.keys import BLOBS, IMAGES, KeyInfo, blob_key, digest_of_key
from eroseal.store.lanes import Lanes
from eroseal.store.layout import LEASES_NAME
from eroseal.store.lease import COLLECT_SECONDS, announced
from eroseal.store.lease_places import LEASE_MARGIN, KeyedLeases, read_leases
from eroseal.store.reference import is_image_name

_BATCH: Final = 1000
"""Blobs that are announced, looked at again and deleted together: 16 at once, that takes seconds."""
_HURRY: Final = 60.0
"""Seconds of an announcement's time in which deletions are begun; the rest is for requests that are tried again."""


class _Blob(NamedTuple):
    """A blob's object as it was listed."""

    digest: Digest
    size: int
    modified: float


class _Documents:
    """The documents of a store, read again where they may have changed."""

    def __init__(self, store: KeyedStore, judge: Judge[Digest], parallel: int) -> None:
        self._store = store
        self._judge = judge
        self._parallel = parallel
        self._seen: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def read(self) -> None:
        """Read those that are new or may have changed since the last time; raises FormatError, RemoteError."""
        changed = [
            info
            for info in self._store.keys.below(IMAGES)
            if is_image_name(info.key.removeprefix(IMAGES)) and self._seen.get(info.key) != (info.size, info.modified)
        ]
        Lanes(self._parallel).run(self._read, changed, workers=min(self._parallel, len(changed)))

    def _read(self, info: KeyInfo) -> None:
        where = f"{self._store.where}/{info.key}"
        try:
            value = self._store.keys.get(info.key, limit=MAX_IMAGE_DOCUMENT)
            if value is None:
                return  # deleted meanwhile
            document = parse_document(value.data, where=where)
        except FormatError as error:
            raise refusal(error, "an image's document") from error
        with self._lock:
            self._judge.named.update(blob.digest for blob in document.blobs)
            # Times are whole seconds: what is young when it is read may change again without a trace.
            if info.modified < self._judge.now - LEASE_MARGIN:
                self._seen[info.key] = (info.size, info.modified)


def collect_keyed(store: KeyedStore, options: CollectOptions, *, parallel: int) -> Collected:
    """Collect a native store in an object store; others may go on using it.

    Args:
        store: to collect.
        options: of the collection.
        parallel: requests in flight at once.

    Raises:
        FormatError: a document or lease that cannot be read; nothing more was collected.
        RemoteError, AccessError: of the server; what went, went.
    """
    return _Collection(store, options, parallel).run()


class _Collection:
    """One run over one store."""

    def __init__(self, store: KeyedStore, options: CollectOptions, parallel: int) -> None:
        self._store = store
        self._options = options
        self._parallel = parallel
        self._judge: Judge[Digest] = Judge(options.grace, time.time())
        self._documents = _Documents(store, self._judge, parallel)
        self._leases = KeyedLeases(store.keys)
        self._dead: tuple[str, ...] = ()
        self._leftovers: list[str] = []

    def run(self) -> Collected:
        if not self._options.dry_run:
            with announced(self._leases, ()) as now:  # of nothing, to be told the time
                self._judge.now = now
        self._look()
        candidates = []
        for info in self._store.keys.below(BLOBS):
            digest = digest_of_key(info.key)
            if digest is not None:
                self._tell()
                if self._judge.condemns(digest, info.modified):
                    candidates.append(_Blob(digest, info.size, info.modified))
        gone = candidates if self._options.dry_run else self._take(candidates)
        for key in (f"{LEASES_NAME}/{name}" for name in self._dead):
            if not self._options.dry_run:
                self._store.keys.delete(key)
            self._leftovers.append(key)
        return self._judge.result([Garbage(str(blob.digest), blob.size) for blob in gone], self._leftovers)

    def _look(self) -> None:
        """See leases, then documents."""
        try:
            leases = read_leases(self._leases, self._judge.now)
        except FormatError as error:
            raise refusal(error, "a lease") from error
        self._judge.leased, self._dead = leases.keep, leases.dead
        self._documents.read()

    def _take(self, candidates: list[_Blob]) -> list[_Blob]:
        """Delete what is still garbage; gives it."""
        gone = []
        for start in range(0, len(candidates), _BATCH):
            batch = candidates[start : start + _BATCH]
            deadline = time.monotonic() + _HURRY
            with announced(self._leases, (blob.digest for blob in batch)) as now:
                self._judge.now = now
                self._look()
                doomed = [blob for blob in batch if self._judge.condemns(blob.digest, blob.modified)]

                def delete(blob: _Blob, deadline: float = deadline) -> None:
                    if time.monotonic() > deadline:
                        raise RemoteError(
                            f"deletes too slowly: what is announced for {COLLECT_SECONDS} seconds must be gone by then",
                            where=self._store.where,
                            hint="run it again; raise --parallel",
                        )
                    self._store.keys.delete(blob_key(blob.digest))
                    self._tell()

                Lanes(self._parallel).run(delete, doomed, workers=min(self._parallel, len(doomed)))
            gone += doomed
        return gone

    def _tell(self) -> None:
        if self._options.progress is not None:
            self._options.progress(1)
