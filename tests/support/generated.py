"""Trees that hypothesis makes up: small, but with everything in them that an ordinary user can make."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from hypothesis import strategies as st

from eroseal.build.options import BlobLayout, BuildOptions
from eroseal.format.digest import HashAlgorithm, TreeParams

BLOCK = 4096
Piece = tuple[str, int, int]
"""(kind, seed, bytes): "noise", "zeros" that are written, or a "hole"."""


@dataclass(frozen=True, slots=True)
class Node:
    """A file of a made-up tree.

    Args:
        kind: file, directory, symlink, fifo, or link (one more name of an earlier file).
        mode: permission bits.
        mtime_ns: modification time.
        xattrs: user attributes.
        pieces: a file's content.
        target: of a symlink; for links a number that picks the file.
        children: of a directory.
    """

    kind: str
    mode: int = 0o644
    mtime_ns: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()
    pieces: tuple[Piece, ...] = ()
    target: bytes = b""
    number: int = 0
    children: tuple[tuple[bytes, Node], ...] = field(default=())


@lru_cache(maxsize=512)
def noise(seed: int, size: int) -> bytes:
    """Bytes that look random; those of one seed begin alike."""
    return random.Random(seed).randbytes(size)


def content(pieces: tuple[Piece, ...]) -> bytes:
    """What a file holds."""
    return b"".join(noise(seed, size) if kind == "noise" else bytes(size) for kind, seed, size in pieces)


# Edges of blocks and chunks are where mistakes live.
_lengths = st.one_of(
    st.integers(1, 100),
    st.sampled_from([BLOCK - 33, BLOCK - 32, BLOCK - 31, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7]),
    st.sampled_from([4 * BLOCK, 16 * BLOCK - 1, 16 * BLOCK, 16 * BLOCK + 1, 32 * BLOCK, 33 * BLOCK + 5]),
    st.integers(1, 20).map(lambda blocks: blocks * BLOCK),
)
_pieces = st.tuples(st.sampled_from(["noise", "noise", "zeros", "hole"]), st.integers(0, 3), _lengths)
_large = st.sampled_from([(1 << 20) - 1, 1 << 20, (1 << 20) + 1, (4 << 20) + 5000])
_kinds = st.sampled_from(["noise", "zeros", "hole"])
_whole = st.lists(st.tuples(_kinds, st.integers(0, 3), st.sampled_from([BLOCK, 2 * BLOCK, 16 * BLOCK])), max_size=3)
_tails = st.lists(st.tuples(_kinds, st.integers(0, 3), st.integers(1, BLOCK - 1)), max_size=1)
_contents = st.one_of(
    st.just(()),
    st.lists(_pieces, max_size=4).map(tuple),
    st.tuples(_whole, _tails).map(lambda parts: (*parts[0], *parts[1])),
    st.tuples(st.tuples(st.sampled_from(["noise", "hole"]), st.integers(0, 1), _large), _pieces),
)
_names = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"!x", b"-x", b"...", b"..-", b".-x", b"\xff", b"new\nline", b"n" * 255]),
    st.binary(min_size=1, max_size=12).filter(lambda name: name not in (b".", b"..") and not set(name) & {0, 0x2F}),
)
_times = st.one_of(
    st.just(0),
    st.integers(0, 2_000_000_000).map(lambda seconds: seconds * 1_000_000_000),
    st.integers(-(1 << 31) * 10**9, (1 << 33) * 10**9),
)
_xattrs = st.dictionaries(
    st.sampled_from(["user.a", "user.b", "user.long" + "g" * 200, "user..", "user.ä"]),
    st.one_of(st.just(b""), st.just(b"same"), st.binary(max_size=40), st.integers(0, 900).map(lambda n: noise(9, n))),
    max_size=3,
).map(lambda pairs: tuple(sorted(pairs.items())))
_modes = st.sampled_from([0o644, 0o755, 0o600, 0o4755, 0o2711, 0o1777, 0o400])

_files = st.builds(Node, st.just("file"), _modes, _times, _xattrs, _contents)
_leaves = st.one_of(
    _files,
    _files,
    _files,
    st.builds(
        Node,
        st.just("symlink"),
        mtime_ns=_times,
        target=st.binary(min_size=1, max_size=200).filter(lambda target: 0 not in target),
    ),
    st.builds(Node, st.just("fifo"), _modes, _times),
    st.builds(Node, st.just("link"), number=st.integers(0, 100)),
)


def _directories(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.builds(
        Node,
        st.just("directory"),
        st.sampled_from([0o755, 0o700, 0o1777, 0o2755]),
        _times,
        _xattrs,
        children=st.dictionaries(_names, children, max_size=7).map(lambda found: tuple(sorted(found.items()))),
    )


trees = _directories(st.recursive(_leaves, _directories, max_leaves=12))
"""Whole trees: a directory each."""

options = st.builds(
    BuildOptions,
    blobs=st.sampled_from([BlobLayout.NONE, BlobLayout.BUILD, BlobLayout.FILE, BlobLayout.LAYER]),
    params=st.sampled_from(
        [
            TreeParams(),
            TreeParams(HashAlgorithm.SHA512),
            TreeParams(salt=b"s"),
            TreeParams(HashAlgorithm.SHA512, b"t" * 32),
        ]
    ),
    chunk_size=st.sampled_from([BLOCK, 2 * BLOCK, 16 * BLOCK, 1 << 20]),
    inline_max=st.sampled_from([4095, 4095, 0, 1, 100, 4064]),
    jobs=st.just(1),
    durable=st.just(False),
)
"""Options that change how an image is laid out, not what is in it."""


def make(tree: Node, root: Path, *, backwards: bool = False) -> Path:
    """Put a tree on disk.

    Args:
        tree: a directory.
        root: where; must not exist.
        backwards: make names in the other order, which changes inode numbers and the order of listings.
    """
    files: list[bytes] = []
    _plan_links(tree, os.fsencode(root), files)
    links: list[tuple[bytes, bytes]] = []
    _make(tree, os.fsencode(root), backwards, files, links)
    for path, other in reversed(links) if backwards else links:
        os.link(other, path, follow_symlinks=False)
    _finish(tree, os.fsencode(root))
    return root


def _plan_links(node: Node, path: bytes, files: list[bytes]) -> None:
    if node.kind in ("file", "fifo", "symlink"):
        files.append(path)
    for name, child in node.children:
        _plan_links(child, os.path.join(path, name), files)


def _make(node: Node, path: bytes, backwards: bool, files: list[bytes], links: list[tuple[bytes, bytes]]) -> None:
    if node.kind == "directory":
        os.mkdir(path)
        for name, child in reversed(node.children) if backwards else node.children:
            _make(child, os.path.join(path, name), backwards, files, links)
    elif node.kind == "file":
        _write(path, node.pieces)
    elif node.kind == "symlink":
        os.symlink(node.target, path)
    elif node.kind == "fifo":
        os.mkfifo(path)
    elif files:
        links.append((path, files[node.number % len(files)]))


def _write(path: bytes, pieces: tuple[Piece, ...]) -> None:
    with open(path, "xb", buffering=0) as file:
        at = 0
        for kind, seed, size in pieces:
            if kind != "hole":
                os.pwrite(file.fileno(), noise(seed, size) if kind == "noise" else bytes(size), at)
            at += size
        file.truncate(at)


def _finish(node: Node, path: bytes) -> None:
    """Attributes, modes and times, children first."""
    for name, child in node.children:
        _finish(child, os.path.join(path, name))
    if node.kind == "link":
        return
    if node.kind != "symlink":
        for key, value in node.xattrs:
            os.setxattr(path, key, value)
        os.chmod(path, node.mode)
    os.utime(path, ns=(0, node.mtime_ns), follow_symlinks=False)
