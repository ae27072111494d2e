"""Reading archives into layers: what each kind of member becomes, and everything that an archive must not do."""

from __future__ import annotations

import gzip
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.tars import (
    END,
    Read,
    directory,
    file,
    gnu_long,
    hard_link,
    header,
    old_sparse,
    padded,
    pax,
    raw_pax,
    split,
    symlink,
)
from tests.support.trees import assert_same, ranges_of

from eroseal import limits
from eroseal.errors import ErosealError, FormatError, OutputError, RemoteError, UnsupportedError
from eroseal.tree import archive_members, archive_names
from eroseal.tree.archive import LARGE, read_archive
from eroseal.tree.archive_stream import ALIGNMENT
from eroseal.tree.layer import WHITEOUT

MIB = 1 << 20


def refused(data: bytes, match: str, *, container: bool = False, kind: type[ErosealError] = FormatError) -> None:
    """Check that an archive is refused, whole and in pieces, with its name in the message."""
    for pieces in ([data], split(data, 100)):
        with pytest.raises(kind, match=match) as caught:
            Read(pieces, container=container)
        assert type(caught.value) is kind
        assert caught.value.where is not None
        assert caught.value.where.startswith("test.tar")


# --- what becomes of members --------------------------------------------------------------------
def test_every_kind() -> None:
    read = Read(
        directory(b"d/", mode=0o1777, uid=1, gid=2, mtime=3)
        + file(b"d/f", b"data", mode=0o104755)
        + file(b"d/empty")
        + file(b"old", b"x", kind=b"\0")
        + file(b"contiguous", b"y", kind=b"7")
        + header(b"olddir/", kind=b"\0")
        + header(b"newdir/", kind=b"0")
        + symlink(b"s", b"../anywhere", mode=0o600)
        + hard_link(b"h", b"d/f", mode=0, uid=9)
        + hard_link(b"hs", b"s")
        + header(b"c", kind=b"3", rdev=(4095, (1 << 20) - 1))
        + header(b"b", kind=b"4", rdev=(8, 1))
        + header(b"p", kind=b"6", mode=0o600)
        + header(b"a label", kind=b"V", magic=b"ustar  \0")
        + END
    )
    root = read.layer.root
    assert root.implicit
    assert root.inode.mode == stat.S_IFDIR | 0o755
    assert root.children is not None
    assert set(root.children) == {
        b"d", b"old", b"contiguous", b"olddir", b"newdir", b"s", b"h", b"hs", b"c", b"b", b"p"
    }  # fmt: skip
    d = read.node(b"d")
    assert (d.inode.mode, d.inode.uid, d.inode.gid, d.inode.mtime) == (stat.S_IFDIR | 0o1777, 1, 2, 3)
    assert not d.implicit
    assert read.node(b"d/f").inode.mode == stat.S_IFREG | 0o4755
    assert read.content(b"d/f") == b"data"
    assert read.node(b"d/empty").content is None
    assert (read.content(b"old"), read.content(b"contiguous")) == (b"x", b"y")
    assert read.node(b"olddir").children == read.node(b"newdir").children == {}
    s = read.node(b"s").inode
    assert (s.mode, s.target, s.size) == (stat.S_IFLNK | 0o777, b"../anywhere", 11)
    assert read.node(b"h") is read.node(b"d/f")
    assert read.node(b"hs") is read.node(b"s")
    assert (read.node(b"c").inode.mode, read.node(b"c").inode.rdev) == (stat.S_IFCHR | 0o644, (4095, (1 << 20) - 1))
    assert (read.node(b"b").inode.mode, read.node(b"b").inode.rdev) == (stat.S_IFBLK | 0o644, (8, 1))
    assert read.node(b"p").inode.mode == stat.S_IFIFO | 0o600
    assert (read.layer.entries, read.layer.content_bytes) == (14, 6)


def test_names_are_written_in_many_ways() -> None:
    plain = Read(directory(b"a") + directory(b"a/b") + file(b"a/b/c", b"x") + file(b"a/d", b"y") + END)
    odd = Read(
        directory(b"./")
        + directory(b"./a/.")
        + directory(b"a//b///")
        + file(b".//a/./b/c", b"x")
        + file(b"./a//d", b"y")
        + END
    )
    odd.layer.root.inode = plain.layer.root.inode
    assert_same(odd.tree(), plain.tree())


