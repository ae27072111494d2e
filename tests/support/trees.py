"""What is in a tree, so that two trees can be compared: on disk, as mounted, or as our reader sees an image.

Sizes of directories are left out (each file system has its own), and so are access and change times. Content is
hashed over what is not zero, so that a file of 20 GiB with holes costs what its data costs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from eroseal.image.inode import Inode
from eroseal.image.reader import ImageReader

_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a tree.

    Args:
        mode, uid, gid, mtime_ns, rdev: as in stat.
        size: of regular files and symlinks.
        content: hash of a regular file's content, or a symlink's target.
        xattrs: sorted.
        same_as: first name (in byte order of paths) of the same inode, where it has several in this tree.
        nlink: names of the inode in this tree; 0 for directories.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    rdev: tuple[int, int]
    size: int
    content: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    same_as: bytes | None = None
    nlink: int = 1


Tree = dict[bytes, Entry]


def tree_of(root: Path | bytes, *, content: bool = True) -> Tree:
    """Everything at and below a directory; the root is b""."""
    top = os.fsencode(root)
    found: Tree = {}
    groups: dict[tuple[int, int], list[bytes]] = {}
    known: dict[tuple[int, int], Entry] = {}
    for path, full in paths_below(top):
        st = os.lstat(full)
        key = (st.st_dev, st.st_ino)
        several = st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode)
        if several:
            groups.setdefault(key, []).append(path)
            if key in known:
                found[path] = known[key]
                continue
        found[path] = _entry(full, st, content=content)
        if several:
            known[key] = found[path]
    return _linked(found, groups.values())


def paths_below(top: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(path below the top, path to open) of everything, parents first."""
    yield b"", top
    stack = [(b"", top)]
    while stack:
        path, full = stack.pop()
        with os.scandir(full) as listing:
            for entry in listing:
                below = os.path.join(path, entry.name)
                yield below, entry.path
                if entry.is_dir(follow_symlinks=False):
                    stack.append((below, entry.path))


def _entry(full: bytes, st: os.stat_result, *, content: bool) -> Entry:
    size, data = 0, b""
    if stat.S_ISREG(st.st_mode):
        size = st.st_size
        data = content_of(full, size) if content else b""
    elif stat.S_ISLNK(st.st_mode):
        size, data = st.st_size, os.readlink(full)
    device = stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode)
    return Entry(
        st.st_mode,
        st.st_uid,
        st.st_gid,
        st.st_mtime_ns,
        (os.major(st.st_rdev), os.minor(st.st_rdev)) if device else (0, 0),
        size,
        data,
        xattrs_of(full),
        nlink=0 if stat.S_ISDIR(st.st_mode) else 1,
    )


def xattrs_of(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Extended attributes of a path, symlinks not followed."""
    names = os.listxattr(path, follow_symlinks=False)
    return tuple(sorted((os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names))


def content_of(path: bytes, size: int) -> bytes:
    """Hash of a file's size and of every piece that is not all zero, with its offset."""
    digest = hashlib.sha256(b"%d" % size)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        done = 0
        for start, end in data_ranges(fd, size) if size > _PIECE else [(0, size)]:
            for at in range(max(done, start // _PIECE * _PIECE), end, _PIECE):
                _add_piece(digest, at, os.pread(fd, _PIECE, at))
                done = at + _PIECE
    finally:
        os.close(fd)
    return digest.digest()


def _add_piece(digest: hashlib._Hash, at: int, piece: bytes) -> None:
    if piece != _ZEROS[: len(piece)]:
        digest.update(b"%d:%d:" % (at, len(piece)))
        digest.update(piece)


def data_ranges(fd: int, size: int) -> list[tuple[int, int]]:
    """Where a file says that it has data: (start, end), from SEEK_DATA and SEEK_HOLE."""
    found = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, at))
    return found


def ranges_of(path: Path | bytes) -> list[tuple[int, int]]:
    """`data_ranges` of a path."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return data_ranges(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def image_tree(reader: ImageReader) -> Tree:
    """The same of an image, through our own reader."""
    found: Tree = {}
    groups: dict[int, list[bytes]] = {}
    known: dict[int, Entry] = {}
    for path, inode in reader.walk():
        if inode.nid not in known:
            known[inode.nid] = _image_entry(reader, inode)
        found[path] = known[inode.nid]
        if inode.nlink > 1 and not inode.is_dir:
            groups.setdefault(inode.nid, []).append(path)
    return _linked(found, groups.values())


def _image_entry(reader: ImageReader, inode: Inode) -> Entry:
    size, data = 0, b""
    if inode.is_regular:
        size = inode.size
        digest = hashlib.sha256(b"%d" % size)
        done = 0
        for extent in reader.extents(inode):
            if extent.device is None:
                continue
            first = max(done, extent.logical // _PIECE * _PIECE)
            for at in range(first, extent.logical + extent.length, _PIECE):
                _add_piece(digest, at, reader.read(inode, at, _PIECE))
                done = at + _PIECE
        data = digest.digest()
    elif inode.is_symlink:
        size, data = inode.size, reader.readlink(inode)
    return Entry(
        inode.mode,
        inode.uid,
        inode.gid,
        inode.mtime * 1_000_000_000 + inode.mtime_nsec,
        inode.rdev,
        size,
        data,
        tuple(reader.xattrs(inode)),
        nlink=0 if inode.is_dir else 1,
    )


def _linked(found: Tree, groups: Iterable[list[bytes]]) -> Tree:
    for names in groups:
        if len(names) > 1:
            old = found[names[0]]
            entry = Entry(
                *(getattr(old, field.name) for field in fields(Entry)[:-2]), same_as=min(names), nlink=len(names)
            )
            found.update(dict.fromkeys(names, entry))
    return found


def assert_same(found: Tree, wanted: Tree) -> None:
    """Fail with the first few differences: whole trees are too long to read."""
    problems = [f"missing: {path!r}" for path in sorted(wanted.keys() - found.keys())]
    problems += [f"too many: {path!r}" for path in sorted(found.keys() - wanted.keys())]
    for path in sorted(wanted.keys() & found.keys()):
        if found[path] != wanted[path]:
            problems += [
                f"{path[-200:]!r}: {field.name} is {_short(getattr(found[path], field.name))}, "
                f"not {_short(getattr(wanted[path], field.name))}"
                for field in fields(Entry)
                if getattr(found[path], field.name) != getattr(wanted[path], field.name)
            ]
    assert not problems, "\n".join([f"{len(problems)} differences", *problems[:20]])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 400 else f"{text[:400]}..."
