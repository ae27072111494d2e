"""Archives with anything changed: they are read, or refused with an error of ours, in bounded time and memory."""

from __future__ import annotations

import gzip
import lzma
import stat
from collections.abc import Iterable

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tars import (
    END,
    Read,
    base256,
    directory,
    file,
    gnu_long,
    hard_link,
    header,
    octal,
    old_sparse,
    pax,
    split,
    symlink,
)
from tests.support.trees import assert_same

from eroseal.errors import ErosealError
from eroseal.tree.layer import WHITEOUT, Node
from eroseal.tree.overlay import merge, stacked

SAMPLE = (
    directory(b"./")
    + pax((b"mtime", b"1.5"), (b"SCHILY.xattr.user.x", b"\0\n"), (b"path", b"d/long"))
    + file(b"d/short", b"content" * 100)
    + gnu_long(b"n" * 120)
    + file(b"n", b"x")
    + hard_link(b"h", b"d/long")
    + symlink(b"s", b"d")
    + header(b"c", kind=b"3", rdev=(1, 3))
    + pax((b"comment", b"hello"), kind=b"g")
    + old_sparse(b"sparse", [(number * 4096, b"ab") for number in range(8)], 50_000)
    + pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9000"))
    + file(b"sparse1", b"1\n4096\n5\n".ljust(512, b"\0") + b"bytes")
    + file(b"d/.wh.gone")
    + file(b"d/.wh..wh..opq")
    + END
)
COMPRESSED = [gzip.compress(SAMPLE, mtime=0), lzma.compress(SAMPLE), zstandard.ZstdCompressor().compress(SAMPLE)]
MOST = 64 << 20
"""Bytes of content that a small archive may describe here; larger ones are not compared."""


def check(data: bytes | Iterable[bytes], *, container: bool) -> Read | None:
    """Read an archive; what comes out obeys the rules of a layer."""
    try:
        read = Read(data, container=container)
    except ErosealError as error:
        assert error.where
        assert error.what == error.what.strip()
        return None
    stack: list[tuple[int, Node]] = [(0, read.layer.root)]
    while stack:
        depth, node = stack.pop()
        assert node.children is not None
        for name, child in node.children.items():
            assert name
            assert b"/" not in name
            assert b"\0" not in name
            assert name not in (b".", b"..")
            assert len(name) <= 255
            assert not (container and name.startswith(b".wh."))
            if child is WHITEOUT:
                assert container
                continue
            assert 0 <= child.inode.uid < 1 << 32
            assert 0 <= child.inode.mtime_nsec < 1_000_000_000
            if child.children is not None:
                assert stat.S_ISDIR(child.inode.mode)
                stack.append((depth + 1, child))
            else:
                assert not stat.S_ISDIR(child.inode.mode)
                assert child.link is None or container
    return read


def mend(data: bytearray, at: int) -> None:
    """Make a block's checksum right, so that a change gets further than to it."""
    block = data[at : at + 512]
    if len(block) == 512:
        data[at + 148 : at + 156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)


changes = st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=6)


@given(changes=changes, mended=st.booleans(), container=st.booleans(), end=st.integers(0, len(SAMPLE)))
@settings(max_examples=200)
def test_changed_bytes(changes: list[tuple[int, int]], mended: bool, container: bool, end: int) -> None:
    data = bytearray(SAMPLE)
    for at, value in changes:
        data[at] = value
        if mended:
            mend(data, at // 512 * 512)
    whole = check(bytes(data), container=container)
    pieces = check(split(bytes(data), 700), container=container)
    assert (whole is None) == (pieces is None)
    if whole is not None and pieces is not None and whole.layer.content_bytes < MOST:
        assert not container or whole.layer.root.children is not None
        assert whole.layer.entries == pieces.layer.entries
        if not container:
            assert_same(pieces.tree(), whole.tree())
    check(bytes(data[:end]), container=container)


@given(
    which=st.integers(0, len(COMPRESSED) - 1),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    end=st.none() | st.integers(0, 2000),
)
@settings(max_examples=150)
def test_changed_compressed_bytes(which: int, changes: list[tuple[int, int]], end: int | None) -> None:
    data = bytearray(COMPRESSED[which][:end])
    for at, value in changes:
        if data:
            data[at % len(data)] = value
    check(bytes(data), container=True)
    read = check([b"", *split(bytes(data), 100)], container=False)
    assert read is None or changes or end is None or end >= len(COMPRESSED[which])


names = st.text("ab./", max_size=8).map(str.encode) | st.sampled_from(
    [b"d", b"d/", b"d/x", b"d/.wh.x", b".wh.d", b"d/.wh..wh..opq", b".wh.", b"../x", b"/d/x", b"x\xff", b"a" * 100]
)
numbers = st.sampled_from([octal(0, 12), octal(3, 12), b" " * 12, b"x" * 12, octal(1 << 40, 12)]) | st.integers(
    -(1 << 70), 1 << 70
).map(lambda value: base256(value, 12))


@st.composite
def member(draw: st.DrawFn) -> bytes:
    """One member, with something behind it that may or may not be its content."""
    kind = draw(st.sampled_from([b"%c" % kind for kind in b"0\x00123567SxgLKVM"]))
    texts = [b"", b"xyz", b"6 a=b\n", b"9 path=d\n", b"d/x\0", b"11 mtime=-1\n", b"10 size=1\n"]
    content = draw(st.sampled_from(texts))
    size: int | bytes = draw(st.just(len(content)) | numbers)
    block = header(
        draw(names),
        kind=kind,
        size=size,
        link=draw(names),
        mtime=draw(st.just(0) | numbers),
        magic=draw(st.sampled_from([b"ustar\x0000", b"ustar  \0", bytes(8)])),
    )
    return block + content + bytes(-len(content) % 512)


@given(layers=st.lists(st.lists(member(), max_size=8), max_size=3), container=st.booleans())
@settings(max_examples=100)
def test_made_up_members(layers: list[list[bytes]], container: bool) -> None:
    reads = [check(b"".join(members) + END, container=container) for members in layers]
    good = [read.layer for read in reads if read is not None]
    try:
        merged = merge(good)
        trees = stacked(good)
    except ErosealError as error:
        assert error.where == "test.tar"
        return
    assert merged.children is not None
    assert len(trees) == len(good)
    stack = [merged]
    while stack:
        for child in (stack.pop().children or {}).values():
            assert child is not WHITEOUT
            assert child.link is None
            assert not child.opaque
            stack.append(child)
