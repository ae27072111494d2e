"""A tree that archives gave as a source: the same walk, in the same canonical order, as over a directory on disk.

So a tree gives the same image, byte for byte, whether it came as a directory, as an archive or in layers.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from eroseal.tree.directory import PENDING, Exclude, ScannedDirectory
from eroseal.tree.layer import Node
from eroseal.tree.model import Directory, Inode, StoredFile

_SECOND: Final = 1_000_000_000


class TreeSource:
    """Walks a tree of nodes, each directory before its subdirectories, names in byte order.

    Args:
        root: of the tree, without whiteouts; its inodes become the image's, and the walk, of which there can be one
            only, takes it apart.
        exclude: glob patterns, as for a directory.
    """

    def __init__(self, root: Node, *, exclude: Sequence[str] = ()) -> None:
        self._root = root
        self._exclude = Exclude(exclude)
        self._names: Counter[int] = Counter()
        self._serials: dict[int, int] = {}

    def walk(self) -> Iterator[ScannedDirectory]:
        """The directories, the root first."""
        self._count_names()
        # Paths are made when their turn comes: those of all that wait would share most of their bytes.
        stack = [(b"", b"", self._root, _directory(self._root, None))]
        while stack:
            above, name, node, directory = stack.pop()
            path = _join(above, name)
            scanned, below = self._scan(path, node, directory)
            yield scanned
            stack.extend((path, *entry) for entry in reversed(below))

    def _count_names(self) -> None:
        """How many names each file has that the walk will come by."""
        stack = [(b"", b"", self._root)]
        while stack:
            above, own, node = stack.pop()
            path = _join(above, own)
            for name, child in self._children(path, node):
                if child.children is not None:
                    stack.append((path, name, child))
                else:
                    self._names[id(child)] += 1

    def _children(self, path: bytes, node: Node) -> list[tuple[bytes, Node]]:
        children = node.children or {}
        if not self._exclude:
            return sorted(children.items())
        return [(name, children[name]) for name in sorted(children) if not self._exclude.matches(_join(path, name))]

    def _scan(
        self, path: bytes, node: Node, directory: Directory
    ) -> tuple[ScannedDirectory, list[tuple[bytes, Node, Directory]]]:
        contents: list[StoredFile] = []
        scanned = ScannedDirectory(b"/" + path, directory, contents=contents)
        below = []
        for name, child in self._children(path, node):
            if stat.S_ISREG(child.inode.mode):
                scanned.files.append(name)
                scanned.slots.append(len(directory.names))
                contents.append(self._stored(child))
                found: Inode = PENDING
            elif child.children is not None:
                found = _directory(child, directory)
                below.append((name, child, found))
            else:
                found = child.inode
                found.nlink = self._names[id(child)]
            directory.names.append(name)
            directory.children.append(found)
        # Its files are in the walk's hands now; a tree of a million nodes need not last until the last is read.
        node.children = {}
        return scanned, below

    def _stored(self, node: Node) -> StoredFile:
        inode, content = node.inode, node.content
        names = self._names[id(node)]
        link = None if names == 1 else (0, self._serials.setdefault(id(node), len(self._serials)), names)
        source, offset = (0, 0) if content is None else (content.source, content.offset)
        mtime = inode.mtime * _SECOND + inode.mtime_nsec
        return source, offset, inode.mode, inode.uid, inode.gid, mtime, inode.size, link, inode.xattrs or None


def _directory(node: Node, parent: Directory | None) -> Directory:
    inode = node.inode
    return Directory(inode.mode, inode.uid, inode.gid, inode.mtime, inode.mtime_nsec, inode.xattrs, parent=parent)


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name
