"""The reader on small images made by hand: what it gives back, and how it finds it."""

from __future__ import annotations

import struct
import threading

import pytest
from tests.unit.reader_images import CHR, DIR, LNK, NULL, REG, Mini, dirents, open_reader, sample, xattr_area

from eroseal.errors import FormatError, NotFoundError, UnsupportedError, UsageError
from eroseal.format.erofs import (
    CHUNK_48BIT,
    CHUNK_INDEX,
    CHUNK_INDEXES,
    COMPAT_PLAIN_XATTR_PFX,
    INCOMPAT_48BIT,
    INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE,
    INCOMPAT_METABOX,
    LAYOUT_CHUNK_BASED,
    LAYOUT_COMPRESSED_COMPACT,
    LAYOUT_COMPRESSED_FULL,
    LAYOUT_FLAT_INLINE,
    LAYOUT_FLAT_PLAIN,
    NID_IN_METABOX,
    DeviceSlot,
)
from eroseal.format.xattr import LongPrefix
from eroseal.image.reader import DirEntry, Extent, ImageReader
from eroseal.image.space import MAX_WINDOWS, WINDOW, MetaSpace
from eroseal.readat import BytesAt


@pytest.fixture(scope="module")
def reader() -> ImageReader:
    meta, blob, _ = sample()
    return open_reader(meta, blob)


# --- inodes ---


def test_compact_and_extended_inodes_give_their_fields(reader: ImageReader) -> None:
    small, plain, null = (reader.lookup(name) for name in (b"small", b"plain", b"null"))
    assert (small.mode, small.uid, small.gid, small.size, small.nlink) == (REG, 0, 0, 5, 2)
    assert (small.mtime, small.mtime_nsec) == (1_000_000, 5)
    assert (plain.mtime, plain.mtime_nsec, plain.size, plain.nlink) == (-5, 7, 5000, 1)
    assert (null.rdev, null.size) == ((259, 70_000), 0)
    assert reader.lookup(b"hard") == small
    assert reader.inode(small.nid) == small


def test_compact_mtime_counts_from_the_epoch() -> None:
    mini = Mini(superblock={"epoch": -100, "fixed_nsec": 9})
    mini.file(b"f", mtime=40)
    mini.root()
    inode = open_reader(mini.image()).lookup(b"f")
    assert (inode.mtime, inode.mtime_nsec) == (-60, 9)


def test_nlink_1_form_frees_the_field_for_the_address() -> None:
    mini = Mini()
    nid = mini.place(REG, size=10, layout=LAYOUT_FLAT_PLAIN, u=1, nb=2, bit4=True)
    inode = open_reader(mini.image()).inode(nid) if not mini.root() else None
    assert inode is not None
    assert inode.nlink == 1
    assert inode.start_block == 2 << 32 | 1
    with pytest.raises(FormatError, match="leaves the meta blob"):
        list(open_reader(mini.image()).extents(inode))


# --- data ---


def test_extents_merge_what_continues_and_nothing_else(reader: ImageReader) -> None:
    assert list(reader.extents(reader.lookup(b"holes"))) == [
        Extent(0, 8192, 1, 2 << 12),
        Extent(8192, 4096, None, 0),
        Extent(12288, 4096, 1, 0),
        Extent(16384, 100, 0, 4 << 12),
    ]
    assert list(reader.extents(reader.lookup(b"fifo"))) == []


def test_read_gives_any_part(reader: ImageReader) -> None:
    whole = b"C" * 4096 + b"D" * 4096 + bytes(4096) + b"A" * 4096 + (bytes(range(256)) * 16)[:100]
    holes = reader.lookup(b"holes")
    assert reader.read(holes, 0, 1 << 40) == whole
    for offset in range(0, len(whole), 1021):
        for length in (0, 1, 4096, 5000):
            assert reader.read(holes, offset, length) == whole[offset : offset + length]
    assert reader.read(holes, len(whole), 10) == b""
    assert reader.read(holes, 1 << 50, 10) == b""
    assert reader.read(reader.lookup(b"null"), 0, 10) == b""


def test_read_refuses_negative_ranges(reader: ImageReader) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        reader.read(reader.root(), -1, 5)


