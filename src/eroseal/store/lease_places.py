"""Leases as a store keeps them: small documents that name blobs which nobody may collect.

::

    leases/<32 hex>         a writer's: what it counts on
    leases/<32 hex>.gc      a collection's, in an object store: what it is about to delete

A lease says for how many seconds it lasts from the moment at which it was last written or touched. That moment is
the store's own time of the file or object, the same clock that tells how old blobs are: a writer whose clock is wrong
is protected like any other. The document is parsed strictly, as image documents are.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import msgspec

from eroseal.errors import ErosealError, FormatError, NotFoundError
from eroseal.format.digest import Digest
from eroseal.limits import MAX_LEASE_DOCUMENT, MAX_LEASE_SECONDS, MAX_LEASED, MAX_LEASES
from eroseal.store.atomic import exclusive_lock, make_directory, output_error, write_atomic
from eroseal.store.keys import Keys
from eroseal.store.layout import LEASES_NAME, LOCK_NAME, is_plain_file, listing, read_small
from eroseal.store.local import LocalStore

COLLECTING: Final = ".gc"
"""Ends the names of what collections put beside the writers' leases."""
LEASE_MARGIN: Final = 60.0
"""Seconds that a lease outlives its end: times are whole seconds, and a renewal may be under way."""
_NAME: Final = re.compile(r"[0-9a-f]{32}(?:\.gc)?", re.ASCII)
_SCHEMA: Final = "eroseal.lease/1"
_PREFIX: Final = f"{LEASES_NAME}/"


