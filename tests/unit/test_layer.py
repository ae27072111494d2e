"""Layers over each other: merged into one tree, and as trees for overlayfs. The kernel's say is in the peer tests."""

from __future__ import annotations

import stat

import pytest
from tests.support.tars import END, Read, content_of_node, directory, file, hard_link, header, pax, symlink

from eroseal.errors import FormatError
from eroseal.limits import MAX_DEPTH
from eroseal.tree.layer import Layer, Node
from eroseal.tree.overlay import OPAQUE_XATTR, merge, stacked


class Layers:
    """Layers of an image, the lowest first."""

    def __init__(self, *archives: bytes) -> None:
        self.reads = [
            Read(archive + END, container=True, source=number, name=f"layer {number}")
            for number, archive in enumerate(archives)
        ]
        self.layers: list[Layer] = [read.layer for read in self.reads]

    def text(self, node: Node) -> bytes:
        return content_of_node(node, {number: read.spool for number, read in enumerate(self.reads)})


def at(root: Node, path: bytes) -> Node:
    node = root
    for part in path.split(b"/"):
        assert node.children is not None
        node = node.children[part]
    return node


def paths(root: Node) -> set[bytes]:
    found = set()
    stack = [(b"", root)]
    while stack:
        path, node = stack.pop()
        if path:
            found.add(path)
        if node.children is not None:
            stack.extend((path + b"/" + name if path else name, child) for name, child in node.children.items())
    return found


def test_nothing_and_one_layer() -> None:
    assert merge([]).children == {}
    assert stacked([]) == []
    layers = Layers(file(b"a/b", b"x"))
    assert paths(merge(layers.layers)) == {b"a", b"a/b"}
    assert paths(stacked(layers.layers)[0]) == {b"a", b"a/b"}


def test_upper_files_replace_lower_ones() -> None:
    layers = Layers(
        file(b"d/a", b"1") + file(b"d/b", b"1") + directory(b"was-dir") + file(b"was-dir/x") + file(b"was-file"),
        file(b"d/b", b"2") + symlink(b"was-dir", b"d") + directory(b"was-file") + file(b"was-file/y", b"2"),
    )
    merged = merge(layers.layers)
    assert paths(merged) == {b"d", b"d/a", b"d/b", b"was-dir", b"was-file", b"was-file/y"}
    assert layers.text(at(merged, b"d/b")) == b"2"
    assert stat.S_ISLNK(at(merged, b"was-dir").inode.mode)
    upper = stacked(layers.layers)[1]
    assert paths(upper) == {b"d", b"d/b", b"was-dir", b"was-file", b"was-file/y"}
    assert at(upper, b"was-file").inode.xattrs == ()


def test_whiteouts() -> None:
    layers = Layers(
        file(b"a") + file(b"d/x") + file(b"d/y"),
        file(b".wh.a") + file(b"d/.wh.x") + file(b"d/.wh.never-there") + file(b".wh.nor-this"),
        file(b"a", b"again"),
    )
    assert paths(merge(layers.layers[:2])) == {b"d", b"d/y"}
    assert paths(merge(layers.layers)) == {b"d", b"d/y", b"a"}
    trees = stacked(layers.layers)
    assert paths(trees[1]) == {b"a", b"d", b"d/x"}
    for path in (b"a", b"d/x"):
        inode = at(trees[1], path).inode
        assert (inode.mode, inode.rdev, inode.size, inode.xattrs) == (stat.S_IFCHR, (0, 0), 0, ())
    assert at(trees[1], b"a") is not at(trees[1], b"d/x")


def test_a_whiteout_of_a_directory_makes_the_new_one_opaque() -> None:
    layers = Layers(
        directory(b"d", mode=0o700) + file(b"d/x") + file(b"f"),
        file(b".wh.d") + file(b"d/y") + file(b".wh.f") + file(b"f", b"new"),
    )
    merged = merge(layers.layers)
    assert paths(merged) == {b"d", b"d/y", b"f"}
    assert at(merged, b"d").inode.mode == stat.S_IFDIR | 0o755
    upper = stacked(layers.layers)[1]
    assert at(upper, b"d").inode.xattrs == (OPAQUE_XATTR,)
    assert paths(upper) == {b"d", b"d/y", b"f"}


