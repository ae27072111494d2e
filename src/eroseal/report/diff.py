"""How two images differ: which paths, in what, and how much of the second one is new.

Strategy: both trees are walked once, side by side, in the order that both share. Contents that lie at the
same place of the same blob are equal without a look at them; only the rest is read and compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from eroseal.crypto.blocks import is_zero
from eroseal.format.digest import Digest
from eroseal.format.statement import ImageDigest
from eroseal.image.extents import Extent
from eroseal.image.inode import Inode
from eroseal.image.view import BlobKey, TreeView
from eroseal.limits import IO_CHUNK
from eroseal.report.document import Document, path_text, shown, size_text
from eroseal.report.usage import Usage

Kind = Literal["added", "removed", "changed"]
Aspect = Literal["type", "content", "target", "device", "mode", "owner", "mtime", "xattrs", "links"]


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs.

    Args:
        path: relative to the root; b"" is the root itself.
        kind: in the second image only, in the first only, or in both.
        what: for a path in both: what differs.
    """

    path: bytes
    kind: Kind
    what: tuple[Aspect, ...] = ()


@dataclass(frozen=True, slots=True)
class Diff:
    """How a second image differs from a first.

    Args:
        changes: in bytewise order of path components.
        unchanged: paths that are the same in both.
        shared_bytes: stored bytes of file contents of the second image that the first one's files use too.
        new_bytes: all its other stored bytes of file contents.
        new_blobs: blobs of the second image that the first does not have; empty where blobs have no digests.
    """

    changes: tuple[Change, ...]
    unchanged: int
    shared_bytes: int
    new_bytes: int
    new_blobs: tuple[Digest, ...]


def diff_images(a: TreeView, b: TreeView) -> Diff:
    """Compare two images.

    Args:
        a: the first image.
        b: the second image.

    Raises:
        FormatError: one of them is broken. IntegrityError and UnsupportedError come from their sources.
    """
    comparison = _Comparison(a, b)
    changes = tuple(comparison.changes())
    used, before = comparison.usage_b, comparison.usage_a
    shared = used.shared_with(before)
    known = set(before.keys)
    fresh = dict.fromkeys(key for key in used.keys if isinstance(key, Digest) and key not in known)
    return Diff(changes, comparison.unchanged, shared, used.stored_bytes() - shared, tuple(fresh))


class _Comparison:
    def __init__(self, a: TreeView, b: TreeView) -> None:
        self._a, self._b = a, b
        self.usage_a, self.usage_b = Usage(a), Usage(b)
        self.unchanged = 0
        # Hard links: contents of a pair of inodes are compared once.
        self._compared: dict[tuple[int, int], bool] = {}

    def changes(self) -> Iterator[Change]:
        """What differs, path by path."""
        for path, first, second in _side_by_side(self._a, self._b):
            for reader, inode, usage in (
                (self._a, first, self.usage_a),
                (self._b, second, self.usage_b),
            ):
                if inode is not None and inode.is_regular and usage.first(inode):
                    for extent in reader.extents(inode):
                        usage.add(extent)
            if first is None:
                yield Change(path, "added")
            elif second is None:
                yield Change(path, "removed")
            else:
                what = tuple(self._aspects(first, second))
                if what:
                    yield Change(path, "changed", what)
                else:
                    self.unchanged += 1

    def _aspects(self, first: Inode, second: Inode) -> Iterator[Aspect]:
        if first.file_type != second.file_type:
            yield "type"
        elif first.is_regular:
            if not self._same_content(first, second):
                yield "content"
        elif first.is_symlink:
            if self._a.readlink(first) != self._b.readlink(second):
                yield "target"
        elif first.rdev != second.rdev:
            yield "device"
        if first.mode & 0o7777 != second.mode & 0o7777:
            yield "mode"
        if (first.uid, first.gid) != (second.uid, second.gid):
            yield "owner"
        if (first.mtime, first.mtime_nsec) != (second.mtime, second.mtime_nsec):
            yield "mtime"
        if self._a.xattrs(first) != self._b.xattrs(second):
            yield "xattrs"
        # A directory's count follows from its entries, which are changes of their own.
        if first.nlink != second.nlink and not first.is_dir and not second.is_dir:
            yield "links"

    def _same_content(self, first: Inode, second: Inode) -> bool:
        if first.size != second.size:
            return False
        pair = (first.nid, second.nid)
        known = self._compared.get(pair)
        if known is None:
            known = self._compare(first, second)
            if first.nlink > 1:
                self._compared[pair] = known
        return known

    def _compare(self, first: Inode, second: Inode) -> bool:
        keys_a, keys_b = self.usage_a.keys, self.usage_b.keys
        for offset, length, x, y in _aligned(self._a.extents(first), self._b.extents(second)):
            if _place(keys_a, x, offset) == _place(keys_b, y, offset):
                continue
            for at in range(offset, offset + length, IO_CHUNK):
                size = min(IO_CHUNK, offset + length - at)
                if not self._same_bytes(first, second, x, y, at, size):
                    return False
        return True

    def _same_bytes(self, first: Inode, second: Inode, x: Extent, y: Extent, at: int, size: int) -> bool:
        if x.device is None:
            return is_zero(self._b.read(second, at, size))
        if y.device is None:
            return is_zero(self._a.read(first, at, size))
        return self._a.read(first, at, size) == self._b.read(second, at, size)


