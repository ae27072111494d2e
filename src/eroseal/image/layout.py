"""Where every inode of a new image goes.

Strategy. The root's inode comes first, then the device table: the root's nid has 16 bits, and with 65,535 data blobs
the table alone takes 8 MiB. Then come the blocks of small files that workers packed while they read them, then all
other inodes in the canonical order of the tree. An inode with its xattrs and its inline tail is one unit, and only the
tail must not cross a block (fs/erofs/data.c refuses it), so units are packed by best fit (`eroseal.image.placer`).
Sizes come from the same functions that the writer packs with (`header_size`, `directory_blocks`), and the writer
asserts each of them.
"""

from __future__ import annotations

import bisect
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from eroseal.errors import SourceError, UnsupportedError
from eroseal.format.erofs import (
    CHUNK_INDEX_SIZE,
    COMPACT_SIZE,
    DEVICE_SLOT_SIZE,
    DIRENT_SIZE,
    EXTENDED_SIZE,
    NID_SLOT,
    SUPER_OFFSET,
    SUPER_SIZE,
)
from eroseal.format.xattr import FILTER_DEFAULT, HEADER, MAX_SHARED, encode_entry, filter_bit, split_name
from eroseal.image.placer import BLOCK, SLOTS, Placer, fits_compact
from eroseal.limits import MAX_CHUNK_BITS, MAX_NAME_LEN, MAX_XATTR_AREA
from eroseal.tree.model import DEVICE_SHIFT, NO_TAIL, Directory, Inode, Packed, Xattrs

