"""A directory on disk as a source: the walk, in canonical order.

Only directories, symlinks and special files are looked at here; regular files are merely named, since whoever reads
them (`eroseal.build.worker`) gets their metadata from the open file for less.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from eroseal.errors import ErosealError, SourceError, UnsupportedError
from eroseal.limits import MAX_SYMLINK
from eroseal.tree.model import Directory, Inode, StoredFile, Xattrs

PENDING: Final = Inode(0, 0, 0, 0, 0, 0)
"""Stands in `children` for a regular file that is not read yet."""


class Exclude:
    """Glob patterns of what is left out.

    Args:
        patterns: a relative path, or a last component, that matches one is left out with all below it.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [os.fsencode(pattern.strip("/")) for pattern in patterns]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def matches(self, path: bytes) -> bool:
        """Whether a path, relative to the root and without a leading slash, is left out."""
        name = path.rpartition(b"/")[2]
        return any(
            fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(name, pattern) for pattern in self._patterns
        )


@dataclass(slots=True)
class ScannedDirectory:
    """One directory of the walk.

    Args:
        path: on disk.
        directory: its inode; `names` and `children` are complete but for regular files, which are PENDING.
        files: names of regular files, in byte order.
        slots: for each of them its index in `directory.children`, where it must be put.
        contents: of these files, where they come from archives; None where they are read by name.
    """

    path: bytes
    directory: Directory
    files: list[bytes] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    contents: list[StoredFile] | None = None


class DirectorySource:
    """Walks a directory, each before its subdirectories, names in byte order.

    Args:
        path: the directory.
        exclude: glob patterns; a path (relative, without leading slash) or a last component that matches is left
            out with all below it.

    Raises:
        SourceError: from `walk`, for what cannot be read.
    """

    def __init__(self, path: str | bytes | os.PathLike[str], *, exclude: Sequence[str] = ()) -> None:
        self._root = os.fsencode(path)
        self._exclude = Exclude(exclude)
        self._links: dict[tuple[int, int], Inode] = {}

    def walk(self) -> Iterator[ScannedDirectory]:
        """The directories, the root first."""
        try:
            st = os.stat(self._root)
        except OSError as error:
            raise _unreadable(self._root, error) from error
        if not stat.S_ISDIR(st.st_mode):
            raise SourceError("is not a directory", where=os.fsdecode(self._root))
        root = self._directory(self._root, st, None)
        stack = [(self._root, root)]
        while stack:
            path, directory = stack.pop()
            scanned = self._scan(path, directory)
            yield scanned
            stack.extend(
                (os.path.join(path, name), child)
                for name, child in zip(reversed(directory.names), reversed(directory.children), strict=True)
                if isinstance(child, Directory)
            )

    def _scan(self, path: bytes, directory: Directory) -> ScannedDirectory:
        scanned = ScannedDirectory(path, directory)
        try:
            with os.scandir(path) as listing:
                entries = {entry.name: entry for entry in listing}
        except OSError as error:
            raise _unreadable(path, error) from error
        names, children = directory.names, directory.children
        for name in sorted(entries):
            entry = entries[name]
            if self._exclude and self._exclude.matches(os.path.relpath(entry.path, self._root)):
                continue
            if _is_file(entry):
                scanned.files.append(name)
                scanned.slots.append(len(children))
                names.append(name)
                children.append(PENDING)
                continue
            names.append(name)
            children.append(self._other(entry, directory))
        return scanned

    def _other(self, entry: os.DirEntry[bytes], parent: Directory) -> Inode:
        try:
            st = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(st.st_mode):
                return self._directory(entry.path, st, parent)
            if st.st_nlink > 1:
                known = self._links.get((st.st_dev, st.st_ino))
                if known is not None:
                    known.nlink += 1
                    return known
            seconds, nsec = divmod(st.st_mtime_ns, 1_000_000_000)
            inode = Inode(st.st_mode, st.st_uid, st.st_gid, seconds, nsec, 0, self._xattrs(entry.path))
            if stat.S_ISLNK(st.st_mode):
                inode.target = os.readlink(entry.path)
                inode.size = len(inode.target)
                if inode.size > MAX_SYMLINK:
                    raise SourceError(f"symlink target has more than {MAX_SYMLINK} bytes", where=_show(entry.path))
            elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
                inode.rdev = os.major(st.st_rdev), os.minor(st.st_rdev)
            elif not (stat.S_ISFIFO(st.st_mode) or stat.S_ISSOCK(st.st_mode)):
                raise UnsupportedError(
                    f"file type {stat.S_IFMT(st.st_mode):#o} is not supported", where=_show(entry.path)
                )
        except OSError as error:
            raise _unreadable(entry.path, error) from error
        if st.st_nlink > 1:
            self._links[st.st_dev, st.st_ino] = inode
        return inode

    def _directory(self, path: bytes, st: os.stat_result, parent: Directory | None) -> Directory:
        seconds, nsec = divmod(st.st_mtime_ns, 1_000_000_000)
        try:
            xattrs = self._xattrs(path, follow=parent is None)
        except OSError as error:
            raise _unreadable(path, error) from error
        return Directory(st.st_mode, st.st_uid, st.st_gid, seconds, nsec, xattrs, parent=parent)

    def _xattrs(self, path: bytes, *, follow: bool = False) -> Xattrs:
        try:
            names = os.listxattr(path, follow_symlinks=follow)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            return ()  # the file system knows none
        if not names:
            return ()
        return tuple(sorted((os.fsencode(name), os.getxattr(path, name, follow_symlinks=follow)) for name in names))


def _is_file(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError as error:  # where the directory does not tell types
        raise _unreadable(entry.path, error) from error


def _unreadable(path: bytes, error: OSError) -> ErosealError:
    return SourceError(f"cannot read: {error.strerror}", where=_show(path), hint="--exclude leaves it out")


def _show(path: bytes) -> str:
    return os.fsdecode(path)
