"""Directories and link counts beyond what 16 bits hold."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.images import build_image, reading, unpack_image, verify
from tests.support.kernel import mounted
from tests.support.trees import assert_same, image_tree, tree_of

from eroseal.build.options import BuildOptions

ENTRIES = 100_000
LINKS = 70_000


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