META_START: Final = SUPER_OFFSET + SUPER_SIZE
LARGEST_CHUNK: Final = BLOCK << MAX_CHUNK_BITS
"""Bytes that one chunk index can speak for: a hole of more than these 8 TiB needs several."""
_U16: Final = 0xFFFF
_U32: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """A data blob of a new image.

    Args:
        tag: 64 bytes for its slot.
        blocks: blocks of its data region.
    """

    tag: bytes
    blocks: int


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What an image is made with, besides the tree.

    Args:
        devices: data blobs in device order; device k of the image is `devices[k - 1]`.
        device_numbers: provisional device number in chunk locations to device number in the image.
        chunk_size: bytes.
        epoch: the image's own time, in seconds; inodes with exactly this time may be compact.
        data_blocks: blocks at the image's start that are taken (superblock and, without data blobs, chunks).
        uuid: 16 bytes, or None to derive one from the content.
        packed_files, packed_serials, packed_blocks: small files that are packed already, the highest i_ino among
            them, and the blocks that they take.
        annex_blocks: blocks behind the file system that belong to the meta blob all the same.
    """

    devices: tuple[DeviceEntry, ...] = ()
    device_numbers: Mapping[int, int] = field(default_factory=dict)
    chunk_size: int = 65536
    epoch: int = 0
    data_blocks: int = 1
    uuid: bytes | None = None
    packed_files: int = 0
    packed_serials: int = 0
    packed_blocks: int = 0
    annex_blocks: int = 0


class XattrTable:
    """Xattr areas of all inodes, with pairs that several inodes have stored once.

    Args:
        inodes: every inode once.
    """

    def __init__(self, inodes: list[Inode]) -> None:
        sets = Counter(inode.xattrs for inode in inodes if inode.xattrs)
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for xattrs, count in sets.items():
            for pair in xattrs:
                pairs[pair] += count
        self.shared = bytearray()
        self._ids: dict[tuple[bytes, bytes], int] = {}
        for pair in sorted(pair for pair, count in pairs.items() if count > 1):
            self._ids[pair] = len(self.shared) // 4
            self.shared += _entry(*pair)
        self._areas = {xattrs: self._area(xattrs) for xattrs in sets}

    @property
    def used(self) -> bool:
        """Whether any inode has xattrs."""
        return bool(self._areas)

    def area(self, xattrs: Xattrs) -> bytes:
        """The inline area for these xattrs."""
        return self._areas[xattrs] if xattrs else b""

    def check(self, root: Directory) -> None:
        """Refuse an area that no inode has room for; raises SourceError, with the path in the tree."""
        for xattrs, area in self._areas.items():
            if len(area) > MAX_XATTR_AREA:
                raise SourceError(
                    f"extended attributes take {len(area)} bytes, EROFS has room for {MAX_XATTR_AREA} in one file",
                    where=_first_path(root, xattrs),
                )

    def _area(self, xattrs: Xattrs) -> bytes:
        shared = [self._ids[pair] for pair in xattrs if pair in self._ids][:MAX_SHARED]
        listed = set(shared)
        inline = [_entry(*pair) for pair in xattrs if self._ids.get(pair, -1) not in listed]
        bloom = FILTER_DEFAULT
        for name, _ in xattrs:
            bloom &= ~filter_bit(*_split_name(name))
        return b"".join([HEADER.pack(bloom, len(shared)), *(item.to_bytes(4, "little") for item in shared), *inline])


def _first_path(root: Directory, xattrs: Xattrs) -> str:
    """Path, from the root, of the first inode with these xattrs: paths are kept nowhere, and only errors need them."""
    stack: list[tuple[bytes, Inode | Packed]] = [(b"/", root)]
    while stack:
        path, inode = stack.pop()
        if isinstance(inode, Inode) and inode.xattrs == xattrs:
            return os.fsdecode(path)
        if isinstance(inode, Directory):
            names = [os.path.join(path, name) for name in inode.names]
            stack += reversed(list(zip(names, inode.children, strict=True)))
    return "/"


def _entry(name: bytes, value: bytes) -> bytes:
    return encode_entry(*_split_name(name), value)


def _split_name(name: bytes) -> tuple[int, bytes]:
    split = split_name(name)
    if split is None:
        raise SourceError(f"EROFS has no place for extended attribute {name!r}")
    return split


def is_compact(inode: Inode, epoch: int) -> bool:
    """Whether the 32-byte form holds everything of this inode."""
    return (
        fits_compact(epoch, inode.mtime, inode.mtime_nsec, inode.uid, inode.gid)
        and inode.nlink <= _U16
        and inode.size <= _U32
    )


def header_size(inode: Inode, xattr_size: int, options: ImageOptions) -> int:
    """Bytes of inode, xattrs and chunk indexes: all that comes before an inline tail."""
    size = (COMPACT_SIZE if is_compact(inode, options.epoch) else EXTENDED_SIZE) + xattr_size
    if inode.chunks is None or not (count := chunk_entries(inode)):
        return size
    return size + -size % CHUNK_INDEX_SIZE + count * CHUNK_INDEX_SIZE


def chunk_entries(inode: Inode) -> int:
    """Chunk indexes that a file needs; 0 where a start block in the image itself says it all.

    Contiguous content on a data blob takes an index, too: a start block could reach it through the unified address
    space, and kernels follow that, but erofs-utils up to 1.9.3 reads the wrong device then.
    """
    chunks = inode.chunks
    if chunks is None:
        return 0
    if isinstance(chunks, array):
        return len(chunks)
    if chunks >> DEVICE_SHIFT == 0:
        return 0
    return -(-inode.size // LARGEST_CHUNK)


def directory_blocks(directory: Directory) -> list[tuple[int, int, int]]:
    """How a directory's entries fall into blocks: (first entry, entries, bytes) of each, "." and ".." included.

    Entries are all names in byte order; a block is full when the next entry and its name do not fit.
    """
    names = directory.names
    everything = sum(map(len, names)) + len(b"...") + DIRENT_SIZE * (len(names) + 2)
    if everything <= BLOCK:
        return [(0, len(names) + 2, everything)]
    blocks: list[tuple[int, int, int]] = []
    first = used = count = 0
    for name, _ in all_entries(directory):
        need = DIRENT_SIZE + len(name)
        if used + need > BLOCK:
            blocks.append((first, count, used))
            first, used, count = first + count, 0, 0
        used += need
        count += 1
    blocks.append((first, count, used))
    return blocks


def all_entries(directory: Directory) -> list[tuple[bytes, Inode | Packed]]:
    """The directory's entries with "." and "..", in byte order of names."""
    names = directory.names
    entries = list(zip(names, directory.children, strict=True))
    # Names may come before "." ("-x") and even between the two (".-x").
    entries.insert(bisect.bisect_left(names, b".."), (b"..", directory.parent or directory))
    entries.insert(bisect.bisect_left(names, b"."), (b".", directory))
    return entries


@dataclass(slots=True)
class Layout:
    """A planned image.

    Args:
        inodes: in canonical order, each with its `position` set.
        xattrs: the xattr areas.
        data_at, whole_blocks: byte offset in the metadata area and number of the whole data blocks of a directory, or
            of a small file or symlink that could not be inlined, by index in `inodes`.
        dir_blocks: for directories, by index in `inodes`, see `directory_blocks`.
        heads: bytes of each inode's head, see `header_size`; the writer must come to the same.
        packed_at, shared_xattrs: byte offsets in the metadata area.
        device_table: byte offset in the image.
        end: bytes of the metadata area, whole blocks.
        meta_blkaddr: block where the metadata area starts.
    """

    inodes: list[Inode]
    xattrs: XattrTable
    data_at: dict[int, int]
    whole_blocks: dict[int, int]
    dir_blocks: dict[int, list[tuple[int, int, int]]]
    heads: array[int]
    packed_at: int
    device_table: int
    shared_xattrs: int
    end: int
    meta_blkaddr: int


