"""Merged and stacked layers against the kernel: what an overlayfs mount of them shows."""

from __future__ import annotations

import ctypes
import os
import random
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import tars
from tests.support.kernel import tmpfs, unmount
from tests.support.tars import END, Read, tree_of_node, write_node
from tests.support.trees import Tree, assert_same, tree_of

from eroseal.tree.overlay import merge, stacked

_MS_RDONLY = 1
_libc = ctypes.CDLL(None, use_errno=True)

Making = list[tuple[bytes, bytes]]
"""(name, the bytes of its member) in an archive's order."""


@pytest.fixture
def memory(tmp_path: Path, need_root: None) -> Iterator[Path]:
    """Give a tmpfs: it has trusted xattrs."""
    with tmpfs(tmp_path / "memory", "size=256m") as place:
        yield place


@contextmanager
def overlay(layers: Sequence[Path], target: Path) -> Iterator[Path]:
    """Mount layers, the lowest first, read-only."""
    target.mkdir()
    # A read-only overlay needs two layers; empty ones below change nothing.
    empty = [target.with_name(f"{target.name}-empty{number}") for number in range(2)]
    for directory in empty:
        directory.mkdir()
    options = "lowerdir=" + ":".join(str(layer) for layer in [*reversed(layers), *empty])
    result = _libc.mount(b"overlay", os.fsencode(target), b"overlay", _MS_RDONLY, options.encode())
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        yield target
    finally:
        unmount(target)


def without_links(tree: Tree) -> Tree:
    """Without what hard links say: they end at a layer's edge in a mount, and not in a merged tree."""
    return {path: replace(entry, same_as=None, nlink=min(entry.nlink, 1)) for path, entry in tree.items()}


_NAMES = [b"a", b"b", b"c", b"d"]


class Maker:
    """Makes random layers in which every directory has an entry of its own, or not."""

    def __init__(self, seed: int, *, explicit: bool) -> None:
        self.chance = random.Random(seed)
        self.explicit = explicit
        self.below: set[bytes] = set()
        """Files that some lower layer has."""

    def layer(self) -> bytes:
        chance = self.chance
        entries: dict[bytes, bytes] = {}
        directories = [b""]
        files: list[bytes] = []
        links: dict[bytes, bytes] = {}
        if self.explicit:
            entries[b""] = tars.directory(b"./", mode=chance.choice([0o755, 0o700]), mtime=chance.randrange(1 << 30))
        for _ in range(chance.randrange(1, 25)):
            parent = chance.choice(directories)
            path = parent + (b"/" if parent else b"") + chance.choice(_NAMES)
            if path in entries or path in links or path in directories or path.count(b"/") > 4:
                continue
            kind = chance.choice("dddddfffslwwop")
            if kind == "d":
                directories.append(path)
                if self.explicit or chance.random() < 0.5:
                    entries[path] = tars.directory(
                        path, mode=chance.choice([0o755, 0o1777]), mtime=chance.randrange(99)
                    )
            elif kind == "f":
                entries[path] = tars.file(
                    path, chance.randbytes(chance.randrange(2000)), mtime=chance.randrange(1 << 32)
                )
                files.append(path)
            elif kind == "s":
                entries[path] = tars.symlink(path, chance.choice(_NAMES), mtime=5)
            elif kind == "p":
                entries[path] = tars.header(path, kind=b"3", rdev=(1, 3), mtime=7)
            elif kind == "l" and files and (earlier := [name for name in files if name < path]):
                entries[path] = tars.hard_link(path, chance.choice(earlier))
            elif kind == "l" and self.below and not self.explicit:
                links[path] = chance.choice(sorted(self.below))
            elif kind == "w":
                hidden = parent + (b"/" if parent else b"") + b".wh." + path.rpartition(b"/")[2]
                entries[hidden] = tars.file(hidden)
            elif kind == "o" and parent:
                mark = parent + b"/.wh..wh..opq"
                entries[mark] = tars.file(mark)
        if self.explicit:
            # In depth first order: GNU tar gives a directory its times when it leaves it.
            return b"".join(entries[path] for path in sorted(entries)) + END
        # Whiteouts may stand anywhere; hard links behind what they name.
        late = [name for name, member in entries.items() if member[156:157] == b"1"]
        for name, target in links.items():
            parts = target.split(b"/")
            above = {b"/".join(parts[:length]) for length in range(1, len(parts))}
            if target not in directories and above.isdisjoint(entries.keys() - directories):
                entries[name] = tars.hard_link(name, target)
                late.append(name)
        early = [name for name in entries if name not in late]
        chance.shuffle(early)
        return b"".join(entries[name] for name in early + late) + END


