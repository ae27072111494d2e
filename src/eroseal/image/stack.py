"""Reading a stack of images as the one tree that overlayfs shows of it.

Strategy: nothing is merged ahead. A directory is the list of the layers' directories that show through, the topmost
first; a name in it is looked for in each of them, downwards, until something hides what is below: a whiteout, an
opaque directory, or anything that is not a directory.

The rules are those of the kernel's overlayfs (fs/overlayfs/namei.c), for read-only mounts with its defaults. Its other
marks lead from one layer into another (redirect, metacopy), or are followed by some kernels only (whiteouts that
are regular files). Layers of ours never have them, and one that does is refused: otherwise an image would be one thing
here and another one when mounted.
"""

from __future__ import annotations

import heapq
import itertools
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from eroseal.errors import FormatError, UsageError
from eroseal.image.extents import Extent
from eroseal.image.guard import TreeGuard
from eroseal.image.inode import Inode
from eroseal.image.reader import ImageReader
from eroseal.image.view import BlobKey, TreeView
from eroseal.trust.image import UnverifiedImage, VerifiedImage

_MARKS: Final = b"trusted.overlay."
_ESCAPED: Final = _MARKS + b"overlay."
"""How overlayfs spells, in a layer, a mark that is to be seen in the tree: one level of overlays for another."""
_OPAQUE: Final = _MARKS + b"opaque"
_REDIRECT: Final = _MARKS + b"redirect"
_METACOPY: Final = _MARKS + b"metacopy"
_WHITEOUT: Final = _MARKS + b"whiteout"

_Part = tuple[int, Inode]
"""Number of a layer, from 0 for the lowest, and an inode of it."""


@dataclass(frozen=True, slots=True)
class StackInode(Inode):
    """An inode of the topmost layer that has the name, under a number that no other one in the stack has.

    Args:
        layer: number of that layer, from 0 for the lowest.
        own: the inode as that layer has it.
        parts: of a directory: what shows through at its place, layer by layer, the topmost first.
    """

    layer: int
    own: Inode
    parts: tuple[_Part, ...]