def test_the_root_may_have_an_entry() -> None:
    for name in (b".", b"./", b"./.", b"././/"):
        root = Read(directory(name, mode=0o700, mtime=5) + END).layer.root
        assert (root.implicit, root.inode.mode, root.inode.mtime) == (False, stat.S_IFDIR | 0o700, 5)


def test_later_entries_replace_earlier_ones() -> None:
    read = Read(
        file(b"f", b"first")
        + file(b"f", b"second")
        + directory(b"d", mode=0o700)
        + file(b"d/x", b"stays")
        + directory(b"d", mode=0o750)
        + directory(b"gone")
        + file(b"gone/x", b"goes")
        + file(b"gone", b"file")
        + file(b"was-file")
        + directory(b"was-file")
        + file(b"was-file/x", b"in it")
        + directory(b"again")
        + file(b"again/x")
        + symlink(b"again", b"d")
        + directory(b"again")
        + file(b"again/y", b"new")
        + END
    )
    assert read.content(b"f") == b"second"
    assert read.node(b"d").inode.mode == stat.S_IFDIR | 0o750
    assert read.content(b"d/x") == b"stays"
    assert read.content(b"gone") == b"file"
    assert read.content(b"was-file/x") == b"in it"
    assert read.node(b"again").children == {b"y": read.node(b"again/y")}


def test_directories_that_no_entry_describes() -> None:
    read = Read(file(b"a/b/c", b"x") + directory(b"a", mode=0o700) + END)
    b = read.node(b"a/b")
    assert (b.implicit, b.inode.mode, b.inode.uid, b.inode.mtime) == (True, stat.S_IFDIR | 0o755, 0, 0)
    assert (read.node(b"a").implicit, read.node(b"a").inode.mode) == (False, stat.S_IFDIR | 0o700)


def test_hard_links_keep_what_is_replaced() -> None:
    read = Read(file(b"a", b"one") + hard_link(b"b", b"./a") + file(b"a", b"two") + hard_link(b"b", b"b") + END)
    assert (read.content(b"a"), read.content(b"b")) == (b"two", b"one")


def test_long_names() -> None:
    long = b"d" * 200 + b"/" + b"n" * 250
    for before in (gnu_long(long), pax((b"path", long)), gnu_long(b"forgotten") + gnu_long(long)):
        assert Read(before + file(b"short", b"x") + END).content(long) == b"x"
    target = b"t/" * 2000 + b"t"
    for before in (gnu_long(target, b"K"), pax((b"linkpath", target))):
        assert Read(before + symlink(b"s", b"short") + END).node(b"s").inode.target == target
    both = gnu_long(b"l" * 150, b"K") + gnu_long(long)
    read = Read(file(b"l" * 100) + pax((b"path", b"l" * 150)) + file(b"x") + both + hard_link(b"short", b"short") + END)
    assert read.node(long) is read.node(b"l" * 150)


def test_pax_headers_override() -> None:
    own = pax((b"uid", b"4294967295"), (b"gid", b"70000"), (b"mtime", b"-1.25"), (b"size", b"3"))
    read = Read(own + header(b"a", size=9, uid=1) + padded(b"abc") + file(b"b", b"x", uid=1) + END)
    a, b = read.node(b"a").inode, read.node(b"b").inode
    assert (a.uid, a.gid, a.mtime, a.mtime_nsec, a.size) == ((1 << 32) - 1, 70000, -2, 750_000_000, 3)
    assert (b.uid, b.gid, b.mtime, b.mtime_nsec, b.size) == (1, 0, 0, 0, 1)


def test_global_headers_last() -> None:
    read = Read(
        pax((b"mtime", b"7"), (b"uid", b"1"), kind=b"g")
        + file(b"a")
        + pax((b"mtime", b"8.5"))
        + file(b"b")
        + pax((b"uid", b"2"), (b"comment", b"x"), kind=b"g")
        + file(b"c")
        + END
    )
    found = [(read.node(name).inode.mtime, read.node(name).inode.uid) for name in (b"a", b"b", b"c")]
    assert found == [(7, 1), (8, 1), (7, 2)]


