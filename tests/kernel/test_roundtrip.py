"""Images give back exactly their source: through the kernel, through our reader, and unpacked."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from eroseal.build.options import BlobLayout, BuildOptions
from eroseal.format.digest import HashAlgorithm, TreeParams
from tests.kernel.conftest import Nasty
from tests.support.images import Built, build_image, fsck, reading, unpack_image, verify
from tests.support.kernel import mounted
from tests.support.nasty import sparse_file
from tests.support.trees import Tree, assert_same, image_tree, ranges_of, tree_of

SHA256, SHA512 = HashAlgorithm.SHA256, HashAlgorithm.SHA512
KIB = 1 << 10
CASES = {
    f"{blobs.value}-{chunk // KIB}K": BuildOptions(blobs=blobs, chunk_size=chunk, durable=False)
    for blobs in (BlobLayout.NONE, BlobLayout.BUILD, BlobLayout.FILE)
    for chunk in (4 * KIB, 64 * KIB, 1024 * KIB)
}
CASES |= {
    "build-salt": BuildOptions(params=TreeParams(SHA256, b"thirty-two bytes of salt, exact!"), durable=False),
    "build-sha512": BuildOptions(params=TreeParams(SHA512), durable=False, jobs=1),
    "none-sha512-salt": BuildOptions(
        blobs=BlobLayout.NONE, params=TreeParams(SHA512, b"pinch"), chunk_size=16 * KIB, durable=False
    ),
    "file-sha512-no-inline": BuildOptions(
        blobs=BlobLayout.FILE, params=TreeParams(SHA512), inline_max=0, durable=False, jobs=1
    ),
    "build-no-inline": BuildOptions(inline_max=0, chunk_size=16 * KIB, durable=False),
    "none-some-inline": BuildOptions(blobs=BlobLayout.NONE, inline_max=1000, durable=False, jobs=1),
}


def assert_gives_back(built: Built, wanted: Tree, memory: Path, disk: Path) -> None:
    """Everything that can read the image reads the source's tree from it."""
    assert built.warnings == ()
    verify(built)
    with reading(built) as reader:
        assert_same(image_tree(reader), wanted)
    with mounted(built.meta, built.data, disk / "mountpoint") as mountpoint:
        assert_same(tree_of(mountpoint), wanted)
    assert_same(tree_of(unpack_image(built, memory / "unpacked")), wanted)


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_nasty_tree_comes_back(
    nasty: Nasty, memory: Path, disk: Path, options: BuildOptions, require_peer: Callable[[str], str]
) -> None:
    built = build_image(nasty.source, disk / "store", options)
    assert built.result.files == len(nasty.tree)
    assert_gives_back(built, nasty.tree, memory, disk)
    fsck(require_peer("fsck.erofs"), built)


@pytest.mark.parametrize("blobs", [BlobLayout.NONE, BlobLayout.BUILD, BlobLayout.FILE])
def test_newer_fsck_accepts_the_nasty_tree(
    nasty: Nasty, disk: Path, blobs: BlobLayout, require_peer: Callable[[str], str]
) -> None:
    program = require_peer("fsck.erofs>=1.9")
    fsck(program, build_image(nasty.source, disk / "store", BuildOptions(blobs=blobs, durable=False)))


def built_when_quiet(source: Path, store: Path) -> tuple[Built, Tree]:
    """An image of a directory of this system, and its tree: tried again when somebody writes there meanwhile."""
    for attempt in range(3):
        before = tree_of(source)
        built = build_image(source, store, BuildOptions(durable=False, replace=attempt > 0))
        if tree_of(source, content=False) == {path: _bare(entry) for path, entry in before.items()}:
            return built, before
    pytest.fail(f"{source} does not stop changing")


def _bare(entry: object) -> object:
    from dataclasses import replace

    from tests.support.trees import Entry

    assert isinstance(entry, Entry)
    return replace(entry, content=b"") if stat.S_ISREG(entry.mode) else entry