class StackReader(TreeView):
    """Reads a stack of images; safe to use from several threads.

    Args:
        layers: the images, the lowest first, verified or called unverified by name.

    Raises:
        FormatError: a layer's superblock or device table is broken.
        UnsupportedError: a layer has features that this version does not know.
    """

    layers: tuple[ImageReader, ...]
    """Readers of the layers, the lowest first."""

    def __init__(self, layers: Sequence[VerifiedImage | UnverifiedImage]) -> None:
        self.layers = tuple(ImageReader(layer) for layer in layers)
        counts = [len(layer.blob_keys) for layer in self.layers]
        self._first_device = tuple(itertools.accumulate(counts, initial=0))

    @property
    def blob_keys(self) -> tuple[BlobKey, ...]:
        """What to call each device that extents name: those of the lowest layer come first."""
        return tuple(key for layer in self.layers for key in layer.blob_keys)

    def inline_size(self, inode: Inode) -> int:
        """Bytes of a file that lie right behind its inode."""
        layer, own = self._owner(inode)
        return layer.inline_size(own)

    # --- directories ---
    def root(self) -> StackInode:
        """The root directory: that of every layer shows through, whatever marks it has.

        Raises:
            FormatError: a layer's root is not a directory.
        """
        roots = [(number, layer.root()) for number, layer in enumerate(self.layers)]
        for number, root in roots:
            if not root.is_dir:
                raise FormatError("the root is not a directory", where=_where(number, root))
        return self._shown(tuple(reversed(roots)))

    def children(self, directory: Inode) -> Iterator[tuple[bytes, Inode]]:
        """The names in a directory with their inodes; see `TreeView.children`."""
        parts = _stacked(directory).parts
        names = heapq.merge(*(self._names(rank, number, own) for rank, (number, own) in enumerate(parts)))
        for name, same in itertools.groupby(names, key=itemgetter(0)):
            inode = self._topmost((number, self.layers[number].inode(nid)) for _, _, number, nid in same)
            if inode is not None:
                yield name, inode

    def child(self, directory: Inode, name: bytes) -> Inode | None:
        """The inode of one name in a directory; see `TreeView.child`."""
        return self._topmost(self._having(directory, name))

    def guard(self) -> StackGuard:
        """What keeps a traversal short."""
        return StackGuard(self.layers)

    # --- files ---
    def extents(self, inode: Inode) -> Iterator[Extent]:
        """Where a file's bytes lie; see `TreeView.extents`."""
        layer, own = self._owner(inode)
        first = self._first_device[_stacked(inode).layer]
        for extent in layer.extents(own):
            device = None if extent.device is None else first + extent.device
            yield Extent(extent.logical, extent.length, device, extent.offset)

    def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """Bytes of a file, directory or symlink; see `TreeView.read`."""
        layer, own = self._owner(inode)
        return layer.read(own, offset, length)

    def readlink(self, inode: Inode) -> bytes:
        """The target of a symlink; see `TreeView.readlink`."""
        layer, own = self._owner(inode)
        return layer.readlink(own)

    def xattrs(self, inode: Inode) -> list[tuple[bytes, bytes]]:
        """Extended attributes as (full name, value), sorted by name: overlayfs's own marks are not among them."""
        layer, own = self._owner(inode)
        found = []
        for name, value in layer.xattrs(own):
            if name.startswith(_ESCAPED):
                found.append((_MARKS + name.removeprefix(_ESCAPED), value))
            elif not name.startswith(_MARKS):
                found.append((name, value))
        return sorted(found)

    # --- the rules ---
    def _topmost(self, candidates: Iterable[_Part]) -> StackInode | None:
        """What is seen of one name that several layers may have, given the topmost first; None if it is hidden."""
        parts: list[_Part] = []
        for number, inode in candidates:
            if stat.S_ISCHR(inode.mode) and inode.rdev == (0, 0):
                break
            if parts and not inode.is_dir:
                break
            parts.append((number, inode))
            if self._hides_all_below(number, inode):
                break
        return self._shown(tuple(parts)) if parts else None

    def _hides_all_below(self, number: int, inode: Inode) -> bool:
        """Whether what lower layers have of a name is hidden; raises FormatError for marks that no layer may have."""
        opaque = False
        names = set()
        for entry in self.layers[number].xattr_reader.entries(inode):
            name = entry.name
            if entry.hidden or not name.startswith(_MARKS):
                continue
            if name in names or _leads_elsewhere(name, inode):
                what = "repeats" if name in names else "leads elsewhere, which no layer may"
                raise FormatError(f"xattr {name!r} {what}", where=_where(number, inode))
            names.add(name)
            opaque = opaque or (name == _OPAQUE and entry.size == 1 and entry.value() == b"y")
        return opaque or not inode.is_dir

    # --- between the stack's inodes and the layers' ---
    def _shown(self, parts: tuple[_Part, ...]) -> StackInode:
        number, own = parts[0]
        # Whatever the layers' numbers are, these cannot be equal, and they stay small.
        nid = own.nid * len(self.layers) + number
        return StackInode(
            nid,
            own.mode,
            own.uid,
            own.gid,
            own.size,
            own.mtime,
            own.mtime_nsec,
            own.nlink,
            own.rdev,
            own.layout,
            own.raw,
            own.position,
            number,
            own,
            parts if own.is_dir else (),
        )

    def _owner(self, inode: Inode) -> tuple[ImageReader, Inode]:
        stacked = _stacked(inode)
        return self.layers[stacked.layer], stacked.own

    def _names(self, rank: int, number: int, directory: Inode) -> Iterator[tuple[bytes, int, int, int]]:
        """A layer's names in a form that sorts by name, then downwards through the layers."""
        return ((entry.name, rank, number, entry.nid) for entry in self.layers[number].entries(directory))

    def _having(self, directory: Inode, name: bytes) -> Iterator[_Part]:
        for number, own in _stacked(directory).parts:
            inode = self.layers[number].child(own, name)
            if inode is not None:
                yield number, inode


class StackGuard:
    """Refuses trees without an end, and layers whose directories claim more bytes than there are.

    Args:
        layers: of the stack.
    """

    __slots__ = ("_layers", "_names")

    def __init__(self, layers: Sequence[ImageReader]) -> None:
        self._layers = [layer.guard() for layer in layers]
        self._names = TreeGuard(0)

    def enter(self, directory: Inode, path: bytes, depth: int) -> None:
        """Note that a directory is about to be read, and so what each layer has of it; see `TreeGuard.enter`."""
        for number, own in _stacked(directory).parts:
            self._layers[number].enter(own, path, depth)

    def name(self, path: bytes) -> None:
        """Note that a name is visited; see `TreeGuard.name`."""
        self._names.name(path)


def _stacked(inode: Inode) -> StackInode:
    if not isinstance(inode, StackInode):
        raise UsageError("not an inode of a stack", where=f"inode {inode.nid}")
    return inode


def _leads_elsewhere(mark: bytes, inode: Inode) -> bool:
    """Whether a mark would make some kernel show another file than this one, or none."""
    if inode.is_dir:
        return mark == _REDIRECT
    return inode.is_regular and (mark == _METACOPY or (mark == _WHITEOUT and not inode.size))


def _where(number: int, inode: Inode) -> str:
    return f"layer {number + 1}, inode {inode.nid}"
