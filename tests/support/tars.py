"""Tar archives made byte by byte, read into layers, and compared with trees."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tests.support.trees import _PIECE, Entry, Tree, _add_piece, _linked

from eroseal.tree.archive import read_archive
from eroseal.tree.layer import Layer, Node

END = bytes(1024)


# --- making -------------------------------------------------------------------------------------
def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def octal(value: int, width: int) -> bytes:
    """A number in octal, or in base 256 where that has no room for it."""
    digits = b"%0*o\0" % (width - 1, value)
    return digits if value >= 0 and len(digits) == width else base256(value, width)


def base256(value: int, width: int) -> bytes:
    return (value + (0x80 << 8 * (width - 1)) if value >= 0 else (1 << 8 * width) + value).to_bytes(width, "big")


def header(
    name: bytes,
    *,
    kind: bytes = b"0",
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    link: bytes = b"",
    rdev: tuple[int, int] | None = None,
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    tail: bytes | None = None,
    signed: bool = False,
) -> bytes:
    """A header block; numbers that are bytes stand as they are."""

    def number(value: int | bytes, width: int) -> bytes:
        return value if isinstance(value, bytes) else octal(value, width)

    major, minor = (octal(part, 8) for part in rdev) if rdev else (bytes(8), bytes(8))
    start = name.ljust(100, b"\0") + number(mode, 8) + number(uid, 8) + number(gid, 8)
    start += number(size, 12) + number(mtime, 12)
    rest = kind + link.ljust(100, b"\0") + magic + bytes(64) + major + minor
    rest += prefix.ljust(167, b"\0") if tail is None else tail.ljust(167, b"\0")
    block = start + b" " * 8 + rest
    assert len(block) == 512, len(block)
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    return start + b"%06o\0 " % total + rest


def file(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    return header(name, size=len(data), **fields) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, **fields: object) -> bytes:
    return header(name, kind=b"5", **{"mode": 0o755, **fields})  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes, **fields: object) -> bytes:
    return header(name, kind=b"2", link=target, **fields)  # type: ignore[arg-type]


def hard_link(name: bytes, target: bytes, **fields: object) -> bytes:
    return header(name, kind=b"1", link=target, **fields)  # type: ignore[arg-type]


def record(key: bytes, value: bytes) -> bytes:
    body = len(b" " + key + b"=" + value + b"\n")
    length = body + len(str(body))
    if body + len(str(length)) != length:
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """An extended header."""
    return raw_pax(b"".join(record(key, value) for key, value in records), kind=kind)


def raw_pax(data: bytes, kind: bytes = b"x") -> bytes:
    return file(b"PaxHeaders/x", data, kind=kind)


def gnu_long(text: bytes, kind: bytes = b"L") -> bytes:
    return file(b"././@LongLink", text + b"\0", kind=kind, magic=b"ustar  \0")


def old_sparse(
    name: bytes, pieces: list[tuple[int, bytes]], size: int, *, extra: bytes = b"", magic: bytes = b"ustar  \0"
) -> bytes:
    """An old GNU sparse file; all but four pieces go to extension blocks."""
    entries = [octal(offset, 12) + octal(len(data), 12) for offset, data in pieces]
    first, rest = entries[:4], entries[4:]
    tail = bytes(41) + b"".join(first).ljust(96, b"\0") + (b"\1" if rest or extra else b"\0") + octal(size, 12)
    stored = b"".join(data for _, data in pieces)
    blocks = header(name, kind=b"S", size=len(stored), magic=magic, tail=tail) + extra
    while rest:
        part, rest = rest[:21], rest[21:]
        blocks += (b"".join(part).ljust(504, b"\0") + (b"\1" if rest else b"\0")).ljust(512, b"\0")
    return blocks + padded(stored)


# --- reading ------------------------------------------------------------------------------------
def split(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


class Read:
    """An archive that was read, with its spool."""

    def __init__(
        self,
        data: bytes | Iterable[bytes],
        *,
        container: bool = False,
        source: int = 0,
        name: str = "test.tar",
        tap: Callable[[bytes], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.spool = os.memfd_create("spool")
        try:
            pieces = [data] if isinstance(data, bytes) else data
            self.layer: Layer = read_archive(
                pieces, spool=self.spool, source=source, container=container, name=name, tap=tap, progress=progress
            )
        except BaseException:
            self.close()
            raise
        self._source = source

    def close(self) -> None:
        if self.spool >= 0:
            os.close(self.spool)
            self.spool = -1

    def __del__(self) -> None:
        self.close()

    def node(self, path: bytes) -> Node:
        node = self.layer.root
        for part in path.split(b"/") if path else []:
            assert node.children is not None
            node = node.children[part]
        return node

    def content(self, path: bytes) -> bytes:
        return content_of_node(self.node(path), {self._source: self.spool})

    def tree(self) -> Tree:
        return tree_of_node(self.layer.root, {self._source: self.spool})


def content_of_node(node: Node, spools: Mapping[int, int]) -> bytes:
    if node.content is None:
        return b""
    data = os.pread(spools[node.content.source], node.inode.size, node.content.offset)
    assert len(data) == node.inode.size
    return data


def tree_of_node(root: Node, spools: Mapping[int, int]) -> Tree:
    """What `trees.tree_of` gives of a directory, of a layer's or a merged tree."""
    found: Tree = {}
    groups: dict[int, list[bytes]] = {}
    stack = [(b"", root)]
    while stack:
        path, node = stack.pop()
        found[path] = _entry(node, spools)
        if node.children is None:
            groups.setdefault(id(node), []).append(path)
            continue
        stack.extend((os.path.join(path, name), child) for name, child in node.children.items())
    return _linked(found, groups.values())