def test_xattrs_that_are_kept_and_dropped() -> None:
    member = pax(
        (b"SCHILY.xattr.user.b", b"\0\xff\n"),
        (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
        (b"SCHILY.xattr.security.capability", b"cap"),
        (b"SCHILY.xattr.system.posix_acl_access", b"acl"),
        (b"SCHILY.xattr.system.nfs4_acl", b"no"),
        (b"LIBARCHIVE.xattr.com.apple.quarantine", b"bm8"),
        (b"SCHILY.acl.access", b"user::rwx"),
    )
    read = Read(member + file(b"a") + member + file(b"b") + END)
    kept = (
        (b"security.capability", b"cap"),
        (b"system.posix_acl_access", b"acl"),
        (b"trusted.overlay.opaque", b"y"),
        (b"user.b", b"\0\xff\n"),
    )
    assert read.node(b"a").inode.xattrs == kept
    assert read.node(b"a").inode.xattrs is read.node(b"b").inode.xattrs
    assert [(warning.path, warning.count) for warning in read.layer.warnings] == [(b"a", 2)] * 3
    assert "SCHILY.acl.access" in read.layer.warnings[0].what
    # A container's layer must not say what only overlayfs says.
    layered = Read(member + file(b"a") + END, container=True)
    assert layered.node(b"a").inode.xattrs == (kept[0], kept[1], kept[3])
    assert len(layered.layer.warnings) == 4


def test_warnings_have_a_bound() -> None:
    members = b"".join(pax((b"SCHILY.xattr.x%d.y" % number, b"")) + file(b"%d" % number) for number in range(300))
    warnings = Read(members + END).layer.warnings
    assert len(warnings) == 101
    assert sum(warning.count for warning in warnings) == 300


# --- contents -----------------------------------------------------------------------------------
def test_contents_of_all_sizes() -> None:
    sizes = [0, 1, 511, 512, 513, LARGE - 1, LARGE, LARGE + 1, 3 * MIB, 5, 4096]
    contents = {b"f%d" % number: os.urandom(size) for number, size in enumerate(sizes)}
    archive = b"".join(file(name, data) for name, data in contents.items()) + END
    for size in (100_000, MIB, len(archive)):
        read = Read(split(archive, size), source=3)
        assert {name: read.content(name) for name in contents} == contents
    for number, size in enumerate(sizes):
        content = read.node(b"f%d" % number).content
        assert (content is None) == (size == 0)
        if content is not None:
            assert content.source == 3
            assert size <= LARGE or content.offset % ALIGNMENT == 0


def test_byte_by_byte_is_the_same(tmp_path: Path) -> None:
    archive = (
        pax((b"SCHILY.xattr.user.x", b"1"), (b"mtime", b"1.5"))
        + file(b"a", b"x" * 1000)
        + gnu_long(b"n" * 150)
        + file(b"n", b"y" * 513)
        + old_sparse(b"s", [(number * 8192, b"z" * 100) for number in range(30)], MIB)
        + END
        + bytes(3000)
    )
    seen: list[bytes] = []
    counted: list[int] = []
    pieces = Read(split(archive, 1), tap=seen.append, progress=counted.append)
    assert_same(pieces.tree(), Read(archive).tree())
    assert b"".join(seen) == archive
    assert sum(counted) == len(archive)


def sparse_members() -> Iterator[tuple[str, bytes]]:
    """Yield a file of 3 MiB with data at 4096 (5 bytes) and 2 MiB (4096 bytes), in all formats."""
    first, second = b"data!", b"\1" * 4096
    pieces = [(4096, first), (2 * MIB, second), (3 * MIB, b"")]
    stored = first + second
    numbers = [(offset, len(data)) for offset, data in pieces]
    yield "old", old_sparse(b"s", pieces, 3 * MIB)
    size = (b"GNU.sparse.size", b"%d" % (3 * MIB))
    count = (b"GNU.sparse.numblocks", b"3")
    pairs = [
        pair
        for offset, length in numbers
        for pair in ((b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % length))
    ]
    yield "0.0", pax(size, count, *pairs) + file(b"s", stored)
    text = b",".join(b"%d,%d" % pair for pair in numbers)
    named = (b"GNU.sparse.name", b"s")
    yield "0.1", pax(size, count, named, (b"GNU.sparse.map", text)) + file(b"GNUSparseFile.1/s", stored)
    version = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % (3 * MIB)))
    table = padded(b"3\n" + b"".join(b"%d\n%d\n" % pair for pair in numbers))
    yield "1.0", pax(*version, named, (b"path", b"GNUSparseFile.1/s")) + file(b"s", table + stored)


