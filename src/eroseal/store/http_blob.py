"""Random access to an object behind HTTP.

Readers of images ask for superblocks, inodes and directories a few bytes at a time, near each other. Such reads are
served from whole blocks that are kept; large ones pass by the blocks, because they are seldom repeated.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from types import TracebackType
from typing import Final, Self

from eroseal.errors import RemoteError
from eroseal.readat import check_range
from eroseal.store.http import HttpClient

READ_AHEAD: Final = 64 << 10
"""Bytes of a block: at 100 Mbit/s and 20 ms of latency it costs a quarter more than a single byte."""
_BLOCKS: Final = 64
"""Blocks kept of each object: 4 MiB."""


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
        if size is None:
            head = client.head(url)
            size, self._etag = head.size, head.etag
            if size is None:
                raise RemoteError("does not say how many bytes it has", where=name or url)
        self._size = size
        self.name = name or url
        self._block = read_ahead
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    @property
    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(self.name, self._size, offset, length)
        if length >= self._block:
            return self._read(offset, length)
        first, last = offset // self._block, (offset + max(length, 1) - 1) // self._block
        data = b"".join(self._kept(number) for number in range(first, last + 1))
        begin = offset - first * self._block
        return data[begin : begin + length]

    def close(self) -> None:
        """Forget the blocks; closing twice does no harm."""
        with self._lock:
            self._blocks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _kept(self, number: int) -> bytes:
        with self._lock:
            block = self._blocks.get(number)
            if block is not None:
                self._blocks.move_to_end(number)
                return block
        offset = number * self._block
        # Two threads may fetch the same block; waiting for each other would cost more code than that costs time.
        block = self._read(offset, min(self._block, self._size - offset))
        with self._lock:
            self._blocks[number] = block
            while len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        return block

    def _read(self, offset: int, length: int) -> bytes:
        return self._client.read_range(self._url, offset, length, size=self._size, etag=self._etag)
