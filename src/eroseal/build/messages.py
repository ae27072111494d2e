"""Messages between a build and its workers: tuples in marshal's format behind their length.

Both ends are this program, and the pipes are private to it.
"""

from __future__ import annotations

import marshal
import os
import struct
from collections.abc import Iterator
from typing import Any, Final

_LENGTH: Final = struct.Struct("<I")


def send(fd: int, message: tuple[Any, ...]) -> None:
    """Write one message."""
    data = marshal.dumps(message)
    view = memoryview(_LENGTH.pack(len(data)) + data)
    while view:
        view = view[os.write(fd, view) :]


def receive(fd: int) -> tuple[Any, ...] | None:
    """Read one message; None at the end of the pipe."""
    head = _read_exactly(fd, _LENGTH.size)
    if head is None:
        return None
    body = _read_exactly(fd, _LENGTH.unpack(head)[0])
    return None if body is None else marshal.loads(body)  # noqa: S302 - from our own worker, over a private pipe


def _read_exactly(fd: int, length: int) -> bytes | None:
    data = os.read(fd, length)
    if len(data) == length:
        return data
    parts = [data]
    missing = length - len(data)
    while missing:
        if not parts[-1]:
            return None
        parts.append(os.read(fd, min(missing, 1 << 20)))
        missing -= len(parts[-1])
    return b"".join(parts)


def marked(parts: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any, bool]]:
    """(arena, content, whether it is the last) for each part of a task."""
    previous = next(parts)
    for part in parts:
        yield *previous, False
        previous = part
    yield *previous, True