def _side_by_side(a: TreeView, b: TreeView) -> Iterator[tuple[bytes, Inode | None, Inode | None]]:
    """All paths of two images with their inodes: both walks merged."""
    walk_a, walk_b = a.walk(), b.walk()
    first, second = next(walk_a, None), next(walk_b, None)
    while True:
        if first is not None and (second is None or _order(first[0]) < _order(second[0])):
            yield first[0], first[1], None
            first = next(walk_a, None)
        elif second is not None and (first is None or first[0] != second[0]):
            yield second[0], None, second[1]
            second = next(walk_b, None)
        elif first is not None and second is not None:
            yield first[0], first[1], second[1]
            first, second = next(walk_a, None), next(walk_b, None)
        else:
            return


def _order(path: bytes) -> list[bytes]:
    """The key that walks rise by: "a/b" comes before "a-b", although "-" is less than "/"."""
    return path.split(b"/") if path else []


def _aligned(xs: Iterator[Extent], ys: Iterator[Extent]) -> Iterator[tuple[int, int, Extent, Extent]]:
    """Runs (offset, length) of two files of equal size that lie in one extent of each."""
    x, y = next(xs, None), next(ys, None)
    at = 0
    while x is not None and y is not None:
        end = min(x.logical + x.length, y.logical + y.length)
        yield at, end - at, x, y
        if end == x.logical + x.length:
            x = next(xs, None)
        if y.logical + y.length == end:
            y = next(ys, None)
        at = end


def _place(keys: tuple[BlobKey, ...], extent: Extent, offset: int) -> tuple[BlobKey, int] | None:
    """Where a file's byte `offset` lies; None in a hole."""
    if extent.device is None:
        return None
    return keys[extent.device], extent.offset + offset - extent.logical


# --- documents ---


class ChangeEntry(Document, frozen=True, kw_only=True):
    """One path that differs; see `Change`."""

    path: str
    change: Kind
    what: list[Aspect]


class DiffDocument(Document, frozen=True, kw_only=True):
    """What `diff --json` prints; see `Diff`.

    Args:
        first: digest of the first image; null if it is not sealed.
        second: digest of the second image; null if it is not sealed.
    """

    schema: Literal["eroseal.diff/1"] = "eroseal.diff/1"
    first: str | None
    second: str | None
    changes: list[ChangeEntry]
    unchanged: int
    shared_bytes: int
    new_bytes: int
    new_blobs: list[str]


def diff_document(diff: Diff, *, first: ImageDigest | None = None, second: ImageDigest | None = None) -> DiffDocument:
    """The document for a diff.

    Args:
        diff: the result of `diff_images`.
        first: digest of the first image.
        second: digest of the second image.
    """
    return DiffDocument(
        first=None if first is None else str(first),
        second=None if second is None else str(second),
        changes=[
            ChangeEntry(path=path_text(change.path), change=change.kind, what=list(change.what))
            for change in diff.changes
        ],
        unchanged=diff.unchanged,
        shared_bytes=diff.shared_bytes,
        new_bytes=diff.new_bytes,
        new_blobs=[str(digest) for digest in diff.new_blobs],
    )


_MARKS: dict[Kind, str] = {"added": "+", "removed": "-", "changed": "~"}


def diff_lines(diff: Diff) -> Iterator[str]:
    """What `diff` prints, line by line: ``+ added``, ``- removed``, ``~ changed (what)``, and a summary."""
    for change in diff.changes:
        path = shown(change.path) or "."
        what = f" ({', '.join(change.what)})" if change.what else ""
        yield f"{_MARKS[change.kind]} {path}{what}"
    yield (
        f"{len(diff.changes)} paths differ, {diff.unchanged} are the same; contents: "
        f"{size_text(diff.shared_bytes)} shared, {size_text(diff.new_bytes)} new"
    )
