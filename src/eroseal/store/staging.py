"""Blobs brought to this machine before they go up, so that what was verified is what is sent.

A local file of a store does not change. What a server sends may differ from one request to the next, so it is kept in
a file without a name, which the system removes even if we are killed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from eroseal.errors import IntegrityError
from eroseal.readat import FileAt, ReadAt
from eroseal.store.atomic import output_error
from eroseal.store.lanes import Lanes, SharedFds

if TYPE_CHECKING:
    from eroseal.trust.verifier import VerifiedSeal


@contextlib.contextmanager
def provable(source: ReadAt, size: int, *, parallel: int) -> Iterator[FileAt]:
    """The first `size` bytes of a source as a local file: the source itself, or a copy for as long as the context.

    Args:
        source: several threads read from it.
        size: bytes that are wanted.
        parallel: requests in flight at once.

    Raises:
        OutputError: there is no room for the copy.
    """
    if isinstance(source, FileAt):
        yield source
        return
    try:
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    except OSError as error:
        raise output_error(error, tempfile.gettempdir(), "cannot create a file in it") from error
    with copy:
        try:
            _fetch(source, copy.fileno(), size, parallel)
            file = FileAt(f"/proc/self/fd/{copy.fileno()}")
        except OSError as error:
            raise output_error(error, tempfile.gettempdir()) from error
        with file:
            yield file


def require_size(seal: VerifiedSeal, size: int) -> None:
    """Refuse a copy whose verified seal does not end where the copy does; raises IntegrityError.

    How long a blob is, its source said when it was first asked. What it then sent may be shorter, and all that follows
    would be bytes that nobody verified.
    """
    if seal.sealed_size != size:
        raise IntegrityError(f"sealed blob has {seal.sealed_size} bytes, not {size}", step=1, blob=str(seal.digest))


def _fetch(source: ReadAt, fd: int, size: int, parallel: int) -> None:
    lanes, shared = Lanes(parallel), SharedFds(os.dup(fd))

    def piece(start: int) -> None:
        with shared.use() as (target,):
            lanes.fetch(source, target, start, min(start + lanes.read_size, size))

    try:
        lanes.run(piece, range(0, size, lanes.read_size), workers=parallel)
    finally:
        shared.close()
