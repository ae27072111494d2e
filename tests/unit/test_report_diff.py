"""Differences between images: what is found, what is read for it, and what counts as shared."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.report_images import Images

from eroseal.image.inode import Inode
from eroseal.image.reader import ImageReader
from eroseal.report import usage as usage_module
from eroseal.report.diff import Diff, _order, diff_document, diff_images, diff_lines
from eroseal.report.document import to_json
from eroseal.report.usage import Ranges


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Images]:
    made = Images(tmp_path)
    yield made
    made.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "dir" / "small").write_bytes(b"small")
    (root / "dir" / "sub" / "chunked").write_bytes(os.urandom(40960))
    (root / "dir-not-below").write_bytes(b"1")
    (root / "link").symlink_to("dir/small")
    os.link(root / "dir" / "small", root / "other-name")
    with open(root / "sparse", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    os.mkfifo(root / "fifo")
    (root / "fifo").chmod(0o755)
    return root


def changes(diff: Diff) -> dict[bytes, tuple[str, ...]]:
    return {change.path: (change.kind, *change.what) for change in diff.changes}


def keep_time(path: Path, action: Callable[[], None]) -> None:
    """Do something without the directory above showing it."""
    before = path.parent.stat().st_mtime_ns
    action()
    os.utime(path.parent, ns=(before, before))


def test_an_image_and_itself(images: Images, tree: Path) -> None:
    result = images.build(tree, "one")
    diff = diff_images(images.verified(result), images.consistent(result))
    assert diff.changes == ()
    assert diff.unchanged == sum(1 for _ in tree.rglob("*")) + 1
    assert diff.new_bytes == 0
    assert diff.shared_bytes > 40960
    assert diff.new_blobs == ()


def test_every_aspect(images: Images, tree: Path) -> None:
    first = images.build(tree, "one")
    chunked = tree / "dir" / "sub" / "chunked"
    before = chunked.stat()
    with chunked.open("r+b") as file:
        file.seek(20480)
        file.write(b"X")
    os.utime(chunked, ns=(0, before.st_mtime_ns))
    (tree / "dir" / "sub").chmod(0o700)
    os.utime(tree / "dir-not-below", ns=(0, 12345))

    def others() -> None:
        (tree / "link").unlink()
        (tree / "link").symlink_to("elsewhere")
        os.utime(tree / "link", ns=(0, 0), follow_symlinks=False)
        (tree / "fifo").unlink()
        (tree / "fifo").mkdir()
        (tree / "fifo").chmod(0o755)
        (tree / "fifo" / "below").write_bytes(b"")
        (tree / "new").write_bytes(b"new")
        (tree / "other-name").unlink()

    keep_time(tree / "link", others)
    os.setxattr(tree / "sparse", "user.x", b"1")
    second = images.build(tree, "two")
    diff = diff_images(images.verified(first), images.verified(second))
    assert changes(diff) == {
        b"dir/small": ("changed", "links"),
        b"dir/sub": ("changed", "mode"),
        b"dir/sub/chunked": ("changed", "content"),
        b"dir-not-below": ("changed", "mtime"),
        b"fifo": ("changed", "type", "mtime"),
        b"fifo/below": ("added",),
        b"link": ("changed", "target", "mtime"),
        b"new": ("added",),
        b"other-name": ("removed",),
        b"sparse": ("changed", "xattrs"),
    }


@pytest.mark.usefixtures("need_root")
def test_owners_and_devices(images: Images, tree: Path) -> None:
    os.mknod(tree / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    when = tree.stat().st_mtime_ns
    first = images.build(tree, "one")
    (tree / "null").unlink()
    os.mknod(tree / "null", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    os.utime(tree, ns=(when, when))
    os.chown(tree / "dir-not-below", 5, 6)
    second = images.build(tree, "two")
    found = changes(diff_images(images.verified(first), images.verified(second)))
    assert found[b"dir-not-below"] == ("changed", "owner")
    assert found[b"null"][:2] == ("changed", "device")


def test_shared_chunks_are_not_read(images: Images, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a base only the changed chunk is looked at, and only it is new."""
    first = images.build(tree, "one", inline=0)
    chunked = tree / "dir" / "sub" / "chunked"
    with chunked.open("r+b") as file:
        file.seek(20480)
        file.write(b"X")
    second = images.build(tree, "two", "one", inline=0)
    a, b = images.verified(first), images.verified(second)
    reads: list[tuple[int, int]] = []
    honest = ImageReader.read

    def read(self: ImageReader, inode: Inode, offset: int, length: int) -> bytes:
        if inode.is_regular:
            reads.append((offset, length))
        return honest(self, inode, offset, length)

    monkeypatch.setattr(ImageReader, "read", read)
    diff = diff_images(a, b)
    assert changes(diff)[b"dir/sub/chunked"] == ("changed", "content", "mtime")
    assert reads == [(20480, 4096)] * 2
    assert diff.new_bytes == 4096
    # Nine chunks of the large file, the small one with its other name, the sparse one's end, and "1".
    assert diff.shared_bytes == 9 * 4096 + 5 + 3 + 1
    assert set(diff.new_blobs) == {blob.digest for blob in second.blobs if blob.new}


@pytest.mark.parametrize("blobs", ["none", "build", "file"])
def test_layouts_of_blobs_do_not_matter(images: Images, tree: Path, blobs: str) -> None:
    first, second = images.build(tree, "one", inline=0), images.build(tree, "two", blobs=blobs)
    for a, b in [
        (images.verified(first), images.verified(second)),
        (images.bare(first), images.bare(second)),
        (images.bare(second), images.verified(first)),
    ]:
        assert diff_images(a, b).changes == ()


