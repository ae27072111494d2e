"""Small EROFS images made byte by byte, so that tests can say exactly what is wrong with them.

Independent of the project's writer: places and values are the test's own, only the structs are shared.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from eroseal.format.erofs import (
    CHUNK_INDEX,
    CHUNK_INDEXES,
    DIRENT,
    FT_OF_IFMT,
    INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE,
    INODE_COMPACT,
    INODE_EXTENDED,
    LAYOUT_CHUNK_BASED,
    LAYOUT_FLAT_INLINE,
    LAYOUT_FLAT_PLAIN,
    DeviceSlot,
    Superblock,
    encode_rdev,
    superblock_checksum,
)
from eroseal.format.xattr import FILTER_DEFAULT, HEADER, encode_entry, filter_bit
from eroseal.image.check import CheckResult, check_image
from eroseal.image.reader import ImageReader
from eroseal.readat import BytesAt
from eroseal.trust.image import VerifiedImage

REG, DIR, LNK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
CHR, FIFO = stat.S_IFCHR | 0o600, stat.S_IFIFO | 0o600
NULL = 0xFFFFFFFF


@dataclass
class Source:
    """An image as the reader wants it, with no opinion of its own on what the superblock says."""

    meta: BytesAt
    devices: tuple[BytesAt, ...] = ()

    def device(self, k: int) -> BytesAt:
        return self.devices[k]


def open_reader(meta: bytes, *data: bytes) -> ImageReader:
    source = Source(BytesAt(meta), tuple(BytesAt(blob) for blob in data))
    return ImageReader(cast(VerifiedImage, source))


def check(meta: bytes, *data: bytes) -> CheckResult:
    return check_image(open_reader(meta, *data))


def dirents(entries: Sequence[tuple[bytes, int, int]]) -> bytes:
    """One directory block of (name, nid, mode), in the order given."""
    offset = 12 * len(entries)
    heads, names = b"", b""
    for name, nid, mode in entries:
        heads += DIRENT.pack(nid, offset + len(names), FT_OF_IFMT[stat.S_IFMT(mode)])
        names += name
    return heads + names


def xattr_area(*entries: tuple[int, bytes, bytes], shared: Sequence[int] = (), name_filter: int = 0) -> bytes:
    """An inline xattr area of (name index, rest, value)."""
    area = HEADER.pack(name_filter, len(shared)) + struct.pack(f"<{len(shared)}I", *shared)
    return area + b"".join(encode_entry(*entry) for entry in entries)


@dataclass
class Mini:
    """An image under construction; inodes are placed from byte 2048 on, the root at nid 40."""

    bits: int = 12
    blocks: int = 4
    superblock: dict[str, object] = field(default_factory=dict)
    slots: list[DeviceSlot] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data = bytearray(self.blocks << self.bits)
        self.at = 2048
        self.root_entries: list[tuple[bytes, int, int]] = []

    def place(
        self,
        mode: int,
        *,
        size: int | None = None,
        layout: int = LAYOUT_FLAT_INLINE,
        u: int = NULL,
        nb: int | None = None,
        bit4: bool = False,
        xattrs: bytes = b"",
        tail: bytes = b"",
        extended: bool = False,
        at: int | None = None,
        uid: int = 0,
        mtime: int = 0,
        nsec: int = 0,
        nlink: int | None = None,
        icount: int | None = None,
        fmt: int = 0,
    ) -> int:
        """Write an inode, its xattr area and what follows; returns its nid."""
        at = self.at if at is None else at
        size = len(tail) if size is None else size
        form = fmt | int(extended) | layout << 1 | bit4 << 4
        if nb is None:
            nb = 0 if extended else 1
        if icount is None:
            icount = (len(xattrs) - 12) // 4 + 1 if xattrs else 0
        if extended:
            links = 1 if nlink is None else nlink
            raw = INODE_EXTENDED.pack(form, icount, mode, nb, size, u, 1, uid, 0, mtime, nsec, links)
        else:
            nb = nb if nlink is None else nlink
            raw = INODE_COMPACT.pack(form, icount, mode, nb, size, mtime, u, 1, uid, 0)
        raw += xattrs + tail
        self.put(at, raw)
        if at == self.at:
            self.at = (at + len(raw) + 31) & ~31
        return at // 32

    def chunked(self, size: int, cb: int, entries: Sequence[tuple[int, int]], **options: int) -> int:
        """A chunk-based file with indexes of (device id, block)."""
        table = b"".join(CHUNK_INDEX.pack(block >> 32 & 0xFFFF, device, block & NULL) for device, block in entries)
        return self.place(REG, size=size, layout=LAYOUT_CHUNK_BASED, u=CHUNK_INDEXES | cb, tail=table, **options)

    def put(self, at: int, raw: bytes) -> None:
        self.data[at : at + len(raw)] = raw

    def add(self, name: bytes, mode: int, nid: int) -> None:
        self.root_entries.append((name, nid, mode))

    def file(self, name: bytes, content: bytes = b"x", **options: object) -> int:
        nid = self.place(REG, tail=content, **options)  # type: ignore[arg-type]
        self.add(name, REG, nid)
        return nid

    def root(self, *, dots: bool = True, ordered: bool = True, **options: object) -> None:
        """Write the root directory at nid 40 with what was added."""
        entries = [(b".", 40, DIR), (b"..", 40, DIR)] if dots else []
        entries += self.root_entries
        if ordered:
            entries.sort()
        options.setdefault("nb", 2 + sum(stat.S_ISDIR(mode) for _, _, mode in self.root_entries))
        self.place(DIR, tail=dirents(entries), at=40 * 32, **options)  # type: ignore[arg-type]

    def wide_root(self, block: int) -> None:
        """Write a root whose entries need blocks of their own, from `block` on."""
        entries = sorted([(b".", 40, DIR), (b"..", 40, DIR), *self.root_entries])
        parts = [entries[start : start + 200] for start in range(0, len(entries), 200)]
        self.put(block << self.bits, b"".join(dirents(part).ljust(4096, b"\0") for part in parts))
        links = 2 + sum(stat.S_ISDIR(mode) for _, _, mode in self.root_entries)
        self.place(DIR, at=40 * 32, size=len(parts) << 12, layout=LAYOUT_FLAT_PLAIN, u=block, nb=links)

    def image(self) -> bytes:
        """The bytes, with superblock, device table (at byte 3840) and checksum."""
        if self.slots:
            self.put(30 * 128, b"".join(slot.encode() for slot in self.slots))
        fields: dict[str, object] = {
            "blkszbits": self.bits,
            "root_nid": 40,
            "inos": 1,
            "blocks": self.blocks,
            "feature_compat": 3,
            "feature_incompat": INCOMPAT_CHUNKED_FILE | (INCOMPAT_DEVICE_TABLE if self.slots else 0),
            "extra_devices": len(self.slots),
            "devt_slotoff": 30 if self.slots else 0,
        }
        fields |= self.superblock
        self.put(1024, Superblock(**fields).encode())  # type: ignore[arg-type]
        return resum(self.data, self.bits)


def resum(data: bytes | bytearray, bits: int = 12) -> bytes:
    """The image with its superblock's checksum made right."""
    data = bytearray(data)
    data[1028:1032] = superblock_checksum(data, bits).to_bytes(4, "little")
    return bytes(data)