def test_one_read_for_each_contiguous_piece() -> None:
    mini = Mini(blocks=40)
    mini.file(b"big", b"", size=30 << 12, layout=LAYOUT_FLAT_PLAIN, u=4)
    mini.root()
    reader = open_reader(mini.image())
    calls: list[tuple[int, int]] = []
    meta = reader.source.meta

    class Counting:
        size = meta.size

        def read_at(self, offset: int, length: int) -> bytes:
            calls.append((offset, length))
            return meta.read_at(offset, length)

    big = reader.lookup(b"big")
    reader.source.meta = Counting()  # type: ignore[assignment]
    reader.read(big, 4096, 28 << 12)
    assert calls == [(5 << 12, 28 << 12)]


def test_null_address_reads_as_zeros() -> None:
    mini = Mini()
    mini.file(b"a", b"", size=9000, layout=LAYOUT_FLAT_PLAIN, u=NULL)
    mini.file(b"b", b"", size=9000, layout=LAYOUT_FLAT_PLAIN, u=NULL, nb=0xFFFF, extended=True)
    mini.root()
    reader = open_reader(mini.image())
    for name in (b"a", b"b"):
        assert list(reader.extents(reader.lookup(name))) == [Extent(0, 9000, None, 0)]
        assert reader.read(reader.lookup(name), 0, 9000) == bytes(9000)


def test_inline_tail_follows_whole_blocks() -> None:
    mini = Mini()
    mini.put(1 << 12, b"B" * 4096)
    nid = mini.place(REG, size=4096 + 7, u=1, tail=b"the end")
    mini.add(b"f", REG, nid)
    mini.root()
    reader = open_reader(mini.image())
    inode = reader.lookup(b"f")
    assert list(reader.extents(inode)) == [Extent(0, 4096, 0, 4096), Extent(4096, 7, 0, inode.end)]
    assert reader.read(inode, 4090, 100) == b"B" * 6 + b"the end"


def test_inline_size_of_whole_blocks_has_a_whole_block_as_tail() -> None:
    mini = Mini()
    mini.put(2 << 12, b"T" * 4096)
    nid = mini.place(REG, size=4096, at=(2 << 12) - 32)
    mini.root()
    reader = open_reader(mini.image())
    assert reader.read(reader.inode(nid), 0, 4096) == b"T" * 4096


def test_block_map_and_larger_chunks() -> None:
    mini = Mini(blocks=8)
    for block in range(2, 8):
        mini.put(block << 12, bytes([block]) * 4096)
    nid = mini.place(REG, size=5 * 4096, layout=LAYOUT_CHUNK_BASED, u=1, tail=struct.pack("<3I", 6, NULL, 3))
    mini.root()
    reader = open_reader(mini.image())
    extents = [Extent(0, 8192, 0, 6 << 12), Extent(8192, 8192, None, 0), Extent(16384, 4096, 0, 3 << 12)]
    assert list(reader.extents(reader.inode(nid))) == extents


def test_chunk_array_is_aligned_after_xattrs() -> None:
    mini = Mini()
    area = xattr_area((1, b"abcd", b""))
    assert len(area) % 8 == 4
    table = bytes(4) + CHUNK_INDEX.pack(0, 0, 1)
    nid = mini.place(REG, size=10, layout=LAYOUT_CHUNK_BASED, u=CHUNK_INDEXES, xattrs=area, tail=table)
    mini.root()
    reader = open_reader(mini.image())
    assert list(reader.extents(reader.inode(nid))) == [Extent(0, 10, 0, 4096)]


def test_48_bit_chunk_addresses_count_only_with_their_bit() -> None:
    mini = Mini(blocks=4)
    table = CHUNK_INDEX.pack(1, 0, 1)
    narrow = mini.place(REG, size=10, layout=LAYOUT_CHUNK_BASED, u=CHUNK_INDEXES, tail=table)
    wide = mini.place(REG, size=10, layout=LAYOUT_CHUNK_BASED, u=CHUNK_INDEXES | CHUNK_48BIT, tail=table)
    hole = mini.place(
        REG,
        size=10,
        layout=LAYOUT_CHUNK_BASED,
        u=CHUNK_INDEXES | CHUNK_48BIT,
        tail=CHUNK_INDEX.pack(0xFFFF, 7, NULL),
    )
    mini.root()
    reader = open_reader(mini.image())
    assert list(reader.extents(reader.inode(narrow))) == [Extent(0, 10, 0, 4096)]
    assert list(reader.extents(reader.inode(hole))) == [Extent(0, 10, None, 0)]
    with pytest.raises(FormatError, match=f"at byte {((1 << 32) + 1) << 12} leaves the meta blob"):
        list(reader.extents(reader.inode(wide)))