@pytest.mark.parametrize(("form", "member"), list(sparse_members()), ids=["old", "0.0", "0.1", "1.0"])
def test_sparse_files(tmp_path: Path, form: str, member: bytes) -> None:
    wanted = bytearray(3 * MIB)
    wanted[4096:4101] = b"data!"
    wanted[2 * MIB : 2 * MIB + 4096] = b"\1" * 4096
    archive = file(b"before", b"x") + member + file(b"behind", b"y") + END
    for size in (100, MIB):
        read = Read(split(archive, size))
        assert read.content(b"s") == wanted
        assert (read.content(b"before"), read.content(b"behind")) == (b"x", b"y")
        assert read.layer.content_bytes == 3 * MIB + 2
    spool = tmp_path / "spool"
    with spool.open("wb") as target:
        layer = read_archive([member + END], spool=target.fileno())
    assert layer.root.children is not None
    content = layer.root.children[b"s"].content
    assert content is not None
    # Holes stay holes, the one at the end is there, and all is on the blocks where it was.
    assert spool.stat().st_size == content.offset + 3 * MIB
    assert [start - content.offset for start, _ in ranges_of(spool)] == [4096, 2 * MIB]


def test_a_file_of_nothing_but_a_hole() -> None:
    read = Read(old_sparse(b"s", [], MIB) + END)
    assert read.content(b"s") == bytes(MIB)


# --- the end ------------------------------------------------------------------------------------
@pytest.mark.parametrize("end", [b"", bytes(512), END, bytes(10240)])
def test_ends(end: bytes) -> None:
    seen: list[bytes] = []
    archive = file(b"f", b"x") + end
    for pieces in ([archive], split(archive, 100)):
        seen.clear()
        assert Read(pieces, tap=seen.append).content(b"f") == b"x"
        assert b"".join(seen) == archive


def test_an_empty_archive_has_an_end() -> None:
    assert Read(END).layer.entries == 0
    assert Read(b"", container=True).layer.entries == 0
    refused(b"", "is empty")
    refused(gzip.compress(b""), "is empty")


def test_truncated_archives() -> None:
    archive = file(b"a", b"x" * 700) + pax((b"mtime", b"1")) + file(b"b", b"y" * 10)
    for end in range(32, len(archive), 32):
        if end == 512 + 1024:
            assert Read(archive[:end]).layer.entries == 1
        else:
            with pytest.raises(FormatError, match="truncated"):
                Read(archive[:end])
    assert Read(archive).layer.entries == 2


@pytest.mark.parametrize("size", [1, 700, LARGE + 1])
def test_only_layers_may_lack_the_last_padding(size: int) -> None:
    archive = file(b"a", b"x" * size)
    without = archive[: 512 + size]
    assert Read(without, container=True).content(b"a") == b"x" * size
    with pytest.raises(FormatError, match="truncated"):
        Read(without)
    for pieces in ([without[:-1]], split(without[:-1], 1000)):
        with pytest.raises(FormatError, match="truncated"):
            Read(pieces, container=True)


def test_truncated_in_a_large_file() -> None:
    refused(header(b"f", size=3 * MIB) + bytes(2 * MIB), "truncated")
    refused(header(b"f", size=1 << 39), "f: truncated")
    refused(file(b"f", b"x" * (MIB + 1))[:-1], "truncated")


def test_zeros_in_the_middle() -> None:
    refused(file(b"a") + bytes(512) + file(b"b") + END, "zeros in the middle")


def test_what_follows_the_end_is_left_alone_in_layers_only() -> None:
    archive = file(b"f", b"x") + END + b"anything" * 100
    assert Read(archive, container=True).content(b"f") == b"x"
    refused(archive, "something follows the archive's end")
    refused(file(b"f", b"x") + END + file(b"g", b"y") + END, "something follows the archive's end")


