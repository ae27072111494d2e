"""What a stack shows is what the kernel shows: EROFS mounts of its layers, and overlayfs on top of them."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.containers.conftest import Layered
from tests.support.kernel import tmpfs
from tests.support.program import eroseal
from tests.support.stacks import build_stack, mounted_stack, opaque, reading, whiteout
from tests.support.trees import Tree, assert_same, image_tree, paths_below, tree_of, xattrs_of

from eroseal.errors import FormatError, NotFoundError
from eroseal.image.stack import StackReader
from eroseal.image.unpack import unpack
from eroseal.store.document import StackDocument
from eroseal.store.local import LocalStore

pytestmark = pytest.mark.usefixtures("need_kernel_erofs")

LAYERS, CASES = 5, 48
NAMES = ("a", "b", "c")
MARKS = (b"", b"x", b"n", b"yy")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """Give a tmpfs, which has trusted xattrs and is quick to fill."""
    with tmpfs(tmp_path / "memory", "size=256m") as place:
        yield place


@dataclass(frozen=True)
class Seen:
    """A name as lstat, readlink, read and listxattr show it."""

    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    rdev: int
    data: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]


def seen_in_mount(top: Path) -> dict[bytes, Seen]:
    """What can be looked up in a mount.

    Not all that readdir lists can: in a directory of one layer alone overlayfs lists whiteouts, and finds none of them.
    """
    found = {}
    for path, full in paths_below(os.fsencode(top)):
        try:
            st = os.lstat(full)
        except FileNotFoundError:
            continue
        data = b""
        if stat.S_ISREG(st.st_mode):
            with open(full, "rb") as file:
                data = file.read()
        elif stat.S_ISLNK(st.st_mode):
            data = os.readlink(full)
        found[path] = Seen(st.st_mode, (st.st_uid, st.st_gid), st.st_mtime_ns, st.st_rdev, data, xattrs_of(full))
    return found


def seen_by_us(view: StackReader) -> dict[bytes, Seen]:
    found = {}
    for path, inode in view.walk():
        data = b"" if inode.is_dir else view.read(inode, 0, inode.size)
        mtime_ns = inode.mtime * 10**9 + inode.mtime_nsec
        rdev = os.makedev(*inode.rdev)
        xattrs = tuple(view.xattrs(inode))
        found[path] = Seen(inode.mode, (inode.uid, inode.gid), mtime_ns, rdev, data, xattrs)
    return found


class Chance:
    """Makes layers by chance: few names, so that they meet, and each kind of file in each other's place."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def layer(self, root: Path) -> Path:
        root.mkdir()
        for case in range(CASES):
            self._fill(root / f"case{case:02}", depth=0)
        return root

    def _fill(self, directory: Path, depth: int) -> None:
        choose = self._random
        directory.mkdir()
        os.chown(directory, choose.randrange(3), choose.randrange(3))
        if choose.random() < 0.2:
            opaque(directory)
        elif choose.random() < 0.15:
            opaque(directory, choose.choice(MARKS))
        if choose.random() < 0.1:
            os.setxattr(directory, "trusted.overlay.overlay.opaque", b"y")
        for name in NAMES:
            self._make(directory / name, depth)
        os.utime(directory, ns=(0, choose.randrange(10**18)))

    def _make(self, path: Path, depth: int) -> None:
        choose = self._random
        kind = choose.choices(
            ("nothing", "directory", "file", "whiteout", "link", "device", "block", "fifo", "second name"),
            (30, 40 if depth < 3 else 0, 12, 14, 4, 2, 1, 1, 3),
        )[0]
        if kind == "directory":
            self._fill(path, depth + 1)
        elif kind == "file":
            path.write_bytes(choose.randbytes(choose.choice((0, 1, 100, 5000, 20000))))
            if choose.random() < 0.3:
                os.setxattr(path, choose.choice(("user.note", "trusted.note", "trusted.overlay.origin")), b"1")
        elif kind == "whiteout":
            whiteout(path)
        elif kind == "link":
            path.symlink_to(choose.choice((*NAMES, "../b", "/case00/a")))
        elif kind == "device":
            os.mknod(path, 0o020600, os.makedev(choose.randrange(2), 1))
        elif kind == "block":
            os.mknod(path, 0o060600, os.makedev(0, 0))
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "second name":
            others = [other for other in path.parent.iterdir() if other.is_file() and not other.is_symlink()]
            if others:
                path.hardlink_to(others[0])


@pytest.mark.parametrize("seed", [1, 2])
def test_layers_by_chance(seed: int, memory: Path, tmp_path: Path) -> None:
    chance = Chance(seed)
    layers = [chance.layer(memory / str(number)) for number in range(LAYERS)]
    store = tmp_path / "store"
    document = build_stack(store, layers)
    for count in (1, 2, LAYERS):
        part = StackDocument(document.layers[:count])
        LocalStore.open(store).put_image("part", part, replace=True)
        with (
            mounted_stack(store, part, tmp_path / f"mounts{count}") as mount,
            reading(f"dir:{store}:part", part.image) as view,
        ):
            wanted = seen_in_mount(mount)
            assert len(wanted) > CASES
            assert seen_by_us(view) == wanted
            _assert_lookups_agree(view, mount, wanted)


