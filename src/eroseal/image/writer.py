"""The bytes of a new image, in the order of its layout.

Inodes are packed in canonical order. The layout lets them move back by a few MiB at most, so the writer needs only a
window of that size over the output; tails come from the spool in the same order. Every inode is checked to take
exactly the bytes that the layout gave it.
"""

from __future__ import annotations

import os
import stat
import sys
from array import array
from collections.abc import Callable
from typing import Final

from eroseal.errors import ErosealError
from eroseal.format.erofs import (
    CHUNK_INDEX_SIZE,
    CHUNK_INDEXES,
    COMPAT_MTIME,
    COMPAT_SB_CHKSUM,
    COMPAT_XATTR_FILTER,
    DIRENT,
    DIRENT_SIZE,
    FORMAT_EXTENDED,
    FORMAT_LAYOUT_SHIFT,
    FT_OF_IFMT,
    INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE,
    INODE_COMPACT,
    INODE_EXTENDED,
    LAYOUT_CHUNK_BASED,
    LAYOUT_FLAT_INLINE,
    LAYOUT_FLAT_PLAIN,
    NULL_ADDR_32,
    SUPER_OFFSET,
    DeviceSlot,
    Superblock,
    encode_rdev,
    superblock_checksum,
)
from eroseal.image.layout import (
    ImageOptions,
    Layout,
    all_entries,
    blocks_of_devices,
    chunk_entries,
    is_compact,
)
from eroseal.image.placer import BLOCK
from eroseal.limits import MAX_CHUNK_BITS
from eroseal.tree.model import DEVICE_SHIFT, NO_TAIL, NULL_CHUNK, Directory, Inode, Packed

ReadTail = Callable[[int, int], bytes]
"""(byte offset in the tail spool, length) to bytes; asked for in rising order."""

_WINDOW: Final = 12 << 20
"""Bytes of output held back at most; three times what the layout may look back."""
_KEEP: Final = 5 << 20
_BLOCK_MASK: Final = (1 << DEVICE_SHIFT) - 1
_BLKSZBITS: Final = 12
_FILE_TYPES: Final = [FT_OF_IFMT.get(kind << 12, 0) for kind in range(16)]


class Window:
    """Random writes within the last MiBs of a growing file.

    Args:
        fd: output.
        base: byte offset in the output of the window's address 0.
    """

    __slots__ = ("_base", "_buffer", "_fd", "_start")

    def __init__(self, fd: int, base: int) -> None:
        self._fd = fd
        self._base = base
        self._start = 0
        self._buffer = bytearray(_WINDOW)

    def put(self, position: int, data: bytes | bytearray) -> None:
        """Write `data` at `position`; what lies between is zero."""
        at = position - self._start
        end = at + len(data)
        if end > len(self._buffer):
            at, end = self._advance(at, end)
        self._buffer[at:end] = data

    def finish(self, end: int) -> None:
        """Write what is left, up to `end`."""
        length = end - self._start
        self._buffer += bytes(max(0, length - len(self._buffer)))
        write_all(self._fd, memoryview(self._buffer)[:length], self._base + self._start)
        self._buffer.clear()

    def _advance(self, at: int, end: int) -> tuple[int, int]:
        """Write what lies too far back to change, skip what nobody writes, and make room up to `end`."""
        done = max(0, at - _KEEP)
        write_all(self._fd, memoryview(self._buffer)[:done], self._base + self._start)
        del self._buffer[:done]
        self._start += done
        self._buffer += bytes(max(_WINDOW, end - done) - len(self._buffer))
        return at - done, end - done


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write everything, in as many calls as it takes."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view = view[done:]
        offset += done