def test_what_follows_the_end_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Read(gzip.compress(END) + gzip.compress(b"") * 10).layer.entries == 0

    def endless() -> Iterator[bytes]:
        yield END
        while True:
            yield bytes(MIB)

    with pytest.raises(FormatError, match="follow the archive's end"):
        Read(endless())


def test_garbage() -> None:
    refused(b"garbage" * 1000, "byte 0: no tar header")
    refused(file(b"a") + b"garbage!" * 64, "byte 512: no tar header")
    refused(b"<html>" + bytes(506), "no tar header")


# --- hostile names ------------------------------------------------------------------------------
@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize(
    "name",
    [b"..", b"../x", b"a/../x", b"a/..", b"./..", b"a/../", b"a/.././", b"x/../../etc/passwd", b"a/..//b"],
)
def test_names_that_lead_out(name: bytes, container: bool) -> None:
    for member in (file(name, b"x"), directory(name), symlink(name, b"t"), pax((b"path", name)) + file(b"x")):
        refused(file(b"a/y") + member + END, r"'\.\.'|cannot have any", container=container)
    refused(file(b"a/y") + hard_link(b"l", name) + END, r"l: a path with '\.\.'", container=container)


def test_absolute_names() -> None:
    for name in (b"/etc/passwd", b"//x", b"/", b"/.", b"/x/"):
        refused(file(b"x") + directory(name) + END, "an absolute name .*without -P")
    refused(file(b"x") + hard_link(b"y", b"/x") + END, "absolute name")
    read = Read(
        file(b"/etc/x", b"1") + directory(b"/", mode=0o700) + hard_link(b"//y", b"/etc/x") + END, container=True
    )
    assert read.node(b"y") is read.node(b"etc/x")
    assert read.layer.root.inode.mode == stat.S_IFDIR | 0o700


def test_empty_names() -> None:
    refused(header(b"") + END, "empty name")
    refused(gnu_long(b"") + file(b"x") + END, "empty name")


def test_nul_in_names() -> None:
    refused(pax((b"path", b"a\0b")) + file(b"x") + END, "has a NUL")
    refused(pax((b"linkpath", b"a\0b")) + symlink(b"x", b"y") + END, "has a NUL")


def test_long_components() -> None:
    assert Read(pax((b"path", b"n" * 255)) + file(b"x") + END).node(b"n" * 255)
    for name in (b"n" * 256, b"n" * 256 + b"/x", b"x/" + b"n" * 256 + b"/"):
        refused(pax((b"path", name)) + directory(b"x") + END, "more than 255 bytes")
    refused(pax((b"linkpath", b"n" * 256)) + hard_link(b"x", b"y") + END, "more than 255 bytes", container=True)


def test_deep_trees() -> None:
    deepest = b"/".join([b"d"] * (limits.MAX_DEPTH - 1))
    read = Read(pax((b"path", deepest + b"/f")) + file(b"x", b"deep") + END)
    assert read.content(deepest + b"/f") == b"deep"
    refused(pax((b"path", deepest + b"/d/f")) + file(b"x") + END, "levels")
    refused(pax((b"path", deepest + b"/d/d/")) + directory(b"x") + END, "levels")
    refused(pax((b"linkpath", deepest + b"/d/d")) + hard_link(b"x", b"x") + END, "levels")


def test_names_of_slashes_cost_little() -> None:
    for name in (b"/" * MIB, b"a" + b"/" * MIB, b"./" * MIB, b"a/." * MIB + b"/"):
        container = name.startswith(b"/")
        try:
            Read(pax((b"path", name)) + directory(b"x") + END, container=container)
        except FormatError as error:
            assert "path of more than" in str(error)
        else:
            assert len(name) >= MIB


def test_entries_below_what_is_no_directory() -> None:
    for container in (False, True):
        refused(symlink(b"s", b"/etc") + file(b"s/passwd") + END, "goes through the symlink s", container=container)
        refused(symlink(b"s", b"/etc") + directory(b"s/d/") + END, "goes through the symlink s", container=container)
        refused(file(b"f") + file(b"f/x") + END, "goes through the file f", container=container)
        refused(symlink(b"s", b".") + hard_link(b"h", b"s/s") + END, "no directory", container=container)
    # Also where the directory was there when it was entered last.
    refused(file(b"d/x") + symlink(b"d", b"/etc") + file(b"d/y") + END, "goes through the symlink d")
    refused(file(b"a/d/x") + symlink(b"a", b"/etc") + file(b"a/d/y") + END, "goes through the symlink a")


