"""Listings: `ls -l` style lines, `stat` in text, and both as documents.

Times are UTC: an image is the same everywhere, and so is what is said about it.
"""

from __future__ import annotations

import datetime
import stat
from collections.abc import Sequence
from typing import Literal

import msgspec

from eroseal.format.erofs import (
    LAYOUT_CHUNK_BASED,
    LAYOUT_COMPRESSED_COMPACT,
    LAYOUT_COMPRESSED_FULL,
    LAYOUT_FLAT_INLINE,
    LAYOUT_FLAT_PLAIN,
)
from eroseal.image.inode import Inode
from eroseal.report.document import Document, path_text, shown, table

FileType = Literal["file", "directory", "symlink", "char", "block", "fifo", "socket"]

TYPE_OF_IFMT: dict[int, FileType] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
"""How documents call each file type of st_mode."""

_LAYOUTS = {
    LAYOUT_FLAT_PLAIN: "plain",
    LAYOUT_FLAT_INLINE: "inline",
    LAYOUT_CHUNK_BASED: "chunked",
    LAYOUT_COMPRESSED_FULL: "compressed",
    LAYOUT_COMPRESSED_COMPACT: "compressed",
}


class LsEntry(Document, frozen=True, kw_only=True):
    """One line of `ls`.

    Args:
        path: relative to the image's root.
        type: file type.
        mode: permission bits in octal, four digits.
        uid: owner.
        gid: group.
        nlink: number of names.
        size: bytes.
        mtime: seconds since 1970.
        mtime_nsec: nanoseconds on top.
        inode: inode number.
        rdev: major and minor of a device.
        target: of a symbolic link.
    """

    path: str
    type: FileType
    mode: str
    uid: int
    gid: int
    nlink: int
    size: int
    mtime: int
    mtime_nsec: int
    inode: int
    rdev: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET
    target: str | msgspec.UnsetType = msgspec.UNSET


class LsDocument(Document, frozen=True, kw_only=True):
    """What `ls --json` prints."""

    schema: Literal["eroseal.ls/1"] = "eroseal.ls/1"
    entries: list[LsEntry]


class XattrEntry(Document, frozen=True, kw_only=True):
    """An extended attribute; the value is Base64 in JSON."""

    name: str
    value: bytes


class StatDocument(Document, frozen=True, kw_only=True):
    """What `stat --json` prints: one entry with its attributes and the way its data is stored."""

    schema: Literal["eroseal.stat/1"] = "eroseal.stat/1"
    entry: LsEntry
    xattrs: list[XattrEntry]
    layout: str


def ls_entry(path: bytes, inode: Inode, *, target: bytes | None = None) -> LsEntry:
    """The entry for one path.

    Args:
        path: as it is to be shown.
        inode: what it leads to.
        target: of a symbolic link.
    """
    is_device = stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode)
    return LsEntry(
        path=path_text(path),
        type=TYPE_OF_IFMT[stat.S_IFMT(inode.mode)],
        mode=f"{stat.S_IMODE(inode.mode):04o}",
        uid=inode.uid,
        gid=inode.gid,
        nlink=inode.nlink,
        size=inode.size,
        mtime=inode.mtime,
        mtime_nsec=inode.mtime_nsec,
        inode=inode.nid,
        rdev=inode.rdev if is_device else msgspec.UNSET,
        target=msgspec.UNSET if target is None else path_text(target),
    )


def ls_lines(entries: Sequence[LsEntry], *, long: bool = True) -> list[str]:
    """What `ls` prints: names alone, or like `ls -ln --time-style=long-iso` with columns aligned."""
    if not long:
        return [shown(entry.path) for entry in entries]
    rows = [
        (
            _mode_text(entry),
            str(entry.nlink),
            str(entry.uid),
            str(entry.gid),
            _size_column(entry),
            f"{_time(entry.mtime):%Y-%m-%d %H:%M}" if _has_date(entry.mtime) else str(entry.mtime),
        )
        for entry in entries
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(6)]
    aligned = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return [" ".join([*row, _name(entry)]) for row, entry in zip(aligned, entries, strict=True)]


def stat_document(
    path: bytes, inode: Inode, *, xattrs: Sequence[tuple[bytes, bytes]], target: bytes | None = None
) -> StatDocument:
    """The document for one path; see `ls_entry`."""
    return StatDocument(
        entry=ls_entry(path, inode, target=target),
        xattrs=[XattrEntry(name=path_text(name), value=value) for name, value in xattrs],
        layout=_LAYOUTS[inode.layout],
    )


def stat_text(document: StatDocument) -> str:
    """What `stat` prints."""
    entry = document.entry
    rows = [
        ("path", _name(entry)),
        ("type", entry.type),
        ("mode", f"{entry.mode} ({_mode_text(entry)})"),
        ("owner", f"{entry.uid}:{entry.gid}"),
        ("size", str(entry.size)),
        ("modified", time_text(entry.mtime, entry.mtime_nsec)),
        ("links", str(entry.nlink)),
        ("inode", str(entry.inode)),
        ("stored", document.layout),
    ]
    if entry.rdev is not msgspec.UNSET:
        rows.append(("device", f"{entry.rdev[0]}, {entry.rdev[1]}"))
    rows += [(f"xattr {shown(item.name)}", _value_text(item.value)) for item in document.xattrs]
    return "\n".join(table(rows))


def time_text(seconds: int, nanoseconds: int = 0) -> str:
    """A time in UTC with nanoseconds; seconds since 1970 where the calendar has no such year."""
    if not _has_date(seconds):
        return f"{seconds}.{nanoseconds:09d}"
    return f"{_time(seconds):%Y-%m-%d %H:%M:%S}.{nanoseconds:09d} UTC"


_FIRST = int(datetime.datetime(1, 1, 2, tzinfo=datetime.UTC).timestamp())
_LAST = int(datetime.datetime(9999, 12, 30, tzinfo=datetime.UTC).timestamp())


def _has_date(seconds: int) -> bool:
    return _FIRST <= seconds <= _LAST


def _time(seconds: int) -> datetime.datetime:
    # fromtimestamp() is bound to the platform's time_t; this is not.
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=seconds)


_IFMT_OF_TYPE = {name: ifmt for ifmt, name in TYPE_OF_IFMT.items()}


def _mode_text(entry: LsEntry) -> str:
    return stat.filemode(_IFMT_OF_TYPE[entry.type] | int(entry.mode, 8))


def _size_column(entry: LsEntry) -> str:
    return str(entry.size) if entry.rdev is msgspec.UNSET else f"{entry.rdev[0]}, {entry.rdev[1]}"


def _name(entry: LsEntry) -> str:
    name = shown(entry.path)
    return name if entry.target is msgspec.UNSET else f"{name} -> {shown(entry.target)}"


def _value_text(value: bytes) -> str:
    """An attribute's value: as text if it is printable, else in hex, like getfattr."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"
    return f'"{text}"' if text.isprintable() else f"0x{value.hex()}"