# --- devices ---


def _two_devices(*, uniaddr: tuple[int, int] = (4, 6)) -> tuple[bytes, list[bytes]]:
    mini = Mini(slots=[DeviceSlot(b"", 2, uniaddr[0]), DeviceSlot(b"", 3, uniaddr[1])])
    entries = [(0, 4), (0, 7), (2, 0), (0, 1), (1, 1)]
    mini.add(b"f", REG, mini.chunked(5 << 12, 0, entries))
    mini.root()
    mini.put(1 << 12, b"m" * 4096)
    return mini.image(), [b"aaaabbbb".replace(b"a", b"a" * 1024).replace(b"b", b"b" * 1024), b"c" * 12288]


def test_unified_addresses_resolve_to_devices() -> None:
    meta, blobs = _two_devices()
    reader = open_reader(meta, *blobs)
    inode = reader.lookup(b"f")
    assert list(reader.extents(inode)) == [
        Extent(0, 4096, 1, 0),
        Extent(4096, 4096, 2, 4096),
        Extent(8192, 4096, 2, 0),
        Extent(12288, 4096, 0, 4096),
        Extent(16384, 4096, 1, 4096),
    ]
    whole = b"a" * 4096 + b"c" * 8192 + b"m" * 4096 + b"b" * 4096
    assert reader.read(inode, 0, 1 << 20) == whole


def test_flattened_images_have_their_devices_behind_the_meta_blob() -> None:
    meta, blobs = _two_devices()
    split = open_reader(meta, *blobs)
    flat = open_reader(meta + b"".join(blobs))
    assert flat.device_map.flattened
    inode = flat.lookup(b"f")
    assert flat.read(inode, 0, 1 << 20) == split.read(split.lookup(b"f"), 0, 1 << 20)
    assert {extent.device for extent in flat.extents(inode)} == {0}
    with pytest.raises(FormatError, match="leaves the meta blob"):
        list(open_reader(meta).extents(inode))


def test_flattened_device_ids_stay_inside_their_device() -> None:
    mini = Mini(slots=[DeviceSlot(b"", 1, 4), DeviceSlot(b"", 1, 5)])
    mini.add(b"f", REG, mini.chunked(4096, 0, [(1, 1)]))
    mini.root()
    reader = open_reader(mini.image() + bytes(8192))
    with pytest.raises(FormatError, match="leaves device 1, which has 4096 bytes"):
        reader.read(reader.lookup(b"f"), 0, 1)


def test_unified_extents_do_not_run_on_into_the_next_device() -> None:
    mini = Mini(slots=[DeviceSlot(b"", 2, 4), DeviceSlot(b"", 3, 6)])
    mini.file(b"f", b"", size=3 << 12, layout=LAYOUT_FLAT_PLAIN, u=4)
    mini.root()
    reader = open_reader(mini.image(), bytes(8192), bytes(12288))
    with pytest.raises(FormatError, match="leaves device 1"):
        list(reader.extents(reader.lookup(b"f")))


def test_device_count_must_match() -> None:
    meta, blobs = _two_devices()
    with pytest.raises(FormatError, match="image has 2 data blobs, but 1 were given"):
        open_reader(meta, blobs[0])


def test_devices_read_only_when_data_is_on_them() -> None:
    meta, blobs = _two_devices()
    reader = open_reader(meta, *blobs)
    opened: list[int] = []
    reader.source.device = lambda k: opened.append(k) or BytesAt(blobs[k])  # type: ignore[method-assign,func-returns-value,assignment]
    assert [path for path, _ in reader.walk()] == [b"", b"f"]
    list(reader.extents(reader.lookup(b"f")))
    assert opened == []
    reader.read(reader.lookup(b"f"), 8192, 1)
    assert opened == [1]