def test_the_root_stays_a_directory() -> None:
    for member in (symlink(b".", b"/"), file(b"./."), header(b".", kind=b"6")):
        refused(member + END, "root is no directory")
    refused(file(b"f") + hard_link(b".", b"f") + END, "root is no directory")
    refused(header(b"/", kind=b"3") + END, "root is no directory", container=True)


def test_hard_links_to_nothing() -> None:
    refused(hard_link(b"h", b"missing") + END, "not in the archive before it")
    refused(hard_link(b"h", b"later") + file(b"later") + END, "not in the archive before it")
    refused(hard_link(b"h", b"h") + END, "not in the archive before it")
    for container in (False, True):
        refused(hard_link(b"h", b"") + END, "hard link to nothing", container=container)
        refused(directory(b"d") + hard_link(b"h", b"d") + END, "which is a directory", container=container)
        refused(hard_link(b"h", b".") + END, "which is a directory", container=container)
        refused(file(b"d/x") + hard_link(b"h", b"d/") + END, "which is a directory", container=container)


# --- hostile numbers ----------------------------------------------------------------------------
def test_sizes_that_lie() -> None:
    refused(header(b"f", size=-1) + END, "-1 bytes of content")
    refused(header(b"f", size=limits.MAX_ARCHIVE_FILE + 1) + END, "bytes of content")
    refused(pax((b"size", b"9" * 20)) + file(b"f") + END, "bytes of content")
    refused(header(b"f", size=b"99999999999\0") + END, "malformed number")
    for kind in b"123456V":
        refused(header(b"m", kind=bytes([kind]), size=512, link=b"f") + bytes(512) + END, "cannot have any")
    refused(header(b"d/", size=512) + bytes(512) + END, "cannot have any")
    refused(pax((b"size", b"1")) + symlink(b"s", b"t") + END, "cannot have any")


def test_owners_and_times_beyond_their_bits() -> None:
    for owner in (1 << 32, -1):
        refused(file(b"f", uid=owner) + END, "beyond 32 bits")
        refused(file(b"f", gid=owner) + END, "beyond 32 bits")
    refused(pax((b"uid", b"4294967296")) + file(b"f") + END, "beyond 32 bits")
    refused(pax((b"gid", b"4294967296"), kind=b"g") + file(b"f") + END, "beyond 32 bits")
    for time in (1 << 63, -(1 << 63) - 1):
        refused(file(b"f", mtime=time) + END, "beyond 64 bits")
        refused(pax((b"mtime", b"%d" % time)) + file(b"f") + END, "beyond 64 bits")
    assert Read(file(b"f", mtime=-(1 << 63)) + END).node(b"f").inode.mtime == -(1 << 63)


def test_device_numbers_beyond_what_linux_has() -> None:
    for rdev in ((4096, 0), (0, 1 << 20)):
        refused(header(b"c", kind=b"3", rdev=rdev) + END, "device number")


def test_symlinks_without_or_with_long_targets() -> None:
    refused(symlink(b"s", b"") + END, "target has 0 bytes")
    refused(pax((b"linkpath", b"t" * 4096)) + symlink(b"s", b"t") + END, "target has 4096 bytes")


def test_large_xattrs() -> None:
    refused(pax((b"SCHILY.xattr.user.x", bytes(65_536))) + file(b"f") + END, "too large")
    refused(pax((b"SCHILY.xattr.user." + b"n" * 256, b"")) + file(b"f") + END, "too large")
    assert Read(pax((b"SCHILY.xattr.user.x", bytes(65_535))) + file(b"f") + END).node(b"f").inode.xattrs


# --- hostile extensions -------------------------------------------------------------------------
def test_extended_headers_have_bounds() -> None:
    for kind in (b"x", b"g", b"L", b"K"):
        too_long = header(b"x", kind=kind, size=limits.MAX_TAR_EXTENSION + 1)
        refused(too_long + bytes(MIB), "an extended header of")
        refused(header(b"x", kind=kind, size=1 << 60), "an extended header of")
        refused(header(b"x", kind=kind, size=-1), "an extended header of")


