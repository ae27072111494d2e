"""Directories, link counts and xattrs at and beyond what their fields hold."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.images import build_image, reading, unpack_image, verify
from tests.support.kernel import mounted
from tests.support.nasty import noise
from tests.support.trees import assert_same, image_tree, tree_of

from eroseal.build.options import BlobLayout, BuildOptions
from eroseal.errors import SourceError

ENTRIES = 100_000
LINKS = 66_000


def test_a_directory_of_100_000_entries(memory: Path, disk: Path) -> None:
    source = memory / "source"
    source.mkdir()
    for number in range(ENTRIES):
        os.mknod(source / f"{'long name ' * (number % 20)}{number}")
    (source / "last").write_bytes(b"not empty")
    built = build_image(source, disk / "store", BuildOptions(durable=False))
    wanted = tree_of(source)
    assert len(wanted) == ENTRIES + 2
    with reading(built) as reader:
        assert_same(image_tree(reader), wanted)
        assert reader.superblock.root_nid <= 0xFFFF
        assert reader.read(reader.lookup(b"last"), 0, 100) == b"not empty"
    with mounted(built.meta, built.data, disk / "mountpoint") as mountpoint:
        assert_same(tree_of(mountpoint), wanted)


def test_more_subdirectories_and_links_than_16_bits_count(memory: Path, disk: Path) -> None:
    source = memory / "source"
    source.mkdir()
    (source / "directories").mkdir()
    for number in range(LINKS):
        (source / "directories" / f"{number}").mkdir()
    (source / "links").mkdir()
    (source / "links" / "0").write_bytes(b"many names")
    for number in range(1, LINKS):
        os.link(source / "links" / "0", source / "links" / f"{number}")
    # With one time for all, every inode that can be is compact, and compact ones have 16 bits for links.
    options = BuildOptions(timestamp=1_700_000_000, durable=False)
    for path in [source, source / "directories", source / "links", source / "links" / "0"]:
        os.utime(path, (1_700_000_000, 1_700_000_000))
    for number in range(LINKS):
        os.utime(source / "directories" / f"{number}", (1_700_000_000, 1_700_000_000))
    wanted = tree_of(source)
    built = build_image(source, disk / "store", options)
    verify(built)
    with reading(built) as reader:
        assert_same(image_tree(reader), wanted)
    with mounted(built.meta, built.data, disk / "mountpoint") as mountpoint:
        assert (mountpoint / "directories").stat().st_nlink == LINKS + 2
        assert (mountpoint / "links" / "0").stat().st_nlink == LINKS
        assert_same(tree_of(mountpoint), wanted)
    assert_same(tree_of(unpack_image(built, memory / "unpacked")), wanted)


# --- xattrs: a tmpfs holds more than EROFS does ---
def attributes(path: Path, *sizes: int) -> None:
    for number, size in enumerate(sizes):
        os.setxattr(path, f"user.n{number:03}", noise(size, number))


def fill_area(path: Path) -> None:
    """As much as an inode has room for: entries of 4 bytes, a name of 4, a value, padded to 4."""
    attributes(path, *[65_532] * 3, 65_508)


def many_shared(path: Path) -> None:
    """More pairs in common than one inode can share: 255."""
    for name in ("a", "b"):
        (path / name).write_bytes(b"x" * 5000)
        attributes(path / name, *range(400))


def on_the_root(path: Path) -> None:
    """The device table comes behind the root's attributes."""
    attributes(path, *[65_000] * 4)
    (path / "file").write_bytes(noise(70_000, 1))


def on_files(path: Path) -> None:
    for name, size in (("empty", 0), ("small", 4090), ("larger", 10_000)):
        (path / name).write_bytes(noise(size, 1))
        attributes(path / name, 65_535, 60_000, size)
    (path / "full").write_bytes(b"x")
    fill_area(path / "full")


@pytest.mark.parametrize("fill", [many_shared, on_the_root, on_files])
@pytest.mark.parametrize("blobs", [BlobLayout.NONE, BlobLayout.BUILD, BlobLayout.FILE])
def test_all_the_xattrs_that_fit(memory: Path, disk: Path, blobs: BlobLayout, fill: Callable[[Path], None]) -> None:
    source = memory / "source"
    source.mkdir()
    fill(source)
    wanted = tree_of(source)
    built = build_image(source, disk / "store", BuildOptions(blobs=blobs, durable=False))
    verify(built)
    with mounted(built.meta, built.data, disk / "mountpoint") as mountpoint:
        assert_same(tree_of(mountpoint), wanted)
    assert_same(tree_of(unpack_image(built, memory / "unpacked")), wanted)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((65_536,), "user.n000 is too large"), ((60_000,) * 5, "take 300052 bytes")],
    ids=["one value", "together"],
)
def test_more_xattrs_than_fit_are_refused_by_name(
    memory: Path, disk: Path, sizes: tuple[int, ...], message: str
) -> None:
    (memory / "source" / "sub").mkdir(parents=True)
    (memory / "source" / "sub" / "file").touch()
    attributes(memory / "source" / "sub" / "file", *sizes)
    with pytest.raises(SourceError, match=message) as caught:
        build_image(memory / "source", disk / "store", BuildOptions(durable=False))
    assert "/sub/file" in str(caught.value)
