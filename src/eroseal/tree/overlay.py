"""Layers over each other: one tree of all, or the trees of a stack that overlayfs mounts.

Both give what an overlayfs mount of the layers shows. Layers are applied from the lowest up to a view of what lies
below; hard links that lead to lower layers are looked up in the view before the layer that has them changes it. Layers
are read, never changed, and no tree is walked by recursion.

Source: Documentation/filesystems/overlayfs.rst of Linux; OCI image specification, "Image Layer Filesystem Changeset".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Final

from eroseal.errors import FormatError
from eroseal.tree.layer import WHITEOUT, Layer, Node, implicit_directory
from eroseal.tree.model import Inode

OPAQUE_XATTR: Final = (b"trusted.overlay.opaque", b"y")
"""Marks a directory that hides what lower layers have in its place."""

_Links = dict[int, Node]
"""What nodes that are links to lower layers mean there, by the nodes' id()."""


def merge(layers: Sequence[Layer]) -> Node:
    """One tree of all layers: the topmost of each name, without what was taken away.

    Directories are merged, and have the attributes of the topmost entry that describes them. A hard link to a lower
    layer's file becomes a further name of it.

    Args:
        layers: the lowest first.

    Returns:
        The root: a tree without whiteouts, opaque directories and links. Its files are the layers' own nodes.

    Raises:
        FormatError: a hard link to something that no lower layer has.
    """
    view = implicit_directory()
    for layer in layers:
        _apply(view, layer.root, _resolved(view, layer))
    return view


def stacked(layers: Sequence[Layer]) -> list[Node]:
    """A tree for each layer, as overlayfs wants its layers: lower ones show through where an upper one has nothing.

    A whiteout is a character device 0:0; only those that hide something are kept. An opaque directory has an xattr. A
    directory that no entry described has the attributes that it has below. A hard link to a lower layer's file becomes
    a file of its own, with the same content, because hard links cannot leave a layer.

    Args:
        layers: the lowest first.

    Returns:
        Their roots, in the same order; no two trees share an inode.

    Raises:
        FormatError: a hard link to something that no lower layer has.
    """
    view = implicit_directory()
    trees = []
    for layer in layers:
        links = _resolved(view, layer)
        trees.append(_stack(view, layer.root, links))
        _apply(view, layer.root, links)
    return trees


def _resolved(view: Node, layer: Layer) -> _Links:
    """Look up the links of a layer in the view of what is below it."""
    links: _Links = {}
    stack = [layer.root]
    while stack:
        for child in _children(stack.pop()).values():
            if child.children is not None:
                stack.append(child)
            elif child.link is not None and id(child) not in links:
                found = _find(view, child.link)
                if found is None or found.children is not None:
                    what = "no lower layer has" if found is None else "is a directory of a lower layer"
                    raise FormatError(f"a hard link to {os.fsdecode(child.link[:200])}, which {what}", where=layer.name)
                links[id(child)] = found
    return links


def _find(view: Node, path: bytes) -> Node | None:
    node: Node | None = view
    for part in path.split(b"/"):
        if node is None or node.children is None:
            return None
        node = node.children.get(part)
    return node


def _apply(view: Node, root: Node, links: _Links) -> None:
    """Lay a layer over the view, whose directories are the view's own."""
    stack = [(view, root)]
    while stack:
        below, upper = stack.pop()
        if not upper.implicit:
            below.inode = upper.inode
            below.implicit = False
        children = _children(below)
        if upper.opaque:
            children.clear()
        for name, child in _children(upper).items():
            if child is WHITEOUT:
                children.pop(name, None)
            elif child.children is None:
                children[name] = child if child.link is None else links[id(child)]
            else:
                known = children.get(name)
                if known is None or known.children is None:
                    known = children[name] = implicit_directory()
                stack.append((known, child))


def _stack(view: Node, root: Node, links: _Links) -> Node:
    """A layer's own tree, in a stack on what the view shows."""
    copies: dict[int, Node] = {}
    result = Node(root.inode, children={})
    stack: list[tuple[Node, Node, Node | None, bool]] = [(result, root, view, False)]
    while stack:
        made, upper, below, opaque = stack.pop()
        made.inode = _directory_inode(upper, below, opaque=opaque)
        children = _children(made)
        # Where overlayfs has nothing to merge it does not look for whiteouts, and would show them.
        shown = {} if below is None or opaque else _children(below)
        # overlayfs ignores the mark on a layer's root: there, each name that is hidden is taken away by itself.
        hides = upper is root and root.opaque
        if hides:
            children.update((name, _whiteout()) for name in shown)
        for name, child in _children(upper).items():
            if child is WHITEOUT:
                if name in shown:
                    children[name] = _whiteout()
            elif child.children is not None:
                directory = children[name] = Node(child.inode, children={})
                known = shown.get(name)
                merged = known if known is not None and known.children is not None else None
                stack.append(
                    (directory, child, None, merged is not None) if hides else (directory, child, merged, child.opaque)
                )
            elif child.link is None:
                children[name] = child
            else:
                target = links[id(child)]
                copy = copies.get(id(target))
                if copy is None:
                    copy = copies[id(target)] = Node(_copied(target.inode), target.content)
                children[name] = copy
    return result


def _whiteout() -> Node:
    return Node(Inode(stat.S_IFCHR, 0, 0, 0, 0, 0))


def _directory_inode(upper: Node, below: Node | None, *, opaque: bool) -> Inode:
    inode = below.inode if upper.implicit and below is not None else upper.inode
    if not opaque and inode is upper.inode:
        return inode
    inode = _copied(inode)
    if opaque:
        others = [pair for pair in inode.xattrs if pair[0] != OPAQUE_XATTR[0]]
        inode.xattrs = tuple(sorted([*others, OPAQUE_XATTR]))
    return inode


def _copied(inode: Inode) -> Inode:
    copy = Inode(inode.mode, inode.uid, inode.gid, inode.mtime, inode.mtime_nsec, inode.size, inode.xattrs)
    copy.target, copy.rdev = inode.target, inode.rdev
    return copy


def _children(directory: Node) -> dict[bytes, Node]:
    children = directory.children
    assert children is not None
    return children
