"""A tree of files as its readers see it, whether one image holds it or a stack of images.

What a directory holds and where bytes lie is for the kinds to say; how a path leads to a file, and how a tree is
walked without being trapped, is decided here once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Final, Protocol

from eroseal.errors import FormatError, NotFoundError
from eroseal.format.digest import Digest
from eroseal.image.extents import Extent
from eroseal.image.inode import Inode
from eroseal.limits import MAX_SYMLINK

BlobKey = Digest | tuple[int, int]
"""A digest, or the reader's identity and the device's number for a blob that nothing names."""
MAX_SYMLINKS: Final = 40
"""Symlinks followed in one lookup: the kernel's MAXSYMLINKS."""


class Guard(Protocol):
    """Refuses trees without an end; see `TreeGuard`."""

    def enter(self, directory: Inode, path: bytes, depth: int) -> None:
        """Note that a directory is about to be read; raises FormatError if that is once too often."""
        ...

    def name(self, path: bytes) -> None:
        """Note that a name is visited; raises FormatError if there are too many or the path is too long."""
        ...


class TreeView(ABC):
    """Reads one tree of files; safe to use from several threads.

    Inodes go back only to the view that they came from. Their numbers are distinct in the whole tree.
    """

    @property
    @abstractmethod
    def blob_keys(self) -> tuple[BlobKey, ...]:
        """What to call each device that extents name: of an image the meta blob, then its data blobs."""

    @abstractmethod
    def inline_size(self, inode: Inode) -> int:
        """Bytes of a file that lie right behind its inode."""

    @abstractmethod
    def root(self) -> Inode:
        """The root directory."""

    @abstractmethod
    def children(self, directory: Inode) -> Iterator[tuple[bytes, Inode]]:
        """The names in a directory with their inodes, rising bytewise, without "." and "..".

        Raises:
            FormatError: the directory is broken.
            UnsupportedError: it is compressed.
        """

    @abstractmethod
    def child(self, directory: Inode, name: bytes) -> Inode | None:
        """The inode of one name in a directory; raises as `children`."""

    @abstractmethod
    def guard(self) -> Guard:
        """What keeps a traversal of this tree short."""

    @abstractmethod
    def extents(self, inode: Inode) -> Iterator[Extent]:
        """Where a file's bytes lie, in order and without gaps; neighbours that continue each other are one.

        Raises:
            FormatError: an extent leaves its device, or the layout is impossible.
            UnsupportedError: the data is compressed.
        """

    @abstractmethod
    def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """Bytes of a file, directory or symlink: `length` of them, fewer only at its end.

        Args:
            inode: what to read; devices, fifos and sockets have no bytes.
            offset: first byte.
            length: bytes wanted; this much memory is used.

        Raises:
            FormatError: an extent leaves its device, or the layout is impossible.
            UnsupportedError: the data is compressed.
        """

    @abstractmethod
    def readlink(self, inode: Inode) -> bytes:
        """The target of a symlink.

        Raises:
            UsageError: it is not a symlink.
            FormatError: the target is longer than any system takes, or cannot be read.
        """

    @abstractmethod
    def xattrs(self, inode: Inode) -> list[tuple[bytes, bytes]]:
        """Extended attributes as (full name, value), sorted by name.

        Raises:
            FormatError: an entry is broken, or a name repeats.
        """

    def lookup(self, path: bytes, *, follow: bool = True) -> Inode:
        """The inode at a path, symlinks resolved inside the tree.

        Args:
            path: absolute, or relative to the root; b"" is the root.
            follow: whether a symlink at the very end is followed too.

        Raises:
            NotFoundError: no such name, a file used as a directory, or more than 40 symlinks.
            FormatError: the image is broken on the way.
        """
        trail = [self.root()]
        todo = _components(path)
        links = 0
        must_be_dir = path.endswith(b"/")
        while todo:
            name = todo.pop()
            if not trail[-1].is_dir:
                raise NotFoundError("not a directory on the way", where=_show(path))
            if name == b"..":
                del trail[max(1, len(trail) - 1) :]
                continue
            child = self.child(trail[-1], name)
            if child is None:
                raise NotFoundError("no such file or directory in the image", where=_show(path))
            if child.is_symlink and (todo or follow or must_be_dir):
                links += 1
                if links > MAX_SYMLINKS:
                    raise NotFoundError(f"more than {MAX_SYMLINKS} symlinks on the way", where=_show(path))
                target = self._short_target(child)
                if target.startswith(b"/"):
                    del trail[1:]
                must_be_dir = must_be_dir or (not todo and target.endswith(b"/"))
                todo += _components(target)
                continue
            trail.append(child)
        if must_be_dir and not trail[-1].is_dir:
            raise NotFoundError("not a directory", where=_show(path))
        return trail[-1]

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every path with its inode: the root as b"" first, then as `below`.

        Raises:
            FormatError: the tree is broken: a cycle, a directory with two names, directories that overlap.
        """
        root = self.root()
        if not root.is_dir:
            raise FormatError("the root is not a directory", where=f"inode {root.nid}")
        yield b"", root
        yield from self.below(root)

    def below(self, directory: Inode) -> Iterator[tuple[bytes, Inode]]:
        """Every path below a directory, relative to it, depth-first in bytewise order of names.

        Hard links come as often as they are named. Raises as `walk`.
        """
        guard = self.guard()
        guard.enter(directory, b"", 0)
        stack = [(b"", self.children(directory))]
        while stack:
            prefix, children = stack[-1]
            for name, inode in children:
                path = prefix + name
                guard.name(path)
                yield path, inode
                if inode.is_dir:
                    guard.enter(inode, path, len(stack))
                    stack.append((path + b"/", self.children(inode)))
                    break
            else:
                stack.pop()

    def _short_target(self, link: Inode) -> bytes:
        """A target that any system follows; longer ones would make a lookup arbitrarily slow."""
        if link.size > MAX_SYMLINK:
            raise FormatError(f"symlink has a target of {link.size} bytes", where=f"inode {link.nid}")
        return self.readlink(link)


def _components(path: bytes) -> list[bytes]:
    """The names of a path, last first, as a stack to pop from."""
    return [name for name in reversed(path.split(b"/")) if name not in (b"", b".")]


def _show(path: bytes) -> str:
    return path.decode(errors="backslashreplace")
