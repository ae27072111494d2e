"""One layer: the tree that an archive describes, and what it takes away from the layers below.

The bytes of files are in a spool; a node says where. Names that are hard links of each other share one node, so that
whoever walks the tree sees which they are.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

from eroseal.tree.model import Inode

IMPLICIT_MODE: Final = stat.S_IFDIR | 0o755
"""Mode of a directory that no entry describes; it belongs to root and is from 1970."""


@dataclass(frozen=True, slots=True)
class Content:
    """Where a file's bytes lie, as many as its inode's size says; holes of the file are holes there.

    Args:
        source: number of the spool.
        offset: of the first byte in it.
    """

    source: int
    offset: int


class Node:
    """A file of any kind, under one or more names.

    Args:
        inode: attributes; `size` of a regular file or a symlink's target, `target`, `rdev`. Fields that a layout or a
            walk sets (nlink, chunks, tail_at, position) mean nothing here.
        content: of a regular file that is not empty.
        children: of a directory: nodes by name, in no order. Those that take a lower layer's name away are WHITEOUT.
        implicit: a directory that no entry described.
        opaque: a directory that hides what lower layers have in its place.
        link: path, without a leading slash, of a lower layer's file that this name is a hard link to; `inode` and
            `content` mean nothing then.
    """

    __slots__ = ("children", "content", "implicit", "inode", "link", "opaque")

    def __init__(
        self,
        inode: Inode,
        content: Content | None = None,
        children: dict[bytes, Node] | None = None,
        *,
        link: bytes | None = None,
    ) -> None:
        self.inode = inode
        self.content = content
        self.children = children
        self.implicit = False
        self.opaque = False
        self.link = link


WHITEOUT: Final = Node(Inode(0, 0, 0, 0, 0, 0))
"""Stands in `children` for a name that is taken away."""


def implicit_directory() -> Node:
    """A directory that no entry described."""
    node = Node(Inode(IMPLICIT_MODE, 0, 0, 0, 0, 0), children={})
    node.implicit = True
    return node


@dataclass(frozen=True, slots=True)
class LayerWarning:
    """Something that was left out of a layer.

    Args:
        what: one clause, lower case.
        path: the first entry that it happened to.
        count: how many entries it happened to.
    """

    what: str
    path: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Layer:
    """What an archive holds.

    Args:
        name: of the archive, for messages.
        root: its tree.
        entries: members that were read, replaced ones and whiteouts counted.
        content_bytes: sizes of regular files that were read, holes counted.
        hole_bytes: of these, what the archive did not hold.
        warnings: what was left out.
    """

    name: str
    root: Node
    entries: int
    content_bytes: int
    hole_bytes: int = 0
    warnings: tuple[LayerWarning, ...] = ()
