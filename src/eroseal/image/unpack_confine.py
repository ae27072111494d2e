"""The target of an unpacking: everything is made, found again and removed by descriptor, never by path.

Strategy: each step opens one component, by a checked name, relative to its parent's descriptor and without
following links. So nothing that an image holds, and nothing that someone else does to the target meanwhile,
leads outside. Directories that are met again must be the very inodes that were made. RESOLVE_BENEATH
(openat2) would add nothing: no call here ever sees more than one component.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from eroseal.errors import FormatError, OutputError
from eroseal.limits import MAX_NAME_LEN

MAX_OPEN_DIRECTORIES: Final = 64
"""Directories kept open: with files in flight and blobs it stays below the usual 1,024 descriptors."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DEFAULT_ACL: Final = "system.posix_acl_default"
_ACLS: Final = (_DEFAULT_ACL, "system.posix_acl_access")


@dataclass(slots=True, eq=False)
class Directory:
    """A directory that was made in the target (or the target itself), and what was made in it.

    Args:
        parent: None for the target itself.
        name: its name in the parent.
        identity: device and inode number; None until it was opened.
        names: what was made in it other than directories: exactly what a removal may remove.
    """

    parent: Directory | None
    name: bytes
    identity: tuple[int, int] | None = None
    names: list[bytes] = field(default_factory=list)


