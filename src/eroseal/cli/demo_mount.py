"""Mounting sealed blobs with mount(2), for the demo: straight from files, without loop devices."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

_MS_RDONLY: Final = 1
_MNT_DETACH: Final = 2
_MAX_OPTIONS: Final = 4095
"""Bytes of options that mount(2) takes: one page with the NUL."""


def obstacle() -> str | None:
    """Why there is no point in trying; None if there is none."""
    if os.geteuid() != 0:
        return "only root may mount"
    try:
        known = Path("/proc/filesystems").read_text(encoding="ascii").split()
    except OSError:
        return None
    if "erofs" in known or Path(f"/lib/modules/{os.uname().release}/kernel/fs/erofs").is_dir():
        return None
    return "this kernel has no EROFS"


class Mounted:
    """An image mounted for as long as the context lasts.

    Args:
        meta: file of the meta blob.
        devices: files of the data blobs, in device order.
        target: a directory to be made; it is removed at the end.

    Raises:
        OSError: from entering: the kernel refuses.
    """

    def __init__(self, meta: Path, devices: Sequence[Path], target: Path) -> None:
        self._meta = meta
        self._options = ",".join(f"device={path}" for path in devices).encode()
        self._target = target
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> Path:
        if len(self._options) > _MAX_OPTIONS:
            raise OSError("too many data blobs for mount(2)")
        self._target.mkdir()
        arguments = (os.fsencode(self._meta), os.fsencode(self._target), b"erofs", _MS_RDONLY, self._options)
        if self._libc.mount(*arguments) != 0:
            number = ctypes.get_errno()
            self._target.rmdir()
            raise OSError(number, os.strerror(number))
        return self._target

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._libc.umount2(os.fsencode(self._target), _MNT_DETACH)
        self._target.rmdir()
