"""The structure check: whatever a hostile image tries is refused, and the message names the thing."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from typing import cast

import pytest
from tests.unit.reader_images import (
    CHR,
    DIR,
    FIFO,
    LNK,
    NULL,
    REG,
    Mini,
    Source,
    check,
    dirents,
    open_reader,
    poke,
    resum,
    sample,
    xattr_area,
)

from eroseal.errors import ErosealError, FormatError, UnsupportedError
from eroseal.format.erofs import (
    CHUNK_INDEXES,
    COMPAT_SB_CHKSUM,
    INCOMPAT_CHUNKED_FILE,
    INCOMPAT_FRAGMENTS,
    INCOMPAT_METABOX,
    LAYOUT_CHUNK_BASED,
    LAYOUT_COMPRESSED_COMPACT,
    LAYOUT_FLAT_PLAIN,
    NID_IN_METABOX,
    DeviceSlot,
)
from eroseal.format.xattr import LongPrefix
from eroseal.image.check import MAX_WARNINGS, CheckResult, check_image
from eroseal.image.guard import MAX_PATH, NidSet
from eroseal.image.reader import ImageReader
from eroseal.limits import MAX_DEPTH
from eroseal.readat import BytesAt
from eroseal.trust.image import VerifiedImage

SUPER = 1024
Change = Callable[[Mini], None]


def test_sound_image_passes_and_is_counted() -> None:
    meta, blob, _ = sample()
    assert check(meta, blob) == CheckResult(
        inodes=10,
        directories=2,
        names=10,
        extents=11,
        logical_bytes=21_506,
        xattrs=3,
        compressed=0,
        warnings=(),
        warnings_total=0,
    )


def test_progress_counts_up_to_all_inodes() -> None:
    mini = Mini(blocks=64)
    for number in range(3000):
        mini.add(b"%04d" % number, FIFO, mini.place(FIFO, layout=LAYOUT_FLAT_PLAIN, u=0))
    mini.wide_root(40)
    seen: list[int] = []
    check_image(open_reader(mini.image()), progress=seen.append)
    assert seen == [1024, 2048, 3001]


# --- superblock and devices ---


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (0x00, "<I", 0x12345678, "wrong magic"),
        (0x0C, "<B", 8, r"block size of 2\^8"),
        (0x0C, "<B", 17, r"block size of 2\^17"),
        (0x0C, "<B", 255, r"block size of 2\^255"),
        (0x0D, "<B", 185, "185 extension slots"),
        (0x0D, "<B", 255, "255 extension slots"),
        (0x20, "<I", 1_000_000_000, "nanoseconds"),
        (0x24, "<I", 7, "claims 7 blocks of 4096 bytes, but the meta blob has 24576"),
        (0x56, "<H", 2, "2 data blobs, but 1 were given"),
        (0x56, "<H", 65535, "device table of 65535 slots"),
        (0x58, "<H", 65535, "device table of 1 slots at byte 8388480"),
        (0x58, "<H", 8, "device table of 1 slots at byte 1024"),
        (0x5A, "<B", 1, "directory blocks"),
        (0x0E, "<H", 0, "in the superblock|unknown file type|i_format"),
        (0x0E, "<H", 64, "not a directory"),
        (0x0E, "<H", 65535, "lie at byte 2097120"),
        (0x28, "<I", 1 << 31, "would lie at byte"),
    ],
)
def test_superblock_fields_are_judged(at: int, form: str, value: int, message: str) -> None:
    meta, blob, _ = sample()
    data = bytearray(meta)
    struct.pack_into(form, data, SUPER + at, value)
    with pytest.raises(FormatError, match=message):
        check(resum(data), blob)


def test_superblock_checksum() -> None:
    meta, blob, _ = sample()
    for at in (SUPER + 0x30, SUPER + 4, 4095):
        data = bytearray(meta)
        data[at] ^= 1
        with pytest.raises(FormatError, match="superblock checksum"):
            check(bytes(data), blob)
    data = bytearray(meta)
    data[SUPER + 8] &= ~COMPAT_SB_CHKSUM
    data[SUPER + 4] ^= 1
    check(bytes(data), blob)


def test_extension_slots_must_be_there() -> None:
    mini = Mini(bits=9, blocks=4, superblock={"sb_extslots": 60, "feature_compat": 0})
    mini.put(1056, bytes(32))
    mini.data = mini.data[:2048]
    mini.root_entries = []
    mini.place(DIR, tail=dirents([(b".", 40, DIR), (b"..", 40, DIR)]), at=40 * 32, nb=2)
    with pytest.raises(FormatError, match="superblock of 1088 bytes leaves the meta blob"):
        check(bytes(mini.image()[:2048]))


@pytest.mark.parametrize("size", [0, 1023, 1024, 1151])
def test_image_without_room_for_a_superblock(size: int) -> None:
    meta, _, _ = sample()
    with pytest.raises(FormatError, match="too short for an EROFS superblock"):
        open_reader(meta[:size])


@pytest.mark.parametrize(
    ("slots", "sizes", "message"),
    [
        ([DeviceSlot(b"", 3, 4)], [4], "device slot 1 claims 3 blocks of 4096 bytes, but the data blob has 16384"),
        ([DeviceSlot(b"", 4, 3)], [4], "device 1 overlaps the meta blob"),
        ([DeviceSlot(b"", 4, 4), DeviceSlot(b"", 4, 7)], [4, 4], "devices 1 and 2 overlap"),
        ([DeviceSlot(b"", 4, 4), DeviceSlot(b"", 4, 4)], [4, 4], "devices 1 and 2 overlap"),
    ],
)
def test_device_slots_are_judged(slots: list[DeviceSlot], sizes: list[int], message: str) -> None:
    mini = Mini(slots=slots)
    mini.root()
    with pytest.raises(FormatError, match=message):
        check(mini.image(), *[bytes(size << 12) for size in sizes])


def test_device_slot_without_blocks_is_only_odd() -> None:
    mini = Mini(slots=[DeviceSlot(b"", 0, 0)])
    mini.root()
    assert check(mini.image(), bytes(4096)).warnings_total == 1


def test_devices_without_the_feature() -> None:
    mini = Mini(superblock={"extra_devices": 3})
    mini.root()
    with pytest.raises(FormatError, match="3 devices without a device table"):
        check(mini.image())


@pytest.mark.parametrize(
    ("feature", "fields", "message"),
    [
        (INCOMPAT_FRAGMENTS, {"packed_nid": 40}, "packed inode 40 has mode"),
        (INCOMPAT_FRAGMENTS, {"packed_nid": 1 << 40}, "would lie at byte"),
        (INCOMPAT_METABOX, {"metabox_nid": 40, "sb_extslots": 1}, "metabox inode 40 has mode"),
        (INCOMPAT_METABOX, {"metabox_nid": NID_IN_METABOX, "sb_extslots": 1}, "inside itself"),
        (INCOMPAT_METABOX, {}, "the image has none"),
    ],
)
def test_inodes_outside_the_tree(feature: int, fields: dict[str, object], message: str) -> None:
    mini = Mini(superblock={"feature_incompat": INCOMPAT_CHUNKED_FILE | feature} | fields)
    mini.root()
    with pytest.raises(FormatError, match=message):
        check(mini.image())


# --- inodes ---


def _one(change: Change) -> Mini:
    mini = Mini(blocks=6)
    change(mini)
    mini.root()
    return mini


def _file(**options: object) -> Change:
    return lambda mini: mini.add(b"f", REG, mini.place(REG, **options))  # type: ignore[arg-type]


def _special(mode: int, **options: object) -> Change:
    return lambda mini: mini.add(b"f", mode, mini.place(mode, **options))  # type: ignore[arg-type]


def _chunks(size: int, cb: int, *entries: tuple[int, int]) -> Change:
    return lambda mini: mini.add(b"f", REG, mini.chunked(size, cb, entries))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_file(fmt=0x20, tail=b"x"), "i_format .* unknown bits"),
        (_file(fmt=0x8000, tail=b"x"), "i_format .* unknown bits"),
        (_file(layout=5), "unknown data layout 5"),
        (_file(layout=7), "unknown data layout 7"),
        (_file(extended=True, size=1 << 63, tail=b"x"), "beyond the largest file"),
        (_file(extended=True, uid=NULL, tail=b"x"), "not a valid user"),
        (_file(extended=True, nsec=1_000_000_000, tail=b"x"), "nanoseconds"),
        (_file(extended=True, nlink=0, tail=b"x"), "nlink 0"),
        (_file(nlink=0, tail=b"x"), "nlink 0"),
        # flat data
        (_file(layout=LAYOUT_FLAT_PLAIN, size=1, u=6), "extent of 1 bytes at byte 24576 leaves the meta blob"),
        (_file(layout=LAYOUT_FLAT_PLAIN, size=8193, u=4), "extent of 8193 bytes at byte 16384 leaves"),
        (_file(layout=LAYOUT_FLAT_PLAIN, size=1, u=NULL - 1), "leaves the meta blob"),
        (_file(layout=LAYOUT_FLAT_PLAIN, extended=True, size=1 << 62, u=0), "leaves the meta blob"),
        # inline data
        (_file(size=4000, tail=b"x"), "inline tail of 4000 bytes at byte 2080 crosses a block"),
        (_file(extended=True, size=(1 << 62) + 7, u=0, tail=b"x"), "leaves the meta blob"),
        (_file(size=4096 + 7, u=6, tail=b"x"), "leaves the meta blob"),
        (_file(size=4096 + 7, tail=b"x"), "leaves the meta blob"),
        (_file(size=4096), "inline tail of 4096 bytes at byte 2080 crosses a block"),
        # chunks
        (_chunks(4096, 0, (1, 0)), "device id 1, but the device table has 0 slots"),
        (_chunks(4096, 0, (65535, 0)), "device id 65535"),
        (_chunks(4096, 0, (0, 6)), "leaves the meta blob"),
        (_chunks(8192, 1, (0, 5)), "extent of 8192 bytes at byte 20480 leaves the meta blob"),
        (_file(layout=LAYOUT_CHUNK_BASED, u=0x80, size=1), "chunk format 0x0080 has unknown bits"),
        (_file(layout=LAYOUT_CHUNK_BASED, u=0x8000, size=1), "chunk format 0x8000 has unknown bits"),
        (_file(layout=LAYOUT_CHUNK_BASED, u=CHUNK_INDEXES, size=1 << 30), "262144 chunk addresses at byte"),
        (_file(layout=LAYOUT_CHUNK_BASED, u=CHUNK_INDEXES, size=(1 << 63) - 1, extended=True), "chunk addresses"),
        # other types
        (_special(FIFO, layout=LAYOUT_FLAT_PLAIN, size=1), "special file claims 1 bytes"),
        (_special(CHR, layout=LAYOUT_FLAT_PLAIN, size=NULL), "special file claims"),
        (_special(CHR, layout=LAYOUT_COMPRESSED_COMPACT, u=1), "special file has a compressed layout"),
        (_special(LNK, tail=b""), "target of 0 bytes"),
        (_special(LNK, layout=LAYOUT_FLAT_PLAIN, u=4, size=4096), "target of 4096 bytes"),
        (_special(LNK, layout=LAYOUT_FLAT_PLAIN, u=4, size=70_000), "leaves the meta blob"),
        (_special(LNK, tail=b"a\0b"), "NUL in its target"),
    ],
)
def test_inodes_are_judged(change: Change, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        check(_one(change).image())
    assert caught.value.where is not None
    assert caught.value.where.startswith("/f (inode 64)")


def test_modes_without_a_type() -> None:
    meta, blob, nids = sample()
    with pytest.raises(FormatError, match="mode 0o644 has an unknown file type"):
        check(poke(meta, nids["inner"] * 32 + 4, "<H", 0o644), blob)


def test_tail_at_the_end_of_the_image() -> None:
    mini = Mini(blocks=4)
    nid = mini.place(REG, size=100, at=(4 << 12) - 64)
    mini.add(b"f", REG, nid)
    mini.root()
    with pytest.raises(FormatError, match="inline tail"):
        check(mini.image())
    image = mini.image()[: (4 << 12) - 32]
    data = poke(image, SUPER + 0x24, "<I", 3)
    with pytest.raises(FormatError, match=r"inline tail of 100 bytes at byte 16352 (crosses|leaves)"):
        check(data)


def test_extended_inode_cut_off_by_the_end() -> None:
    mini = Mini(blocks=4)
    mini.add(b"f", REG, mini.place(REG, layout=LAYOUT_FLAT_PLAIN, at=(4 << 12) - 32))
    mini.root()
    check(mini.image())
    data = bytearray(mini.image())
    data[(4 << 12) - 32] |= 1
    with pytest.raises(FormatError, match="inode is truncated"):
        check(resum(data))


def test_compressed_files_are_counted_and_compressed_directories_refused() -> None:
    mini = _one(_file(layout=LAYOUT_COMPRESSED_COMPACT, size=100, u=1))
    assert check(mini.image()).compressed == 1
    mini = Mini()
    mini.add(b"d", DIR, mini.place(DIR, layout=LAYOUT_COMPRESSED_COMPACT, size=100, nb=2))
    mini.root()
    with pytest.raises(UnsupportedError, match="directory is compressed") as caught:
        check(mini.image())
    assert caught.value.where == "/d (inode 64)"


def test_chunks_without_the_feature_are_only_odd() -> None:
    mini = Mini(superblock={"feature_incompat": 0})
    for name in (b"a", b"b"):
        mini.add(name, REG, mini.chunked(4096, 0, [(0, NULL)]))
    mini.root()
    assert check(mini.image()).warnings_total == 1


# --- directories ---


def _raw_root(block: bytes, *, size: int | None = None, **options: object) -> bytes:
    mini = Mini()
    mini.place(DIR, tail=block, size=size, at=40 * 32, nb=2, **options)  # type: ignore[arg-type]
    return mini.image()


def _entry(nid: int, nameoff: int, kind: int = 1) -> bytes:
    return struct.pack("<QHBx", nid, nameoff, kind)


DOTS = [(b".", 40, DIR), (b"..", 40, DIR)]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (_entry(40, 0) + b"names", "first name offset 0 "),
        (_entry(40, 11) + b"names", "first name offset 11 "),
        (_entry(40, 13) + b"names", "first name offset 13 "),
        (_entry(40, 12), "first name offset 12 in a directory block of 12 bytes"),
        (_entry(40, 4096) + b"names", "first name offset 4096 "),
        (_entry(40, 65532) + b"names", "first name offset 65532 "),
        (b"short", "too short for an entry"),
        (_entry(40, 24, 2) + _entry(40, 24, 2) + b"...", "entry 0 has its name from byte 24 to 24"),
        (_entry(40, 24, 2) + _entry(40, 23, 2) + b"...", "entry 0 has its name from byte 24 to 23"),
        (_entry(40, 24, 2) + _entry(40, 28, 2) + b"...", "entry 0 has its name from byte 24 to 28"),
        (_entry(40, 24, 2) + _entry(40, 27, 2) + b"...", "entry 1 has its name from byte 27 to 27"),
        (_entry(40, 12, 2) + b"\0\0", "entry 0 has its name from byte 12 to 12"),
        (_entry(40, 12, 2) + b"n" * 256, "entry 0 has its name from byte 12 to 268"),
        (_entry(40, 24, 2) + _entry(40, 280, 2) + b"n" * 260, "entry 0 has its name from byte 24 to 280"),
        (dirents([*DOTS, (b"a/b", 40, REG)]), "slash or NUL"),
        (dirents([*DOTS, (b"a\0b", 40, REG), (b"c", 40, REG)]), "slash or NUL"),
        (dirents([*DOTS, (b"b", 64, REG), (b"a", 64, REG)]), "b'a' comes after b'b'"),
        (dirents([*DOTS, (b"a", 64, REG), (b"a", 64, REG)]), "b'a' comes after b'a'"),
        (dirents([DOTS[1], DOTS[0]]), "unsorted or repeat"),
        (dirents([DOTS[0], DOTS[0], DOTS[1]]), "unsorted or repeat"),
        (dirents([(b".", 40, DIR)]), 'lacks "." or ".."'),
        (dirents([(b"..", 40, DIR)]), 'lacks "." or ".."'),
        (dirents([(b".", 64, DIR), (b"..", 40, DIR)]), '"." points at inode 64, not at directory 40'),
        (dirents([(b".", 40, DIR), (b"..", 64, DIR)]), r'"\.\." points at inode 64'),
        (dirents([(b".", 40, REG), (b"..", 40, DIR)]), '"." points at inode 40'),
    ],
)
def test_directory_blocks_are_judged(block: bytes, message: str) -> None:
    mini = Mini()
    mini.place(REG, tail=b"x")
    mini.place(DIR, tail=block, at=40 * 32, nb=2)
    with pytest.raises(FormatError, match=message) as caught:
        check(mini.image())
    assert caught.value.where is not None
    assert caught.value.where.startswith("/ (inode 40)") or caught.value.where.startswith("/a (inode 64)")


def test_names_rise_from_block_to_block() -> None:
    mini = Mini(blocks=8)
    leaf = mini.place(FIFO, layout=LAYOUT_FLAT_PLAIN, u=0, nlink=2)
    mini.put(4 << 12, dirents([*DOTS, (b"m", leaf, FIFO)]))
    mini.put(5 << 12, dirents([(b"a", leaf, FIFO)]))
    mini.place(DIR, at=40 * 32, size=8192, layout=LAYOUT_FLAT_PLAIN, u=4, nb=2)
    with pytest.raises(FormatError, match="b'a' comes after b'm'"):
        check(mini.image())
    with pytest.raises(FormatError, match="b'a' comes after b'm'"):
        list(open_reader(mini.image()).walk())


@pytest.mark.parametrize("size", [13, 4096, 1 << 20, (1 << 32) - 1])
def test_directories_of_zeros(size: int) -> None:
    image = _raw_root(b"", size=size, layout=LAYOUT_FLAT_PLAIN)
    with pytest.raises(FormatError, match=r"first name offset 0|overlap"):
        check(image)
    with pytest.raises(FormatError, match=r"first name offset 0|overlap"):
        list(open_reader(image).walk())


def test_empty_directory_lacks_its_dots() -> None:
    with pytest.raises(FormatError, match="lacks"):
        check(_raw_root(b""))


def test_omitted_dot() -> None:
    mini = Mini()
    mini.place(DIR, tail=dirents([(b"..", 40, DIR)]), at=40 * 32, nb=2, bit4=True)
    check(mini.image())
    mini = Mini()
    mini.place(DIR, tail=dirents(DOTS), at=40 * 32, nb=2, bit4=True)
    with pytest.raises(FormatError, match="although its format says that it is omitted"):
        check(mini.image())


@pytest.mark.parametrize("kind", [0, 2, 7, 8, 255])
def test_file_types_in_entries_must_be_the_inode_s(kind: int) -> None:
    mini = Mini()
    mini.file(b"f")
    mini.root()
    image = bytearray(mini.image())
    at = image.index(_entry(64, 36 + 3))
    image[at + 10] = kind
    with pytest.raises(FormatError, match=f"entry says file type {kind}, but the inode 1"):
        check(resum(image))


def test_entries_that_lead_outside() -> None:
    for nid in (1 << 20, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        mini = Mini()
        mini.add(b"f", REG, nid)
        mini.root()
        with pytest.raises(FormatError, match=r"would lie at byte|points into a metabox"):
            check(mini.image())


# --- the tree ---


def _subdirectory(mini: Mini, parent: int, *entries: tuple[bytes, int, int], nid: int | None = None) -> int:
    at = mini.at if nid is None else nid * 32
    block = dirents(sorted([(b".", at // 32, DIR), (b"..", parent, DIR), *entries]))
    return mini.place(DIR, tail=block, at=nid and at, nb=2 + len(entries))


def test_directory_inside_itself() -> None:
    mini = Mini()
    mini.add(b"self", DIR, 40)
    mini.root()
    for action in (lambda: check(mini.image()), lambda: list(open_reader(mini.image()).walk())):
        with pytest.raises(FormatError, match="more than one name: a cycle"):
            action()


def test_directory_cycle() -> None:
    mini = Mini()
    a, b = 100, 110
    _subdirectory(mini, 40, (b"b", b, DIR), nid=a)
    _subdirectory(mini, a, (b"a", a, DIR), nid=b)
    mini.add(b"a", DIR, a)
    mini.root()
    for action in (lambda: check(mini.image()), lambda: list(open_reader(mini.image()).walk())):
        with pytest.raises(FormatError, match="more than one name: a cycle"):
            action()


def test_exponential_tree_is_refused_at_once() -> None:
    """Thirty directories with two names each for the next one: 2^30 paths."""
    mini = Mini(blocks=6)
    nids = [100 + 6 * k for k in range(30)]
    for level, nid in enumerate(nids[:-1]):
        parent = nids[level - 1] if level else 40
        following = nids[level + 1]
        _subdirectory(mini, parent, (b"a", following, DIR), (b"b", following, DIR), nid=nid)
    _subdirectory(mini, nids[-2], nid=nids[-1])
    mini.add(b"top", DIR, nids[0])
    mini.root()
    start = time.monotonic()
    with pytest.raises(FormatError, match="more than one name"):
        check(mini.image())
    with pytest.raises(FormatError, match="more than one name"):
        list(open_reader(mini.image()).walk())
    assert time.monotonic() - start < 5


def test_overlapping_directories_are_refused_early() -> None:
    """Hundreds of directories that share one large block list cost no more than the image is large."""
    mini = Mini(blocks=40)
    leaf = mini.place(FIFO, layout=LAYOUT_FLAT_PLAIN, u=0, nlink=60_000)
    for number in range(20):
        entries = [(b"%02d-%03d" % (number, k), leaf, FIFO) for k in range(200)]
        mini.put((20 + number) << 12, dirents(entries).ljust(4096, b"\0"))
    nids = [mini.place(DIR, size=20 << 12, layout=LAYOUT_FLAT_PLAIN, u=20, nb=2) for _ in range(100)]
    for number, nid in enumerate(nids):
        mini.add(b"d%03d" % number, DIR, nid)
    mini.wide_root(18)
    with pytest.raises(FormatError, match="directories overlap: together they claim more than the 163840 bytes"):
        list(open_reader(mini.image()).walk())
    with pytest.raises(FormatError, match=r"directories overlap|lacks"):
        check(mini.image())


def test_overlapping_inodes_are_refused_early() -> None:
    """Each inode claims the rest of its block as its tail, the inodes behind it included."""
    mini = Mini(blocks=8)
    for number in range(60):
        nid = mini.place(REG, size=4096 - (mini.at + 32) % 4096)
        mini.add(b"f%02d" % number, REG, nid)
    mini.wide_root(6)
    with pytest.raises(FormatError, match="inodes overlap: together they claim more bytes than hold metadata"):
        check(mini.image())


def test_huge_device_claims_do_not_widen_the_bound() -> None:
    """A device slot's size is a claim until the blob is opened: it must not pay for overlapping directories."""
    mini = Mini(blocks=24, slots=[DeviceSlot(b"", 1 << 31, 1 << 20)])

    class Huge(BytesAt):
        size = 1 << 43  # type: ignore[assignment]

    for number in range(50):
        mini.add(b"%02d" % number, DIR, mini.place(DIR, size=4096, layout=LAYOUT_FLAT_PLAIN, u=12, nb=2))
    mini.wide_root(20)
    shared = dirents([(b"e", mini.place(FIFO, layout=LAYOUT_FLAT_PLAIN, u=0, nlink=60), FIFO)])
    mini.put(12 << 12, shared.ljust(4096, b"\0"))
    reader = ImageReader(cast(VerifiedImage, Source(BytesAt(mini.image()), (Huge(b""),))))
    with pytest.raises(FormatError, match="directories overlap: together they claim more than the 98304 bytes"):
        list(reader.walk())