def check_name(name: bytes) -> None:
    """Refuse a name that is not one plain component; raises FormatError."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > MAX_NAME_LEN:
        raise FormatError(f"an entry is named {name[:64]!r}, which no directory can hold")


class Target:
    """The target directory: made if missing, empty if it exists.

    Args:
        path: where to unpack to; its last component is never followed if it is a link.
    """

    def __init__(self, path: str | bytes | os.PathLike[str]) -> None:
        self.where = os.fsdecode(path)
        self._path = os.fsencode(path)
        self._name = os.path.basename(self._path.rstrip(b"/"))
        self.root = Directory(None, self._name)
        self.directories: list[Directory] = []
        self._fds: OrderedDict[Directory, int] = OrderedDict()
        self._parent_fd = -1
        self._root_fd = -1
        self._made = False
        self._before: os.stat_result | None = None
        self._xattrs_before: dict[str, bytes] = {}

    def prepare(self) -> None:
        """Make the target, or open it if it is there and empty.

        Raises:
            OutputError: it exists and is not an empty directory, or it cannot be made.
        """
        try:
            self._make_or_open()
        except NotADirectoryError as error:
            raise OutputError("exists and is not a directory", where=self.where) from error
        except OSError as error:
            raise OutputError(f"cannot unpack here: {error.strerror}", where=self.where) from error
        with os.scandir(self._root_fd) as entries:
            if next(entries, None) is not None:
                raise OutputError("exists and is not empty", where=self.where, hint="name a new or an empty directory")
        if not self._made:
            self._xattrs_before = _xattrs(self._root_fd)
            self._before = os.fstat(self._root_fd)
        self.directories.append(self.root)
        # What is made below would inherit it.
        for name in _ACLS:
            with contextlib.suppress(OSError):
                os.removexattr(self._root_fd, name)

    def _make_or_open(self) -> None:
        if self._name in (b"", b".", b".."):
            self._root_fd = os.open(self._path, _DIRECTORY)
        else:
            parent = os.path.dirname(self._path.rstrip(b"/")) or b"."
            self._parent_fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if not self._exists():
                self._made = True  # before it is, so that an interrupt at any moment leaves nothing behind
                try:
                    os.mkdir(self._name, 0o700, dir_fd=self._parent_fd)
                except FileExistsError:
                    self._made = False
                    raise
            self._root_fd = os.open(self._name, _DIRECTORY, dir_fd=self._parent_fd)
        status = os.fstat(self._root_fd)
        if self._made and status.st_uid != os.geteuid():
            raise _replaced()
        self.root.identity = (status.st_dev, status.st_ino)

    def _exists(self) -> bool:
        try:
            os.stat(self._name, dir_fd=self._parent_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    # --- making things: all raise OSError, for the caller to wrap with the path ---

    def make_directory(self, parent: Directory, name: bytes) -> Directory:
        """Make a directory that only we can enter until its own mode is set."""
        check_name(name)
        parent_fd = self.open(parent)
        made = Directory(parent, name)
        self.directories.append(made)  # before it is made: see `_claim`
        try:
            os.mkdir(name, 0o700, dir_fd=parent_fd)
        except FileExistsError:
            self.directories.pop()
            raise
        fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
        self._keep(made, fd)
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise _replaced()
        made.identity = (status.st_dev, status.st_ino)
        return made

    def make_file(self, parent: Directory, name: bytes) -> int:
        """Make an empty file; gives its descriptor, which the caller closes."""
        fd = self._claim(parent, name)
        try:
            return os.open(name, _NEW_FILE, 0o600, dir_fd=fd)
        except FileExistsError:
            parent.names.pop()
            raise

    def make_symlink(self, parent: Directory, name: bytes, target: bytes) -> int:
        """Make a symbolic link; gives a handle (O_PATH) on it, which the caller closes."""
        fd = self._claim(parent, name)
        try:
            os.symlink(target, name, dir_fd=fd)
        except FileExistsError:
            parent.names.pop()
            raise
        return _handle(fd, name, stat.S_IFLNK)

    def make_special(self, parent: Directory, name: bytes, kind: int, device: int) -> int:
        """Make a device node, fifo or socket (`kind` is its S_IFMT); gives a handle (O_PATH) on it."""
        fd = self._claim(parent, name)
        try:
            os.mknod(name, kind | 0o600, device, dir_fd=fd)
        except FileExistsError:
            parent.names.pop()
            raise
        return _handle(fd, name, kind)

    def make_link(self, source: tuple[Directory, bytes], parent: Directory, name: bytes) -> None:
        """Make another name of something that was made before."""
        # Opening the second directory may close the first one's cached descriptor.
        source_fd = os.dup(self.open(source[0]))
        try:
            fd = self._claim(parent, name)
            try:
                os.link(source[1], name, src_dir_fd=source_fd, dst_dir_fd=fd, follow_symlinks=False)
            except FileExistsError:
                parent.names.pop()
                raise
        finally:
            os.close(source_fd)

    def _claim(self, parent: Directory, name: bytes) -> int:
        """Note a name before it is made, so that an interrupt at any moment leaves nothing behind."""
        check_name(name)
        fd = self.open(parent)
        parent.names.append(name)
        return fd

    # --- finding directories again ---

    def open(self, directory: Directory) -> int:
        """A descriptor of a directory that was made before; it stays ours, and open until the next call."""
        fd = self._fds.get(directory)
        if fd is not None:
            self._fds.move_to_end(directory)
            return fd
        missing = []
        at = directory
        while at.parent is not None and at not in self._fds:
            missing.append(at)
            at = at.parent
        fd = self._fds.get(at, self._root_fd)
        for child in reversed(missing):
            fd = self._enter(fd, child)
        return fd

    def _enter(self, parent_fd: int, child: Directory) -> int:
        fd = os.open(child.name, _DIRECTORY, dir_fd=parent_fd)
        if _identity(fd) != child.identity:
            os.close(fd)
            raise _replaced()
        self._keep(child, fd)
        return fd

    def _keep(self, directory: Directory, fd: int) -> None:
        self._fds[directory] = fd
        if len(self._fds) > MAX_OPEN_DIRECTORIES:
            os.close(self._fds.popitem(last=False)[1])

    def check_in_place(self) -> None:
        """Refuse to end well when the target's name no longer leads to what was unpacked."""
        if self._parent_fd < 0:
            return
        try:
            now = os.stat(self._name, dir_fd=self._parent_fd, follow_symlinks=False)
        except OSError as error:
            raise OutputError("was removed while it was unpacked to", where=self.where) from error
        if (now.st_dev, now.st_ino) != self.root.identity:
            raise OutputError("was replaced while it was unpacked to", where=self.where)

    # --- the end ---

    def remove_all(self) -> None:
        """Remove what was made here, and nothing else; what cannot be removed stays without a complaint."""
        for directory in reversed(self.directories):
            with contextlib.suppress(OSError, OutputError):
                self._empty(directory)
            if directory.parent is not None:
                with contextlib.suppress(OSError, OutputError):
                    os.rmdir(directory.name, dir_fd=self._open_to_remove(directory.parent))
        with contextlib.suppress(OSError, OutputError):
            if self._before is not None:
                self._restore_root(self._before)
            elif self._made:
                if self.root.identity is not None:
                    self.check_in_place()
                os.rmdir(self._name, dir_fd=self._parent_fd)

    def _empty(self, directory: Directory) -> None:
        if directory.identity is None:  # interrupted before anything was made in it
            return
        fd = self._open_to_remove(directory)
        for name in directory.names:
            # A name that someone else took, moved or turned into a directory is no longer ours.
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=fd)

    def _open_to_remove(self, directory: Directory) -> int:
        """Like `open`, past modes that already keep an ordinary user from entering or removing."""
        try:
            fd = self.open(directory)
        except PermissionError:
            if directory.parent is None:
                raise
            parent_fd = self._open_to_remove(directory.parent)
            handle = os.open(directory.name, _HANDLE | os.O_DIRECTORY, dir_fd=parent_fd)
            try:
                if _identity(handle) == directory.identity:
                    os.chmod(proc_path(handle), 0o700)
            finally:
                os.close(handle)
            fd = self.open(directory)
        with contextlib.suppress(OSError):  # an existing target may be another user's
            os.fchmod(fd, 0o700)
        return fd

    def _restore_root(self, before: os.stat_result) -> None:
        """Give a directory that was there before its own owner, mode, xattrs and times again."""
        fd = self._root_fd
        for name in _xattrs(fd).keys() - self._xattrs_before.keys():
            with contextlib.suppress(OSError):
                os.removexattr(fd, name)
        with contextlib.suppress(OSError):
            os.fchown(fd, before.st_uid, before.st_gid)
        with contextlib.suppress(OSError):
            os.fchmod(fd, stat.S_IMODE(before.st_mode))
        for name, value in self._xattrs_before.items():
            with contextlib.suppress(OSError):
                os.setxattr(fd, name, value)
        with contextlib.suppress(OSError):
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))

    def close(self) -> None:
        """Close all descriptors."""
        while self._fds:
            os.close(self._fds.popitem()[1])
        for fd in (self._root_fd, self._parent_fd):
            if fd >= 0:
                os.close(fd)
        self._root_fd = self._parent_fd = -1


def proc_path(fd: int) -> str:
    """A path that leads to exactly what a handle (O_PATH) is open on, be it a symlink or a device node."""
    return f"/proc/self/fd/{fd}"


def _handle(parent_fd: int, name: bytes, kind: int) -> int:
    handle = os.open(name, _HANDLE, dir_fd=parent_fd)
    status = os.fstat(handle)
    # In a directory that others may write to, a name can be swapped for a link to a file that matters.
    if stat.S_IFMT(status.st_mode) != kind or status.st_uid != os.geteuid() or status.st_nlink != 1:
        os.close(handle)
        raise _replaced()
    return handle


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _replaced() -> OSError:
    return OSError(errno.ESTALE, "was replaced by someone else while unpacking")


def _xattrs(fd: int) -> dict[str, bytes]:
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listxattr(fd):
            with contextlib.suppress(OSError):
                found[name] = os.getxattr(fd, name)
    return found
