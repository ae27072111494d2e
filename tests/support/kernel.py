"""Mounting images with the kernel's own EROFS, from files: mount(2) for short options, fsconfig(2) for long ones.

Not mount(8): it silently makes a loop device, and then fails with `device=`. The files must lie on a file system
with block devices behind it or direct I/O; tmpfs has neither (ENOTBLK).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_MS_RDONLY = 1
_MS_NODEV = 4
_MNT_DETACH = 2
_AT_FDCWD = -100
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY = 1
# The same numbers on every architecture: these calls came after the tables were unified.
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
_PAGE = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def mount_erofs(meta: Path, devices: Sequence[Path], target: Path) -> None:
    """Mount an image; by mount(2) where its options fit into a page, else piece by piece."""
    options = b",".join(b"device=" + os.fsencode(device) for device in devices)
    if len(options) < _PAGE:
        _check(_libc.mount(os.fsencode(meta), os.fsencode(target), b"erofs", _MS_RDONLY, options or None), meta)
    else:
        _mount_long(meta, devices, target)


def _mount_long(meta: Path, devices: Sequence[Path], target: Path) -> None:
    context = _check(_libc.syscall(_FSOPEN, b"erofs", 0), meta)
    try:
        _set(context, b"source", os.fsencode(meta))
        for device in devices:
            _set(context, b"device", os.fsencode(device))
        _check(_libc.syscall(_FSCONFIG, context, _FSCONFIG_SET_FLAG, b"ro", None, 0), meta)
        _check(_libc.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0), meta)
        mounted = _check(_libc.syscall(_FSMOUNT, context, 0, _MOUNT_ATTR_RDONLY), meta)
    finally:
        os.close(context)
    try:
        moved = _libc.syscall(_MOVE_MOUNT, mounted, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
        _check(moved, target)
    finally:
        os.close(mounted)


def _set(context: int, key: bytes, value: bytes) -> None:
    _check(_libc.syscall(_FSCONFIG, context, _FSCONFIG_SET_STRING, key, value, 0), Path(os.fsdecode(value)))


def _check(result: int, path: Path) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return result


def unmount(target: Path, *, detach: bool = False) -> None:
    """Take a mount away; fails while something is open there, unless it is merely detached."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH if detach else 0), target)


@contextlib.contextmanager
def mounted(meta: Path, devices: Sequence[Path], target: Path) -> Iterator[Path]:
    """An image at a new directory `target`, for as long as the block runs."""
    target.mkdir()
    mount_erofs(meta, devices, target)
    try:
        yield target
    finally:
        unmount(target)
        target.rmdir()


@contextlib.contextmanager
def tmpfs(target: Path, options: str = "size=2g") -> Iterator[Path]:
    """A tmpfs: holds longer xattrs, later times and more hard links than ext4, and is quick to fill."""
    target.mkdir(exist_ok=True)
    _check(_libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", 0, options.encode()), target)
    try:
        yield target
    finally:
        unmount(target, detach=True)


@contextlib.contextmanager
def ramfs(target: Path) -> Iterator[Path]:
    """A ramfs: other than from a tmpfs, images can be mounted from it. Without a limit, so put little there."""
    target.mkdir(exist_ok=True)
    _check(_libc.mount(b"ramfs", os.fsencode(target), b"ramfs", 0, None), target)
    try:
        yield target
    finally:
        unmount(target, detach=True)


@contextlib.contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    """One file in the place of another."""
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), None, 4096, None), target)  # MS_BIND
    try:
        yield
    finally:
        unmount(target)
