"""From the names in an archive to the nodes of a layer: where each entry goes, and what may not go anywhere.

Nothing is followed: a name is a path of directories of this very archive, and one that leads through anything else is
refused. Directories that no entry describes are made. Whiteouts are applied when all entries are there, because they
speak of lower layers alone, wherever they stand in the archive.

Source: OCI image specification, "Image Layer Filesystem Changeset".
"""

from __future__ import annotations

import os
import stat
from typing import Final

from eroseal.errors import FormatError
from eroseal.limits import MAX_ARCHIVE_IMPLICIT, MAX_ARCHIVE_METADATA, MAX_ARCHIVE_PATH, MAX_DEPTH, MAX_NAME_LEN
from eroseal.tree.layer import WHITEOUT, Node, implicit_directory
from eroseal.tree.model import Inode

WHITEOUT_PREFIX: Final = b".wh."
AUFS_PREFIX: Final = b".wh..wh."
OPAQUE: Final = b".wh..wh..opq"

_NO_NAMES: Final = frozenset({b"", b".", b".."})
_RELATIVE: Final = "archive relative names: tar does so without -P"


class _ThroughFileError(FormatError):
    """A path leads through something that is no directory."""


class Names:
    """Builds the tree of one layer.

    Args:
        container: the archive is a container image's layer: absolute names begin at its root, `.wh.` names are
            whiteouts, and hard links may lead to lower layers.
    """

    def __init__(self, *, container: bool) -> None:
        self.root = implicit_directory()
        self._container = container
        self._whiteouts: list[tuple[Node, bytes]] = []
        self._made = 0
        self._bytes = 0
        # Entries of a directory mostly follow each other.
        self._head: bytes | None = None
        self._parent = self.root

    def place(self, name: bytes) -> tuple[Node, bytes] | None:
        """(directory, name in it) that an entry's name means; the name is b"" for the root itself.

        Args:
            name: as in the archive.

        Returns:
            None for a whiteout, which is noted, and for what AUFS alone understands.

        Raises:
            FormatError: a name that no archive should have.
        """
        if name.startswith(b"/") and not self._container:
            raise FormatError("an absolute name", hint=_RELATIVE)
        if len(name) > MAX_ARCHIVE_PATH:
            raise FormatError(f"a path of more than {MAX_ARCHIVE_PATH} bytes")
        self.keep(len(name))
        head, _, leaf = (name[:-1] if name.endswith(b"/") else name).rpartition(b"/")
        if leaf in _NO_NAMES:
            head, leaf = _split(name)
        try:
            parent = self._parent if head == self._head else self._enter(head)
        except _ThroughFileError:
            if self._container and leaf.startswith(WHITEOUT_PREFIX):
                return None  # umoci writes these: what it takes away went with the directory that the file replaced
            raise
        if parent is None:
            return None
        if len(leaf) > MAX_NAME_LEN:
            raise FormatError(f"a name of more than {MAX_NAME_LEN} bytes")
        if self._container and leaf.startswith(WHITEOUT_PREFIX):
            self._note(parent, leaf)
            return None
        return parent, leaf

    def put(self, parent: Node, leaf: bytes, node: Node) -> None:
        """Put a file that is no directory in place of what is there."""
        children = parent.children
        assert children is not None
        if not leaf:
            raise FormatError("the root is no directory")
        old = children.get(leaf)
        if old is not None and old.children is not None:
            self._head = None  # it may have led through the directory that goes
        self.keep(len(node.inode.target))
        children[leaf] = node

    def put_whiteout(self, parent: Node, leaf: bytes) -> None:
        """Take a name away by an entry of its own, as overlayfs does, not by one with a `.wh.` name."""
        children = parent.children
        assert children is not None
        if not leaf:
            raise FormatError("the root is no directory")
        if children.pop(leaf, None) is not None:
            self._head = None
        self._whiteouts.append((parent, leaf))

    def put_directory(self, parent: Node, leaf: bytes, inode: Inode) -> None:
        """Make a directory, or give one that is there its attributes."""
        children = parent.children
        assert children is not None
        node = children.get(leaf) if leaf else self.root
        if node is None or node.children is None:
            children[leaf] = Node(inode, children={})
            return
        node.inode = inode
        node.implicit = False

    def find(self, target: bytes) -> Node | None:
        """The file that a hard link's target names; None where the archive has none (yet).

        Raises:
            FormatError: a target that leads out of the tree or through a file, or is a directory.
        """
        node: Node | None = self.root
        for part in self._target(target):
            if node is None:
                return None
            if node.children is None:
                raise FormatError(f"a hard link to {_show(target)}, which leads through what is no directory")
            node = node.children.get(part)
        if node is not None and node.children is not None:
            raise FormatError(f"a hard link to {_show(target)}, which is a directory")
        return node

    def lower(self, target: bytes) -> bytes:
        """A hard link's target as a path in lower layers."""
        path = b"/".join(self._target(target))
        self.keep(len(path))
        return path

    def finish(self) -> Node:
        """Apply the whiteouts; returns the root."""
        for parent, name in self._whiteouts:
            children = parent.children
            assert children is not None
            node = children.get(name)
            if node is None:
                children[name] = WHITEOUT
            elif node.children is not None:
                node.opaque = True
                node.implicit = False  # what the lower layers say of a directory that goes does not matter
        return self.root

    # --- paths ----------------------------------------------------------------------------------
    def _enter(self, head: bytes) -> Node | None:
        """The directory of that path, made where it is missing; None for a place of AUFS's own."""
        node = self.root
        parts = _components(head, MAX_DEPTH - 1)
        if self._container and any(part.startswith(WHITEOUT_PREFIX) for part in parts):
            if any(part.startswith(AUFS_PREFIX) for part in parts):
                return None
            raise FormatError("is below a whiteout")
        length = 0
        for part in parts:
            children = node.children
            assert children is not None
            child = children.get(part)
            length += len(part) + 1
            if child is None:
                self._count(length)
                child = children[part] = implicit_directory()
            elif child.children is None:
                kind = "the symlink" if stat.S_ISLNK(child.inode.mode) else "the file"
                raise _ThroughFileError(f"goes through {kind} {_show(part)}, which is no directory")
            node = child
        self._head, self._parent = head, node
        return node

    def _target(self, target: bytes) -> list[bytes]:
        if target.startswith(b"/") and not self._container:
            raise FormatError("a hard link to an absolute name", hint=_RELATIVE)
        return _components(target)

    def _note(self, parent: Node, leaf: bytes) -> None:
        if leaf == OPAQUE:
            parent.opaque = True
        elif not leaf.startswith(AUFS_PREFIX):
            hidden = leaf[len(WHITEOUT_PREFIX) :]
            if hidden in _NO_NAMES:
                raise FormatError("a whiteout of no name")
            self._whiteouts.append((parent, hidden))

    # --- bounds ---------------------------------------------------------------------------------
    def _count(self, length: int) -> None:
        self._made += 1
        if self._made > MAX_ARCHIVE_IMPLICIT:
            raise FormatError(f"more than {MAX_ARCHIVE_IMPLICIT} directories that no entry describes")
        # All of its path: whoever walks the tree makes it, and one entry may need thousands.
        self.keep(length)

    def keep(self, length: int) -> None:
        """Account for bytes of paths and attributes that stay in memory, or will be there when the tree is walked."""
        self._bytes += length
        if self._bytes > MAX_ARCHIVE_METADATA:
            raise FormatError(f"more than {MAX_ARCHIVE_METADATA} bytes of paths and attributes")


def _components(path: bytes, most: int = MAX_DEPTH) -> list[bytes]:
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if len(parts) > most:
        raise FormatError(f"more than {MAX_DEPTH} levels of directories")
    for part in parts:
        if part == b"..":
            raise FormatError("a path with '..'")
        if len(part) > MAX_NAME_LEN:
            raise FormatError(f"a name of more than {MAX_NAME_LEN} bytes")
    return parts


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Directory and last component of a name that ends in slashes or dots."""
    if not name:
        raise FormatError("an empty name")
    parts = _components(name)
    return (b"/".join(parts[:-1]), parts[-1]) if parts else (b"", b"")


def _show(path: bytes) -> str:
    return os.fsdecode(path[:200])
