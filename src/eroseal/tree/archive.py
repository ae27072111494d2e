"""A tar archive, read as a stream, becomes a layer.

One pass, in order: headers become nodes (`archive_names` says where), contents go to a spool, and the archive itself is
never held. Whatever an entry asks for meets a bound first. Names lead nowhere but into the layer's own tree, since
nothing is made on disk but the spool.

Source: POSIX.1-2017, pax; the manual of GNU tar; OCI image specification, "Image Layer Filesystem Changeset".
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from typing import Final

from eroseal.errors import FormatError, UnsupportedError
from eroseal.format import tar
from eroseal.format.tar import Header
from eroseal.format.tar_sparse import DataMap, Pieces, Sparse, check_pieces, parse_old_extension, parse_old_map
from eroseal.limits import MAX_ARCHIVE_BYTES, MAX_ARCHIVE_FILE, MAX_SPARSE_PIECES, MAX_SYMLINK, MAX_TAR_EXTENSION
from eroseal.tree.archive_members import Extra, Members
from eroseal.tree.archive_names import Names
from eroseal.tree.archive_stream import Cursor, Spool
from eroseal.tree.decompress import decompressed
from eroseal.tree.layer import Content, Layer, Node
from eroseal.tree.model import Inode

LARGE: Final = 1 << 20
"""Bytes above which a content is not batched with others."""
_MAX_TIME: Final = 1 << 63
_MAJOR_BITS, _MINOR_BITS = 12, 20
"""Of a device number in Linux."""

_FILES: Final = frozenset({tar.FILE, tar.OLD_FILE, tar.CONTIGUOUS})
_SPECIAL: Final = {tar.CHARACTER: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}
_WITHOUT_CONTENT: Final = frozenset({*_FILES, *_SPECIAL, tar.DIRECTORY, tar.SYMLINK, tar.HARD_LINK, tar.GNU_VOLUME})
"""Files are here for those whose names end in a slash: directories from before these had a kind."""
_REFUSED: Final = {
    b"M": ("the rest of a file from another volume", "join multi-volume archives first"),
    b"D": ("a directory of an incremental dump", "archive without --listed-incremental"),
    b"N": ("a list of long names as GNU tar wrote before 1990", None),
}


def read_archive(
    pieces: Iterable[bytes],
    *,
    spool: int,
    source: int = 0,
    container: bool = False,
    name: str = "archive",
    tap: Callable[[bytes], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Layer:
    """Read a tar archive to its end.

    Args:
        pieces: the archive as it is, perhaps compressed; what this raises is passed on.
        spool: descriptor of an empty file that contents are written to.
        source: number of that file, for `Content`.
        container: the archive is a container image's layer: it may have whiteouts, absolute names begin at the image's
            root, and hard links may lead to lower layers.
        name: of the archive, for messages.
        tap: called with all of the uncompressed archive, piece by piece, padding behind its end included.
        progress: called with numbers of uncompressed bytes that have just been read.

    Raises:
        FormatError: the archive is truncated, corrupt, or asks for what no archive may.
        UnsupportedError: a compression or a kind of member that is not supported.
        OutputError: the spool cannot be written.
    """

    def seen(piece: bytes) -> None:
        if tap is not None:
            tap(piece)
        if progress is not None:
            progress(len(piece))

    stream = decompressed(pieces, name=name)
    # umoci's `insert` ends layers right behind the last member's content.
    cursor = Cursor(stream, seen if tap is not None or progress is not None else None, unpadded=container)
    reader = _Reader(cursor, Spool(spool, name), source=source, container=container)
    try:
        return reader.run(name)
    except (FormatError, UnsupportedError) as error:
        if error.where is not None:
            raise
        kind = UnsupportedError if isinstance(error, UnsupportedError) else FormatError
        raise kind(error.what, where=f"{name}: {reader.members.where()}", hint=error.hint) from error


class _Reader:
    def __init__(self, cursor: Cursor, spool: Spool, *, source: int, container: bool) -> None:
        self._cursor = cursor
        self._spool = spool
        self._source = source
        self._container = container
        self._names = Names(container=container)
        self.members = Members(cursor, container=container, keep=self._names.keep)
        self._content_bytes = 0
        self._hole_bytes = 0

    def run(self, name: str) -> Layer:
        for header, extra, block in self.members.read():
            self._member(header, extra, block)
        self._spool.finish()
        return Layer(
            name,
            self._names.finish(),
            self.members.entries,
            self._content_bytes,
            self._hole_bytes,
            self.members.warnings(),
        )

    def _member(self, header: Header, extra: Extra, block: bytes) -> None:
        kind, name, mode, uid, gid, size, mtime, link, rdev, gnu = header
        if uid >> 32 or gid >> 32:
            raise FormatError(f"owner {uid}:{gid} is beyond 32 bits")
        if not -_MAX_TIME <= mtime < _MAX_TIME:
            raise FormatError(f"time {mtime} is beyond 64 bits")
        inode = Inode(mode & 0o7777, uid, gid, mtime, extra.nanoseconds, 0, extra.xattrs)
        if kind in _FILES and not name.endswith(b"/"):
            self._file(name, inode, size, extra.sparse)
            return
        if kind == tar.GNU_SPARSE and gnu:
            self._file(name, inode, size, self._old_map(block))
            return
        if kind not in _WITHOUT_CONTENT:
            what, hint = _REFUSED.get(kind, ("an unknown kind", None))
            raise UnsupportedError(f"type {kind!r} of member is not supported: {what}", hint=hint)
        if size or extra.sparse is not None:
            raise FormatError(f"{size} bytes of content for a member that cannot have any")
        if kind == tar.GNU_VOLUME:
            return
        place = self._names.place(name)
        if place is None:
            return
        parent, leaf = place
        if kind == tar.DIRECTORY or kind in _FILES:
            inode.mode |= stat.S_IFDIR
            self._names.put_directory(parent, leaf, inode)
        elif kind == tar.SYMLINK:
            if not 0 < len(link) <= MAX_SYMLINK:
                raise FormatError(f"a symlink's target has {len(link)} bytes, but 1 to {MAX_SYMLINK} are allowed")
            inode.mode, inode.target, inode.size = stat.S_IFLNK | 0o777, link, len(link)
            self._names.put(parent, leaf, Node(inode))
        elif kind == tar.HARD_LINK:
            self._names.put(parent, leaf, self._linked(link))
        else:
            self._special(parent, leaf, inode, kind, rdev)

    def _special(self, parent: Node, leaf: bytes, inode: Inode, kind: bytes, rdev: tuple[int, int]) -> None:
        if rdev[0] >> _MAJOR_BITS or rdev[1] >> _MINOR_BITS:
            raise FormatError(f"device number {rdev[0]}:{rdev[1]} is beyond what Linux has")
        if self._container and kind == tar.CHARACTER and rdev == (0, 0):
            self._names.put_whiteout(parent, leaf)  # overlayfs would not see anything else in it
            return
        inode.mode |= _SPECIAL[kind]
        inode.rdev = rdev
        self._names.put(parent, leaf, Node(inode))

    def _linked(self, target: bytes) -> Node:
        if not target:
            raise FormatError("a hard link to nothing")
        node = self._names.find(target)
        if node is not None:
            return node
        if not self._container:
            raise FormatError(f"a hard link to {os.fsdecode(target[:200])}, which is not in the archive before it")
        return Node(Inode(stat.S_IFREG, 0, 0, 0, 0, 0), link=self._names.lower(target))

    # --- contents -------------------------------------------------------------------------------
    def _file(self, name: bytes, inode: Inode, stored: int, sparse: Sparse | None) -> None:
        if not 0 <= stored <= MAX_ARCHIVE_FILE:
            raise FormatError(f"{stored} bytes of content, but {MAX_ARCHIVE_FILE} are allowed")
        place = self._names.place(name)
        if place is None:
            self._cursor.skip(stored)
            self._cursor.skip_padding(stored)
            return
        inode.mode |= stat.S_IFREG
        inode.size = stored if sparse is None else sparse.size
        if inode.size > MAX_ARCHIVE_FILE:
            raise FormatError(f"{inode.size} bytes with holes, but {MAX_ARCHIVE_FILE} are allowed")
        self._content_bytes += inode.size
        self._hole_bytes += max(0, inode.size - stored)
        if self._content_bytes > MAX_ARCHIVE_BYTES:
            raise FormatError(f"more than {MAX_ARCHIVE_BYTES} bytes of content")
        if sparse is not None:
            offset = self._sparse(sparse, stored)
        elif stored <= LARGE:
            offset = self._spool.add(self._cursor.take(stored))
        else:
            offset = self._spool.reserve(stored)
            self._copy(stored, offset)
            self._cursor.skip_padding(stored)
        content = Content(self._source, offset) if inode.size else None
        self._names.put(*place, Node(inode, content))

    def _copy(self, length: int, offset: int) -> None:
        end = offset + length
        while offset < end:
            view = self._cursor.ready(end - offset)
            self._spool.write(view, offset)
            offset += len(view)

    def _sparse(self, sparse: Sparse, stored: int) -> int:
        pieces, left = sparse.pieces, stored
        if sparse.in_data:
            pieces, left = self._data_map(stored)
        pieces = check_pieces(pieces, size=sparse.size, stored=left)
        start = self._spool.reserve(sparse.size)
        for offset, length in pieces:
            self._copy(length, start + offset)
        self._cursor.skip_padding(left)
        return start

    def _old_map(self, block: bytes) -> Sparse:
        sparse = parse_old_map(block)
        more = sparse.more
        while more:
            following = self._cursor.block()
            if not following:
                raise FormatError("truncated: the archive ends within the map of a sparse file")
            pieces, more = parse_old_extension(following)
            sparse.pieces += pieces
            if not pieces or len(sparse.pieces) > MAX_SPARSE_PIECES:
                raise FormatError("malformed sparse map: it is empty, or has too many pieces")
        return sparse

    def _data_map(self, stored: int) -> tuple[Pieces, int]:
        """(the map at the beginning of a file's data, bytes of data behind it)."""
        parser, read = DataMap(), 0
        while not parser.complete:
            read += tar.BLOCK
            if read > min(stored, MAX_TAR_EXTENSION):
                raise FormatError("malformed sparse map: it does not end")
            parser.feed(self._cursor.take(tar.BLOCK))
        return parser.pieces(), stored - read
