"""A native store behind a web server, read only: files of a directory store, served as they are.

Any server of static files will do, if it answers range requests.
"""

from __future__ import annotations

import email.utils
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from eroseal.errors import AccessError, NotFoundError, RemoteError, UnsupportedError
from eroseal.format.digest import Digest
from eroseal.format.record import RecordEntry
from eroseal.format.statement import ImageDigest
from eroseal.readat import ReadAt
from eroseal.store.document import Document
from eroseal.store.http import HttpClient
from eroseal.store.http_blob import HttpBlob
from eroseal.store.keyed import KeyedReader
from eroseal.store.keys import KeyInfo, Value, Version
from eroseal.store.protocol import BlobStore, Progress, RecordChange
from eroseal.store.reference import RECORD_SUFFIX, WebReference
from eroseal.store.remote import RemoteOptions


def open_web_store(reference: WebReference, options: RemoteOptions) -> WebStore:
    """The native store at an address; no request is made.

    Args:
        reference: of any image in it.
        options: what holds for all servers.
    """
    return WebStore(reference.url, HttpClient(options))


class WebStore(KeyedReader):
    """A native store behind a web server; implements `Store`, but refuses to change or to list anything.

    Args:
        url: of the store, without a slash at its end.
        client: that asks; closed with the store.
    """

    def __init__(self, url: str, client: HttpClient) -> None:
        super().__init__(WebKeys(url, client))

    def put_blob(
        self, digest: Digest, source: ReadAt, *, jobs: int | None = None, progress: Progress | None = None
    ) -> int:
        """Refuses."""
        self._refuse_writing()

    def adopt_blob(self, digest: Digest, origin: BlobStore) -> bool:
        """Refuses."""
        self._refuse_writing()

    def list_blobs(self) -> Iterator[Digest]:
        """Refuses: there is no common way to ask a web server for its files."""
        self._refuse_listing()

    def delete_blob(self, digest: Digest) -> None:
        """Refuses."""
        self._refuse_writing()

    def put_image(
        self, name: str, document: Document, record: Sequence[RecordEntry] = (), *, replace: bool = False
    ) -> None:
        """Refuses."""
        self._refuse_writing()

    def update_record(self, name: str, change: RecordChange, *, expect: ImageDigest | None = None) -> list[RecordEntry]:
        """Refuses."""
        self._refuse_writing()

    def list_images(self) -> list[str]:
        """Refuses, as for blobs."""
        self._refuse_listing()

    def delete_image(self, name: str) -> None:
        """Refuses."""
        self._refuse_writing()

    def _refuse_writing(self) -> NoReturn:
        raise UnsupportedError(
            "a web server is read only", where=self.where, hint="change the directory that it serves"
        )

    def _refuse_listing(self) -> NoReturn:
        raise UnsupportedError(
            "a web server cannot tell what it has", where=self.where, hint="name the image, or list the directory there"
        )


class WebKeys:
    """Files below an address; implements `ReadKeys`.

    Args:
        url: without a slash at its end.
        client: that asks; closed with the keys.
    """

    def __init__(self, url: str, client: HttpClient) -> None:
        self._url = url
        self._client = client

    @property
    def where(self) -> str:
        return self._url

    def get(self, key: str, *, limit: int) -> Value | None:
        try:
            answer = self._client.request("GET", f"{self._url}/{key}", limit=limit)
        except NotFoundError:
            return None
        except AccessError:
            # Buckets that anybody may read but nobody may list say so of what is not there; a record may not be there.
            if key.endswith(RECORD_SUFFIX):
                return None
            raise
        return Value(answer.body, Version(answer.headers.get("etag"), None))

    def head(self, key: str) -> KeyInfo | None:
        try:
            head = self._client.head(f"{self._url}/{key}")
        except NotFoundError:
            return None
        if head.size is None:
            raise RemoteError("does not say how many bytes it has", where=f"{self._url}/{key}")
        return KeyInfo(key, head.size, _modified(head.headers))

    def open(self, info: KeyInfo) -> HttpBlob:
        return HttpBlob(self._client, f"{self._url}/{info.key}", size=info.size)

    def close(self) -> None:
        self._client.close()


def _modified(headers: Mapping[str, str]) -> float:
    try:
        return email.utils.parsedate_to_datetime(headers.get("last-modified", "")).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