def test_extended_headers_that_readers_understand_differently() -> None:
    refused(pax((b"path", b"a")) + pax((b"path", b"b")) + file(b"c") + END, "two PAX headers")
    refused(pax((b"path", b"a")) + gnu_long(b"b") + file(b"c") + END, "a: a name both|b: a name both")
    refused(gnu_long(b"b", b"K") + pax((b"linkpath", b"a")) + symlink(b"c", b"d") + END, "c: a name both")
    refused(pax((b"path", b"a"), kind=b"g") + file(b"c") + END, "global")
    refused(pax((b"path", b"a")) + END, "ends behind an extended header")
    refused(gnu_long(b"a"), "ends behind an extended header")
    refused(raw_pax(b"12 path=abc\n\0\0") + file(b"x") + END, "malformed PAX header")


def test_kinds_that_are_refused() -> None:
    for kind, match in ((b"M", "another volume"), (b"D", "incremental"), (b"N", "long names"), (b"A", "unknown")):
        refused(header(b"m", kind=kind, size=512) + bytes(512) + END, match, kind=UnsupportedError)
    for kind in b"8Bh\xff ":
        refused(header(b"m", kind=bytes([kind])) + END, "unknown kind", kind=UnsupportedError)
    # An old GNU sparse file under another magic: its map could be something else.
    refused(old_sparse(b"s", [(0, b"x")], 1, magic=b"ustar\x0000") + END, "not supported", kind=UnsupportedError)


def test_sparse_maps_that_lie() -> None:
    table = (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"100")
    newer = (b"GNU.sparse.size", b"9"), (b"GNU.sparse.numblocks", b"1"), (b"GNU.sparse.map", b"0,9")
    hostile = [
        old_sparse(b"s", [(5, b"abc"), (0, b"x")], 100),
        old_sparse(b"s", [(5, b"abc"), (6, b"x")], 100),
        old_sparse(b"s", [(98, b"abc")], 100),
        header(b"s", kind=b"S", size=3, magic=b"ustar  \0") + padded(b"abc"),
        pax(*table) + file(b"s", padded(b"1\n0\n5\n") + b"four"),
        pax(*table) + file(b"s", b"1\n0\n5\n"),
        pax(*table) + file(b"s"),
        pax(*table) + file(b"s", b"9\n" * 255 + b"99"),
        pax(*table) + file(b"s", padded(b"1\n99\n5\n") + b"12345"),
        pax(*newer) + file(b"s", b"8bytes!!"),
        pax((b"GNU.sparse.size", b"9")) + file(b"s"),
    ]
    for member in hostile:
        refused(member + END, "s: malformed sparse map|s: truncated")
    refused(pax(*table) + directory(b"s") + END, "cannot have any")
    refused(old_sparse(b"s", [(0, b"x")], limits.MAX_ARCHIVE_FILE + 1)[:1024] + END, "with holes")
    refused(header(b"s", kind=b"S", magic=b"ustar  \0", tail=bytes(137) + b"\1"), "truncated")
    refused(old_sparse(b"s", [], 9, extra=bytes(512)) + END, "malformed sparse map")
    endless = (b"000000000000000000000001" * 21).ljust(504, b"\0") + b"\1"
    refused(old_sparse(b"s", [], 9, extra=endless.ljust(512, b"\0") * 13_000), "too many pieces")


# --- bounds -------------------------------------------------------------------------------------
def test_bounds_on_what_an_archive_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_members, "MAX_ARCHIVE_ENTRIES", 3)
    assert Read(file(b"a") * 3 + END).layer.entries == 3
    refused(file(b"a") * 4 + END, "more than 3 entries")
    refused(file(b".wh.a") * 4 + END, "more than 3 entries", container=True)
    refused(pax((b"comment", b""), kind=b"g") * 13 + END, "too many extended headers")
    monkeypatch.undo()
    monkeypatch.setattr(archive_names, "MAX_ARCHIVE_IMPLICIT", 3)
    refused(file(b"a/b/c/d/e") + END, "more than 3 directories")
    monkeypatch.undo()
    monkeypatch.setattr(archive_names, "MAX_ARCHIVE_METADATA", 1000)
    assert Read(file(b"a") * 1000 + END).layer.entries == 1000
    refused(file(b"a") * 1001 + END, "bytes of paths and attributes")
    refused(pax((b"SCHILY.xattr.user.x", bytes(1000))) + file(b"a") + END, "bytes of paths and attributes")
    refused(symlink(b"a", b"t" * 99) * 11 + END, "bytes of paths and attributes")


