"""The structure check of a whole image: what no single read can judge.

A validly signed image may still be broken or hostile. The reader refuses what leaves a blob or breaks a rule
on the spot; this check visits every inode that the root reaches once and adds the rules that need the whole:
names against inodes, link counts, "." and "..", cycles, overlaps, the bloom filter. Time is bounded by the
image's size, because neither directories nor metadata may claim more bytes than there are; memory is a bit
for each inode, a level of the stack for each directory on the way down, and a counter for each inode with
several names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from eroseal.errors import FormatError, UnsupportedError
from eroseal.format.erofs import (
    COMPAT_XATTR_FILTER,
    FT_DIR,
    INCOMPAT_CHUNKED_FILE,
    LAYOUT_CHUNK_BASED,
    LAYOUT_FLAT_INLINE,
)
from eroseal.format.xattr import filter_bit
from eroseal.image.check_volume import check_root, check_volume
from eroseal.image.directory import DirEntry
from eroseal.image.extents import chunk_table
from eroseal.image.guard import NidSet, TreeGuard
from eroseal.image.inode import Inode
from eroseal.image.reader import ImageReader
from eroseal.limits import MAX_SYMLINK

MAX_WARNINGS: Final = 100
"""Warnings kept; the rest is only counted."""
PROGRESS_STEP: Final = 1024
"""Inodes between two calls of `progress`."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check went through.

    Args:
        inodes: distinct inodes.
        directories: among them.
        names: directory entries, without "." and "..".
        extents: runs of data, holes included.
        logical_bytes: sum of the sizes of regular files.
        xattrs: attributes, shared ones counted wherever they are used.
        compressed: files whose extents were not checked because their layout is compressed.
        warnings: what is odd, but does no harm; the first 100.
        warnings_total: how many there were.
    """

    inodes: int
    directories: int
    names: int
    extents: int
    logical_bytes: int
    xattrs: int
    compressed: int
    warnings: tuple[str, ...]
    warnings_total: int


def check_image(reader: ImageReader, *, progress: Callable[[int], None] | None = None) -> CheckResult:
    """Check the structure of a whole image.

    Data is not read and compressed files' extents are not decoded (`CheckResult.compressed` counts them);
    everything else that docs call the structure of an image is.

    Args:
        reader: of the image.
        progress: called now and then with the number of inodes checked so far.

    Raises:
        FormatError: something is broken; says what and where.
        UnsupportedError: a directory or the metadata is compressed.
    """
    warnings = check_volume(reader)
    return _Check(reader, progress, warnings).run()


@dataclass(slots=True)
class _Level:
    """A directory that is being gone through."""

    inode: Inode
    parent: int
    path: bytes
    entries: Iterator[DirEntry]
    dots: int = 0
    subdirectories: int = 0


class _Check:
    def __init__(self, reader: ImageReader, progress: Callable[[int], None] | None, warnings: list[str]) -> None:
        self._reader = reader
        self._progress = progress
        self._guard = TreeGuard(reader.metadata_size)
        self._seen = NidSet()
        self._left: dict[int, int] = {}
        """Names still owed to each inode that claims several."""
        # Inodes, their xattrs, tails and index arrays never overlap in an honest image. Without this bound,
        # every 32 bytes could claim an index array as large as the image.
        self._metadata = reader.metadata_size
        self._filtered = bool(
            reader.superblock.feature_compat & COMPAT_XATTR_FILTER and not reader.superblock.xattr_filter_reserved
        )
        self._counts = dict.fromkeys(
            ("inodes", "directories", "names", "extents", "logical_bytes", "xattrs", "compressed"), 0
        )
        self._warnings = warnings[:MAX_WARNINGS]
        self._warnings_total = len(warnings)
        self._chunked = bool(reader.superblock.feature_incompat & INCOMPAT_CHUNKED_FILE)

    def run(self) -> CheckResult:
        """Go through the tree, then settle the link counts."""
        root = check_root(self._reader)
        self._seen.add(root.nid)
        with _placing(b"", root.nid):
            self._visit(root)
        stack = [self._enter(root, root.nid, b"", 0)]
        while stack:
            level = stack[-1]
            with _placing(level.path, level.inode.nid):
                child = self._next_directory(level)
            if child is None:
                self._leave(stack.pop())
            else:
                inode, path = child
                stack.append(self._enter(inode, level.inode.nid, path, len(stack)))
        for nid, names in self._left.items():
            self._warn(f"inode {nid} claims {names} more names than the tree has")
        if self._progress is not None:
            self._progress(self._counts["inodes"])
        return CheckResult(**self._counts, warnings=tuple(self._warnings), warnings_total=self._warnings_total)

    # --- directories ---
    def _enter(self, directory: Inode, parent: int, path: bytes, depth: int) -> _Level:
        self._guard.enter(directory, path, depth)
        return _Level(directory, parent, path, self._reader.all_entries(directory))

    def _next_directory(self, level: _Level) -> tuple[Inode, bytes] | None:
        """Check names up to the next subdirectory, and give that; None at the end of the directory."""
        prefix = level.path + b"/" if level.path else b""
        for entry in level.entries:
            if entry.name in (b".", b".."):
                _check_dot(level, entry)
                continue
            path = prefix + entry.name
            self._guard.name(path)
            self._counts["names"] += 1
            with _placing(path, entry.nid):
                inode = self._name(entry)
            if inode is not None:
                level.subdirectories += 1
                return inode, path
        return None

    def _leave(self, level: _Level) -> None:
        expected = 1 if level.inode.dot_omitted else 2
        if level.dots != expected:
            with _placing(level.path, level.inode.nid):
                raise FormatError('directory lacks "." or ".."')
        # 1 stands for "not counted", as on other file systems.
        if level.inode.nlink not in (1, 2 + level.subdirectories):
            self._warn(
                f"{_show(level.path)} (inode {level.inode.nid}) has nlink {level.inode.nlink} "
                f"with {level.subdirectories} subdirectories"
            )

    def _name(self, entry: DirEntry) -> Inode | None:
        """Check one name and, if it is the first, its inode; gives the inode back if it is a directory."""
        inode = self._reader.inode(entry.nid)
        if entry.file_type != inode.file_type:
            raise FormatError(f"directory entry says file type {entry.file_type}, but the inode {inode.file_type}")
        if inode.is_dir:
            if not self._seen.add(inode.nid):
                raise FormatError("directory has more than one name: a cycle or a hard link")
            self._visit(inode)
            return inode
        if self._seen.add(inode.nid):
            if inode.nlink < 1:
                raise FormatError("inode has a name, but claims nlink 0")
            if inode.nlink > 1:
                self._left[inode.nid] = inode.nlink - 1
            self._visit(inode)
            return None
        left = self._left.get(inode.nid, 0)
        if not left:
            raise FormatError(f"inode has more names than its nlink {inode.nlink} says")
        if left == 1:
            del self._left[inode.nid]
        else:
            self._left[inode.nid] = left - 1
        return None

    # --- inodes ---
    def _visit(self, inode: Inode) -> None:
        """Check an inode by itself, the first time that it is met."""
        counts = self._counts
        counts["inodes"] += 1
        if self._progress is not None and counts["inodes"] % PROGRESS_STEP == 0:
            self._progress(counts["inodes"])
        if inode.is_dir:
            counts["directories"] += 1
        elif inode.is_regular:
            counts["logical_bytes"] += inode.size
        elif not inode.is_symlink and inode.size:
            raise FormatError(f"special file claims {inode.size} bytes of data")
        self._check_footprint(inode)
        if inode.raw.i_xattr_icount:
            self._check_xattrs(inode)
        if inode.compressed:
            self._check_compressed(inode)
        elif inode.has_data:
            for _ in self._reader.extents(inode):
                counts["extents"] += 1
        if inode.is_symlink and not inode.compressed:
            self._check_symlink(inode)

    def _check_footprint(self, inode: Inode) -> None:
        space = self._reader.space(inode)
        size = inode.raw.size + inode.raw.xattr_size
        if inode.has_data and inode.layout == LAYOUT_CHUNK_BASED:
            if not self._chunked:
                # mkfs.erofs 1.9.3 -Ededupe writes holes this way, and kernels read them.
                self._warn(f"inode {inode.nid} is chunk-based, but the superblock does not say so")
                self._chunked = True
            table = chunk_table(inode, space, self._reader.superblock.blkszbits)
            size += table.unit * table.count
        elif inode.has_data and inode.layout == LAYOUT_FLAT_INLINE:
            size += inode.size % self._reader.superblock.block_size
        self._metadata -= size
        if self._metadata < 0:
            raise FormatError("inodes overlap: together they claim more bytes than hold metadata")

    def _check_xattrs(self, inode: Inode) -> None:
        name_filter = self._reader.xattr_reader.name_filter(inode) if self._filtered else 0
        names = set()
        for entry in self._reader.xattr_reader.entries(inode):
            key = (entry.index, entry.rest)
            if key in names:
                raise FormatError(f"xattr {entry.name!r} repeats")
            names.add(key)
            # A set bit means "absent": getxattr would not find what listxattr shows.
            if name_filter & filter_bit(entry.index, entry.rest):
                raise FormatError(f"xattr {entry.name!r} is denied by the inode's name filter")
        self._counts["xattrs"] += len(names)

    def _check_compressed(self, inode: Inode) -> None:
        if not inode.has_data:
            raise FormatError("special file has a compressed layout")
        if inode.is_dir:
            raise UnsupportedError("directory is compressed, which this version does not decode")
        self._counts["compressed"] += 1

    def _check_symlink(self, inode: Inode) -> None:
        if not 0 < inode.size <= MAX_SYMLINK:
            raise FormatError(f"symlink has a target of {inode.size} bytes")
        if b"\0" in self._reader.readlink(inode):
            raise FormatError("symlink has NUL in its target")

    def _warn(self, text: str) -> None:
        self._warnings_total += 1
        if len(self._warnings) < MAX_WARNINGS:
            self._warnings.append(text)


def _check_dot(level: _Level, entry: DirEntry) -> None:
    name = entry.name.decode()
    expected = level.inode.nid if name == "." else level.parent
    if name == "." and level.inode.dot_omitted:
        raise FormatError('directory has "." although its format says that it is omitted')
    if entry.nid != expected or entry.file_type != FT_DIR:
        raise FormatError(f'"{name}" points at inode {entry.nid}, not at directory {expected}')
    level.dots += 1


@contextmanager
def _placing(path: bytes, nid: int) -> Iterator[None]:
    """Make errors say which path they are about; one that already does passes."""
    try:
        yield
    except (FormatError, UnsupportedError) as error:
        if error.where is not None and error.where.startswith("/"):
            raise
        raise type(error)(error.what, where=f"{_show(path)} (inode {nid})", hint=error.hint) from error


def _show(path: bytes) -> str:
    return "/" + path.decode(errors="backslashreplace")