@pytest.mark.parametrize("name", ["/usr/share", "/usr/lib/python3*"])
def test_directories_of_this_system_come_back(
    name: str, memory: Path, disk: Path, require_peer: Callable[[str], str]
) -> None:
    sources = sorted(path for path in Path("/").glob(name[1:]) if path.is_dir() and not path.is_symlink())
    assert sources
    for number, source in enumerate(sources):
        place, room = disk / str(number), memory / str(number)
        place.mkdir()
        room.mkdir()
        built, tree = built_when_quiet(source, place / "store")
        assert_gives_back(built, tree, room, place)
        fsck(require_peer("fsck.erofs"), built)


# --- sparse files ---
def zero_chunks(path: Path, chunk: int) -> list[tuple[int, int]]:
    """Ranges of a file in which some chunk has a byte that is not zero, to the ends of the chunks or the file."""
    size = path.stat().st_size
    found: list[tuple[int, int]] = []
    with path.open("rb") as file:
        for start, end in ranges_of(path):
            for at in range(start // chunk * chunk, end, chunk):
                file.seek(at)
                if any(file.read(chunk)) and (not found or found[-1][1] <= at):
                    if found and found[-1][1] == at:
                        found[-1] = (found[-1][0], min(at + chunk, size))
                    else:
                        found.append((at, min(at + chunk, size)))
    return found


@pytest.mark.parametrize("chunk", [4 * KIB, 64 * KIB])
@pytest.mark.parametrize("blobs", [BlobLayout.NONE, BlobLayout.BUILD, BlobLayout.FILE])
def test_holes_are_holes_again(nasty: Nasty, memory: Path, disk: Path, blobs: BlobLayout, chunk: int) -> None:
    options = BuildOptions(blobs=blobs, chunk_size=chunk, durable=False, jobs=1)
    source = nasty.source / "sparse"
    built = build_image(source, disk / "store", options)
    unpacked = unpack_image(built, memory / "unpacked")
    holes = 0
    with mounted(built.meta, built.data, disk / "mountpoint") as mountpoint:
        for path in sorted(source.iterdir()):
            wanted = zero_chunks(path, chunk)
            size = path.stat().st_size
            holes += size - sum(end - start for start, end in wanted)
            for copy in (mountpoint / path.name, unpacked / path.name):
                found = sum(end - start for start, end in ranges_of(copy))
                # A small file's zeros may lie inside its inode, or before a tail in one chunk.
                assert found <= sum(end - start for start, end in wanted) + 2 * chunk, copy
            allocated = (unpacked / path.name).stat().st_blocks * 512
            assert allocated <= sum(end - start for start, end in wanted) + 2 * chunk, path
    assert holes > 5 << 30


def test_a_sparse_file_of_20_gib(memory: Path, disk: Path) -> None:
    size = 20 << 30
    source = memory / "source"
    source.mkdir()
    ends = [(0, b"first"), (7 << 30, bytes(range(256)) * 4096), (size - 5, b"last!")]
    sparse_file(os.fsencode(source / "sparse"), size, *ends)
    sparse_file(os.fsencode(source / "hole"), size)
    wanted = tree_of(source)
    built = build_image(source, disk / "store", BuildOptions(durable=False))
    assert sum(blob.data_size for blob in built.result.blobs) < 8 << 20
    with mounted(built.meta, built.data, disk / "mountpoint") as mountpoint:
        assert_same(tree_of(mountpoint), wanted)
        assert ranges_of(mountpoint / "sparse") == zero_chunks(source / "sparse", 64 * KIB)
        assert ranges_of(mountpoint / "hole") == []
    unpacked = unpack_image(built, memory / "unpacked")
    assert_same(tree_of(unpacked), wanted)
    assert (unpacked / "sparse").stat().st_blocks * 512 <= (2 << 20) and not (unpacked / "hole").stat().st_blocks
