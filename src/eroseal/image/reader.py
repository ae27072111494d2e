"""Reading an EROFS image: inodes, directories, xattrs, file data.

Strategy: nothing is read ahead and nothing is trusted. The superblock and the device table are read once;
everything else is found from an inode number when it is asked for, through a bounded cache of metadata. Every
offset and count is held against the blob that it points into before it is used. What cannot be judged locally
(cycles, names of inodes) is judged by the traversals: `walk` of eroseal.image.view, and the whole-image check
of eroseal.image.check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from eroseal.errors import FormatError, UnsupportedError, UsageError
from eroseal.format.digest import Digest
from eroseal.format.erofs import (
    COMPAT_PLAIN_XATTR_PFX,
    COMPAT_SHARED_EA_IN_METABOX,
    INCOMPAT_METABOX,
    LAYOUT_FLAT_INLINE,
    NID_IN_METABOX,
    DeviceSlot,
    Superblock,
)
from eroseal.image.directory import DirEntry, first_name, in_order, parse_block
from eroseal.image.extents import IN_PLACE, DeviceMap, Extent, Piece, merged, pieces
from eroseal.image.guard import TreeGuard
from eroseal.image.inode import Inode, decode_inode
from eroseal.image.space import MetaSpace
from eroseal.image.view import BlobKey, TreeView
from eroseal.image.volume import read_devices, read_superblock
from eroseal.image.xattrs import XattrReader
from eroseal.limits import IO_CHUNK, MAX_SYMLINK_READ
from eroseal.trust.blob import SelfConsistentBlob
from eroseal.trust.image import UnverifiedImage, VerifiedImage

__all__ = ["DirEntry", "Extent", "ImageReader", "Inode"]

SMALL_READ: Final = 16 << 10
"""Bytes up to which meta blob data goes through the metadata cache: inline tails lie beside their inodes."""


class ImageReader(TreeView):
    """Reads one image; safe to use from several threads.

    Args:
        source: the verified image, or one that the caller called unverified by name.

    Raises:
        FormatError: the superblock or the device table is broken, or does not fit the data blobs at hand.
        UnsupportedError: the image has features that this version does not know.
    """

    superblock: Superblock
    """The superblock as read."""
    devices: tuple[DeviceSlot, ...]
    """The device table: slot k describes data blob k+1."""

    def __init__(self, source: VerifiedImage | UnverifiedImage) -> None:
        self.source = source
        self._meta = MetaSpace(source.meta, "the meta blob")
        self.superblock = read_superblock(self._meta)
        self.devices = read_devices(self._meta, self.superblock)
        sizes = [device.size for device in source.devices]
        if sizes and len(sizes) != len(self.devices):
            raise FormatError(f"image has {len(self.devices)} data blobs, but {len(sizes)} were given")
        self._map = DeviceMap([self._meta.size, *sizes], self.devices, self.superblock.block_size)
        self._metabox: MetaSpace | None = None
        self._xattrs = XattrReader(
            self.superblock,
            space_of=self.space,
            shared_space=self._shared_space,
            prefix_space=self._prefix_space,
        )

    @property
    def blob_keys(self) -> tuple[BlobKey, ...]:
        """What to call the meta blob and each data blob, in device order."""
        meta = self.source.meta
        if not isinstance(meta, SelfConsistentBlob):
            return tuple((id(self), device) for device in range(1 + len(self.devices)))
        # Tags that a checked meta blob holds are digests, and readers refuse any other blob in their place.
        digests = (Digest.from_tag(meta.params.algorithm, slot.tag) for slot in self.devices)
        return meta.digest, *digests

    def inline_size(self, inode: Inode) -> int:
        """Bytes of a file that lie right behind its inode."""
        if inode.layout != LAYOUT_FLAT_INLINE or not inode.size:
            return 0
        return (inode.size - 1) % self.superblock.block_size + 1

    # --- inodes ---
    def root(self) -> Inode:
        """The root directory."""
        return self.inode(self.superblock.root_nid)

    def inode(self, nid: int) -> Inode:
        """The inode with this number.

        Raises:
            FormatError: it lies outside the image, or its fields are impossible.
            UnsupportedError: it lies in a compressed metabox.
        """
        space = self._metabox_space() if nid & NID_IN_METABOX else self._meta
        return decode_inode(space, self.superblock, nid)

    def space(self, inode: Inode) -> MetaSpace:
        """The metadata space that an inode lies in."""
        return self._metabox_space() if inode.in_metabox else self._meta

    def metabox_inode(self) -> Inode:
        """The inode whose data holds other inodes; raises FormatError where there is none."""
        superblock = self.superblock
        nid = superblock.metabox_nid
        if not superblock.feature_incompat & INCOMPAT_METABOX or not superblock.sb_extslots:
            raise FormatError("an inode number points into a metabox, but the image has none")
        if nid & NID_IN_METABOX:
            raise FormatError("the metabox inode lies inside itself")
        inode = self.inode(nid)
        if inode.compressed:
            raise UnsupportedError(
                "metadata is compressed (metabox), which this version does not decode", where=f"inode {nid}"
            )
        return inode

    # --- directories ---
    def entries(self, directory: Inode) -> Iterator[DirEntry]:
        """The names in a directory, rising bytewise, without "." and "..".

        Raises:
            FormatError: a block is broken, or names are unsorted or repeat.
            UnsupportedError: the directory is compressed.
        """
        return (entry for entry in self.all_entries(directory) if entry.name not in (b".", b".."))

    def all_entries(self, directory: Inode) -> Iterator[DirEntry]:
        """As `entries`, with "." and ".." where the image has them."""
        return in_order(self._blocks(directory), where=f"directory inode {directory.nid}")

    def children(self, directory: Inode) -> Iterator[tuple[bytes, Inode]]:
        """The names in a directory with their inodes; see `TreeView.children`."""
        return ((entry.name, self.inode(entry.nid)) for entry in self.entries(directory))

    def child(self, directory: Inode, name: bytes) -> Inode | None:
        """The inode of one name: search the block by first names, then look through that block."""
        where = f"directory inode {directory.nid}"
        bits = self.superblock.blkszbits
        block_size = self.superblock.block_size
        low, high = 0, (directory.size + block_size - 1) >> bits
        while high - low > 1:
            middle = (low + high) // 2
            block = self.read(directory, middle << bits, block_size)
            if first_name(block, where=where) <= name:
                low = middle
            else:
                high = middle
        if high > low:
            block = self.read(directory, low << bits, block_size)
            for entry in in_order([parse_block(block, where=where)], where=where):
                if entry.name == name:
                    return self.inode(entry.nid)
        return None

    def guard(self) -> TreeGuard:
        """What keeps a traversal short."""
        return TreeGuard(self.metadata_size)

    # --- data ---
    def extents(self, inode: Inode) -> Iterator[Extent]:
        """Where a file's bytes lie; see `TreeView.extents`."""
        return self._extents(inode, 0, inode.size if inode.has_data else 0)

    def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """Bytes of a file, directory or symlink; see `TreeView.read`."""
        if offset < 0 or length < 0:
            raise UsageError(f"cannot read {length} bytes at byte {offset}")
        end = min(offset + length, inode.size if inode.has_data else 0)
        parts = [self._fetch(extent) for extent in self._extents(inode, offset, end)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readlink(self, inode: Inode) -> bytes:
        """The target of a symlink; see `TreeView.readlink`."""
        if not inode.is_symlink:
            raise UsageError("not a symlink", where=f"inode {inode.nid}")
        if inode.size > MAX_SYMLINK_READ:
            raise FormatError(f"symlink of {inode.size} bytes", where=f"inode {inode.nid}")
        return self.read(inode, 0, inode.size)

    # --- xattrs ---
    def xattrs(self, inode: Inode, *, hidden: bool = False) -> list[tuple[bytes, bytes]]:
        """Extended attributes as (full name, value), sorted by name.

        Args:
            inode: whose.
            hidden: also those that no system call lists (name index 0), under their bare names.

        Raises:
            FormatError: an entry is broken, or a name repeats.
        """
        found = {}
        for entry in self._xattrs.entries(inode):
            if entry.hidden and not hidden:
                continue
            if entry.name in found:
                raise FormatError(f"xattr {entry.name!r} repeats", where=f"inode {inode.nid}")
            found[entry.name] = entry.value()
        return sorted(found.items())

    @property
    def xattr_reader(self) -> XattrReader:
        """Attributes entry by entry, values not read."""
        return self._xattrs

    # --- places ---
    @property
    def device_map(self) -> DeviceMap:
        """How addresses resolve to devices."""
        return self._map

    @property
    def metadata_size(self) -> int:
        """Bytes that honest metadata can have: those of the meta blob, and as many again in a metabox.

        Data blobs do not count: nobody keeps metadata there, and until one is opened its size is a claim.
        """
        if not self.superblock.feature_incompat & INCOMPAT_METABOX:
            return self._meta.size
        # The metabox's blocks lie in the meta blob: a larger one uses some of them again and again.
        return self._meta.size + min(self._meta.size, self._metabox_space().size)

    def _blocks(self, directory: Inode) -> Iterator[list[DirEntry]]:
        if not directory.is_dir:
            raise UsageError("not a directory", where=f"inode {directory.nid}")
        where = f"directory inode {directory.nid}"
        block_size = self.superblock.block_size
        # Pieces that end on block boundaries: block sizes divide IO_CHUNK.
        for start in range(0, directory.size, IO_CHUNK):
            data = self.read(directory, start, IO_CHUNK)
            for at in range(0, len(data), block_size):
                yield parse_block(data[at : at + block_size], where=where)

    def _extents(self, inode: Inode, start: int, end: int) -> Iterator[Extent]:
        if start >= end:
            return iter(())
        return merged(self._resolved(inode, start, end))

    def _resolved(self, inode: Inode, start: int, end: int) -> Iterator[Extent]:
        resolve = self._map.resolve
        for piece in pieces(inode, self.space(inode), self.superblock.blkszbits, start, end):
            if piece.device_id is None:
                yield Extent(piece.logical, piece.length, None, 0)
            elif piece.device_id == IN_PLACE:
                yield from self._in_place(inode, piece)
            else:
                try:
                    device, offset = resolve(piece.device_id, piece.offset, piece.length)
                except FormatError as error:
                    raise FormatError(error.what, where=f"inode {inode.nid}") from None
                yield Extent(piece.logical, piece.length, device, offset)

    def _in_place(self, inode: Inode, piece: Piece) -> Iterator[Extent]:
        """Bytes that follow an inode: in the meta blob, or wherever the metabox's own data lies."""
        if not inode.in_metabox:
            yield Extent(piece.logical, piece.length, 0, piece.offset)
            return
        box = self.metabox_inode()
        shift = piece.logical - piece.offset
        for extent in self._extents(box, piece.offset, piece.offset + piece.length):
            yield Extent(extent.logical + shift, extent.length, extent.device, extent.offset)

    def _fetch(self, extent: Extent) -> bytes:
        if extent.device is None:
            return bytes(extent.length)
        if extent.device:
            return self.source.device(extent.device - 1).read_at(extent.offset, extent.length)
        if extent.length <= SMALL_READ:
            return self._meta.read(extent.offset, extent.length)
        return self.source.meta.read_at(extent.offset, extent.length)

    # --- metadata elsewhere ---
    def _metabox_space(self) -> MetaSpace:
        if self._metabox is None:
            self._metabox = MetaSpace(_InodeData(self, self.metabox_inode()), "the metabox")
        return self._metabox

    def _shared_space(self) -> MetaSpace:
        inside = self.superblock.feature_compat & COMPAT_SHARED_EA_IN_METABOX
        return self._metabox_space() if inside else self._meta

    def _prefix_space(self) -> MetaSpace:
        superblock = self.superblock
        if superblock.feature_compat & COMPAT_PLAIN_XATTR_PFX:
            return self._meta
        if superblock.feature_incompat & INCOMPAT_METABOX:
            return self._metabox_space()
        if not superblock.packed_nid:
            return self._meta
        packed = self.inode(superblock.packed_nid)
        if packed.compressed:
            raise UnsupportedError(
                "long xattr prefixes are in a compressed packed inode, which this version does not decode",
                where=f"inode {packed.nid}",
            )
        return MetaSpace(_InodeData(self, packed), "the packed inode")


class _InodeData:
    """`ReadAt` over an inode's data."""

    __slots__ = ("_inode", "_read", "size")

    def __init__(self, reader: ImageReader, inode: Inode) -> None:
        self._read: Callable[[Inode, int, int], bytes] = reader.read
        self._inode = inode
        self.size = inode.size

    def read_at(self, offset: int, length: int) -> bytes:
        return self._read(self._inode, offset, length)