def _entry(node: Node, spools: Mapping[int, int]) -> Entry:
    inode = node.inode
    size, data = 0, b""
    if stat.S_ISREG(inode.mode):
        size, digest = inode.size, hashlib.sha256(b"%d" % inode.size)
        if node.content is not None:
            start = node.content.offset
            for at in range(0, size, _PIECE):
                _add_piece(digest, at, os.pread(spools[node.content.source], min(_PIECE, size - at), start + at))
        data = digest.digest()
    elif stat.S_ISLNK(inode.mode):
        size, data = inode.size, inode.target
    mtime_ns = inode.mtime * 1_000_000_000 + inode.mtime_nsec
    nlink = 1 if node.children is None else 0
    return Entry(inode.mode, inode.uid, inode.gid, mtime_ns, inode.rdev, size, data, inode.xattrs, nlink=nlink)


def write_node(root: Node, spools: Mapping[int, int], target: Path) -> None:
    """Make a tree on disk, as root."""
    known: dict[int, bytes] = {}
    made: list[tuple[bytes, Node]] = []
    stack = [(os.fsencode(target), root)]
    while stack:
        path, node = stack.pop()
        inode = node.inode
        if node.children is not None:
            os.makedirs(path, exist_ok=True)
            stack.extend((os.path.join(path, name), child) for name, child in node.children.items())
        elif id(node) in known:
            os.link(known[id(node)], path, follow_symlinks=False)
            continue
        elif stat.S_ISLNK(inode.mode):
            os.symlink(inode.target, path)
        elif stat.S_ISREG(inode.mode):
            Path(os.fsdecode(path)).write_bytes(content_of_node(node, spools))
        else:
            os.mknod(path, inode.mode, os.makedev(*inode.rdev))
        known[id(node)] = path
        made.append((path, node))
    for path, node in reversed(made):
        inode = node.inode
        os.chown(path, inode.uid, inode.gid, follow_symlinks=False)
        for name, value in inode.xattrs:
            os.setxattr(path, name, value, follow_symlinks=False)
        if not stat.S_ISLNK(inode.mode):
            os.chmod(path, stat.S_IMODE(inode.mode))
        mtime_ns = inode.mtime * 1_000_000_000 + inode.mtime_nsec
        os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


# --- a tree for peers ---------------------------------------------------------------------------
def make_source(root: Path, *, seed: int = 1, longest: int = 255, narrow: bool = False) -> None:
    """A tree with all that tar can hold; made by root, it has devices and owners, too.

    Args:
        longest: bytes of the longest names and link targets.
        narrow: owners and times are such that octal numbers hold them.
    """
    chance = random.Random(seed)
    root.mkdir()
    directories, files = [root], []
    names = [
        b"plain",
        b"sp ace",
        b"new\nline",
        b"\xff\xfe",
        "ünï☃".encode(),
        b"-rf",
        b"a" * (longest - 4),
        b"..x",
        b"=",
    ]
    for number in range(120):
        parent = chance.choice(directories)
        path = parent / os.fsdecode(b"%s%d" % (chance.choice(names)[: longest - 4], number))
        kind = chance.choice("ddfffffflpshcb")
        if kind == "d" and len(os.fsencode(path)) < 1500:
            path.mkdir()
            directories.append(path)
        elif kind == "s":
            with open(path, "wb") as sparse:
                for _ in range(chance.choice([0, 1, 3, 30])):
                    sparse.seek(chance.randrange(0, 2 << 20, 4096))
                    sparse.write(chance.randbytes(chance.choice([1, 4096, 9000])))
                sparse.truncate((2 << 20) + chance.randrange(5000))
        elif kind == "l":
            path.symlink_to(chance.choice(["", "../", "/"]) + "t" * chance.randrange(1, longest))
        elif kind == "p":
            os.mkfifo(path)
        elif kind == "h" and files:
            os.link(chance.choice(files), path)
        elif kind in "cb":
            mode = stat.S_IFCHR if kind == "c" else stat.S_IFBLK
            os.mknod(path, mode | 0o600, os.makedev(chance.randrange(1, 4000), chance.randrange(1 << 20)))
        else:
            path.write_bytes(chance.randbytes(chance.choice([0, 1, 100, 511, 512, 513, 70000])))
            files.append(path)
    for size in (1 << 20, (1 << 20) + 1):
        (root / f"{size}").write_bytes(chance.randbytes(size))
    _dress(sorted(root.rglob("*"), reverse=True), chance, narrow=narrow)
    when = 1_250_000_000 if narrow else -1_250_000_000
    os.utime(root, ns=(when, when))


def _dress(paths: list[Path], chance: random.Random, *, narrow: bool) -> None:
    owners = [0, 1, 65534] if narrow else [0, 1, 65534, 3_000_000]
    times = [0, 1, 1_700_000_000, 0x7FFFFFFF] if narrow else [0, 1, 1_700_000_000, 0x7FFFFFFF, -1]
    for path in paths:
        os.chown(path, chance.choice(owners), chance.choice([0, 7, 99999]), follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(chance.choice([0o644, 0o4755, 0o2711, 0o1777, 0o000]))
            if path.is_file() or path.is_dir():
                for name in chance.sample(["user.some", "user.a=b%3D", "trusted.t", "security.s"], chance.randrange(3)):
                    os.setxattr(path, name, chance.randbytes(chance.choice([0, 1, 200])))
                if path.is_file() and chance.random() < 0.3:
                    os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x2000001, 1, 0, 0, 0))
        when = chance.choice(times) * 1_000_000_000 + chance.choice([0, 1, 123456789])
        os.utime(path, ns=(when, when), follow_symlinks=False)
