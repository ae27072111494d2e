"""Holding blobs: for as long as somebody works on an image, no collection takes blobs that it will name.

A writer takes its lease first, and only then looks which blobs the store has. What it finds there stays until the
lease ends, which is after the image's document has appeared. A thread renews the lease; when the writer dies, the lease
runs out.

In a directory the store's lock orders the two: leases are made under it, and collections look and delete under it.
Object stores have no lock. There both sides announce themselves before they look at the other: the writer puts its
lease, then looks for collections; a collection puts the list of what it is about to delete, then looks for leases.
Whichever comes second sees the first, since these stores show what was written to whoever asks later. A collection
passes over what is leased; a writer waits for a collection of blobs that it wants, which lasts seconds.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Final

from eroseal.errors import ErosealError, OutputError
from eroseal.format.digest import Digest
from eroseal.store.keyed import KeyedStore
from eroseal.store.lease_places import COLLECTING, DirectoryLeases, KeyedLeases, Lease, LeasePlace, has_run_out
from eroseal.store.local import LocalStore
from eroseal.store.protocol import BlobStore

LEASE_SECONDS: Final = 3600
"""How long a lease lasts: what a killed writer's blobs are kept beyond the grace period, at most."""
COLLECT_SECONDS: Final = 300
"""How long the announcement of a collection lasts: what a writer waits at most for one that was killed."""
_RENEWALS: Final = 3
"""Times that a lease is renewed before it would run out: one may fail."""
_POLL: Final = 0.25
"""Seconds between looks whether a collection is done."""
_PATIENCE: Final = 5.0
"""Seconds that a renewal under way gets to end."""


@contextlib.contextmanager
def lease(store: BlobStore, digests: Iterable[Digest], *, seconds: int = LEASE_SECONDS) -> Iterator[None]:
    """Keep blobs of a native store from being collected, whether they are there yet or not.

    A store that is no native one has no leases: nothing happens then.

    Args:
        store: that will have an image of these blobs.
        digests: of the blobs.
        seconds: that the lease lasts unless it is renewed, which happens for as long as the context lasts.

    Raises:
        OutputError: the lease cannot be written.
        FormatError: a collection's announcement that cannot be read.
        RemoteError, AccessError: of a server.
    """
    place: LeasePlace
    if isinstance(store, LocalStore):
        place = DirectoryLeases(store)
    elif isinstance(store, KeyedStore):
        place = KeyedLeases(store.keys)
    else:
        yield
        return
    wanted = Lease.of(digests, seconds)
    with _held(place, wanted, secrets.token_hex(16)) as name:
        if isinstance(place, KeyedLeases):
            _await_collections(place, name, wanted)
        yield


@contextlib.contextmanager
def announced(place: KeyedLeases, digests: Iterable[Digest]) -> Iterator[float]:
    """Announce a collection of blobs of an object store; gives the time of it by the server's clock.

    Args:
        place: where the store's leases are.
        digests: at most MAX_LEASED; what is about to be deleted.
    """
    name = secrets.token_hex(16) + COLLECTING
    place.put(name, Lease.of(digests, COLLECT_SECONDS))
    try:
        yield place.modified(name) or 0.0
    finally:
        with contextlib.suppress(ErosealError):
            place.remove(name)


@contextlib.contextmanager
def _held(place: LeasePlace, wanted: Lease, name: str) -> Iterator[str]:
    done = threading.Event()

    def renew() -> None:
        while not done.wait(wanted.seconds / _RENEWALS):
            # The next one may succeed. If none does, publishing looks for the blobs once more.
            with contextlib.suppress(ErosealError):
                place.renew(name, wanted)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    place.put(name, wanted)
    try:
        try:
            thread.start()
        except RuntimeError as error:
            raise OutputError(f"cannot start a thread: {error}") from error
        yield name
    finally:
        done.set()
        if thread.ident is not None:
            thread.join(_PATIENCE)
        with contextlib.suppress(ErosealError):
            place.remove(name)


def _await_collections(place: KeyedLeases, name: str, wanted: Lease) -> None:
    """Wait for collections that began before our lease was there, and may delete what it names."""
    now = place.modified(name)
    for other, modified in list(place.listed()):
        if not other.endswith(COLLECTING) or now is None or has_run_out(modified, COLLECT_SECONDS, now):
            continue
        theirs = place.get(other)
        if theirs is None or not theirs.meets(wanted):
            continue
        started = time.monotonic()
        while place.modified(other) is not None:
            if has_run_out(modified, COLLECT_SECONDS, now + time.monotonic() - started):
                break
            time.sleep(_POLL)