def test_wide_device_slots_need_the_feature() -> None:
    mini = Mini(slots=[DeviceSlot(b"", (1 << 32) + 1, (1 << 32) + 4)])
    mini.root()
    assert open_reader(mini.image(), bytes(4096)).devices[0].blocks == 1
    mini.superblock = {"feature_incompat": INCOMPAT_48BIT | INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE}
    assert open_reader(mini.image(), bytes(4096)).devices[0].uniaddr == (1 << 32) + 4


# --- directories and paths ---


def test_entries_leave_out_the_dots(reader: ImageReader) -> None:
    names = [entry.name for entry in reader.entries(reader.root())]
    assert names == [b"fifo", b"hard", b"holes", b"link", b"null", b"plain", b"small", b"sub", b"xattrs"]
    sub = reader.lookup(b"sub")
    assert list(reader.entries(sub)) == [DirEntry(b"inner", reader.lookup(b"sub/inner").nid, 1)]
    assert [entry.name for entry in reader.all_entries(sub)] == [b".", b"..", b"inner"]
    with pytest.raises(UsageError, match="not a directory"):
        list(reader.entries(reader.lookup(b"small")))


def test_walk_is_depth_first_in_order_and_names_hard_links_each_time(reader: ImageReader) -> None:
    paths = [path for path, _ in reader.walk()]
    assert paths == [
        b"", b"fifo", b"hard", b"holes", b"link", b"null", b"plain", b"small", b"sub", b"sub/inner", b"xattrs",
    ]  # fmt: skip
    nids = dict(reader.walk())
    assert nids[b"hard"] == nids[b"small"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"", b""),
        (b"/", b""),
        (b"//sub///inner", b"inner"),
        (b"./sub/./inner", b"inner"),
        (b"/../../small", b"small"),
        (b"sub/../small", b"small"),
        (b"link", b"inner"),
        (b"sub/", b"sub"),
    ],
)
def test_lookup_resolves(reader: ImageReader, path: bytes, name: bytes) -> None:
    _, _, nids = sample()
    assert reader.lookup(path).nid == (nids[name.decode()] if name else 40)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b"none", "no such file"),
        (b"sub/none", "no such file"),
        (b"zzz", "no such file"),
        (b"small/x", "not a directory"),
        (b"small/", "not a directory"),
        (b"link/", "not a directory"),
        (b"small/..", "not a directory"),
        (b"a\0b", "no such file"),
    ],
)
def test_lookup_refuses(reader: ImageReader, path: bytes, message: str) -> None:
    with pytest.raises(NotFoundError, match=message):
        reader.lookup(path)