def test_a_bomb_of_holes() -> None:
    half = old_sparse(b"s", [], limits.MAX_ARCHIVE_FILE)
    refused(half * 17 + END, "bytes of content")


def test_a_billion_members_in_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_members, "MAX_ARCHIVE_ENTRIES", 10_000)
    taken: list[int] = []

    def endless() -> Iterator[bytes]:
        members = gzip.compress(file(b"a") * 1000)
        while True:
            taken.append(1)
            yield members

    with pytest.raises(FormatError, match="entries"):
        Read(endless())
    assert len(taken) < 30


# --- other faults -------------------------------------------------------------------------------
def test_a_spool_that_takes_nothing(tmp_path: Path) -> None:
    for member in (file(b"f", b"x"), file(b"f", bytes(2 * MIB)), old_sparse(b"s", [], MIB)):
        fd = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(OutputError, match="it: cannot write"):
                read_archive([member + END], spool=fd, name="it")
        finally:
            os.close(fd)


def test_errors_of_the_source_pass() -> None:
    def pieces() -> Iterator[bytes]:
        yield file(b"f", b"x")
        raise RemoteError("the line is cut", where="there")

    with pytest.raises(RemoteError, match="there: the line is cut"):
        Read(pieces())


def test_corrupt_compression_names_the_archive() -> None:
    refused(gzip.compress(file(b"f", b"x") + END)[:-4], "^test.tar: truncated")


# --- container layers ---------------------------------------------------------------------------
def test_whiteouts_and_opaque_directories() -> None:
    read = Read(
        file(b"d/.wh..wh..opq")
        + file(b"e/.wh.gone")
        + file(b".wh.top", b"content is passed over")
        + directory(b".wh.dir/")
        + file(b"./.wh..wh.aufs", b"x")
        + file(b".wh..wh.plnk/1.2", b"x")
        + header(b"dev", kind=b"3", rdev=(0, 0))
        + END,
        container=True,
    )
    root = read.layer.root.children
    assert root is not None
    assert set(root) == {b"d", b"e", b"top", b"dir", b"dev"}
    assert read.node(b"d").opaque
    assert read.node(b"d").children == {}
    assert not read.node(b"e").opaque
    assert read.node(b"e").children == {b"gone": WHITEOUT}
    assert [root[name] is WHITEOUT for name in (b"top", b"dir", b"dev")] == [True] * 3
    assert Read(file(b".wh..wh..opq") + END, container=True).layer.root.opaque


def test_whiteouts_act_on_lower_layers_whatever_the_order() -> None:
    members = [
        file(b"d/x", b"x"),
        file(b".wh.d"),
        file(b"f", b"f"),
        file(b".wh.f"),
        file(b"s/.wh..wh..opq"),
        file(b"s/y"),
    ]
    for order in (members, members[::-1]):
        read = Read(b"".join(order) + END, container=True)
        assert read.content(b"d/x") == b"x"
        assert read.node(b"d").opaque
        assert read.content(b"f") == b"f"
        assert read.node(b"s").opaque
        assert read.node(b"s/y")


def test_plain_archives_have_no_whiteouts() -> None:
    read = Read(file(b".wh.a", b"1") + file(b".wh..wh..opq", b"2") + header(b"c", kind=b"3", rdev=(0, 0)) + END)
    assert read.content(b".wh.a") == b"1"
    assert read.content(b".wh..wh..opq") == b"2"
    assert stat.S_ISCHR(read.node(b"c").inode.mode)


def test_malformed_whiteouts() -> None:
    for name in (b".wh.", b".wh..", b".wh...", b"d/.wh."):
        refused(file(name) + END, "whiteout of no name", container=True)
    refused(file(b".wh.d/x") + END, "below a whiteout", container=True)


def test_links_to_lower_layers() -> None:
    read = Read(hard_link(b"h", b"./a//b") + hard_link(b"h2", b"h") + END, container=True)
    assert read.node(b"h").link == b"a/b"
    assert read.node(b"h2") is read.node(b"h")
