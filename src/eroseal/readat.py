"""Positional reads: the one small protocol under every reader.

No cursor and no partial answers: `read_at` gives exactly the bytes asked for or raises.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Protocol, Self

from eroseal.errors import FormatError, NotFoundError


class ReadAt(Protocol):
    """Bytes that can be read at any offset."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from byte `offset` on; raises FormatError past the end."""
        ...


class BytesAt:
    """`ReadAt` over bytes in memory."""

    __slots__ = ("_data", "name")

    def __init__(self, data: bytes, name: str = "bytes") -> None:
        self._data = data
        self.name = name

    @property
    def size(self) -> int:
        return len(self._data)

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(self.name, self.size, offset, length)
        return self._data[offset : offset + length]


class FileAt:
    """`ReadAt` over a file; closes it when used as a context manager."""

    __slots__ = ("_fd", "_size", "name")

    def __init__(self, path: str | bytes | os.PathLike[str]) -> None:
        self.name = os.fsdecode(path)
        try:
            # Not blocking: a FIFO, where a store should have a file, must not make a reader wait for a writer.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot open: {error.strerror}"
            raise NotFoundError(what, where=self.name) from error
        try:
            self._size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            self.close()
            raise FormatError("is not a file", where=self.name) from error

    @property
    def size(self) -> int:
        return self._size

    def fileno(self) -> int:
        """The descriptor, for callers that read in bulk."""
        return self._fd

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(self.name, self._size, offset, length)
        try:
            data = os.pread(self._fd, length, offset)
            while len(data) < length:
                more = os.pread(self._fd, length - len(data), offset + len(data))
                if not more:
                    raise FormatError(f"file ended at byte {offset + len(data)} while it was read", where=self.name)
                data += more
        except OSError as error:
            raise FormatError(
                f"cannot read {length} bytes at byte {offset}: {error.strerror}", where=self.name
            ) from error
        return data

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def check_range(name: str, size: int, offset: int, length: int) -> None:
    """Refuse a read that is not inside `size` bytes."""
    if offset < 0 or length < 0 or offset + length > size:
        raise FormatError(f"truncated: {length} bytes wanted at byte {offset}, but it ends at byte {size}", where=name)