def test_bare_images_share_nothing_that_could_be_known(images: Images, tree: Path) -> None:
    result = images.build(tree, "one")
    diff = diff_images(images.bare(result), images.bare(result))
    assert diff.changes == ()
    assert diff.shared_bytes == 0
    assert diff.new_bytes > 0
    assert diff.new_blobs == ()
    assert all(isinstance(key, tuple) for key in images.bare(result).blob_keys)


def test_holes_equal_stored_zeros(images: Images, tmp_path: Path) -> None:
    """Chunks of zeros become holes; a short file of zeros does not, and both are the same to a reader."""
    tree = tmp_path / "zeros"
    tree.mkdir()
    (tree / "file").write_bytes(bytes(4096 * 3) + b"x")
    first = images.build(tree, "one")
    (tree / "file").write_bytes(bytes(4096 * 3) + b"x")
    os.utime(tree / "file", ns=(0, 0))
    second = images.build(tree, "two")
    a, b = images.verified(first), images.verified(second)
    assert changes(diff_images(a, b)) == {b"file": ("changed", "mtime")}
    inode = b.lookup(b"file")
    whole = b.read(inode, 0, inode.size)
    assert a.read(a.lookup(b"file"), 0, len(whole)) == whole


def test_a_hole_against_data(images: Images, tmp_path: Path) -> None:
    tree = tmp_path / "zeros"
    tree.mkdir()
    (tree / "file").write_bytes(bytes(4096 * 3))
    first = images.build(tree, "one")
    content = bytearray(4096 * 3)
    content[5000] = 1
    (tree / "file").write_bytes(content)
    second = images.build(tree, "two")
    a, b = images.verified(first), images.verified(second)
    assert "content" in changes(diff_images(a, b))[b"file"]
    assert "content" in changes(diff_images(b, a))[b"file"]


def test_a_directory_that_goes(images: Images, tree: Path) -> None:
    first = images.build(tree, "one")
    shutil.rmtree(tree / "dir")
    second = images.build(tree, "two")
    found = changes(diff_images(images.verified(first), images.verified(second)))
    assert [path for path, change in found.items() if change == ("removed",)] == [
        b"dir",
        b"dir/small",
        b"dir/sub",
        b"dir/sub/chunked",
    ]
    assert found[b"other-name"] == ("changed", "links")


def test_the_document_and_the_text(images: Images, tree: Path) -> None:
    first = images.build(tree, "one")
    (tree / b"odd \xff\n".decode("utf-8", "surrogateescape")).write_bytes(b"")
    (tree / "link").unlink()
    second = images.build(tree, "two")
    diff = diff_images(images.verified(first), images.verified(second))
    document = json.loads(to_json(diff_document(diff, first=first.image, second=second.image)))
    assert document["schema"] == "eroseal.diff/1"
    assert (document["first"], document["second"]) == (str(first.image), str(second.image))
    assert document["changes"] == [
        {"path": "", "change": "changed", "what": ["mtime"]},
        {"path": "link", "change": "removed", "what": []},
        {"path": "odd \udcff\n", "change": "added", "what": []},
    ]
    assert list(diff_lines(diff))[:3] == ["~ . (mtime)", "- link", "+ odd \\xff\\x0a"]
    assert json.loads(to_json(diff_document(diff)))["first"] is None


# --- order and ranges ---


@given(st.lists(st.binary(min_size=1, max_size=4).filter(lambda name: b"/" not in name), min_size=1, max_size=4))
def test_a_directory_comes_before_what_is_in_it(names: list[bytes]) -> None:
    path = b"/".join(names)
    assert _order(b"") < _order(path)
    assert _order(path) < _order(path + b"/\0")
    assert _order(path + b"/\xff") < _order(path + b"\0")


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10)), max_size=60),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10)), max_size=60),
    st.integers(1, 70),
)
def test_ranges_are_sets(ours: list[tuple[int, int]], theirs: list[tuple[int, int]], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(usage_module, "_COMPACT_AT", limit)
        made = []
        for items in (ours, theirs):
            ranges, counts = Ranges(), [0] * 80
            for start, length in items:
                ranges.add(start, length)
                for byte in range(start, start + length):
                    counts[byte] += 1
            assert ranges.size() == sum(1 for count in counts if count)
            repeated = {byte for start, end in ranges.repeated() for byte in range(start, end)}
            assert repeated == {byte for byte, count in enumerate(counts) if count > 1}
            made.append((ranges, {byte for byte, count in enumerate(counts) if count}))
    assert made[0][0].common(made[1][0]) == len(made[0][1] & made[1][1])
    assert made[1][0].common(made[0][0]) == len(made[0][1] & made[1][1])


def test_acls_are_xattrs(images: Images, tree: Path) -> None:
    first = images.build(tree, "one")
    everyone = struct.pack("<HHI", 1, 6, 2**32 - 1) + struct.pack("<HHI", 2, 4, os.getuid())
    rest = b"".join(struct.pack("<HHI", tag, 4, 2**32 - 1) for tag in (4, 16, 32))
    os.setxattr(tree / "dir-not-below", "system.posix_acl_access", struct.pack("<I", 2) + everyone + rest)
    second = images.build(tree, "two")
    found = changes(diff_images(images.verified(first), images.verified(second)))
    assert found == {b"dir-not-below": ("changed", "xattrs")}
