"""Builds on a base: unchanged chunks are shared, and the base's data is not read again."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.generated import BLOCK, Node, Piece, content, make, noise, options, trees
from tests.support.images import Built, build_image, reading, verify
from tests.support.trees import assert_same, image_tree, tree_of

from eroseal.build.options import BlobLayout, BuildOptions
from eroseal.errors import IntegrityError, UsageError
from eroseal.format.digest import HashAlgorithm, TreeParams
from eroseal.store.local import LocalStore

PLAIN = BuildOptions(jobs=1, durable=False)
shared_layouts = options.filter(lambda how: how.blobs != BlobLayout.NONE)


def on_base(base: Built, source: Path, how: BuildOptions, *, name: str = "next", store: Path | None = None) -> Built:
    return build_image(source, store or base.reference.store, how, name=name, bases=(str(base.reference),))


def assert_reads_as(built: Built, source: Path) -> None:
    verify(built)
    with reading(built) as reader:
        assert_same(image_tree(reader), tree_of(source))


def repeating(*pieces: Piece) -> Node:
    """Two equal blocks, which need chunk indexes and so leave no room for an inline tail, and what follows."""
    twice = (("noise", 0, BLOCK), ("noise", 0, BLOCK))
    return Node("directory", 0o755, children=((b"a", Node("file", pieces=(*twice, *pieces))),))


@given(tree=trees, how=shared_layouts)
@example(tree=repeating(("zeros", 0, 1)), how=replace(PLAIN, chunk_size=BLOCK))
@example(tree=repeating(("noise", 0, 1)), how=replace(PLAIN, chunk_size=BLOCK))
@example(  # the first build needs chunk indexes for "b"; the second finds its chunks side by side
    tree=Node(
        "directory",
        0o755,
        children=(
            (b"a", Node("file", pieces=(("noise", 2, BLOCK),))),
            (b"b", Node("file", pieces=(("noise", 2, 2 * BLOCK), ("noise", 0, 1)))),
        ),
    ),
    how=replace(PLAIN, chunk_size=BLOCK),
)
def test_an_unchanged_tree_stores_nothing(tree: Node, how: BuildOptions) -> None:
    assert_stores_nothing(tree, how)


def assert_stores_nothing(tree: Node, how: BuildOptions) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source = make(tree, place / "source")
        base = build_image(source, place / "store", how)
        again = on_base(base, source, how)
        assert again.result.bytes_new == 0
        assert set(again.data) <= set(base.data)
        assert_reads_as(again, source)
        third = on_base(again, source, how, name="third")
        assert third.result.image == again.result.image


def change(tree: Node, path: tuple[int, ...], new: Node) -> Node:
    """The tree with one file changed or added: the numbers pick children on the way down."""
    if not tree.children:
        return replace(tree, children=((b"changed", new),))
    number = path[0] % (len(tree.children) + 1) if path else len(tree.children)
    if number == len(tree.children):
        return replace(tree, children=tuple(sorted({**dict(tree.children), b"changed": new}.items())))
    key, child = tree.children[number]
    changed = change(child, path[1:], new) if child.kind == "directory" else new
    return replace(tree, children=tuple(sorted({**dict(tree.children), key: changed}.items())))


changed_files = st.builds(
    Node,
    st.just("file"),
    pieces=st.lists(
        st.tuples(
            st.sampled_from(["noise", "zeros"]),
            st.integers(0, 9),
            st.sampled_from([5, 4096, 70_000, 65_536, 1_048_577]),
        ),
        max_size=3,
    ).map(tuple),
)


@given(tree=trees, how=shared_layouts, path=st.lists(st.integers(0, 7), max_size=3).map(tuple), new=changed_files)
@example(  # what was one run of chunks becomes two
    tree=Node("directory", 0o755, children=((b"b", Node("file", pieces=(("noise", 1, 140_000),))),)),
    how=PLAIN,
    path=(1,),
    new=Node("file", pieces=(("noise", 1, 65_536),)),
)
def test_only_what_changed_is_stored(tree: Node, how: BuildOptions, path: tuple[int, ...], new: Node) -> None:
    assert_stores_the_change(tree, how, path, new)


def assert_stores_the_change(tree: Node, how: BuildOptions, path: tuple[int, ...], new: Node) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        base = build_image(make(tree, place / "source"), place / "store", how)
        changed = make(change(tree, path, new), place / "changed")
        built = on_base(base, changed, how)
        size = len(content(new.pieces))
        assert built.result.bytes_new <= -(-size // BLOCK) * BLOCK
        assert_reads_as(built, changed)
        # And again, on both: now everything is known.
        third = build_image(
            changed, place / "store", how, name="third", bases=(str(built.reference), str(base.reference))
        )
        assert third.result.bytes_new == 0


@settings(max_examples=30)
@given(tree=trees, how=shared_layouts, jobs=st.sampled_from([1, 2]))
def test_builds_on_a_base_are_reproducible(tree: Node, how: BuildOptions, jobs: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        base = build_image(make(tree, place / "source"), place / "store", how)
        bigger = replace(tree, children=(*tree.children, (b"\xffnew", Node("file", pieces=(("noise", 7, 200_001),)))))
        source = make(bigger, place / "bigger")
        first = on_base(base, source, how, name="first")
        second = on_base(base, source, replace(how, jobs=jobs), name="second", store=place / "elsewhere")
        assert first.result.image == second.result.image
        assert [path.read_bytes() for path in first.paths] == [path.read_bytes() for path in second.paths]


def test_a_tail_of_zeros_is_a_hole_and_spoils_no_deduplication(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(noise(0, BLOCK) * 2 + b"\0")
    for number in range(20):
        (source / f"b{number}").write_bytes(noise(1, 3 * BLOCK))
    built = build_image(source, tmp_path / "store", replace(PLAIN, chunk_size=BLOCK))
    assert built.result.bytes_new == 4 * BLOCK
    assert_reads_as(built, source)


# --- whether data is read ---
@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give a tree with files of several sizes."""
    root = tmp_path / "source"
    root.mkdir()
    for number, size in enumerate([10_000, 70_000, 65_536, 3_000_000, 5_000_001]):
        (root / f"file-{number}").write_bytes(noise(number, size))
    return root


