"""Unpacking an image into a directory: like tar, confined to it, and nothing left behind when it fails.

Strategy: one walk makes directories (closed to others), links and special files, and hands regular files to
writers; when all are written, directories get their owners, modes and times, children before parents, the
target itself last. Until then any failure or interrupt removes exactly what was made.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from eroseal.errors import FormatError
from eroseal.image.inode import Inode
from eroseal.image.unpack_confine import Directory, Target, proc_path
from eroseal.image.unpack_data import MAX_JOBS, OpenFile, Writers
from eroseal.image.unpack_restore import (
    NoteForPath,
    Rules,
    UnpackWarning,
    Warnings,
    output_error,
    restore,
)
from eroseal.image.view import TreeView

Progress = Callable[[int, int], None]
"""Called now and then with the entries made so far and the bytes written so far."""


@dataclass(frozen=True, slots=True)
class UnpackResult:
    """What an unpacking made.

    Args:
        directories: with the target itself.
        files: regular files, each once however many names it has.
        symlinks: symbolic links.
        special: device nodes, fifos and sockets.
        hard_links: further names of any of these.
        bytes_written: bytes of file contents, holes not counted.
        warnings: what was not restored, and why.
    """

    directories: int
    files: int
    symlinks: int
    special: int
    hard_links: int
    bytes_written: int
    warnings: tuple[UnpackWarning, ...]


def unpack(
    reader: TreeView,
    target: str | bytes | os.PathLike[str],
    *,
    as_root: bool | None = None,
    keep_owners: bool | None = None,
    keep_xattrs: bool = True,
    umask: int | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> UnpackResult:
    """Unpack an image into a new or empty directory.

    As root everything is restored; as an ordinary user, like tar without -p, owners are the user's, modes are
    limited by the umask and lose their set-id and sticky bits, and device nodes and trusted and security
    attributes are skipped with a warning.

    Args:
        reader: the image; what it reads is verified if its source verifies.
        target: a directory that does not exist or is empty; its parent must exist.
        as_root: restore what only root may; None = when the effective user is root.
        keep_owners: restore owners and groups; None = as `as_root` says.
        keep_xattrs: restore extended attributes and ACLs.
        umask: mode bits that are withheld from an ordinary user's files; None = the process's umask.
        jobs: threads that write; None = as many as there are usable processors.
        progress: called with entries and bytes so far.

    Raises:
        OutputError: the target exists and is not empty, the disk is full, or something cannot be made.
        FormatError: the image is broken or hostile. IntegrityError and UnsupportedError come from its reader.
    """
    if as_root is None:
        as_root = os.geteuid() == 0
    rules = Rules(
        as_root=as_root,
        owners=as_root if keep_owners is None else keep_owners,
        xattrs=keep_xattrs,
        umask=_process_umask() if umask is None else umask,
    )
    if jobs is None:
        jobs = min(len(os.sched_getaffinity(0)), MAX_JOBS)
    unpacking = _Unpacking(reader, target, rules, max(1, min(jobs, MAX_JOBS)), progress)
    try:
        return unpacking.run()
    except BaseException:
        unpacking.undo()
        raise
    finally:
        unpacking.close()


class _Unpacking:
    def __init__(
        self,
        reader: TreeView,
        target: str | bytes | os.PathLike[str],
        rules: Rules,
        jobs: int,
        progress: Progress | None,
    ) -> None:
        self._reader = reader
        self._rules = rules
        self._progress = progress
        self._warnings = Warnings()
        self._counts = dict.fromkeys(("directories", "files", "symlinks", "special", "hard_links"), 0)
        # First names of inodes that have more to come; None when the first one was skipped.
        self._links: dict[int, tuple[tuple[Directory, bytes] | None, int]] = {}
        self._inodes: dict[Directory, tuple[bytes, Inode]] = {}
        self._target = Target(target)
        self._writers = Writers(reader, self._complete, jobs)

    def run(self) -> UnpackResult:
        self._target.prepare()
        path = b""
        try:
            directories: list[tuple[bytes, Directory]] = []
            # The walk bounds itself: cycles, directories in two places and overlapping ones end it.
            for path, inode in self._reader.walk():
                parent = self._parent(directories, path)
                if stat.S_ISDIR(inode.mode):
                    directories.append((path, self._make_directory(parent, path, inode)))
                else:
                    self._make_other(parent, path, inode)
                self._report()
            path = b""
            self._writers.finish()
            self._finish_directories()
        except OSError as error:
            raise output_error(error, path) from error
        return UnpackResult(**self._counts, bytes_written=self._writers.bytes_written, warnings=self._warnings.result())

    def undo(self) -> None:
        """Remove what was made; nothing runs afterwards."""
        self._writers.abort()
        self._target.remove_all()

    def close(self) -> None:
        """Close what is open."""
        self._target.close()

    @staticmethod
    def _parent(directories: list[tuple[bytes, Directory]], path: bytes) -> Directory | None:
        """The directory that a path of the walk belongs to; leaves those on the way to it in the list."""
        if not path and not directories:
            return None
        above, slash, _ = path.rpartition(b"/")
        while directories and directories[-1][0] != above:
            directories.pop()
        if not directories or path == above or (slash and not above):
            raise FormatError("an entry comes before its directory", where=os.fsdecode(path))
        return directories[-1][1]

    def _make_directory(self, parent: Directory | None, path: bytes, inode: Inode) -> Directory:
        name = path.rpartition(b"/")[2]
        made = self._target.root if parent is None else self._target.make_directory(parent, name)
        self._inodes[made] = (path, inode)
        self._counts["directories"] += 1
        return made

    def _make_other(self, parent: Directory | None, path: bytes, inode: Inode) -> None:
        if parent is None:
            raise FormatError("the image's root is not a directory")
        name = path.rpartition(b"/")[2]
        if inode.nlink > 1 and self._link(parent, name, path, inode):
            return
        made = True
        if stat.S_ISREG(inode.mode):
            fd = self._target.make_file(parent, name)
            self._writers.add(OpenFile(path, inode, fd))
            self._counts["files"] += 1
        elif stat.S_ISLNK(inode.mode):
            self._make_symlink(parent, name, path, inode)
        else:
            made = self._make_special(parent, name, path, inode)
        if inode.nlink > 1:
            self._links[inode.nid] = ((parent, name) if made else None, inode.nlink - 1)

    def _link(self, parent: Directory, name: bytes, path: bytes, inode: Inode) -> bool:
        """Make a further name of an inode, unless this is its first."""
        if inode.nid not in self._links:
            return False
        first, left = self._links.pop(inode.nid)
        if left > 1:  # the table holds only inodes of which names are still to come
            self._links[inode.nid] = (first, left - 1)
        if first is None:
            self._warnings.add("device node not made: only root may", path)
        else:
            self._target.make_link(first, parent, name)
            self._counts["hard_links"] += 1
        return True

    def _make_symlink(self, parent: Directory, name: bytes, path: bytes, inode: Inode) -> None:
        text = self._reader.readlink(inode)
        if not text or b"\0" in text:
            raise FormatError("a symlink's target is empty or holds a zero byte", where=os.fsdecode(path))
        self._restore_handle(self._target.make_symlink(parent, name, text), path, inode)
        self._counts["symlinks"] += 1

    def _make_special(self, parent: Directory, name: bytes, path: bytes, inode: Inode) -> bool:
        is_device = stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode)
        if is_device and not self._rules.as_root:
            self._warnings.add("device node not made: only root may", path)
            return False
        device = os.makedev(*inode.rdev) if is_device else 0
        handle = self._target.make_special(parent, name, stat.S_IFMT(inode.mode), device)
        self._restore_handle(handle, path, inode)
        self._counts["special"] += 1
        return True

    def _restore_handle(self, handle: int, path: bytes, inode: Inode) -> None:
        try:
            self._restore(proc_path(handle), path, inode)
        finally:
            os.close(handle)

    def _restore(self, handle: int | str, path: bytes, inode: Inode) -> None:
        xattrs = self._reader.xattrs(inode) if self._rules.xattrs else []
        restore(handle, inode, xattrs, self._rules, NoteForPath(self._warnings, path))

    def _complete(self, file: OpenFile) -> None:
        self._restore(file.fd, file.path, file.inode)

    def _finish_directories(self) -> None:
        """Owners, modes and times of directories, children first: nothing is made in them any more."""
        for directory in reversed(self._target.directories):
            path, inode = self._inodes[directory]
            if directory.parent is None:
                self._target.check_in_place()
            try:
                self._restore(self._target.open(directory), path, inode)
            except OSError as error:
                raise output_error(error, path) from error

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(sum(self._counts.values()), self._writers.bytes_written)


def _process_umask() -> int:
    """The process's umask, without changing it where the system tells it."""
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