class ImageWriter:
    """Writes one planned image.

    Args:
        layout: from `plan`.
        options: those that it was planned with.
        read_tail: gives inline tails.
    """

    def __init__(self, layout: Layout, options: ImageOptions, read_tail: ReadTail) -> None:
        self._layout = layout
        self._options = options
        self._read_tail = read_tail
        self.blocks = layout.meta_blkaddr + layout.end // BLOCK
        self._slots = [
            DeviceSlot(device.tag, device.blocks, uniaddr)
            for device, uniaddr in blocks_of_devices(options, self.blocks + options.annex_blocks)
        ]
        self._chunked = False
        self._serial = options.packed_serials + 1

    def write(self, fd: int) -> Superblock:
        """Write all but chunk data and packed blocks to `fd`; gives the superblock, as it stands at byte 1024.

        Raises:
            UnsupportedError: more data than 32-bit block addresses reach.
            OSError: from writing.
        """
        layout, options = self._layout, self._options
        window = Window(fd, layout.meta_blkaddr * BLOCK)
        put, heads, data_at = window.put, layout.heads, layout.data_at
        for index, inode in enumerate(layout.inodes):
            data = b""
            if inode.tail_at >= 0 and inode.chunks is None and index not in data_at:
                # Most of a tree: a small file.
                tail = self._read_tail(inode.tail_at, inode.size)
                head = self._pack(index, inode, LAYOUT_FLAT_INLINE, NULL_ADDR_32)
            elif isinstance(inode, Directory):
                head, tail, data = self._directory(index, inode)
            else:
                head, tail, data = self._inode(index, inode)
            if len(head) != heads[index]:
                raise ErosealError(f"internal error: inode {index} does not have its planned size")
            put(inode.position, head + tail)
            if not index:
                # The root's block data and the device table come before the packed blocks, all else behind.
                self._device_table(fd, window)
            if data:
                put(data_at[index], data)
        put(layout.shared_xattrs, layout.xattrs.shared)
        window.finish(layout.end)
        superblock = self._superblock(options.uuid or bytes(16))
        write_superblock(fd, superblock)
        return superblock

    def _device_table(self, fd: int, window: Window) -> None:
        table = b"".join(slot.encode() for slot in self._slots)
        area = self._layout.meta_blkaddr * BLOCK
        if self._layout.device_table < area:  # in the first block, in front of the image's own chunks
            write_all(fd, table, self._layout.device_table)
        else:
            window.put(self._layout.device_table - area, table)

    def _superblock(self, uuid: bytes) -> Superblock:
        layout, options = self._layout, self._options
        devices = len(options.devices)
        return Superblock(
            blkszbits=_BLKSZBITS,
            root_nid=layout.inodes[0].position // 32,
            inos=len(layout.inodes) + options.packed_files,
            blocks=self.blocks,
            feature_compat=COMPAT_SB_CHKSUM | COMPAT_MTIME | (COMPAT_XATTR_FILTER if layout.xattrs.used else 0),
            feature_incompat=(INCOMPAT_CHUNKED_FILE if self._chunked else 0)
            | (INCOMPAT_DEVICE_TABLE if devices else 0),
            epoch=options.epoch,
            meta_blkaddr=layout.meta_blkaddr,
            xattr_blkaddr=layout.meta_blkaddr + layout.shared_xattrs // BLOCK,
            uuid=uuid,
            extra_devices=devices,
            devt_slotoff=layout.device_table // 128,
        )

    # --- inodes ---------------------------------------------------------------------------------
    def _inode(self, index: int, inode: Inode) -> tuple[bytes, bytes, bytes]:
        """(head, inline tail, whole blocks) of anything but a directory."""
        kind = stat.S_IFMT(inode.mode)
        tail = b""
        if kind == stat.S_IFREG:
            if inode.tail_at != NO_TAIL:
                tail = self._read_tail(inode.tail_at, inode.size % BLOCK)
            if inode.chunks is not None:
                return self._with_chunks(index, inode, inode.chunks, tail)
        elif kind == stat.S_IFLNK:
            tail = inode.target
        elif inode.rdev != (0, 0):
            return self._pack(index, inode, LAYOUT_FLAT_PLAIN, encode_rdev(*inode.rdev)), b"", b""
        if index in self._layout.data_at:
            return (
                self._pack(index, inode, LAYOUT_FLAT_PLAIN, self._block_of(index)),
                b"",
                tail.ljust(BLOCK, b"\0"),
            )
        if tail:
            return self._pack(index, inode, LAYOUT_FLAT_INLINE, NULL_ADDR_32), tail, b""
        start = NULL_ADDR_32 if kind in (stat.S_IFREG, stat.S_IFLNK) else 0
        return self._pack(index, inode, LAYOUT_FLAT_PLAIN, start), b"", b""

    def _with_chunks(
        self, index: int, inode: Inode, chunks: int | array[int], tail: bytes
    ) -> tuple[bytes, bytes, bytes]:
        entries = chunk_entries(inode)
        if not entries:
            if isinstance(chunks, array):
                raise ErosealError("internal error: chunk list without indexes")
            start = chunks  # a block of the image itself: its device number is 0
            layout = LAYOUT_FLAT_INLINE if tail else LAYOUT_FLAT_PLAIN
            return self._pack(index, inode, layout, start), tail, b""
        self._chunked = True
        if isinstance(chunks, array):
            bits = (self._options.chunk_size // BLOCK).bit_length() - 1
        else:
            bits = min((-(-inode.size // BLOCK) - 1).bit_length(), MAX_CHUNK_BITS)
            chunks = array("Q", [chunks if chunks == NULL_CHUNK else chunks + (k << bits) for k in range(entries)])
        head = self._pack(index, inode, LAYOUT_CHUNK_BASED, CHUNK_INDEXES | bits)
        return head + bytes(-len(head) % CHUNK_INDEX_SIZE) + self._indexes(chunks), b"", b""

    def _indexes(self, chunks: array[int]) -> bytes:
        """`struct erofs_inode_chunk_index` for each chunk: u16 0, u16 device, u32 block."""
        numbers = self._options.device_numbers
        packed = array(
            "Q",
            [
                NULL_ADDR_32 << 32
                if chunk == NULL_CHUNK
                else (chunk & _BLOCK_MASK) << 32 | (numbers[device] if (device := chunk >> DEVICE_SHIFT) else 0) << 16
                for chunk in chunks
            ],
        )
        if sys.byteorder == "big":
            packed.byteswap()
        return packed.tobytes()

    def _directory(self, index: int, directory: Directory) -> tuple[bytes, bytes, bytes]:
        entries = all_entries(directory)
        blocks = [_dirents(entries[first : first + count]) for first, count, _ in self._layout.dir_blocks[index]]
        whole = self._layout.whole_blocks.get(index, 0)
        data = b"".join(block.ljust(BLOCK, b"\0") for block in blocks[:whole])
        tail = b"".join(blocks[whole:])
        start = self._block_of(index) if whole else NULL_ADDR_32
        layout = LAYOUT_FLAT_INLINE if tail else LAYOUT_FLAT_PLAIN
        return self._pack(index, directory, layout, start), tail, data

    def _block_of(self, index: int) -> int:
        return self._layout.meta_blkaddr + self._layout.data_at[index] // BLOCK

    def _pack(self, index: int, inode: Inode, layout: int, i_u: int) -> bytes:
        """Inode and xattrs."""
        area = self._layout.xattrs.area(inode.xattrs) if inode.xattrs else b""
        icount = (len(area) - 12) // 4 + 1 if area else 0
        if is_compact(inode, self._options.epoch):
            packed = INODE_COMPACT.pack(
                layout << FORMAT_LAYOUT_SHIFT,
                icount,
                inode.mode,
                inode.nlink,
                inode.size,
                0,
                i_u,
                self._serial + index,
                inode.uid,
                inode.gid,
            )
        else:
            packed = INODE_EXTENDED.pack(
                FORMAT_EXTENDED | layout << FORMAT_LAYOUT_SHIFT,
                icount,
                inode.mode,
                0,
                inode.size,
                i_u,
                self._serial + index,
                inode.uid,
                inode.gid,
                inode.mtime,
                inode.mtime_nsec,
                inode.nlink,
            )
        return packed + area


def _dirents(entries: list[tuple[bytes, Inode | Packed]]) -> bytes:
    """One block of directory entries, not padded."""
    pack = DIRENT.pack
    offset = len(entries) * DIRENT_SIZE
    packed = []
    for name, child in entries:
        packed.append(pack(child.position // 32, offset, _FILE_TYPES[child.mode >> 12]))
        offset += len(name)
    packed += [name for name, _ in entries]
    return b"".join(packed)


def write_superblock(fd: int, superblock: Superblock) -> None:
    """Write a superblock at byte 1024 with the checksum over its block."""
    block = bytearray(os.pread(fd, BLOCK, 0).ljust(BLOCK, b"\0"))
    block[SUPER_OFFSET : SUPER_OFFSET + superblock.size] = superblock.encode()
    checksum = superblock_checksum(block, superblock.blkszbits)
    block[SUPER_OFFSET + 4 : SUPER_OFFSET + 8] = checksum.to_bytes(4, "little")
    write_all(fd, bytes(block), 0)