def spoil(built: Built) -> dict[Path, bytes]:
    """Overwrite the data regions of all data blobs, and nothing else; gives what they held."""
    kept = {}
    for path, blob in zip(built.data, built.result.blobs[1:], strict=True):
        kept[path] = path.read_bytes()
        with path.open("r+b") as file:
            file.write(b"\xaa" * blob.data_size)
    return kept


@pytest.mark.parametrize("params", [TreeParams(), TreeParams(HashAlgorithm.SHA512, b"salt")])
def test_a_bases_data_is_not_read(tmp_path: Path, source: Path, params: TreeParams) -> None:
    how = replace(PLAIN, params=params)
    base = build_image(source, tmp_path / "store", how)
    kept = spoil(base)
    (source / "new").write_bytes(noise(50, 100_000))
    built = on_base(base, source, how)
    assert built.result.bytes_new == -(-100_000 // BLOCK) * BLOCK
    assert built.data[0] == base.data[0] and len(built.data) == 2
    with pytest.raises(IntegrityError, match="block does not match"):
        verify(built)
    for path, data in kept.items():
        path.write_bytes(data)
    assert_reads_as(built, source)


def test_a_spoiled_base_does_not_enter_another_store(tmp_path: Path, source: Path) -> None:
    base = build_image(source, tmp_path / "store", PLAIN)
    spoil(base)
    with pytest.raises(IntegrityError, match="block does not match"):
        on_base(base, source, PLAIN, store=tmp_path / "other")
    if (tmp_path / "other").exists():
        assert list(LocalStore.open(tmp_path / "other").list_blobs()) == []


def test_a_base_whose_tree_is_spoiled_is_refused(tmp_path: Path, source: Path) -> None:
    base = build_image(source, tmp_path / "store", PLAIN)
    data_size = base.result.blobs[1].data_size
    with base.data[0].open("r+b") as file:
        file.seek(data_size + 2 * BLOCK + 5)  # behind the dm-verity superblock and the root of the tree
        file.write(b"\xaa")
    with pytest.raises(IntegrityError, match="tree block"):
        on_base(base, source, PLAIN)


def test_bases_from_another_store_are_brought_along(tmp_path: Path, source: Path) -> None:
    base = build_image(source, tmp_path / "store", PLAIN)
    (source / "new").write_bytes(noise(51, 70_000))
    built = on_base(base, source, PLAIN, store=tmp_path / "other")
    shutil.rmtree(tmp_path / "store")
    assert_reads_as(built, source)
    assert [blob.new for blob in built.result.blobs] == [True, False, True]


def test_only_used_blobs_become_devices(tmp_path: Path, source: Path) -> None:
    base = build_image(source, tmp_path / "store", replace(PLAIN, blobs=BlobLayout.FILE))
    for number in (0, 1, 3):
        (source / f"file-{number}").unlink()
    built = on_base(base, source, PLAIN)
    assert built.data == tuple(base.data[number] for number in (2, 4))
    assert_reads_as(built, source)


def test_more_bases_than_unified_addresses_are_used_for(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(70):
        (source / f"file-{number:02}").write_bytes(noise(number, 9000))
    base = build_image(source, tmp_path / "store", replace(PLAIN, blobs=BlobLayout.FILE))
    assert len(base.data) == 70
    (source / "more").write_bytes(noise(99, 9001))
    built = on_base(base, source, PLAIN)
    assert len(built.data) == 71
    # Without inline tails, as in the base.
    assert built.result.bytes_new == 3 * BLOCK
    assert_reads_as(built, source)


def test_a_chain_of_bases(tmp_path: Path, source: Path) -> None:
    """Ten small updates, each on the one before: each stores its own change alone."""
    latest = build_image(source, tmp_path / "store", PLAIN, name="image-0")
    for number in range(1, 11):
        with (source / "file-3").open("r+b") as file:
            file.seek(number * 65_536)
            file.write(b"update %d" % number)
        os.utime(source / "file-3", (number, number))
        latest = on_base(latest, source, PLAIN, name=f"image-{number}")
        assert latest.result.bytes_new == 65_536
        assert len(latest.data) == 1 + number
    assert_reads_as(latest, source)


def test_bases_with_other_parameters_are_refused(tmp_path: Path, source: Path) -> None:
    base = build_image(source, tmp_path / "store", PLAIN)
    for params in (TreeParams(HashAlgorithm.SHA512), TreeParams(salt=b"s")):
        with pytest.raises(UsageError, match="another hash or salt"):
            on_base(base, source, replace(PLAIN, params=params))
