"""What a stack of layers shows, rule by rule, on images made byte by byte; the kernel judges in tests/containers."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import pytest
from tests.unit.reader_images import DIR, LNK, NULL, REG, Mini, Source, dirents, xattr_area

from eroseal.errors import FormatError, NotFoundError, UsageError
from eroseal.format.erofs import DeviceSlot, encode_rdev
from eroseal.image.reader import ImageReader
from eroseal.image.stack import StackReader
from eroseal.readat import BytesAt
from eroseal.trust.image import VerifiedImage

TRUSTED, USER, HIDDEN = 4, 1, 0
Xattrs = tuple[tuple[int, bytes, bytes], ...]
OPAQUE: Xattrs = ((TRUSTED, b"overlay.opaque", b"y"),)


@dataclass(frozen=True)
class File:
    """Anything but a directory."""

    data: bytes = b""
    mode: int = REG
    rdev: tuple[int, int] = (0, 0)
    xattrs: Xattrs = ()
    uid: int = 0


@dataclass(frozen=True)
class Dir:
    """A directory."""

    children: Mapping[str, File | Dir] = field(default_factory=dict)
    xattrs: Xattrs = ()
    mode: int = DIR
    uid: int = 0


WHITEOUT = File(mode=stat.S_IFCHR)


def link(target: str) -> File:
    return File(target.encode(), LNK)


def image(root: Dir, slots: int = 0) -> bytes:
    """A layer: whatever a file is, it has one name."""
    mini = Mini(blocks=16, slots=[DeviceSlot(b"", 1, 16 + slot) for slot in range(slots)])
    mini.at = 8192
    _fill(mini, root, at=40 * 32)
    return mini.image()


def _fill(mini: Mini, node: File | Dir, at: int | None = None) -> int:
    xattrs = xattr_area(*node.xattrs) if node.xattrs else b""
    if isinstance(node, File):
        u = encode_rdev(*node.rdev) if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode) else NULL
        return mini.place(node.mode, tail=node.data, u=u, xattrs=xattrs, uid=node.uid)
    children = {name.encode(): (_fill(mini, child), child.mode) for name, child in node.children.items()}
    entries = sorted((name, nid, mode) for name, (nid, mode) in children.items())
    # No directory is empty on the disk, and the reader does not ask where ".." leads.
    return mini.place(
        node.mode, tail=dirents([(b".", 40, DIR), (b"..", 40, DIR), *entries]), xattrs=xattrs, at=at, uid=node.uid
    )


def reader(*layers: bytes, data: Mapping[int, tuple[bytes, ...]] | None = None) -> StackReader:
    """A stack of images, the lowest first."""
    sources = [
        Source(BytesAt(layer), tuple(map(BytesAt, (data or {}).get(number, ())))) for number, layer in enumerate(layers)
    ]
    return StackReader([cast(VerifiedImage, source) for source in sources])


def stack(*layers: Mapping[str, File | Dir]) -> StackReader:
    return reader(*(image(Dir(layer)) for layer in layers))


def seen(view: StackReader) -> dict[str, bytes | None]:
    """Every path but the root, with the bytes of files and None for directories; `child` must agree with `children`."""
    found = {}
    for path, inode in view.walk():
        assert view.lookup(path, follow=False) == inode
        if path:
            found[path.decode()] = None if inode.is_dir else view.read(inode, 0, inode.size)
    return found


def a(text: str = "a") -> File:
    return File(text.encode())


# --- the rules ---


def test_layers_show_through_and_upper_ones_win() -> None:
    view = stack(
        {"low": a("1"), "both": a("1"), "dir": Dir({"low": a("1"), "both": a("1")})},
        {"mid": a("2"), "dir": Dir({"mid": a("2")})},
        {"both": a("3"), "dir": Dir({"both": a("3"), "deep": Dir({"x": a("3")})})},
    )
    assert seen(view) == {
        "both": b"3",
        "dir": None,
        "dir/both": b"3",
        "dir/deep": None,
        "dir/deep/x": b"3",
        "dir/low": b"1",
        "dir/mid": b"2",
        "low": b"1",
        "mid": b"2",
    }


def test_attributes_are_those_of_the_topmost() -> None:
    low = Dir({"dir": Dir({"x": a()}, uid=1, xattrs=((USER, b"low", b"1"),))}, uid=1)
    top = Dir({"dir": Dir({}, uid=2, mode=stat.S_IFDIR | 0o700, xattrs=((USER, b"top", b"2"),))}, uid=2)
    view = reader(image(low), image(top))
    directory = view.lookup(b"dir")
    assert (view.root().uid, directory.uid, directory.mode & 0o7777) == (2, 2, 0o700)
    assert view.xattrs(directory) == [(b"user.top", b"2")]
    assert view.read(view.lookup(b"dir/x"), 0, 9) == b"a"


def test_whiteouts_hide_whatever_is_below() -> None:
    view = stack(
        {"file": a(), "dir": Dir({"x": a()}), "kept": a(), "inner": Dir({"gone": a(), "kept": a()})},
        {"file": WHITEOUT, "dir": WHITEOUT, "never": WHITEOUT, "inner": Dir({"gone": WHITEOUT, "new": Dir()})},
    )
    assert seen(view) == {"inner": None, "inner/kept": b"a", "inner/new": None, "kept": b"a"}


def test_whiteouts_are_never_shown() -> None:
    """In the lowest layer, in a directory that is nowhere else, and in an opaque one."""
    view = stack(
        {"low": WHITEOUT, "dir": Dir({"low": WHITEOUT})},
        {"own": Dir({"x": WHITEOUT}), "opaque": Dir({"x": WHITEOUT}, OPAQUE)},
    )
    assert seen(view) == {"dir": None, "opaque": None, "own": None}
    with pytest.raises(NotFoundError, match="no such file"):
        view.lookup(b"low")
    with pytest.raises(NotFoundError, match="no such file"):
        view.lookup(b"own/x")


def test_what_was_taken_away_can_come_back() -> None:
    view = stack({"x": Dir({"old": a()}), "y": a("1")}, {"x": WHITEOUT, "y": WHITEOUT}, {"x": Dir({"new": a()})})
    assert seen(view) == {"x": None, "x/new": b"a"}


@pytest.mark.parametrize(
    "device", [File(mode=stat.S_IFCHR, rdev=(0, 1)), File(mode=stat.S_IFCHR, rdev=(1, 0)), File(mode=stat.S_IFBLK)]
)
def test_other_devices_are_no_whiteouts(device: File) -> None:
    view = stack({"x": a("below")}, {"x": device})
    assert view.lookup(b"x").mode == device.mode
    assert view.lookup(b"x").rdev == device.rdev


def test_opaque_directories_hide_what_lower_ones_hold() -> None:
    view = stack(
        {"dir": Dir({"one": a(), "sub": Dir({"deep": a()})}), "other": Dir({"one": a()})},
        {"dir": Dir({"two": a(), "sub": Dir()}, OPAQUE)},
        {"dir": Dir({"three": a()}), "other": Dir({"three": a()})},
    )
    assert seen(view) == {
        "dir": None,
        "dir/sub": None,
        "dir/three": b"a",
        "dir/two": b"a",
        "other": None,
        "other/one": b"a",
        "other/three": b"a",
    }


@pytest.mark.parametrize("value", [b"", b"n", b"Y", b"yy", b"y\0", b"x", b"\0"])
def test_other_values_do_not_make_a_directory_opaque(value: bytes) -> None:
    view = stack({"d": Dir({"x": a()})}, {"d": Dir({}, ((TRUSTED, b"overlay.opaque", value),))})
    assert seen(view) == {"d": None, "d/x": b"a"}
    assert view.xattrs(view.lookup(b"d")) == []


def test_marks_of_roots_and_of_files_mean_nothing() -> None:
    view = reader(image(Dir({"x": a(), "f": a("1")})), image(Dir({"f": File(b"2", xattrs=OPAQUE)}, OPAQUE)))
    assert seen(view) == {"f": b"2", "x": b"a"}
    assert view.xattrs(view.root()) == []
    assert view.xattrs(view.lookup(b"f")) == []


def test_the_users_own_marks_mean_nothing() -> None:
    marks = ((HIDDEN, b"trusted.overlay.opaque", b"y"), (USER, b"overlay.opaque", b"y"))
    view = stack({"d": Dir({"x": a()})}, {"d": Dir({}, marks)})
    assert seen(view) == {"d": None, "d/x": b"a"}
    assert view.xattrs(view.lookup(b"d")) == [(b"user.overlay.opaque", b"y")]


def test_directories_and_files_replace_each_other() -> None:
    back = stack({"x": Dir({"one": a()})}, {"x": a("file")}, {"x": Dir({"two": a()})})
    assert seen(back) == {"x": None, "x/two": b"a"}
    forth = stack({"x": a("1")}, {"x": Dir({"one": a()})}, {"x": link("two")})
    assert seen(forth) == {"x": b"two"}
    over = stack({"x": Dir({"one": a()})}, {"x": WHITEOUT}, {}, {"x": Dir()})
    assert seen(over) == {"x": None}
    under = stack({"x": a()}, {"x": Dir({"one": a()})})
    assert seen(under) == {"x": None, "x/one": b"a"}


def test_a_layer_may_be_there_twice() -> None:
    layer = image(Dir({"x": a(), "d": Dir({"y": a()})}))
    assert seen(reader(layer, layer, layer)) == seen(reader(layer))


def test_as_many_layers_as_a_stack_may_have() -> None:
    view = stack(*({f"n{number}": a(), "d": Dir({f"n{number}": a()})} for number in range(127)))
    assert len(seen(view)) == 2 * 127 + 1
    assert len({inode.nid for _, inode in view.walk()}) == 2 * 127 + 2


# --- marks that lead elsewhere ---


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("node", "mark"),
    [
        (Dir({}, ((TRUSTED, b"overlay.redirect", b"/elsewhere"),)), "redirect"),
        (File(b"data", xattrs=((TRUSTED, b"overlay.metacopy", b""),)), "metacopy"),
        (File(b"", xattrs=((TRUSTED, b"overlay.whiteout", b""),)), "whiteout"),
        (Dir({}, OPAQUE + OPAQUE), "opaque' repeats"),
    ],
)
def test_layers_that_lead_elsewhere_are_refused(number: int, node: File | Dir, mark: str) -> None:
    layers: list[dict[str, File | Dir]] = [{"other": a()}, {"other": a()}]
    layers[number]["x"] = node
    view = stack(*layers)
    with pytest.raises(FormatError, match=mark) as caught:
        view.lookup(b"x")
    assert caught.value.where is not None
    assert caught.value.where.startswith(f"layer {number + 1}, inode ")
    with pytest.raises(FormatError, match=mark):
        list(view.walk())
    assert view.read(view.lookup(b"other"), 0, 1) == b"a"


@pytest.mark.parametrize(
    "node",
    [
        File(b"data", xattrs=((TRUSTED, b"overlay.redirect", b"/x"), (TRUSTED, b"overlay.whiteout", b""))),
        Dir({}, ((TRUSTED, b"overlay.metacopy", b""), (TRUSTED, b"overlay.whiteout", b""))),
        Dir({}, ((TRUSTED, b"overlay.origin", b"handle"), (TRUSTED, b"overlay.impure", b"y"))),
    ],
)
def test_marks_that_lead_nowhere_are_passed_over(node: File | Dir) -> None:
    view = stack({}, {"x": node})
    assert list(seen(view)) == ["x"]
    assert view.xattrs(view.lookup(b"x")) == []


def test_hidden_marks_are_not_looked_at() -> None:
    redirect = Dir({"y": a()}, ((TRUSTED, b"overlay.redirect", b"/x"),))
    assert seen(stack({"x": redirect}, {"x": WHITEOUT})) == {}
    assert seen(stack({"x": redirect}, {"x": a()})) == {"x": b"a"}
    assert seen(stack({"x": redirect}, {"x": Dir({}, OPAQUE)})) == {"x": None}
    with pytest.raises(FormatError, match="redirect"):
        seen(stack({"x": redirect}, {"x": Dir()}))


def test_marks_for_another_overlay_are_shown_unescaped() -> None:
    xattrs = (
        (TRUSTED, b"overlay.overlay.opaque", b"y"),
        (TRUSTED, b"overlay.overlay.overlay.x", b"2"),
        (TRUSTED, b"overlayed", b"3"),
        (TRUSTED, b"overlay.", b"4"),
        (USER, b"z", b"5"),
    )
    view = stack({"d": Dir({"x": a()})}, {"d": Dir({}, xattrs)})
    assert seen(view) == {"d": None, "d/x": b"a"}
    assert view.xattrs(view.lookup(b"d")) == [
        (b"trusted.overlay.opaque", b"y"),
        (b"trusted.overlay.overlay.x", b"2"),
        (b"trusted.overlayed", b"3"),
        (b"user.z", b"5"),
    ]


# --- paths ---


def test_symlinks_lead_through_all_layers() -> None:
    view = stack(
        {"dir": Dir({"low": a("low")}), "there": link("dir"), "old": link("gone")},
        {"dir": Dir({"top": a("top"), "up": link("../there/low")}), "absolute": link("/there/top"), "gone": a("back")},
    )
    for path, data in ((b"there/low", b"low"), (b"there/top", b"top"), (b"dir/up", b"low"), (b"absolute", b"top")):
        assert view.read(view.lookup(path), 0, 9) == data
    assert view.read(view.lookup(b"/there/../old"), 0, 9) == b"back"
    assert view.lookup(b"there", follow=False).is_symlink
    assert view.lookup(b"there/").is_dir


def test_symlinks_that_turn_in_circles_end() -> None:
    view = stack({"a": link("b"), "b": a()}, {"b": link("c/x"), "c": link(".")}, {"x": link("a")})
    for path in (b"a", b"b", b"x", b"c/c/c/x"):
        with pytest.raises(NotFoundError, match="more than 40 symlinks"):
            view.lookup(path)
    assert sorted(seen(view)) == ["a", "b", "c", "x"]


def test_files_are_no_directories() -> None:
    view = stack({"x": Dir({"y": a()})}, {"x": a()})
    with pytest.raises(NotFoundError, match="not a directory"):
        view.lookup(b"x/y")
    with pytest.raises(NotFoundError, match="not a directory"):
        view.lookup(b"x/")


# --- inodes and data ---


def test_inodes_of_different_layers_differ() -> None:
    same = {"x": a("same"), "d": Dir({"y": a("same")})}
    view = stack(same, {}, {**same, "x": a("none")})
    single = stack(same)
    assert len({inode.nid for _, inode in view.walk()}) == 4
    low, top = reader(image(Dir({"one": a()}))), reader(image(Dir()), image(Dir({"two": a()})))
    assert low.lookup(b"one").nid != top.lookup(b"two").nid
    assert [inode.nid for _, inode in single.walk()] == [inode.nid for _, inode in single.layers[0].walk()]


def test_hard_links_stay_within_their_layer() -> None:
    def linked(names: list[bytes], data: bytes) -> bytes:
        mini = Mini()
        nid = mini.place(REG, tail=data, nlink=len(names))
        for name in names:
            mini.add(name, REG, nid)
        mini.root()
        return mini.image()

    view = reader(linked([b"a", b"b", b"d"], b"low"), linked([b"b", b"c"], b"top"))
    nids = {name: view.lookup(name).nid for name in (b"a", b"b", b"c", b"d")}
    assert nids[b"a"] == nids[b"d"] != nids[b"b"] == nids[b"c"]
    assert seen(view) == {"a": b"low", "b": b"top", "c": b"top", "d": b"low"}


def test_extents_count_the_devices_of_all_layers() -> None:
    def layer(name: bytes) -> bytes:
        mini = Mini(slots=[DeviceSlot(b"", 1, 4), DeviceSlot(b"", 1, 5)])
        nid = mini.chunked(3 * 4096, 0, [(2, 0), (0, NULL), (1, 0)])
        mini.add(name, REG, nid)
        mini.root()
        return mini.image()

    blocks = [bytes([number]) * 4096 for number in range(1, 5)]
    view = reader(layer(b"low"), layer(b"top"), data={0: tuple(blocks[:2]), 1: tuple(blocks[2:])})
    assert len(view.blob_keys) == 6
    low, top = view.lookup(b"low"), view.lookup(b"top")
    assert [extent.device for extent in view.extents(low)] == [2, None, 1]
    assert [extent.device for extent in view.extents(top)] == [5, None, 4]
    assert view.read(low, 0, 1 << 20) == blocks[1] + bytes(4096) + blocks[0]
    assert view.read(top, 0, 1 << 20) == blocks[3] + bytes(4096) + blocks[2]
    assert [extent.logical for extent in view.extents(top)] == [0, 4096, 8192]
    assert view.inline_size(top) == 0
    assert view.inline_size(view.root()) == view.root().size


def test_inodes_of_something_else_are_refused() -> None:
    view = stack({"x": a()})
    plain = view.layers[0].root()
    for use in (
        view.xattrs,
        view.readlink,
        lambda inode: list(view.children(inode)),
        lambda inode: view.child(inode, b"x"),
    ):
        with pytest.raises(UsageError, match="not an inode of a stack"):
            use(plain)


# --- hostile layers ---


def looping() -> bytes:
    """A layer whose directory `d` holds itself."""
    mini = Mini()
    nid = mini.at // 32
    mini.place(DIR, tail=dirents([(b".", nid, DIR), (b"..", 40, DIR), (b"d", nid, DIR)]))
    mini.add(b"d", DIR, nid)
    mini.root()
    return mini.image()


def test_a_directory_within_itself_ends_a_walk() -> None:
    plain = image(Dir({"d": Dir({"d": Dir({"d": Dir({"x": a()})})})}))
    for layers in ((looping(), plain), (plain, looping()), (looping(), looping())):
        view = reader(*layers)
        assert view.lookup(b"d/d/d").is_dir
        with pytest.raises(FormatError, match="cycle"):
            list(view.walk())
    covered = reader(looping(), image(Dir({"d": Dir({"d": WHITEOUT})})))
    assert seen(covered) == {"d": None}


def test_a_directory_with_two_names_is_refused() -> None:
    mini = Mini()
    nid = mini.place(DIR, tail=dirents([(b".", 40, DIR), (b"..", 40, DIR)]))
    mini.add(b"one", DIR, nid)
    mini.add(b"two", DIR, nid)
    mini.root()
    with pytest.raises(FormatError, match="more than one name"):
        list(reader(image(Dir({"one": Dir(), "two": Dir()})), mini.image()).walk())


def test_a_root_that_is_no_directory_is_refused() -> None:
    mini = Mini()
    mini.place(REG, tail=b"x", at=40 * 32)
    view = reader(image(Dir()), mini.image())
    with pytest.raises(FormatError, match="root is not a directory") as caught:
        view.root()
    assert caught.value.where == "layer 2, inode 40"


def test_a_broken_lower_directory_is_refused_where_it_shows() -> None:
    mini = Mini()
    nid = mini.place(DIR, tail=dirents([(b"b", 40, DIR), (b"a", 40, DIR)]))
    mini.add(b"d", DIR, nid)
    mini.root()
    broken = mini.image()
    with pytest.raises(FormatError, match="unsorted"):
        seen(reader(broken, image(Dir({"d": Dir()}))))
    assert seen(reader(broken, image(Dir({"d": Dir({}, OPAQUE)})))) == {"d": None}


def test_a_layer_that_is_no_image_is_refused() -> None:
    with pytest.raises(FormatError):
        reader(image(Dir()), bytes(8192))


def test_a_single_image_reads_the_same_alone() -> None:
    layer = image(Dir({"d": Dir({"x": a("one"), "l": link("x")}), "y": a("two")}))
    alone = ImageReader(cast(VerifiedImage, Source(BytesAt(layer))))
    together = reader(layer)
    assert [path for path, _ in alone.walk()] == [path for path, _ in together.walk()]
    assert together.readlink(together.lookup(b"d/l", follow=False)) == b"x"
