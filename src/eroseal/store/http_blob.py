"""Random access to an object behind HTTP."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from eroseal.errors import RemoteError
from eroseal.store.http import HttpClient
from eroseal.store.readahead import READ_AHEAD, ReadAhead


class HttpBlob:
    """An object's bytes by offset, unchecked; safe for reads by several threads.

    Args:
        client: that asks; it stays open when this is closed.
        url: of the object.
        size: in bytes, if known; None asks the server at once.
        name: for messages; None takes the address.
        read_ahead: bytes of the blocks that small reads are served from; 0 asks for each read by itself.

    Raises:
        NotFoundError, AccessError, RemoteError: when the size has to be asked for.
    """

    def __init__(
        self,
        client: HttpClient,
        url: str,
        *,
        size: int | None = None,
        name: str | None = None,
        read_ahead: int = READ_AHEAD,
    ) -> None:
        self._client = client
        self._url = url
        self._etag = None
        self.name = name or url
        if size is None:
            head = client.head(url)
            size, self._etag = head.size, head.etag
            if size is None:
                raise RemoteError("does not say how many bytes it has", where=self.name)
        self._bytes = ReadAhead(self._fetch, size, name=self.name, block=read_ahead)

    @property
    def size(self) -> int:
        return self._bytes.size

    def read_at(self, offset: int, length: int) -> bytes:
        return self._bytes.read_at(offset, length)

    def close(self) -> None:
        """Forget what was kept; closing twice does no harm."""
        self._bytes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _fetch(self, offset: int, length: int) -> bytes:
        return self._client.read_range(self._url, offset, length, size=self.size, etag=self._etag)
