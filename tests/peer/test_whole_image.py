"""A whole image beside the same tree's image by mkfs.erofs, and in the forms that kernels mount it in."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.images import Built, build_image
from tests.support.kernel import mounted
from tests.support.nasty import SIZES, noise
from tests.support.trees import Tree, assert_same, image_tree, tree_of

from eroseal.build.builder import build
from eroseal.build.options import BlobLayout, BuildOptions
from eroseal.image.check import check_image
from eroseal.image.reader import ImageReader
from eroseal.readat import FileAt
from eroseal.store.reference import FileReference
from eroseal.trust.image import UnverifiedImage

Require = Callable[[str], str]
PLAIN = BuildOptions(durable=False)
BLOCK = 4096


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give a tree of ordinary things."""
    root = tmp_path / "source"
    (root / "sub" / "sub").mkdir(parents=True)
    for size in SIZES:
        (root / f"size-{size}").write_bytes(noise(size, size))
    for number in range(2000):
        (root / "sub" / f"name-{number}").write_bytes(b"%d" % number * (number % 50))
        os.utime(root / "sub" / f"name-{number}", ns=(0, number * 1_000_000_007))
    (root / "zeros").write_bytes(bytes(300_000))
    (root / "twice").write_bytes(noise(65_536, 1) * 2)
    (root / "sub" / "symlink").symlink_to("../size-1")
    os.link(root / "zeros", root / "sub" / "zeros-too")
    os.mkfifo(root / "sub" / "fifo")
    os.setxattr(root / "zeros", "user.attribute", b"value")
    return root


def tree_in(path: Path) -> Tree:
    """What our reader sees in a bare image."""
    with FileAt(path) as file:
        reader = ImageReader(UnverifiedImage(file))
        assert check_image(reader).warnings == ()
        return image_tree(reader)


@pytest.mark.parametrize("mkfs", ["mkfs.erofs", "mkfs.erofs>=1.9"])
def test_mkfs_and_we_say_the_same_of_a_tree(source: Path, tmp_path: Path, require_peer: Require, mkfs: str) -> None:
    program = require_peer(mkfs)
    theirs, ours = tmp_path / "theirs.erofs", tmp_path / "ours.erofs"
    subprocess.run([program, theirs, source], check=True, capture_output=True)
    build(source, FileReference(ours), replace(PLAIN, blobs=BlobLayout.NONE))
    wanted = tree_of(source)
    assert_same(tree_in(ours), wanted)
    # Files of its own time's second lose their nanoseconds there.
    assert_same(whole_seconds(tree_in(theirs)), whole_seconds(wanted))


def whole_seconds(tree: Tree) -> Tree:
    return {path: replace(entry, mtime_ns=entry.mtime_ns // 10**9 * 10**9) for path, entry in tree.items()}


@pytest.mark.parametrize("what", ["made up", "/usr/lib/python3*"])
def test_not_larger_than_a_plain_image_and_its_tree(
    source: Path, tmp_path: Path, require_peer: Require, what: str
) -> None:
    for number, root in enumerate([source] if what == "made up" else libraries()):
        theirs, ours = tmp_path / f"theirs{number}.erofs", tmp_path / f"ours{number}.erofs"
        subprocess.run([require_peer("mkfs.erofs"), theirs, root], check=True, capture_output=True)
        build(root, FileReference(ours), replace(PLAIN, blobs=BlobLayout.NONE))
        # The tree takes 1/127, the rest of the seal three blocks and what a level's last block leaves free.
        assert ours.stat().st_size <= theirs.stat().st_size * 128 // 127 + 6 * BLOCK


def libraries() -> list[Path]:
    found = [path for path in Path("/usr/lib").glob("python3*") if path.is_dir()]
    assert found
    return found


# --- forms in which kernels mount an image ---
@pytest.fixture
def disk(tmp_path: Path, need_kernel_erofs: None) -> Iterator[Path]:
    """Give an empty directory, emptied afterwards."""
    place = tmp_path / "disk"
    place.mkdir()
    yield place
    shutil.rmtree(place)


def region(built: Built, number: int) -> bytes:
    """The data region of a blob."""
    with built.paths[number].open("rb") as file:
        return file.read(built.result.blobs[number].data_size)


@pytest.mark.parametrize("blobs", [BlobLayout.BUILD, BlobLayout.FILE])
def test_the_data_regions_one_after_the_other_are_an_image(source: Path, disk: Path, blobs: BlobLayout) -> None:
    built = build_image(source, disk / "store", replace(PLAIN, blobs=blobs))
    flattened = disk / "flattened.erofs"
    flattened.write_bytes(b"".join(region(built, number) for number in range(len(built.paths))))
    wanted = tree_of(source)
    with mounted(flattened, [], disk / "mountpoint") as mountpoint:
        assert_same(tree_of(mountpoint), wanted)


def test_bare_data_regions_mount_like_sealed_blobs(source: Path, disk: Path) -> None:
    built = build_image(source, disk / "store", PLAIN)
    bare = []
    for number in range(len(built.paths)):
        bare.append(disk / f"bare-{number}")
        bare[-1].write_bytes(region(built, number))
    with mounted(bare[0], bare[1:], disk / "mountpoint") as mountpoint:
        assert_same(tree_of(mountpoint), tree_of(source))


def test_a_single_file_mounts_as_it_is(source: Path, disk: Path) -> None:
    path = disk / "image.erofs"
    build(source, FileReference(path), replace(PLAIN, blobs=BlobLayout.NONE))
    with mounted(path, [], disk / "mountpoint") as mountpoint:
        assert_same(tree_of(mountpoint), tree_of(source))


def test_the_same_image_in_both_kinds_of_target(source: Path, tmp_path: Path) -> None:
    options = replace(PLAIN, blobs=BlobLayout.NONE)
    stored = build_image(source, tmp_path / "store", options)
    single = build(source, FileReference(tmp_path / "image.erofs"), options)
    assert single.image == stored.result.image
    assert (tmp_path / "image.erofs").read_bytes()[: single.blobs[0].data_size] == region(stored, 0)
