"""Images give back exactly their source: through the kernel, through our reader, and unpacked."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.kernel.conftest import Nasty
from tests.support.images import Built, assert_fsck_accepts, build_image, reading, unpack_image, verify
from tests.support.kernel import mounted
from tests.support.nasty import sparse_file
from tests.support.trees import Entry, Tree, assert_same, image_tree, ranges_of, tree_of

from eroseal.build.options import BlobLayout, BuildOptions
from eroseal.format.digest import HashAlgorithm, TreeParams

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
def test_the_nasty_tree_comes_back(nasty: Nasty, memory: Path, disk: Path, options: BuildOptions) -> None:
    built = build_image(nasty.source, disk / "store", options)
    assert built.result.files == len(nasty.tree)
    assert_gives_back(built, nasty.tree, memory, disk)


def built_when_quiet(source: Path, store: Path) -> tuple[Built, Tree]:
    """An image of a directory of this system, and its tree: tried again when somebody writes there meanwhile."""
    for attempt in range(3):
        before = tree_of(source)
        built = build_image(source, store, BuildOptions(durable=False, replace=attempt > 0))
        if tree_of(source, content=False) == {path: _bare(entry) for path, entry in before.items()}:
            return built, before
    pytest.fail(f"{source} does not stop changing")


def _bare(entry: Entry) -> Entry:
    return replace(entry, content=b"") if stat.S_ISREG(entry.mode) else entry


@pytest.mark.parametrize("name", ["/usr/share", "/usr/lib/python3*"])
def test_directories_of_this_system_come_back(
    name: str, memory: Path, disk: Path, require_peer: Callable[[str], str]
) -> None:
    program = require_peer("fsck.erofs")
    sources = sorted(path for path in Path("/").glob(name[1:]) if path.is_dir() and not path.is_symlink())
    assert sources
    for number, source in enumerate(sources):
        place, room = disk / str(number), memory / str(number)
        place.mkdir()
        room.mkdir()
        built, tree = built_when_quiet(source, place / "store")
        assert_gives_back(built, tree, room, place)
        assert_fsck_accepts(program, built)


# --- sparse files ---
def data_chunks(path: Path, chunk: int) -> list[tuple[int, int]]:
    """Ranges of a file in which some chunk has a byte that is not zero, to the ends of the chunks or the file."""
    size = path.stat().st_size
    found: list[tuple[int, int]] = []
    done = 0
    with path.open("rb") as file:
        for start, end in ranges_of(path):
            for at in range(max(done, start // chunk * chunk), end, chunk):
                done = at + chunk
                file.seek(at)
                data = file.read(chunk)
                if data == bytes(len(data)):
                    continue
                if found and found[-1][1] == at:
                    found[-1] = (found[-1][0], min(done, size))
                else:
                    found.append((at, min(done, size)))
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
            wanted = data_chunks(path, chunk)
            size = path.stat().st_size
            holes += size - sum(end - start for start, end in wanted)
            for copy in (mountpoint / path.name, unpacked / path.name):
                found = sum(end - start for start, end in ranges_of(copy))
                # A small file's zeros may lie inside its inode, or before a tail in one chunk.
                assert found <= sum(end - start for start, end in wanted) + 2 * chunk, copy
            allocated = (unpacked / path.name).stat().st_blocks * 512
            assert allocated <= sum(end - start for start, end in wanted) + 2 * chunk, path
    assert holes > 300 << 20


def test_a_sparse_file_of_20_gib(memory: Path, disk: Path) -> None:
    size = 20 << 30
    source = memory / "source"
    source.mkdir()
    across = (4 << 30) - 4096, bytes(range(256)) * 4096
    sparse_file(os.fsencode(source / "sparse"), size, (0, b"first"), across, (size - 5, b"last!"))
    sparse_file(os.fsencode(source / "hole"), size)
    wanted = tree_of(source)
    built = build_image(source, disk / "store", BuildOptions(durable=False))
    assert sum(blob.data_size for blob in built.result.blobs) < 8 << 20
    with mounted(built.meta, built.data, disk / "mountpoint") as mountpoint:
        assert_same(tree_of(mountpoint), wanted)
        assert ranges_of(mountpoint / "sparse") == data_chunks(source / "sparse", 64 * KIB)
        assert ranges_of(mountpoint / "hole") == []
    unpacked = unpack_image(built, memory / "unpacked")
    assert_same(tree_of(unpacked), wanted)
    assert (unpacked / "sparse").stat().st_blocks * 512 <= (2 << 20) and not (unpacked / "hole").stat().st_blocks