def test_opaque_directories() -> None:
    upper = directory(b"d", mode=0o711) + file(b"d/.wh..wh..opq") + file(b"d/.wh.x") + file(b"d/y")
    layers = Layers(directory(b"d") + file(b"d/x") + file(b"d/s/z"), upper, file(b"d/s/new"))
    assert paths(merge(layers.layers[:2])) == {b"d", b"d/y"}
    assert paths(merge(layers.layers)) == {b"d", b"d/y", b"d/s", b"d/s/new"}
    trees = stacked(layers.layers)
    assert at(trees[1], b"d").inode.xattrs == (OPAQUE_XATTR,)
    # Where overlayfs merges nothing, it would list a whiteout.
    assert paths(trees[1]) == {b"d", b"d/y"}
    assert at(trees[2], b"d").inode.xattrs == ()


def test_an_opaque_directory_keeps_its_xattrs() -> None:
    mark = pax((b"SCHILY.xattr.user.a", b"1"), (b"SCHILY.xattr.user.z", b"2"), (b"SCHILY.xattr.trusted.zz", b"3"))
    layers = Layers(file(b"d/x"), mark + directory(b"d") + file(b"d/.wh..wh..opq"))
    wanted = ((b"trusted.overlay.opaque", b"y"), (b"trusted.zz", b"3"), (b"user.a", b"1"), (b"user.z", b"2"))
    assert at(stacked(layers.layers)[1], b"d").inode.xattrs == wanted
    assert at(merge(layers.layers), b"d").inode.xattrs == wanted[1:]


def test_an_opaque_root() -> None:
    """overlayfs ignores the mark there, so a stack takes away name by name what it hides."""
    layers = Layers(
        file(b"a") + file(b"d/x") + file(b"e") + file(b"f/x"),
        file(b".wh..wh..opq") + file(b"b") + file(b"d/y") + file(b"e/z") + file(b"f"),
    )
    assert paths(merge(layers.layers)) == {b"b", b"d", b"d/y", b"e", b"e/z", b"f"}
    upper = stacked(layers.layers)[1]
    assert upper.inode.xattrs == ()
    assert paths(upper) == {b"a", b"b", b"d", b"d/y", b"e", b"e/z", b"f"}
    assert at(upper, b"a").inode.mode == stat.S_IFCHR
    assert at(upper, b"d").inode.xattrs == (OPAQUE_XATTR,)
    assert at(upper, b"e").inode.xattrs == ()


def test_a_file_between_two_directories_hides_the_lower() -> None:
    layers = Layers(file(b"d/x"), file(b"d"), file(b"d/y") + file(b"d/.wh.x"))
    assert paths(merge(layers.layers)) == {b"d", b"d/y"}
    assert paths(stacked(layers.layers)[2]) == {b"d", b"d/y"}


def test_attributes_of_directories_are_those_of_the_topmost_entry() -> None:
    layers = Layers(
        directory(b"./", mode=0o700, uid=1) + directory(b"d", mode=0o750, uid=7, mtime=5),
        file(b"d/x") + directory(b"d/e", mode=0o711),
        directory(b"d", mode=0o1777, mtime=6),
        file(b"d/e/y"),
    )
    trees = stacked(layers.layers)
    for tree in (merge(layers.layers), *trees):
        assert (tree.inode.mode, tree.inode.uid) == (stat.S_IFDIR | 0o700, 1)
    found = [(at(tree, b"d").inode.mode, at(tree, b"d").inode.uid, at(tree, b"d").inode.mtime) for tree in trees]
    old, new = (stat.S_IFDIR | 0o750, 7, 5), (stat.S_IFDIR | 0o1777, 0, 6)
    assert found == [old, old, new, new]
    assert at(trees[3], b"d/e").inode.mode == at(merge(layers.layers), b"d/e").inode.mode == stat.S_IFDIR | 0o711


def test_directories_that_no_layer_describes() -> None:
    layers = Layers(file(b"a/x"), file(b"a/y") + file(b"b/z"))
    for tree in (merge(layers.layers), stacked(layers.layers)[1]):
        for path in (b"a", b"b"):
            inode = at(tree, path).inode
            assert (inode.mode, inode.uid, inode.mtime) == (stat.S_IFDIR | 0o755, 0, 0)


def test_hard_links_within_a_layer() -> None:
    layers = Layers(file(b"a", b"x") + hard_link(b"b", b"a"), file(b"c", b"y") + hard_link(b"a", b"c"))
    merged = merge(layers.layers)
    assert at(merged, b"a") is at(merged, b"c")
    assert layers.text(at(merged, b"b")) == b"x"
    trees = stacked(layers.layers)
    assert at(trees[0], b"a") is at(trees[0], b"b")
    assert at(trees[1], b"a") is at(trees[1], b"c")