def plan(root: Directory, options: ImageOptions) -> Layout:
    """Place every inode of a tree.

    Raises:
        SourceError: a name of more than 255 bytes, or too many xattrs on one file.
        UnsupportedError: the device table would start too far in.
    """
    inodes = list(root.inodes())
    for inode in inodes:
        if isinstance(inode, Directory):  # now: beyond 16 bits it decides the inode's size
            inode.nlink = 2 + sum(isinstance(child, Directory) for child in inode.children)
    xattrs = XattrTable(inodes)
    xattrs.check(root)
    # With chunks in front (no data blobs) the metadata area is on its own, and nid 0 must not be used: readers of
    # directories take inode number 0 for a deleted entry.
    start = META_START if options.data_blocks == 1 else 2 * NID_SLOT
    meta_blkaddr = 0 if options.data_blocks == 1 else options.data_blocks
    layout = Layout(inodes, xattrs, {}, {}, {}, array("I"), 0, 0, 0, 0, meta_blkaddr)
    placer = _place_root(layout, root, start, options)
    layout.packed_at = placer.blocks(options.packed_blocks)
    for packed in root.packed():
        packed.position += layout.packed_at
    for index, inode in enumerate(inodes):
        if not index:
            continue
        head = header_size(inode, len(xattrs.area(inode.xattrs)), options)
        layout.heads.append(head)
        if inode.tail_at >= 0 and (slots := (head + inode.size % BLOCK + 31) // NID_SLOT) <= SLOTS:
            inode.position = placer.best_fit(slots)  # most of a tree: its inode and its tail in one block
        else:
            _place(layout, placer, index, inode, head)
    layout.shared_xattrs = placer.blocks(-(-len(xattrs.shared) // BLOCK))
    layout.end = placer.end
    return layout


def _place_root(layout: Layout, root: Directory, start: int, options: ImageOptions) -> Placer:
    """The root at `start`, then the device table; gives the placer for everything else."""
    root.position = start
    head = header_size(root, len(layout.xattrs.area(root.xattrs)), options)
    layout.heads.append(head)
    blocks = _measure(root)
    layout.dir_blocks[0] = blocks
    whole, tail = _split(blocks)
    end = start + head
    if tail and end % BLOCK + tail <= BLOCK and end // BLOCK == (end + tail - 1) // BLOCK:
        end += tail
    elif tail:
        whole += 1
    if options.devices:
        end = _place_device_table(layout, end, len(options.devices))
    placer = Placer(end)
    if whole:
        layout.data_at[0] = placer.blocks(whole)
        layout.whole_blocks[0] = whole
    return placer


def _place_device_table(layout: Layout, end: int, devices: int) -> int:
    """The device table behind the root, or in the first block; gives the metadata area's end, in bytes.

    The superblock counts its place from the image's start and reaches 8 MiB, which chunks in front may exceed.
    """
    size = devices * DEVICE_SLOT_SIZE
    area = layout.meta_blkaddr * BLOCK
    if area and META_START + size <= BLOCK:
        layout.device_table = META_START
        return end
    start = end + -end % DEVICE_SLOT_SIZE
    layout.device_table = area + start
    if layout.device_table // DEVICE_SLOT_SIZE > _U16:
        raise UnsupportedError(
            f"{devices} data blobs of bases are too many for an image with more than 8 MiB of chunks of its own",
            hint="--blobs build puts these into a blob",
        )
    return start + size


def _place(layout: Layout, placer: Placer, index: int, inode: Inode, head: int) -> None:
    whole = tail = 0
    if isinstance(inode, Directory):
        blocks = _measure(inode)
        layout.dir_blocks[index] = blocks
        whole, tail = _split(blocks)
    elif inode.tail_at != NO_TAIL:
        tail = inode.size % BLOCK
    elif inode.target:
        tail = inode.size
    position = placer.place(head, tail)
    if position is None:
        position = placer.aligned(head, NID_SLOT)
        whole += 1
    inode.position = position
    if whole:
        layout.data_at[index] = placer.blocks(whole)
        layout.whole_blocks[index] = whole


def _measure(directory: Directory) -> list[tuple[int, int, int]]:
    for name in directory.names:
        if len(name) > MAX_NAME_LEN:
            raise SourceError(f"name has {len(name)} bytes, EROFS has room for {MAX_NAME_LEN}", where=repr(name[:64]))
    blocks = directory_blocks(directory)
    directory.size = (len(blocks) - 1) * BLOCK + blocks[-1][2]
    return blocks


def _split(blocks: list[tuple[int, int, int]]) -> tuple[int, int]:
    """(whole blocks, bytes of the inline tail) of a directory."""
    last = blocks[-1][2]
    return (len(blocks), 0) if last == BLOCK else (len(blocks) - 1, last)


def blocks_of_devices(options: ImageOptions, primary_blocks: int) -> Iterator[tuple[DeviceEntry, int]]:
    """Each data blob with its first block in the unified space, which continues the image's own blocks."""
    address = primary_blocks
    for device in options.devices:
        # Beyond 32 bits there is no unified address; chunk indexes still reach the device by its number.
        yield device, address if address + device.blocks < _U32 else 0
        address += device.blocks