class LeaseJson(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The document, as it is written."""

    schema: Literal["eroseal.lease/1"]
    seconds: int
    blobs: list[str] | Literal["all"]


@dataclass(frozen=True, slots=True)
class Lease:
    """What is leased, and for how long.

    Args:
        seconds: 1 to MAX_LEASE_SECONDS, from the time of its file or object.
        blobs: at most MAX_LEASED; None for all that there are.
    """

    seconds: int
    blobs: frozenset[Digest] | None

    def __post_init__(self) -> None:
        if not 1 <= self.seconds <= MAX_LEASE_SECONDS:
            raise FormatError(f"a lease lasts 1 to {MAX_LEASE_SECONDS} seconds, not {self.seconds}")
        if self.blobs is not None and len(self.blobs) > MAX_LEASED:
            raise FormatError(f"a lease lists at most {MAX_LEASED} blobs, not {len(self.blobs)}")

    @classmethod
    def of(cls, blobs: Iterable[Digest], seconds: int) -> Lease:
        """A lease on some blobs; on all, if these are too many to list."""
        found = frozenset(blobs)
        return cls(seconds, found if len(found) <= MAX_LEASED else None)

    def meets(self, other: Lease) -> bool:
        """Whether the two name a blob in common."""
        if self.blobs is None or other.blobs is None:
            return True
        return not self.blobs.isdisjoint(other.blobs)

    def encode(self) -> bytes:
        """The document's only spelling: compact JSON, digests sorted, one newline at the end."""
        blobs: list[str] | Literal["all"] = "all" if self.blobs is None else sorted(map(str, self.blobs))
        return msgspec.json.encode(LeaseJson(_SCHEMA, self.seconds, blobs)) + b"\n"

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> Lease:
        """Read a lease; raises FormatError for anything that `encode` would not write."""
        try:
            if len(data) > MAX_LEASE_DOCUMENT:
                raise FormatError(f"has {len(data)} bytes, more than {MAX_LEASE_DOCUMENT}")
            raw = msgspec.json.decode(data, type=LeaseJson)
            found = None if raw.blobs == "all" else frozenset(map(Digest.parse, raw.blobs))
            lease = cls(raw.seconds, found)
            if lease.encode() != data:
                raise FormatError("not in its canonical spelling")
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise FormatError(f"not a lease: {error}", where=where) from error
        except ErosealError as error:
            raise FormatError(f"broken lease: {error.what}", where=where) from error
        return lease


class LeasePlace(Protocol):
    """Where a store's leases are; methods may be called from several threads at once."""

    def put(self, name: str, lease: Lease) -> None:
        """Write a lease."""
        ...

    def renew(self, name: str, lease: Lease) -> None:
        """Have it begin now, whether or not it is still there."""
        ...

    def remove(self, name: str) -> None:
        """Remove it; one that is not there does no harm."""
        ...

    def listed(self) -> Iterator[tuple[str, float]]:
        """Names and times, in seconds since the epoch; files of other names are passed over."""
        ...

    def get(self, name: str) -> Lease | None:
        """A lease, or None for none; raises FormatError for a broken one."""
        ...


class DirectoryLeases:
    """The leases of a store in a directory.

    They are made under the store's lock: no collection is at work then, so whoever has a lease finds only blobs that
    stay.

    Args:
        store: whose leases they are.
    """

    def __init__(self, store: LocalStore) -> None:
        self._store = store.path
        self._path = store.path / LEASES_NAME

    def put(self, name: str, lease: Lease) -> None:
        with exclusive_lock(self._store / LOCK_NAME):
            try:
                make_directory(self._path, durable=False)
            except OSError as error:
                raise output_error(error, self._path, "cannot make a directory") from error
            # Not synced: what takes the lease also takes the writer.
            write_atomic(self._path / name, lease.encode(), replace=True, durable=False)

    def renew(self, name: str, lease: Lease) -> None:
        try:
            os.utime(self._path / name, follow_symlinks=False)
        except FileNotFoundError:
            self.put(name, lease)
        except OSError as error:
            raise output_error(error, self._path / name) from error

    def remove(self, name: str) -> None:
        try:
            os.unlink(self._path / name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise output_error(error, self._path / name, "cannot remove") from error

    def listed(self) -> Iterator[tuple[str, float]]:
        try:
            status = os.lstat(self._path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise NotFoundError(f"cannot look at it: {error.strerror}", where=str(self._path)) from error
        if not stat.S_ISDIR(status.st_mode):
            raise FormatError("not a directory", where=str(self._path), hint="remove it")
        for name in filter(is_lease_name, listing(self._path)):
            with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
                if is_plain_file(self._path / name):
                    yield name, os.lstat(self._path / name).st_mtime

    def get(self, name: str) -> Lease | None:
        path = self._path / name
        data = read_small(path, limit=MAX_LEASE_DOCUMENT)
        return None if data is None else Lease.parse(data, where=str(path))


class KeyedLeases:
    """The leases of a store over keys and values.

    Args:
        keys: of the store.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def put(self, name: str, lease: Lease) -> None:
        self._keys.put(_PREFIX + name, lease.encode())

    def renew(self, name: str, lease: Lease) -> None:
        self.put(name, lease)

    def remove(self, name: str) -> None:
        self._keys.delete(_PREFIX + name)

    def modified(self, name: str) -> float | None:
        """When a lease was written last, by the server's clock; None for none."""
        info = self._keys.head(_PREFIX + name)
        return None if info is None else info.modified

    def listed(self) -> Iterator[tuple[str, float]]:
        for info in self._keys.below(_PREFIX):
            name = info.key.removeprefix(_PREFIX)
            if is_lease_name(name):
                yield name, info.modified

    def get(self, name: str) -> Lease | None:
        value = self._keys.get(_PREFIX + name, limit=MAX_LEASE_DOCUMENT)
        return None if value is None else Lease.parse(value.data, where=f"{self._keys.where}/{_PREFIX}{name}")


@dataclass(frozen=True, slots=True)
class Leases:
    """The leases of a store at one moment.

    Args:
        live: those that hold, by name; collections' are not among them.
        dead: names of those that have run out.
    """

    live: dict[str, Lease]
    dead: tuple[str, ...]

    def keep(self, digest: Digest) -> bool:
        """Whether one of them names a blob."""
        return any(lease.blobs is None or digest in lease.blobs for lease in self.live.values())


def read_leases(place: LeasePlace, now: float) -> Leases:
    """The leases of a store.

    Args:
        place: where they are.
        now: seconds since the epoch, by the store's clock as well as is known.

    Raises:
        FormatError: a lease that cannot be read, and may name any blob; or too many.
        NotFoundError: they cannot be looked at.
    """
    live: dict[str, Lease] = {}
    dead = []
    for name, modified in place.listed():
        if has_run_out(modified, MAX_LEASE_SECONDS, now):
            dead.append(name)  # whatever it says
            continue
        lease = place.get(name)
        if lease is None:
            continue
        if has_run_out(modified, lease.seconds, now):
            dead.append(name)
        elif not name.endswith(COLLECTING):
            live[name] = lease
        if len(live) > MAX_LEASES:
            raise FormatError(f"more than {MAX_LEASES} leases", hint="remove those of writers that are gone")
    return Leases(live, tuple(dead))


def has_run_out(modified: float, seconds: float, now: float) -> bool:
    """Whether a lease of that age and length has ended, by more than clocks may differ."""
    return modified + seconds + LEASE_MARGIN < now


def is_lease_name(name: str) -> bool:
    """Whether a file or object below `leases/` is called as ours are."""
    return _NAME.fullmatch(name) is not None