def test_symlinks_stay_in_the_image() -> None:
    mini = Mini()
    inner = mini.place(DIR, tail=dirents([(b".", mini.at // 32, DIR), (b"..", 40, DIR)]), nb=2)
    mini.add(b"dir", DIR, inner)
    for name, target in {
        b"abs": b"/dir",
        b"out": b"/../../..",
        b"chain": b"abs/../abs",
        b"loop": b"loop",
        b"slash": b"file/",
        b"dots": b"../.././dir",
    }.items():
        mini.add(name, LNK, mini.place(LNK, tail=target))
    mini.file(b"file")
    mini.root()
    reader = open_reader(mini.image())
    assert reader.lookup(b"abs").nid == inner
    assert reader.lookup(b"abs", follow=False).is_symlink
    assert reader.lookup(b"out").nid == 40
    assert reader.lookup(b"chain").nid == inner
    assert reader.lookup(b"dots").nid == inner
    assert reader.lookup(b"abs/..").nid == 40
    assert reader.lookup(b"abs/", follow=False).nid == inner
    for path, message in {b"loop": "more than 40 symlinks", b"slash": "not a directory"}.items():
        with pytest.raises(NotFoundError, match=message):
            reader.lookup(path)


def test_lookup_does_not_follow_endless_targets() -> None:
    mini = Mini(blocks=8)
    mini.put(4 << 12, b"./" * 2048)
    mini.add(b"l", LNK, mini.place(LNK, size=4096, layout=LAYOUT_FLAT_PLAIN, u=4))
    mini.root()
    reader = open_reader(mini.image())
    with pytest.raises(FormatError, match="target of 4096 bytes"):
        reader.lookup(b"l")
    assert reader.readlink(reader.lookup(b"l", follow=False)) == b"./" * 2048


def test_lookup_searches_blocks_by_first_name() -> None:
    names = sorted([b"!before", *(b"name-%04d" % k for k in range(1200)), b".", b".."])
    mini = Mini(blocks=16)
    leaf = mini.place(REG, tail=b"x", nlink=1201)
    entries = [(name, 40 if name in (b".", b"..") else leaf, DIR if name in (b".", b"..") else REG) for name in names]
    starts = range(0, len(entries), 150)
    blocks = [dirents(entries[start : start + 150]).ljust(4096, b"\0") for start in starts]
    for number, block in enumerate(blocks):
        mini.put((2 + number) << 12, block)
    mini.place(DIR, at=40 * 32, size=len(blocks) << 12, layout=LAYOUT_FLAT_PLAIN, u=2, nb=2)
    reader = open_reader(mini.image())
    assert all(reader.lookup(name).nid == leaf for name in names if name not in (b".", b".."))
    for missing in (b"!", b"name-", b"name-0600x", b"zzz"):
        with pytest.raises(NotFoundError):
            reader.lookup(missing)
    assert len(list(reader.entries(reader.root()))) == 1201


def test_readlink(reader: ImageReader) -> None:
    assert reader.readlink(reader.lookup(b"link", follow=False)) == b"sub/inner"
    with pytest.raises(UsageError, match="not a symlink"):
        reader.readlink(reader.lookup(b"small"))


# --- xattrs ---


def test_xattrs_are_sorted_and_shared_ones_found(reader: ImageReader) -> None:
    inode = reader.lookup(b"xattrs")
    assert reader.xattrs(inode) == [(b"security.selinux", b"context"), (b"user.a", b""), (b"user.b", b"2")]
    assert reader.xattrs(reader.lookup(b"small")) == []


def test_long_prefixes_and_hidden_names() -> None:
    table = LongPrefix(1, b"long.").encode() + LongPrefix(0, b"erofs.fingerprint.v1").encode()
    mini = Mini()
    mini.put(3 << 12, table)
    mini.superblock = {
        "xattr_prefix_count": 2,
        "xattr_prefix_start": (3 << 12) // 4,
        "feature_compat": 3 | COMPAT_PLAIN_XATTR_PFX,
    }
    mini.file(b"f", xattrs=xattr_area((0x80, b"name", b"1"), (0x81, b"", b"print"), (4, b"t", b"2")))
    mini.root()
    reader = open_reader(mini.image())
    inode = reader.lookup(b"f")
    visible = [(b"trusted.t", b"2"), (b"user.long.name", b"1")]
    assert reader.xattrs(inode) == visible
    assert reader.xattrs(inode, hidden=True) == [(b"erofs.fingerprint.v1", b"print"), *visible]


def test_acl_names_are_whole() -> None:
    mini = Mini()
    mini.file(b"f", xattrs=xattr_area((2, b"", b"acl"), (3, b"", b"default")))
    mini.root()
    reader = open_reader(mini.image())
    assert reader.xattrs(reader.lookup(b"f")) == [
        (b"system.posix_acl_access", b"acl"),
        (b"system.posix_acl_default", b"default"),
    ]


def test_zero_filled_rest_of_an_area_is_no_entry() -> None:
    mini = Mini()
    mini.file(b"f", xattrs=xattr_area((1, b"a", b"1")) + bytes(40))
    mini.root()
    reader = open_reader(mini.image())
    assert reader.xattrs(reader.lookup(b"f"), hidden=True) == [(b"user.a", b"1")]


# --- what is not supported, and how much still works ---


@pytest.mark.parametrize("layout", [LAYOUT_COMPRESSED_FULL, LAYOUT_COMPRESSED_COMPACT])
def test_compressed_files_are_listed_but_not_read(layout: int) -> None:
    mini = Mini()
    mini.file(b"f", b"", size=10_000, layout=layout, u=1, xattrs=xattr_area((1, b"a", b"1")))
    mini.root()
    reader = open_reader(mini.image())
    inode = reader.lookup(b"f")
    assert (inode.size, reader.xattrs(inode)) == (10_000, [(b"user.a", b"1")])
    assert inode.compressed
    for action in (lambda: reader.read(inode, 0, 1), lambda: list(reader.extents(inode))):
        with pytest.raises(UnsupportedError, match="compressed"):
            action()


def test_metabox_without_compression_is_read() -> None:
    mini = Mini(blocks=6)
    box = Mini(blocks=1)
    box.at = 0
    nid = box.place(REG, tail=b"in the box", xattrs=xattr_area((1, b"a", b"1"))) | NID_IN_METABOX
    # The box's two blocks lie apart, so that places in it are not places in the image.
    mini.put(4 << 12, bytes(box.data[:4096]))
    metabox = mini.chunked(8192, 0, [(0, 4), (0, 2)])
    mini.add(b"f", REG, nid)
    mini.superblock = {
        "sb_extslots": 1,
        "metabox_nid": metabox,
        "feature_incompat": INCOMPAT_METABOX | INCOMPAT_CHUNKED_FILE,
    }
    mini.root()
    reader = open_reader(mini.image())
    inode = reader.lookup(b"f")
    assert inode.nid == nid
    assert reader.read(inode, 3, 100) == b"the box"
    assert reader.xattrs(inode) == [(b"user.a", b"1")]
    assert list(reader.extents(inode)) == [Extent(0, 10, 0, (4 << 12) + inode.end)]


def test_unknown_features_are_refused() -> None:
    mini = Mini(superblock={"feature_incompat": 0x200})
    mini.root()
    with pytest.raises(UnsupportedError, match="0x200"):
        open_reader(mini.image())


@pytest.mark.parametrize("bits", [9, 10, 11, 12, 13, 16])
def test_block_sizes(bits: int) -> None:
    mini = Mini(bits=bits, blocks=max(2, 16384 >> bits))
    last = mini.blocks - 1
    content = bytes(range(256)) * 2
    mini.put(last << bits, content)
    mini.file(b"plain", b"", size=500, layout=LAYOUT_FLAT_PLAIN, u=last)
    mini.file(b"tail", b"inline")
    mini.root(layout=LAYOUT_FLAT_INLINE)
    reader = open_reader(mini.image())
    assert reader.read(reader.lookup(b"plain"), 0, 1000) == content[:500]
    assert reader.read(reader.lookup(b"tail"), 0, 1000) == b"inline"


# --- the cache of metadata ---


def test_metadata_cache_is_bounded_and_right_across_windows() -> None:
    data = b"".join(struct.pack("<I", k) for k in range((MAX_WINDOWS + 20) * WINDOW // 4))
    space = MetaSpace(BytesAt(data), "it")
    for offset in range(0, len(data) - 10, WINDOW // 2 - 3):
        assert space.read(offset, 10) == data[offset : offset + 10]
    assert space.read(WINDOW - 5, 2 * WINDOW) == data[WINDOW - 5 : 3 * WINDOW - 5]
    assert len(space._windows) == MAX_WINDOWS
    for offset, length in ((len(data) - 3, 4), (-1, 4), (0, -1), (1 << 70, 1)):
        with pytest.raises(FormatError, match="but it has"):
            space.read(offset, length)


def test_threads_share_a_reader() -> None:
    meta, blob, _ = sample()
    reader = open_reader(meta + bytes(300 * WINDOW), blob)
    expected = list(reader.walk())
    problems: list[object] = []

    def work(seed: int) -> None:
        for k in range(400):
            reader._meta.read((k * 7919 * (seed + 1) % 300) * WINDOW + 24576, 8)
            if k % 40 == 0 and list(reader.walk()) != expected:
                problems.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_character_device_address_is_never_data() -> None:
    mini = Mini()
    mini.add(b"c", CHR, mini.place(CHR, size=100, layout=LAYOUT_FLAT_PLAIN, u=1))
    mini.root()
    reader = open_reader(mini.image())
    assert reader.read(reader.lookup(b"c"), 0, 100) == b""