def poke(image: bytes, at: int, form: str, value: int) -> bytes:
    """The image with one field changed, and its checksum made right."""
    data = bytearray(image)
    struct.pack_into(form, data, at, value)
    return resum(data)


def sample() -> tuple[bytes, bytes, dict[str, int]]:
    """An image with a bit of everything, its data blob, and the nids by name."""
    mini = Mini(blocks=6, slots=[DeviceSlot(b"", 4, 6)])
    mini.superblock = {"feature_compat": 7, "xattr_blkaddr": 3, "epoch": 1_000_000, "fixed_nsec": 5}
    mini.put(3 << 12, encode_entry(6, b"selinux", b"context"))
    mini.put(4 << 12, bytes(range(256)) * 16)
    nids = {
        "small": mini.file(b"small", b"hello", nb=2),
        "plain": mini.place(REG, size=5000, layout=LAYOUT_FLAT_PLAIN, u=4, extended=True, mtime=-5, nsec=7),
        "holes": mini.chunked(4 * 4096 + 100, 0, [(1, 2), (1, 3), (0, NULL), (1, 0), (0, 4)]),
        "link": mini.place(LNK, tail=b"sub/inner"),
        "null": mini.place(CHR, layout=LAYOUT_FLAT_PLAIN, u=encode_rdev(259, 70_000)),
        "fifo": mini.place(FIFO, layout=LAYOUT_FLAT_PLAIN, u=0),
        "xattrs": mini.place(
            REG,
            xattrs=xattr_area((1, b"b", b"2"), (1, b"a", b""), shared=[0], name_filter=FILTER_DEFAULT ^ _bits()),
            tail=b"with xattrs",
        ),
        "inner": mini.place(REG, tail=b"inside"),
    }
    sub = dirents([(b".", mini.at // 32, DIR), (b"..", 40, DIR), (b"inner", nids["inner"], REG)])
    nids["sub"] = mini.place(DIR, tail=sub, nb=2)
    for name, mode in {
        "plain": REG,
        "holes": REG,
        "link": LNK,
        "null": CHR,
        "fifo": FIFO,
        "xattrs": REG,
        "sub": DIR,
    }.items():
        mini.add(name.encode(), mode, nids[name])
    mini.add(b"hard", REG, nids["small"])
    mini.root()
    blob = b"".join(bytes([65 + k]) * 4096 for k in range(4))
    return mini.image(), blob, nids


def _bits() -> int:
    return filter_bit(1, b"a") | filter_bit(1, b"b") | filter_bit(6, b"selinux")