def lower_files(reads: Sequence[Read]) -> set[bytes]:
    """Paths of files in the merged tree."""
    merged = merge([read.layer for read in reads])
    spools = {number: read.spool for number, read in enumerate(reads)}
    return {path for path, entry in tree_of_node(merged, spools).items() if stat.S_ISREG(entry.mode)}


@pytest.mark.parametrize("seed", range(12))
def test_merging_equals_a_mount_of_what_tar_extracted(
    memory: Path, require_peer: Callable[[str], str], seed: int
) -> None:
    tar = require_peer("tar")
    maker = Maker(seed, explicit=True)
    archives = [maker.layer() for _ in range(4)]
    directories: list[Path] = []
    for number, archive in enumerate(archives):
        with overlay(directories, memory / f"below{number}") as below:
            extract(tar, archive, memory / f"layer{number}", below)
        directories.append(memory / f"layer{number}")
    reads = [Read(archive, container=True, source=number) for number, archive in enumerate(archives)]
    merged = tree_of_node(merge([read.layer for read in reads]), {n: read.spool for n, read in enumerate(reads)})
    with overlay(directories, memory / "mount") as mount:
        assert_same(without_links(merged), without_links(tree_of(mount)))


def extract(tar: str, archive: bytes, target: Path, below: Path) -> None:
    """A layer on disk, by GNU tar, with whiteouts as overlayfs has them.

    Args:
        below: a mount of the lower layers.
    """
    target.mkdir()
    command = [tar, "-x", "-p", "--same-owner", "-C", target]
    subprocess.run(command, input=archive, check=True, capture_output=True)
    for mark in sorted(target.rglob(".wh.*")):  # a mark for the directory itself comes before those for names in it
        st = mark.parent.stat()
        mark.unlink()
        hidden = mark.parent / mark.name.removeprefix(".wh.")
        if mark.name == ".wh..wh..opq":
            os.setxattr(mark.parent, "trusted.overlay.opaque", b"y")
        elif hidden.is_dir() and not hidden.is_symlink():
            os.setxattr(hidden, "trusted.overlay.opaque", b"y")
        elif not os.path.lexists(hidden):
            lower = below / hidden.relative_to(target)
            if os.path.lexists(lower) and lower.parent.resolve() == lower.parent:
                os.mknod(hidden, stat.S_IFCHR, 0)
        os.utime(mark.parent, ns=(st.st_mtime_ns, st.st_mtime_ns))
    # Where overlayfs merges nothing, it would list whiteouts.
    for path in target.rglob("*"):
        if path.is_char_device() and path.stat().st_rdev == 0 and is_opaque(path.parent, target):
            st = path.parent.stat()
            path.unlink()
            os.utime(path.parent, ns=(st.st_mtime_ns, st.st_mtime_ns))


def is_opaque(path: Path, top: Path) -> bool:
    return any(
        "trusted.overlay.opaque" in os.listxattr(parent)
        for parent in [path, *path.parents]
        if parent.is_relative_to(top)
    )


@pytest.mark.parametrize("seed", range(100, 116))
def test_merging_equals_a_mount_of_the_stack(memory: Path, seed: int) -> None:
    maker = Maker(seed, explicit=False)
    reads: list[Read] = []
    with ExitStack() as stack:
        for number in range(5):
            reads.append(Read(maker.layer(), container=True, source=number))
            stack.callback(reads[-1].close)
            maker.below = lower_files(reads)
        spools = {number: read.spool for number, read in enumerate(reads)}
        layers = [read.layer for read in reads]
        merged = tree_of_node(merge(layers), spools)
        trees = stacked(layers)
        directories = [memory / f"layer{number}" for number in range(len(layers))]
        for tree, directory in zip(trees, directories, strict=True):
            write_node(tree, spools, directory)
            assert not [path for path in tree_of(directory) if b".wh." in path]
        with overlay(directories, memory / "mount") as mount:
            assert_same(without_links(merged), without_links(tree_of(mount)))
        # Making the one does not change what the other sees.
        assert_same(tree_of_node(merge(layers), spools), merged)
