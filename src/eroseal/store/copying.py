"""Copies of blobs: by the kernel where both ends are files, else in bounded pieces."""

from __future__ import annotations

import errno
import os
from typing import Final

from eroseal.errors import FormatError
from eroseal.limits import IO_CHUNK
from eroseal.readat import FileAt, ReadAt
from eroseal.store.atomic import write_fully

# Other file systems, kernels and special files for which copy_file_range is not made.
_NO_COPY_RANGE: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


def copy_source(source: ReadAt, target_fd: int, length: int) -> None:
    """Copy the first `length` bytes of a source to an empty file.

    OSError of the target passes through; the source's errors are its own.
    """
    if isinstance(source, FileAt):
        copy_range(source.fileno(), target_fd, length)
        return
    for offset in range(0, length, IO_CHUNK):
        write_fully(target_fd, source.read_at(offset, min(IO_CHUNK, length - offset)), offset)


def copy_range(source_fd: int, target_fd: int, length: int) -> None:
    """Copy the first `length` bytes to an empty file: sharing extents where possible, keeping holes.

    OSError passes through; FormatError if the source ends early.
    """
    os.ftruncate(target_fd, length)
    offset = 0
    while offset < length:
        try:
            start = os.lseek(source_fd, offset, os.SEEK_DATA)
            stop = min(os.lseek(source_fd, start, os.SEEK_HOLE), length)
        except OSError as error:
            if error.errno == errno.ENXIO and os.fstat(source_fd).st_size >= length:
                return  # a hole up to the end
            start, stop = offset, length
        while start < stop:
            copied = _copy_some(source_fd, target_fd, start, stop - start)
            if not copied:
                raise FormatError(f"file ended at byte {start} while it was copied")
            start += copied
        offset = max(stop, start)


def _copy_some(source_fd: int, target_fd: int, offset: int, length: int) -> int:
    try:
        return os.copy_file_range(source_fd, target_fd, length, offset, offset)
    except OSError as error:
        if error.errno not in _NO_COPY_RANGE:
            raise
    data = os.pread(source_fd, min(length, IO_CHUNK), offset)
    write_fully(target_fd, data, offset)
    return len(data)
