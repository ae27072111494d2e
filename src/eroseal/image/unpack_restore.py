"""What unpacking restores besides bytes: owners, xattrs, modes and times, in the one order that works.

Owner first (it clears set-id bits and file capabilities), then xattrs with ACLs and capabilities (an ACL
decides the mode's group bits), then the mode, so that set-id bits appear last and on a complete file; times
at the end.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from dataclasses import dataclass
from typing import Final

from eroseal.errors import ErosealError, FormatError, OutputError
from eroseal.image.inode import Inode

MAX_WARNINGS: Final = 1000
"""Different warnings kept: a hostile image can name a new attribute in each of its files."""

_ROOT_ONLY: Final = (b"trusted.", b"security.")
_NOT_KEPT_HERE: Final = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class UnpackWarning:
    """Something that was not restored.

    Args:
        what: one clause, lower case.
        path: the first path that it happened to, relative to the image's root.
        count: how many paths it happened to.
    """

    what: str
    path: bytes
    count: int


class Warnings:
    """Collects warnings, alike ones together; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, tuple[bytes, int]] = {}

    def add(self, what: str, path: bytes) -> None:
        """Note one; beyond `MAX_WARNINGS` different ones they are only counted."""
        with self._lock:
            if what not in self._found and len(self._found) >= MAX_WARNINGS:
                what = "further warnings of other kinds"
            first, count = self._found.get(what, (path, 0))
            self._found[what] = (first, count + 1)

    def result(self) -> tuple[UnpackWarning, ...]:
        """All of them, in the order of their text, so that threads do not change it."""
        return tuple(UnpackWarning(what, path, count) for what, (path, count) in sorted(self._found.items()))


@dataclass(frozen=True, slots=True)
class Rules:
    """What is restored, as tar decides it.

    Args:
        as_root: set-id and sticky bits, and xattrs that only root may set, are restored.
        owners: owner and group are restored.
        xattrs: extended attributes are restored.
        umask: mode bits that an ordinary user's files do not get.
    """

    as_root: bool
    owners: bool
    xattrs: bool
    umask: int

    def mode(self, inode: Inode) -> int:
        """The permission bits that an inode gets."""
        # Set-id bits speak about an owner: without him they would lend the rights of whoever unpacks.
        if not self.as_root:
            return inode.mode & 0o777 & ~self.umask
        mode = stat.S_IMODE(inode.mode)
        if not self.owners:
            if inode.uid != os.geteuid():
                mode &= ~stat.S_ISUID
            if inode.gid != os.getegid():
                mode &= ~stat.S_ISGID
        return mode


def restore(
    handle: int | str, inode: Inode, xattrs: list[tuple[bytes, bytes]], rules: Rules, note: NoteForPath
) -> None:
    """Restore an inode's owner, xattrs, mode and times.

    Args:
        handle: a descriptor, or the /proc/self/fd path of an O_PATH descriptor.
        inode: what to restore.
        xattrs: its extended attributes, by full names.
        rules: what applies to this user.
        note: takes what could not be restored.

    Raises:
        OSError: for the caller to wrap with the path.
        OutputError: this user may not give files to others.
        FormatError: values that no file can have.
    """
    try:
        if rules.owners:
            _set_owner(handle, inode, note)
        if rules.xattrs:
            for name, value in xattrs:
                _set_xattr(handle, name, value, rules, note)
        if not stat.S_ISLNK(inode.mode):  # links have no mode of their own
            os.chmod(handle, rules.mode(inode))
        when = inode.mtime * 1_000_000_000 + inode.mtime_nsec
        os.utime(handle, ns=(when, when))
    except OverflowError as error:
        raise FormatError("owner or time is out of range", where=os.fsdecode(note.path)) from error


@dataclass(frozen=True, slots=True)
class NoteForPath:
    """Collects warnings about one path."""

    warnings: Warnings
    path: bytes

    def add(self, what: str) -> None:
        """Note one."""
        self.warnings.add(what, self.path)


def _set_owner(handle: int | str, inode: Inode, note: NoteForPath) -> None:
    try:
        os.chown(handle, inode.uid, inode.gid)
    except OSError as error:
        # EINVAL: ids that a user namespace does not map.
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise
        raise OutputError(
            f"cannot give it to {inode.uid}:{inode.gid}: {error.strerror}",
            where=os.fsdecode(note.path) or "/",
            hint="unpack without owners, or as a user who may set them",
        ) from error


def _set_xattr(handle: int | str, name: bytes, value: bytes, rules: Rules, note: NoteForPath) -> None:
    shown = os.fsdecode(name)
    if b"\0" in name:
        raise FormatError(f"attribute name {name!r} holds a zero byte", where=os.fsdecode(note.path))
    if not rules.as_root and name.startswith(_ROOT_ONLY):
        note.add(f"attribute {shown} not restored: only root may set it")
        return
    try:
        os.setxattr(handle, name, value)
    except OSError as error:
        if error.errno not in _NOT_KEPT_HERE:
            raise
        note.add(f"attribute {shown} not restored: {error.strerror}")


def output_error(error: OSError, path: bytes) -> ErosealError:
    """The OutputError for a failed system call.

    Args:
        error: what the system said.
        path: what was being unpacked, relative to the image's root.
    """
    where = os.fsdecode(path) or "/"
    if error.errno in _FULL:
        hint = "free some space and try again"
        return OutputError(f"cannot unpack: {error.strerror}", where=where, hint=hint)
    if error.errno == errno.EEXIST:
        hint = "someone else writes there, or its file system ignores case"
        return OutputError("cannot unpack: the target has it already", where=where, hint=hint)
    if error.errno == errno.EPERM:
        hint = "unpack as an ordinary user, or as one who may make device nodes"
        return OutputError(f"cannot unpack: {error.strerror}", where=where, hint=hint)
    return OutputError(f"cannot unpack: {error.strerror}", where=where)
