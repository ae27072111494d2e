"""The hot path: read files, hash their blocks, write what is new.

Strategy. A build touches tens of thousands of small files, and what costs is not hashing but calls. So a worker
spends on each file one open, one read, one fstat, one listxattr and one close, and nothing else:

* Ordinary small files, most of a tree, are read by native code (`_scan.c`) where there is any, a directory at a time.
* Files are opened relative to their directory's descriptor. Their metadata comes from the open descriptor, so that
  the walk (`eroseal.tree.directory`) need not stat what is read here anyway.
* The first read asks for 4096 bytes. Less came: that is the whole file. Its inode and its bytes are packed into
  blocks of the meta blob right here (`Packed`), so that the parent never touches them again.
* Larger files are read into an *arena*, block after block without gaps, and hashed there while they are warm in
  cache. The parent decides from the chunk ids which are new and where they go (`writes`), and a whole arena of new
  chunks leaves in one pwrite. Files above `LARGE` bytes are cut into segments that workers share.
* What lies behind a larger file's last whole block (its *tail*) is collected and goes to the tail spool in one write;
  so do small files with xattrs or several names, whose inodes only the parent can make.

The parent hands out work and settles it in a canonical order, so that addresses never depend on timing. A worker is
a process (`eroseal.build.pool`) or lives in the parent (`--jobs 1`); this module knows no difference.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, cast

from eroseal.build.arena import PLACE_LATER, Arena, Records, Shortcut
from eroseal.build.wire import (
    ARENA,
    BLOCK,
    LARGE,
    LARGE_FILE,
    LONGEST_TAIL,
    MOST_COMPACT_LINKS,
    OPEN_FLAGS,
    FileTask,
    Identity,
    PackedLinkRecord,
    PackedRecord,
    Part,
    Record,
    ScanError,
    SegmentTask,
    StoredTask,
    WorkerConfig,
    Write,
    adjusted,
    identity_of,
)
from eroseal.crypto.blocks import BlockHasher
from eroseal.format.digest import HashAlgorithm, TreeParams
from eroseal.tree.model import StoredFile

_DIR_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

ReadSmall = Callable[[int, list[bytes], int], list[Shortcut | None]]


def _native() -> ReadSmall | None:
    try:
        from eroseal.build._scan import read_small  # noqa: PLC0415 - may be missing
    except ImportError:  # built without a compiler: the long way does the same
        return None
    return read_small


_read_small: Final = _native()

_Attributes = tuple[int, int, int, int, int, tuple[int, int, int] | None, tuple[tuple[bytes, bytes], ...] | None]
"""mode, uid, gid, mtime in ns, size, link, xattrs: the first fields of a `Record`."""
SCANS: Final = frozenset({"F", "A"})
"""Kinds of tasks that `Worker.scan` takes: files by name, and files of archives."""


class Worker:
    """Reads, hashes and writes for one build.

    Args:
        config: see `WorkerConfig`.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._hasher = BlockHasher(TreeParams(HashAlgorithm.from_name(config.algorithm), config.salt))
        self._width = self._hasher.digest_size
        self._chunk = config.chunk_size
        self._zero_leaf = self._hasher.hash_blocks(bytes(BLOCK))
        self._arenas: dict[int, Arena] = {}
        self._spare: list[Arena] = []
        self._next = 0
        self._adjusts = config.all_root or config.timestamp is not None or config.clamp is not None

    # --- reading --------------------------------------------------------------------------------
    def scan(self, kind: str, task: FileTask | StoredTask) -> Iterator[tuple[int, Part]]:
        """Read a batch of files; yields (arena number, part) whenever an arena is full, and at the end."""
        return self._scan_files(cast(FileTask, task)) if kind == "F" else self._scan_stored(cast(StoredTask, task))

    def _scan_stored(self, task: StoredTask) -> Iterator[tuple[int, Part]]:
        """Files of archives: their content lies in spools, their metadata comes with the task."""
        arena, records = self._new_arena(), Records()
        for stored in task:
            if arena.used > ARENA - LARGE:
                yield self._part(arena, records)
                arena, records = self._new_arena(), []
            try:
                records.append(self._read_stored(arena, len(records), stored))
            except OSError as error:
                raise ScanError("cannot read what was unpacked", b"", error.errno or 0) from error
        yield self._part(arena, records)

    def _read_stored(self, arena: Arena, record: int, stored: StoredFile) -> Record | PackedRecord | PackedLinkRecord:
        source, offset, mode, uid, gid, mtime, size, link, xattrs = stored
        fd = self._config.source_fds[source]
        if size > LARGE:
            return mode, uid, gid, mtime, size, link, xattrs, LARGE_FILE, None, None
        if self._adjusts:
            uid, gid, mtime = adjusted(self._config, uid, gid, mtime)
        if size <= self._config.inline_max:
            data = os.pread(fd, size, offset)
            if len(data) != size:
                raise ScanError("a spool ended too early", b"")
            return self._small_file(arena, record, (mode, uid, gid, mtime, size, link, xattrs), data)
        first = arena.used
        if not _read_fully(fd, arena.view[first : first + size], offset):
            raise ScanError("a spool ended too early", b"")
        ids, alternative = self._chunks(arena, first, size)
        return mode, uid, gid, mtime, size, link, xattrs, first // BLOCK, ids, alternative

    def _scan_files(self, task: FileTask) -> Iterator[tuple[int, Part]]:
        config, arena, records = self._config, self._new_arena(), Records()
        for directory, names in task:
            try:
                dir_fd = os.open(directory, _DIR_FLAGS)
            except OSError as error:
                raise ScanError("cannot open the directory", directory, error.errno or 0) from error
            try:
                for name, small in zip(names, self._shortcut(dir_fd, names), strict=True):
                    if arena.used > ARENA - LARGE:
                        yield self._part(arena, records)
                        arena, records = self._new_arena(), []
                    if small is not None and arena.pack(config.epoch, len(records), small, None):
                        records.append(PLACE_LATER)
                        continue
                    try:
                        records.append(self._read(arena, len(records), dir_fd, name))
                    except ScanError as error:
                        error.path = os.path.join(directory, name)
                        raise
                    except OSError as error:
                        raise ScanError("cannot read", os.path.join(directory, name), error.errno or 0) from error
            finally:
                os.close(dir_fd)
        yield self._part(arena, records)

    def _read(self, arena: Arena, record: int, dir_fd: int, name: bytes) -> Record | PackedRecord | PackedLinkRecord:
        fd = os.open(name, OPEN_FLAGS, dir_fd=dir_fd)
        try:
            data = os.read(fd, BLOCK)
            st = os.fstat(fd)
            xattrs = read_xattrs(fd)
            size, mode, uid, gid, mtime = st.st_size, st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns
            if not stat.S_ISREG(mode):
                raise ScanError("is no regular file any more", name)
            if self._adjusts:
                uid, gid, mtime = adjusted(self._config, uid, gid, mtime)
            link = (st.st_dev, st.st_ino, st.st_nlink) if st.st_nlink > 1 else None
            if len(data) == size <= self._config.inline_max:
                return self._small_file(arena, record, (mode, uid, gid, mtime, size, link, xattrs), data)
            if size > LARGE:
                link = (st.st_dev, st.st_ino, st.st_nlink)
                return mode, uid, gid, st.st_mtime_ns, size, link, xattrs, LARGE_FILE, None, None
            first = arena.used
            arena.view[first : first + len(data)] = data
            got = len(data)
            while more := os.readv(fd, [arena.view[first + got : first + size + 1]]):
                got += more
            after = os.fstat(fd)
            if got != size or after.st_size != size or after.st_mtime_ns != st.st_mtime_ns:
                raise ScanError("changed while it was read", name)
        finally:
            os.close(fd)
        ids, alternative = self._chunks(arena, first, size)
        return mode, uid, gid, mtime, size, link, xattrs, first // BLOCK, ids, alternative

    def _small_file(self, arena: Arena, record: int, attributes: _Attributes, data: bytes) -> Record | PackedRecord:
        """A file that goes into the meta blob whole: packed if it may be, else as a tail."""
        mode, uid, gid, mtime, size, link, xattrs = attributes
        small = (mode, uid, gid, *divmod(mtime, 1_000_000_000), data)
        # With more names than a compact inode counts, its form depends on how many are in the source.
        packable = xattrs is None and (link is None or link[2] <= MOST_COMPACT_LINKS)
        if self._config.pack and packable and arena.pack(self._config.epoch, record, small, link and link[:2]):
            return PLACE_LATER
        if size:
            arena.tails.append(data)
        return mode, uid, gid, mtime, size, link, xattrs, -1, None, None

    def _shortcut(self, dir_fd: int, names: list[bytes]) -> Iterable[Shortcut | None]:
        """What `read_small` says of these files: nothing, where there is no native code."""
        if _read_small is None or self._adjusts or not self._config.pack:
            return itertools.repeat(None, len(names))
        return _read_small(dir_fd, names, self._config.inline_max)

    def _part(self, arena: Arena, records: Records) -> tuple[int, Part]:
        """Finish an arena: give its small files their places."""
        packed_blocks = arena.place_packed(records)
        return self._keep(arena), (records, packed_blocks)

    def _chunks(
        self, arena: Arena, first: int, size: int
    ) -> tuple[list[bytes | None], tuple[bool, bytes | None] | None]:
        """Hash a file that lies in the arena from `first` on; collects its tail and moves `arena.used`."""
        tail = size % BLOCK
        end = first + size
        inline = self._config.tails and 0 < tail <= min(self._config.inline_max, LONGEST_TAIL)
        whole = size - tail if inline else size + -size % BLOCK
        padded = end + -end % BLOCK
        arena.view[end:padded] = bytes(padded - end)
        several = inline and whole > self._chunk
        stop = padded if several else first + whole
        width = self._width
        leaves = self._hasher.hash_blocks(arena.view[first:stop])
        ids = self._ids(leaves[: whole // BLOCK * width])
        if inline and ids == [None]:
            # A hole has no start block that a tail could follow: it too may need the tail's block as a chunk.
            leaves += self._hasher.hash_blocks(arena.view[stop:padded])
            several, stop = True, padded
        arena.leaves[first // BLOCK * width : stop // BLOCK * width] = leaves
        arena.used = stop
        alternative = None
        if inline:
            arena.tails.append(bytes(arena.view[first + whole : end]))
            if several:
                last = whole // self._chunk * self._chunk // BLOCK * width
                alternative = (whole % self._chunk == 0, self._ids(leaves[last:])[0])
        return ids, alternative

    def segment(self, task: SegmentTask) -> tuple[int, list[bytes | None]]:
        """Read a piece of a large file; gives (arena number, chunk hashes)."""
        place, offset, length = task
        arena = self._new_arena()
        path, expected = place
        if isinstance(path, bytes):
            self._read_segment(path, cast(Identity, expected), arena.view[:length], offset)
        elif not _read_fully(self._config.source_fds[path], arena.view[:length], cast(int, expected) + offset):
            raise ScanError("a spool ended too early", b"")
        padded = length + -length % BLOCK
        arena.view[length:padded] = bytes(padded - length)
        leaves = self._hasher.hash_blocks(arena.view[:padded])
        arena.leaves[: len(leaves)] = leaves
        arena.used = padded
        return self._keep(arena), self._ids(leaves)

    def _read_segment(self, path: bytes, expected: Identity, view: memoryview, offset: int) -> None:
        try:
            fd = os.open(path, OPEN_FLAGS)
            try:
                if identity_of(fd) != expected or not _read_fully(fd, view, offset) or identity_of(fd) != expected:
                    raise ScanError("changed while it was read", path)
            finally:
                os.close(fd)
        except OSError as error:
            raise ScanError("cannot read", path, error.errno or 0) from error

    def _ids(self, leaves: bytes) -> list[bytes | None]:
        """Chunk hashes from joined leaf hashes; None for a chunk of zeros."""
        width = self._width
        step = self._chunk // BLOCK * width
        ids: list[bytes | None] = []
        for start in range(0, len(leaves), step):
            part = leaves[start : start + step]
            if part == self._zero_leaf * (len(part) // width):
                ids.append(None)
            else:
                ids.append(part if len(part) == width else self._hasher.hash(part))
        return ids

    # --- writing --------------------------------------------------------------------------------
    def settle(
        self,
        number: int,
        tails_at: int,
        packed_at: int,
        serial: int,
        dropped: Sequence[int],
        writes: Sequence[Write],
    ) -> None:
        """Write what the parent decided of an arena, and give the arena back.

        Args:
            number: of the arena.
            tails_at: byte offset in the tail spool for all tails of the arena.
            packed_at: block in the packed spool for its packed blocks.
            serial: i_ino of the first packed file.
            dropped: indexes of records whose packed file is not wanted: it is a further name of one that was kept.
            writes: runs of new blocks, see `Write`.
        """
        arena = self._arenas.pop(number)
        config, width = self._config, self._width
        leaves = memoryview(arena.leaves)
        try:
            if arena.tails:
                _write(config.tails_fd, b"".join(arena.tails), tails_at)
            if arena.has_packed:
                _write(config.packed_fd, arena.packed_blocks(serial, frozenset(dropped)), packed_at * BLOCK)
            for source, blocks, target in writes:
                end = source + blocks
                _write(config.data_fd, arena.view[source * BLOCK : end * BLOCK], target * BLOCK)
                _write(config.leaves_fd, leaves[source * width : end * width], target * width)
        except OSError as error:
            raise ScanError("cannot write", b"", error.errno or 0, output=True) from error
        arena.reset()
        self._spare.append(arena)

    def _new_arena(self) -> Arena:
        # The slack holds the byte too many that shows growth.
        return self._spare.pop() if self._spare else Arena(ARENA + BLOCK, self._width)

    def _keep(self, arena: Arena) -> int:
        self._next += 1
        self._arenas[self._next] = arena
        return self._next


def _write(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def _read_fully(fd: int, view: memoryview, offset: int) -> bool:
    """Fill a buffer; False where the file ends before. OSError passes through."""
    got = 0
    while got < len(view) and (more := os.preadv(fd, [view[got:]], offset + got)):
        got += more
    return got == len(view)


def read_xattrs(fd: int) -> tuple[tuple[bytes, bytes], ...] | None:
    """All extended attributes of an open file, sorted by name; None where there are none."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return None  # the file system knows none
    if not names:
        return None
    return tuple(sorted((os.fsencode(name), os.getxattr(fd, name)) for name in names))