def test_metabox_that_repeats_its_blocks_does_not_widen_the_bound() -> None:
    mini = Mini(blocks=8)
    metabox = mini.chunked(400 << 12, 0, [(0, 4)] * 400)
    mini.superblock = {
        "sb_extslots": 1,
        "metabox_nid": metabox,
        "feature_incompat": INCOMPAT_METABOX | INCOMPAT_CHUNKED_FILE,
    }
    mini.root()
    assert open_reader(mini.image()).metadata_size == 2 * (8 << 12)


def test_depth_and_path_length_are_bounded() -> None:
    for name, levels, message in (
        (b"d", MAX_DEPTH + 2, "nested deeper than"),
        (b"n" * 250, MAX_PATH // 250 + 2, "path of .* bytes is longer"),
    ):
        step = 16 if len(name) > 1 else 4
        mini = Mini(blocks=(levels * step * 32 >> 12) + 4)
        first = 128
        for level in range(levels):
            nid = first + level * step
            below = [(name, nid + step, DIR)] if level < levels - 1 else []
            _subdirectory(mini, nid - step if level else 40, *below, nid=nid)
        mini.add(name, DIR, first)
        mini.root()
        for action in (lambda m=mini: check(m.image()), lambda m=mini: list(open_reader(m.image()).walk())):
            with pytest.raises(FormatError, match=message):
                action()


def test_link_counts() -> None:
    def image(nlink: int, names: int) -> bytes:
        mini = Mini()
        nid = mini.place(REG, tail=b"x", nlink=nlink)
        for number in range(names):
            mini.add(b"%d" % number, REG, nid)
        mini.root()
        return mini.image()

    for nlink in (1, 2, 5):
        assert check(image(nlink, nlink)).warnings_total == 0
        with pytest.raises(FormatError, match=f"more names than its nlink {nlink}"):
            check(image(nlink, nlink + 1))
    result = check(image(5, 3))
    assert result.warnings == ("inode 64 claims 2 more names than the tree has",)
    assert (result.inodes, result.names) == (2, 3)


def test_directory_link_counts_are_only_odd() -> None:
    for nlink, warnings in ((2, 0), (1, 0), (3, 1), (0, 1)):
        mini = Mini()
        mini.root(nlink=nlink)
        assert check(mini.image()).warnings_total == warnings


def test_warnings_are_bounded() -> None:
    mini = Mini(blocks=16)
    for number in range(MAX_WARNINGS + 20):
        mini.add(b"%03d" % number, REG, mini.place(REG, tail=b"x", nlink=2))
    mini.wide_root(14)
    result = check(mini.image())
    assert (len(result.warnings), result.warnings_total) == (MAX_WARNINGS, MAX_WARNINGS + 20)


# --- xattrs ---


def _entry_raw(name_len: int, index: int, size: int, rest: bytes = b"") -> bytes:
    return bytes(12) + struct.pack("<BBH", name_len, index, size) + rest + bytes(-len(rest) % 4)


@pytest.mark.parametrize(
    ("area", "message"),
    [
        (bytes(12), "i_xattr_icount 1 leaves no room"),
        (struct.pack("<IB7x", 0, 1) + b"", "i_xattr_icount 1 leaves no room"),
        (struct.pack("<IB7x", 0, 2) + bytes(4), "2 shared xattrs do not fit an xattr area of 16 bytes"),
        (struct.pack("<IB7x", 0, 255) + bytes(4), "255 shared xattrs do not fit"),
        (struct.pack("<IB7x", 0, 1) + b"\xff\xff\xff\xff", "shared xattr 4294967295 lies outside the meta blob"),
        (struct.pack("<IB7xI", 0, 1, (6 << 10) - 1), "shared xattr 6143 leaves the meta blob"),
        (_entry_raw(5, 1, 0, b"abcd"), "xattr entry of 9 bytes leaves the xattr area of 20 bytes"),
        (_entry_raw(1, 1, 65535, b"abcd"), "xattr entry of 65540 bytes leaves"),
        (_entry_raw(255, 1, 0), "xattr entry of 259 bytes leaves"),
        (_entry_raw(1, 5, 0, b"a"), "unknown name index 5"),
        (_entry_raw(1, 7, 0, b"a"), "unknown name index 7"),
        (_entry_raw(1, 0x80, 0, b"a"), "long prefix 0, but the image has 0"),
        (_entry_raw(1, 0xFF, 0, b"a"), "long prefix 127, but the image has 0"),
        (_entry_raw(0, 1, 4, b"abcd"), "empty name after b'user.'"),
        (_entry_raw(1, 2, 0, b"a"), "no ACL name"),
        (_entry_raw(2, 1, 0, b"a\0"), "NUL in its name"),
        (_entry_raw(252, 1, 0, b"a" * 252), "name of 257 bytes is longer"),
        (xattr_area((1, b"a", b"1"), (1, b"a", b"2")), "b'user.a' repeats"),
        (xattr_area((2, b"", b"1"), (2, b"", b"2")), "b'system.posix_acl_access' repeats"),
        (xattr_area((1, b"a", b"1"), name_filter=NULL), "b'user.a' is denied by the inode's name filter"),
    ],
)
def test_xattrs_are_judged(area: bytes, message: str) -> None:
    mini = Mini(blocks=6, superblock={"feature_compat": 7})
    mini.put((6 << 12) - 4, struct.pack("<BBH", 4, 1, 4))
    mini.add(b"f", REG, mini.place(REG, xattrs=area, tail=b"x"))
    mini.root()
    with pytest.raises(FormatError, match=message) as caught:
        check(mini.image())
    assert caught.value.where == "/f (inode 64)"


def test_xattr_area_past_the_end() -> None:
    mini = _one(_file(icount=65535, tail=b"x"))
    reader = open_reader(mini.image())
    with pytest.raises(FormatError, match="xattr area of 262148 bytes leaves the meta blob"):
        reader.xattrs(reader.lookup(b"f"))
    with pytest.raises(FormatError, match="inodes overlap"):
        check(mini.image())


def test_repeated_xattrs_are_refused_by_the_reader_too() -> None:
    mini = _one(_file(xattrs=xattr_area((1, b"a", b"1"), (1, b"a", b"1"))))
    reader = open_reader(mini.image())
    with pytest.raises(FormatError, match="repeats"):
        reader.xattrs(reader.lookup(b"f"))


def test_name_filter_counts_only_when_valid() -> None:
    area = xattr_area((1, b"a", b"1"), name_filter=NULL)
    for fields in ({"feature_compat": 3}, {"feature_compat": 7, "xattr_filter_reserved": 1}):
        mini = Mini(superblock=dict(fields))
        mini.file(b"f", xattrs=area)
        mini.root()
        assert check(mini.image()).xattrs == 1


@pytest.mark.parametrize(
    ("fields", "table", "message"),
    [
        ({"xattr_prefix_count": 129}, b"", "129 xattr prefixes"),
        ({"xattr_prefix_count": 1, "xattr_prefix_start": NULL}, b"", "xattr prefix 0 at byte 17179869180"),
        ({"xattr_prefix_count": 2}, LongPrefix(1, b"a").encode(), "xattr prefix 1 has 65536 bytes"),
        ({"xattr_prefix_count": 1}, LongPrefix(1, b"a" * 256).encode(), "xattr prefix 0 has 257 bytes"),
        ({"xattr_prefix_count": 1}, LongPrefix(9, b"a").encode(), "unknown base index 9"),
        ({"xattr_prefix_count": 1}, LongPrefix(0x80, b"a").encode(), "unknown base index 128"),
    ],
)
def test_prefix_tables_are_judged(fields: dict[str, int], table: bytes, message: str) -> None:
    mini = Mini(superblock={"xattr_prefix_start": (3 << 12) // 4} | fields)
    mini.put(3 << 12, table)
    mini.file(b"f", xattrs=xattr_area((0x80, b"x", b"1")))
    mini.root()
    with pytest.raises(FormatError, match=message):
        check(mini.image())


# --- anything at all ---


def _use_everything(meta: bytes, blob: bytes) -> None:
    """Do what a careless user does, without the check in front, and the check."""
    reader = open_reader(meta, blob)
    try:
        for path, inode in reader.walk():
            reader.xattrs(inode, hidden=True)
            reader.lookup(path)
            if inode.is_symlink:
                reader.readlink(inode)
            for start in range(0, min(inode.size, 1 << 16), 1 << 14):
                reader.read(inode, start, 1 << 14)
    except ErosealError:
        pass
    check_image(reader)


def _mutants(meta: bytes, count: int) -> list[bytes]:
    """Copies with one to four fields overwritten, mostly where metadata lies."""
    chance = random.Random(20_260_701)
    places = [*range(1024, 1152), *range(1280, 2816)]
    values = [0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, NULL, 1 << 63, (1 << 64) - 1]
    found = []
    for _ in range(count):
        data = bytearray(meta)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            at = chance.choice(places)
            size = chance.choice((1, 1, 2, 4, 8))
            kind = chance.randrange(3)
            if kind == 0:
                data[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                value = chance.choice(values) & (1 << 8 * size) - 1
                data[at : at + size] = value.to_bytes(size, "little")
            else:
                data[at : at + size] = chance.randbytes(size)
        found.append(resum(data) if data[1036] == 12 else bytes(data))
    return found


def test_mutants_bring_only_our_errors_in_bounded_time() -> None:
    meta, blob, _ = sample()
    refused = 0
    for mutant in _mutants(meta, 3000):
        start = time.monotonic()
        try:
            _use_everything(mutant, blob)
        except ErosealError:
            refused += 1
        assert time.monotonic() - start < 5
    # Most of the rest hit times, owners, modes and padding, or made another valid image.
    assert refused > 1000


def test_truncated_images_bring_only_our_errors() -> None:
    meta, blob, _ = sample()
    for size in [*range(0, 3000, 37), *range(3000, len(meta), 509)]:
        with pytest.raises(FormatError):
            _use_everything(meta[:size], blob)
    for size in range(0, len(blob), 1021):
        with pytest.raises(FormatError):
            _use_everything(meta, blob[:size])


def test_nid_set() -> None:
    seen = NidSet()
    numbers = [0, 1, 1023, 1024, 1 << 63, (1 << 63) + 1, (1 << 64) - 1]
    assert [seen.add(number) for number in numbers] == [True] * len(numbers)
    assert not any(seen.add(number) for number in numbers)