def _assert_lookups_agree(view: StackReader, mount: Path, wanted: dict[bytes, Seen]) -> None:
    """Paths through symlinks, and names that are not there; where absolute links leave the mount, nobody knows."""
    paths = [os.path.join(path, os.fsencode(name)) for path in wanted for name in (*NAMES, "a/b", "c/../a", "none")]
    for path in random.Random(1).sample(paths, 800):
        full = os.path.join(os.fsencode(mount), path)
        try:
            here = view.lookup(path)
        except NotFoundError:
            here = None
        try:
            there = os.stat(full)
        except OSError as error:
            assert error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
            there = None
        if (here and here.mode) != (there and there.st_mode):
            assert not os.path.realpath(full).startswith(os.fsencode(mount)), path


def without_counts(tree: Tree) -> Tree:
    """Without the number of names: one that is hidden by an upper layer still counts in a mount."""
    return {path: replace(entry, nlink=0) for path, entry in tree.items()}


def test_a_real_image(layered: Layered, tmp_path: Path) -> None:
    digest = eroseal("build", layered.source, "dir:store:app", "--layers", "stack", "--no-sync", cwd=tmp_path).last
    store = tmp_path / "store"
    document, _ = LocalStore.open(store).image("app")
    assert isinstance(document, StackDocument)
    assert str(document.image) == digest
    eroseal("unpack", "dir:store:app", "out", "--digest", digest, cwd=tmp_path)
    with (
        mounted_stack(store, document, tmp_path / "mounts") as mount,
        reading(f"dir:{store}:app", document.image) as view,
    ):
        assert seen_by_us(view) == seen_in_mount(mount)
        assert_same(without_counts(image_tree(view)), without_counts(tree_of(mount)))
        unpacked = tree_of(tmp_path / "out")
        assert_same(without_counts(unpacked), without_counts(image_tree(view)))
        # Links from one layer to another become files of their own; all else is as umoci unpacks it.
        assert unpacked.keys() == layered.tree.keys()
        wanted = {path: replace(entry, same_as=None, nlink=0) for path, entry in layered.tree.items()}
        assert_same({path: replace(entry, same_as=None, nlink=0) for path, entry in unpacked.items()}, wanted)


def test_hard_links_come_back_as_such(tmp_path: Path, memory: Path) -> None:
    low, top = memory / "low", memory / "top"
    for layer in (low, top):
        layer.mkdir()
        (layer / "one").write_text(layer.name)
        for name in ("two", "three"):
            (layer / name).hardlink_to(layer / "one")
    (low / "four").hardlink_to(low / "one")
    (top / "one").unlink()
    document = build_stack(tmp_path / "store", [low, top])
    with (
        reading(f"dir:{tmp_path}/store:app", document.image) as view,
        mounted_stack(tmp_path / "store", document, tmp_path / "mounts") as mount,
    ):
        done = unpack(view, tmp_path / "out")
        assert (done.files, done.hard_links) == (2, 2)
        wanted = tree_of(tmp_path / "out")
        assert {path: entry.same_as for path, entry in wanted.items()} == {
            b"": None,
            b"four": b"four",
            b"one": b"four",
            b"three": b"three",
            b"two": b"three",
        }
        assert_same(without_counts(tree_of(mount)), without_counts(wanted))


@pytest.mark.parametrize(
    ("mark", "value", "directory"),
    [("redirect", b"/other", True), ("metacopy", b"", False), ("whiteout", b"", False)],
)
def test_what_the_kernel_would_follow_elsewhere_is_refused(
    tmp_path: Path, memory: Path, mark: str, value: bytes, directory: bool
) -> None:
    """Such a layer shows one thing here and another one in a mount: so it is refused, by `verify` too."""
    low, top = memory / "low", memory / "top"
    for layer in (low, top):
        layer.mkdir()
    (low / "other").mkdir()
    (low / "other/inside").write_text("of another directory\n")
    if directory:
        (top / "name").mkdir()
    else:
        (top / "name").touch()
    os.setxattr(top / "name", f"trusted.overlay.{mark}", value)
    document = build_stack(tmp_path / "store", [low, top])
    with mounted_stack(tmp_path / "store", document, tmp_path / "mounts") as mount:
        try:
            shown = os.listdir(mount / "name") if directory else (mount / "name").read_bytes()
        except OSError:
            shown = None
        assert shown or shown is None or (mark == "whiteout" and os.uname().release < "6.7")
    with reading(f"dir:{tmp_path}/store:app", document.image) as view, pytest.raises(FormatError, match=mark):
        list(view.walk())
    refused = eroseal("verify", "dir:store:app", "--digest", str(document.image), cwd=tmp_path, code=3)
    assert mark in refused.error
