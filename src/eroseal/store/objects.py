"""Object stores (S3, Google Cloud Storage, Azure) as keys and values, through obstore.

Requests block in native code, where Ctrl-C does not reach them: those of the main thread are made by a thread of their
own, and the main thread waits. Clients are made at the first request, and refuse to serve a process that was forked
after it: the native threads do not survive fork(), and a request would hang. Programs that fork workers do so before,
or start fresh ones.

Answers are bounded by what was asked for, whatever sizes a server names. Uploads hold a part of the process's
budget of memory for the parts in flight.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TypeVar

from eroseal.errors import FormatError, OutputError, RemoteError
from eroseal.limits import MAX_UPLOAD_MEMORY, MAX_UPLOAD_PART
from eroseal.readat import ReadAt
from eroseal.store.keyed import KeyedStore
from eroseal.store.keys import IMAGES, KeyInfo, ReadKeys, Value, Version
from eroseal.store.lanes import TransferStopped
from eroseal.store.object_calls import UPLOADS, Runtime, interruptibly
from eroseal.store.object_errors import no_bucket, says_no_bucket, store_error
from eroseal.store.object_settings import ObjectSettings, object_settings
from eroseal.store.protocol import Progress
from eroseal.store.readahead import ReadAhead
from eroseal.store.reference import ObjectReference
from eroseal.store.remote import RemoteOptions

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta, UpdateVersion
    from obstore.store import ObjectStore

_PART: Final = 8 << 20
"""Bytes of a part of an upload, unless an object needs larger ones to have few enough."""
_MAX_PARTS: Final = 10_000
"""Parts of one object: what S3 and Google take."""
_CHUNK: Final = 256 << 10
"""Bytes that an answer is gathered in."""
_PAGE: Final = 1000
"""Keys of one page of a listing: as many as servers send."""
_WRITER: Final = "eroseal-writer"
"""Attribute that tells who created an object, for a writer whose first try arrived though its answer did not."""

_T = TypeVar("_T")


def open_object_store(reference: ObjectReference, options: RemoteOptions, *, create: bool) -> KeyedStore:
    """The native store in a bucket, below a prefix; an empty prefix is an empty store.

    Args:
        reference: of any image in it.
        options: what holds for all servers; its environment has the credentials.
        create: it will be written to: the server is asked once, so that a wrong bucket or key is found before any work.
            Otherwise no request is made, and processes may be forked until the first one is.

    Raises:
        UsageError: a bucket or endpoint that cannot be.
        AccessError: there are no credentials, or they do not suffice.
        NotFoundError: there is no such bucket.
    """
    keys = ObjectKeys(reference, object_settings(reference, options), parallel=options.parallel)
    if create:
        next(keys.below(IMAGES), None)
    return KeyedStore(keys, parallel=options.parallel)


class ObjectKeys:
    """Values in a bucket; implements `Keys`.

    Args:
        reference: of any image of the store.
        settings: of the client.
        parallel: parts of one upload in flight at once, where memory allows.
    """

    def __init__(self, reference: ObjectReference, settings: ObjectSettings, *, parallel: int) -> None:
        self._where = reference.url
        self._root = f"{reference.prefix}/" if reference.prefix else ""
        self._settings = settings
        self._parallel = parallel
        self._clients: dict[bool, ObjectStore] = {}
        self._lock = threading.Lock()

    @property
    def where(self) -> str:
        return self._where

    def get(self, key: str, *, limit: int) -> Value | None:
        import obstore  # noqa: PLC0415 - most commands speak to no object store

        def read(client: ObjectStore) -> Value:
            result = obstore.get(client, self._root + key)
            if result.meta["size"] > limit:
                raise FormatError(f"has {result.meta['size']} bytes, more than {limit}", where=self._at(key))
            return Value(gather(result, limit, self._at(key)), Version(result.meta["e_tag"], result.meta["version"]))

        return self._ask(key, read)

    def head(self, key: str) -> KeyInfo | None:
        import obstore  # noqa: PLC0415 - most commands speak to no object store

        meta = self._ask(key, lambda client: obstore.head(client, self._root + key))
        return None if meta is None else info_of(key, meta)

    def open(self, info: KeyInfo) -> ObjectBlob:
        return ObjectBlob(self, info)

    def read(self, info: KeyInfo, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of a value, at least one; raises FormatError where the value is another one now."""
        import obstore  # noqa: PLC0415 - most commands speak to no object store

        where = self._at(info.key)
        # Asked for all of it as a part, servers may answer as if asked for the whole, which the client refuses.
        options: GetOptions = {} if length == info.size else {"range": (offset, offset + length)}

        def read(client: ObjectStore) -> bytes:
            result = obstore.get(client, self._root + info.key, options=options)
            if result.meta["size"] != info.size:
                raise FormatError(f"has {result.meta['size']} bytes, not {info.size}", where=where)
            if tuple(result.range) != (offset, offset + length):
                raise RemoteError("sends another part of it than was asked for", where=where)
            return gather(result, length, where)

        data = self._ask(info.key, read)
        if data is None:
            raise FormatError("vanished while it was read", where=where)
        if len(data) != length:
            raise RemoteError(f"{len(data)} bytes came instead of {length} at byte {offset}", where=where)
        return data

    def put(self, key: str, data: bytes) -> None:
        import obstore  # noqa: PLC0415 - most commands speak to no object store

        self._tell(key, lambda client: obstore.put(client, self._root + key, data, use_multipart=False))

    def create(self, key: str, data: bytes) -> bool:
        import obstore  # noqa: PLC0415 - most commands speak to no object store
        from obstore.exceptions import AlreadyExistsError  # noqa: PLC0415

        path, mark = self._root + key, secrets.token_hex(16)

        def write(client: ObjectStore) -> bool:
            try:
                obstore.put(client, path, data, mode="create", attributes={_WRITER: mark}, use_multipart=False)
            except AlreadyExistsError:
                with contextlib.suppress(FileNotFoundError):
                    return obstore.get(client, path, options={"head": True}).attributes.get(_WRITER) == mark
                return False
            return True

        return self._tell(key, write)

    def replace(self, key: str, data: bytes, version: Version) -> bool:
        import obstore  # noqa: PLC0415 - most commands speak to no object store
        from obstore.exceptions import PreconditionError  # noqa: PLC0415

        mode: UpdateVersion = {}
        if version.tag is not None:
            mode["e_tag"] = version.tag
        if version.number is not None:
            mode["version"] = version.number

        def write(client: ObjectStore) -> bool:
            try:
                obstore.put(client, self._root + key, data, mode=mode, use_multipart=False)
            except PreconditionError:
                return False
            return True

        return self._tell(key, write)

    def upload(self, key: str, source: ReadAt, size: int, *, progress: Progress | None = None) -> None:
        import obstore  # noqa: PLC0415 - most commands speak to no object store

        part = max(_PART, -(-size // _MAX_PARTS))
        if part > MAX_UPLOAD_PART:
            raise OutputError(
                f"a blob of {size} bytes is too large for an object store",
                where=self._at(key),
                hint="build the image with smaller blobs",
            )
        stop = threading.Event()
        told = progress or (lambda _: None)

        def parts() -> Iterator[bytes]:
            for offset in range(0, size, part):
                if stop.is_set():
                    raise TransferStopped("stopped")
                data = source.read_at(offset, min(part, size - offset))
                yield data
                told(len(data))

        in_flight = max(1, min(self._parallel, -(-size // part), MAX_UPLOAD_MEMORY // part))

        def write(client: ObjectStore) -> bool:
            if size <= part:
                obstore.put(client, self._root + key, source.read_at(0, size), use_multipart=False)
                told(size)
                return True
            # An error of the iterator takes the parts back that went up before; nothing appears under the name.
            obstore.put(client, self._root + key, parts(), chunk_size=part, max_concurrency=in_flight)
            return True

        with UPLOADS.take(min(size, in_flight * part)):
            self._tell(key, write, patient=True, stop=stop)

    def copy(self, key: str, origin: ReadKeys) -> bool:
        import obstore  # noqa: PLC0415 - most commands speak to no object store
        from obstore.exceptions import BaseError  # noqa: PLC0415

        if not isinstance(origin, ObjectKeys) or origin._settings != self._settings:
            return False
        source = origin._root + key

        def write(client: ObjectStore) -> bool:
            try:
                obstore.copy(client, source, self._root + key)
            except BaseError:
                return False  # too large for one copy, or not allowed: moving the bytes tells
            return True

        return self._ask(key, write, patient=True) or False

    def delete(self, key: str) -> None:
        import obstore  # noqa: PLC0415 - most commands speak to no object store

        self._ask(key, lambda client: obstore.delete(client, self._root + key))

    def below(self, prefix: str, *, after: str = "") -> Iterator[KeyInfo]:
        import obstore  # noqa: PLC0415 - most commands speak to no object store

        place = self._root + prefix
        offset = self._root + after if after else None
        stream = self._ask(
            prefix, lambda client: obstore.list(client, place.rstrip("/"), offset=offset, chunk_size=_PAGE)
        )
        last = ""
        while stream is not None:
            page = self._ask(prefix, lambda _: next(stream, None))
            if page is None:
                return
            for meta in page:
                if not meta["path"].startswith(place):
                    continue  # the place itself, which some programs make an object of
                key = meta["path"][len(self._root) :]
                if key <= last:
                    raise RemoteError("lists its keys out of order", where=self._at(prefix))
                last = key
                yield info_of(key, meta)

    def close(self) -> None:
        with self._lock:
            self._clients.clear()

    def _at(self, key: str) -> str:
        return f"{self._where}/{key}"

    def _tell(
        self, key: str, work: Callable[[ObjectStore], _T], *, patient: bool = False, stop: threading.Event | None = None
    ) -> _T:
        """Make a request that writes, for which nothing can be missing but the bucket."""
        answer = self._ask(key, work, patient=patient, stop=stop)
        if answer is None:
            raise no_bucket(self._where)
        return answer

    def _ask(
        self, key: str, work: Callable[[ObjectStore], _T], *, patient: bool = False, stop: threading.Event | None = None
    ) -> _T | None:
        """Make a request; None where there is no such object.

        Args:
            key: for messages.
            work: the request, with an obstore client.
            patient: as for `ObjectSettings.client_of`.
            stop: set when the caller is interrupted, for work that looks at it.
        """
        from obstore.exceptions import BaseError  # noqa: PLC0415 - most commands speak to no object store

        client = self._client(patient=patient)
        # Errors are not chained: their texts repeat what was signed, and by whom.
        try:
            return interruptibly(lambda: work(client), stop)
        except (BaseError, FileNotFoundError, ValueError) as error:
            if says_no_bucket(error):
                raise no_bucket(self._where) from None
            if isinstance(error, FileNotFoundError):
                return None
            raise store_error(error, self._at(key), self._settings.scheme) from None

    def _client(self, *, patient: bool) -> ObjectStore:
        Runtime.enter()
        with self._lock:
            client = self._clients.get(patient)
            if client is None:
                client = self._clients[patient] = self._connect(patient=patient)
            return client

    def _connect(self, *, patient: bool) -> ObjectStore:
        from obstore.exceptions import BaseError  # noqa: PLC0415 - most commands speak to no object store
        from obstore.store import AzureStore, GCSStore, S3Store  # noqa: PLC0415

        settings = self._settings
        kinds: dict[str, Callable[..., ObjectStore]] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
        try:
            return kinds[settings.scheme](
                settings.bucket,
                config=dict(settings.config),
                client_options=settings.client_of(patient=patient),
                retry_config=dict(settings.retry),
            )
        except (BaseError, ValueError, OSError) as error:
            raise store_error(error, self._where, settings.scheme) from None


class ObjectBlob(ReadAhead):
    """An object's bytes by offset, unchecked; safe for reads by several threads.

    Args:
        keys: where it is.
        info: which object, and its size.
    """

    __slots__ = ()

    def __init__(self, keys: ObjectKeys, info: KeyInfo) -> None:
        super().__init__(functools.partial(keys.read, info), info.size, name=f"{keys.where}/{info.key}")

    def close(self) -> None:
        """Forget what was kept; closing twice does no harm."""
        self.clear()


def gather(result: GetResult, limit: int, where: str) -> bytes:
    """An answer's bytes, at most `limit`; raises RemoteError for more."""
    pieces, total = [], 0
    for piece in result.stream(min_chunk_size=_CHUNK):
        total += len(piece)
        if total > limit:
            raise RemoteError("sends more bytes than it said", where=where)
        pieces.append(piece)
    return b"".join(pieces)


def info_of(key: str, meta: ObjectMeta) -> KeyInfo:
    """What an answer says about a key."""
    return KeyInfo(key, meta["size"], meta["last_modified"].timestamp())
