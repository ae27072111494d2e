"""Any tree comes back from its image, and the same tree gives the same bytes wherever and however it is built."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.generated import Node, make, options, trees
from tests.support.images import Built, build_image, reading, unpack_image, verify
from tests.support.trees import assert_same, image_tree, tree_of

from eroseal.build.options import BlobLayout, BuildOptions


def blobs_of(built: Built) -> list[bytes]:
    return [path.read_bytes() for path in built.paths]


def one_file(*pieces: tuple[str, int, int]) -> Node:
    return Node("directory", 0o755, children=((b"file", Node("file", pieces=pieces)),))


@given(tree=trees, how=options)
@example(tree=one_file(("zeros", 0, 4096), ("noise", 1, 100)), how=BuildOptions(jobs=1, durable=False))
@example(tree=one_file(("hole", 0, 65536), ("noise", 1, 1)), how=BuildOptions(jobs=1, durable=False))
def test_any_tree_comes_back(tree: Node, how: BuildOptions) -> None:
    assert_comes_back(tree, how)


def assert_comes_back(tree: Node, how: BuildOptions) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source = make(tree, place / "source")
        wanted = tree_of(source)
        built = build_image(source, place / "store", how)
        verify(built)
        with reading(built) as reader:
            assert_same(image_tree(reader), wanted)
        assert built.result.files == len(wanted)


@settings(max_examples=50)
@given(tree=trees, how=options)
def test_any_tree_unpacks(tree: Node, how: BuildOptions) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source = make(tree, place / "source")
        built = build_image(source, place / "store", how)
        assert_same(tree_of(unpack_image(built, place / "unpacked")), tree_of(source))


@given(tree=trees, how=options)
def test_place_and_order_do_not_matter(tree: Node, how: BuildOptions) -> None:
    assert_reproducible(tree, how)


def assert_reproducible(tree: Node, how: BuildOptions) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        first = build_image(make(tree, place / "source"), place / "store", how)
        (place / "some" / "where").mkdir(parents=True)
        elsewhere = make(tree, place / "some" / "where" / "else", backwards=True)
        second = build_image(elsewhere, place / "some" / "store", how, name="other-name")
        assert first.result.image == second.result.image
        assert blobs_of(first) == blobs_of(second)


@settings(max_examples=15)
@given(tree=trees, how=options, jobs=st.sampled_from([2, 5]))
def test_the_number_of_workers_does_not_matter(tree: Node, how: BuildOptions, jobs: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source = make(tree, place / "source")
        alone = build_image(source, place / "alone", how)
        shared = build_image(source, place / "shared", replace(how, jobs=jobs))
        assert blobs_of(alone) == blobs_of(shared)


@settings(max_examples=50)
@given(tree=trees, how=options, seconds=st.integers(-(1 << 31), 1 << 33))
def test_time_options_change_times_alone(tree: Node, how: BuildOptions, seconds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source = make(tree, place / "source")
        before = tree_of(source)
        stamped = build_image(source, place / "store", replace(how, timestamp=seconds), name="stamped")
        clamped = build_image(source, place / "store", replace(how, clamp=seconds), name="clamped")
        same = seconds * 1_000_000_000
        with reading(stamped) as reader:
            assert_same(image_tree(reader), {path: replace(entry, mtime_ns=same) for path, entry in before.items()})
            assert reader.superblock.epoch == seconds
        with reading(clamped) as reader:
            wanted = {path: replace(entry, mtime_ns=min(entry.mtime_ns, same)) for path, entry in before.items()}
            assert_same(image_tree(reader), wanted)


@settings(max_examples=50)
@given(tree=trees, how=options)
def test_only_needed_features_are_set(tree: Node, how: BuildOptions) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source = make(tree, place / "source")
        wanted = tree_of(source)
        built = build_image(source, place / "store", how)
        with reading(built) as reader:
            superblock = reader.superblock
            layouts = {inode.layout for _, inode in reader.walk()}
            # Chunk-based files and a device table are what kernels before 5.15 and 5.16 do not know.
            assert superblock.feature_incompat == (0x4 if 4 in layouts else 0) | (0x8 if built.data else 0)
            assert superblock.feature_compat == 0x3 | (0x4 if any(entry.xattrs for entry in wanted.values()) else 0)
            assert superblock.root_nid <= 0xFFFF
            assert superblock.blocks * 4096 == built.result.blobs[0].data_size
            assert superblock.extra_devices == len(built.data)
            assert (superblock.compression, superblock.dirblkbits, superblock.packed_nid) == (0, 0, 0)
            assert how.blobs != BlobLayout.NONE or not built.data