def test_hard_links_across_layers() -> None:
    layers = Layers(
        file(b"d/a", b"x", uid=5)
        + hard_link(b"b", b"d/a")
        + symlink(b"s", b"t")
        + header(b"n", kind=b"3", rdev=(1, 3)),
        hard_link(b"c", b"d/a") + hard_link(b"e", b"./b") + hard_link(b"s2", b"s") + hard_link(b"n2", b"n"),
        file(b"d/a", b"new") + hard_link(b"f", b"d/a") + hard_link(b"g", b"c"),
    )
    merged = merge(layers.layers)
    assert len({id(at(merged, path)) for path in (b"b", b"c", b"e", b"g")}) == 1
    assert at(merged, b"d/a") is at(merged, b"f")
    assert at(merged, b"s") is at(merged, b"s2")
    assert layers.text(at(merged, b"g")) == b"x"
    trees = stacked(layers.layers)
    copy = at(trees[1], b"c")
    assert copy is at(trees[1], b"e")
    assert copy is not at(trees[0], b"b")
    assert copy.inode is not at(trees[0], b"b").inode
    assert (copy.inode.uid, copy.content, layers.text(copy)) == (5, at(trees[0], b"b").content, b"x")
    assert at(trees[1], b"s2").inode.target == b"t"
    assert at(trees[1], b"n2").inode.rdev == (1, 3)
    assert layers.text(at(trees[2], b"g")) == b"x"
    assert all(node.link is None for node in (copy, at(merged, b"c")))


def test_links_see_what_is_below_their_own_layer() -> None:
    layers = Layers(file(b"a", b"x"), hard_link(b"b", b"a") + file(b".wh.a"), hard_link(b"c", b"b"))
    merged = merge(layers.layers)
    assert paths(merged) == {b"b", b"c"}
    assert layers.text(at(merged, b"c")) == b"x"


@pytest.mark.parametrize(
    ("lower", "link", "match"),
    [
        (file(b"other"), b"missing", "missing, which no lower layer has"),
        (file(b"a") + file(b"gone"), b"a/x", "which no lower layer has"),
        (symlink(b"s", b"d") + file(b"d/x"), b"s/x", "which no lower layer has"),
        (directory(b"d"), b"d", "is a directory"),
    ],
)
def test_links_to_nothing(lower: bytes, link: bytes, match: str) -> None:
    layers = Layers(lower, hard_link(b"h", link))
    for work in (merge, stacked):
        with pytest.raises(FormatError, match=match) as caught:
            work(layers.layers)
        assert caught.value.where == "layer 1"
    with pytest.raises(FormatError, match="no lower layer"):
        merge(Layers(hard_link(b"h", b"h")).layers)


def test_links_to_what_was_taken_away() -> None:
    layers = Layers(file(b"a", b"x"), file(b".wh.a"), hard_link(b"h", b"a"))
    with pytest.raises(FormatError, match="layer 2: a hard link to a, which no lower layer has"):
        merge(layers.layers)


def test_layers_stay_as_they_are() -> None:
    archives = (
        directory(b"d", mode=0o700) + file(b"d/x", b"1"),
        file(b"d/.wh..wh..opq") + file(b"d/y") + hard_link(b"h", b"d/x"),
        file(b".wh.h") + file(b"d/z"),
    )
    layers = Layers(*archives)
    before = [paths(layer.root) for layer in layers.layers]
    first, again = merge(layers.layers), merge(layers.layers)
    stacked(layers.layers)
    assert paths(first) == paths(again) == paths(merge(layers.layers))
    assert [paths(layer.root) for layer in layers.layers] == before
    assert at(layers.layers[1].root, b"d").opaque
    assert at(layers.layers[1].root, b"d").inode.xattrs == ()


def test_deep_and_wide_trees() -> None:
    deep = b"/".join([b"d"] * (MAX_DEPTH - 1))
    wide = b"".join(file(b"w/%d" % number) for number in range(5000))
    layers = Layers(pax((b"path", deep + b"/f")) + file(b"x") + wide, pax((b"path", deep + b"/.wh.f")) + file(b"x"))
    merged = merge(layers.layers)
    assert at(merged, deep).children == {}
    assert len(at(merged, b"w").children or ()) == 5000
    assert stat.S_ISCHR(at(stacked(layers.layers)[1], deep + b"/f").inode.mode)


def test_no_two_trees_of_a_stack_share_an_inode() -> None:
    layers = Layers(
        directory(b"d") + file(b"d/x") + file(b"e/y"),
        file(b"d/z") + hard_link(b"h", b"d/x") + file(b"e/.wh.y"),
        file(b"d/q") + hard_link(b"i", b"h") + file(b"e/.wh..wh..opq"),
    )
    seen: set[int] = set()
    for tree in stacked(layers.layers):
        inodes = {id(tree.inode)} | {id(at(tree, path).inode) for path in paths(tree)}
        assert not inodes & seen
        seen |= inodes
