"""The hot path: read files, hash their blocks, write what is new.

Strategy. A build touches tens of thousands of small files, and what costs is not hashing but calls. So a worker
spends on each file one open, one read, one fstat, one listxattr and one close, and nothing else:

* Files are opened relative to their directory's descriptor. Their metadata comes from the open descriptor, so that
  the walk (`eroseal.tree.directory`) need not stat what is read here anyway.
* The first read asks for 4096 bytes. Less came: that is the whole file, and it goes to the meta blob as it is.
* Larger files are read into an *arena*, block after block without gaps, and hashed there while they are warm in
  cache. The parent decides from the chunk ids which are new and where they go (`writes`), and a whole arena of new
  chunks leaves in one pwrite. Files above `LARGE` bytes are cut into segments that workers share.
* What lies behind a file's last whole block (its *tail*) is collected and goes to the tail spool in one write.

The parent hands out work and settles it in a canonical order, so that addresses never depend on timing. A worker is
a process (`eroseal.build.pool`) or lives in the parent (`--jobs 1`); this module knows no difference.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from eroseal.crypto.blocks import BlockHasher
from eroseal.format.digest import HashAlgorithm, TreeParams

BLOCK: Final = 4096
ARENA: Final = 4 << 20
"""Bytes of an arena; a segment of a large file fills one."""
LARGE: Final = 1 << 20
"""Bytes above which a file is read in segments, and has no inline tail: it would save less than 0.4 %."""
LONGEST_TAIL: Final = BLOCK - 32
"""Longest inline tail of a file that also has whole blocks: behind any xattr area it still fits a block."""
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_DIR_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

# What crosses the pipe is plain tuples, which marshal packs fastest.
FileTask = list[tuple[bytes, list[bytes]]]
"""(directory, names of regular files in it), in canonical order."""
SegmentTask = tuple[bytes, int, int, tuple[int, int, int, int]]
"""(path, byte offset, length, (st_dev, st_ino, st_size, st_mtime_ns) that the file must still have)."""
Write = tuple[int, int, int]
"""(first block in the arena, blocks, first block in the data spool)."""
Record = tuple[
    int,
    int,
    int,
    int,
    int,
    tuple[int, int, int] | None,
    tuple[tuple[bytes, bytes], ...] | None,
    int,
    list[bytes | None] | None,
    tuple[bool, bytes] | None,
]
"""mode, uid, gid, mtime in ns, size, (st_dev, st_ino, st_nlink) of a file with several names or that is large,
xattrs, first block in the arena (-1: no blocks here; LARGE_FILE: to be read in segments), chunk hashes (None for a
chunk of zeros), and for a file of several chunks with a tail (whether the tail's block is a chunk of its own, the hash
of the last chunk with the tail's block)."""
LARGE_FILE: Final = -2


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker needs to know.

    Args:
        data_fd, leaves_fd, tails_fd: descriptors of the spools. Blocks of chunk data and their leaf hashes lie
            at the same index in the first two; the third takes tails.
        algorithm, salt: the tree's parameters.
        chunk_size: bytes, a power of two from 4096.
        inline_max: longest tail, in bytes, that is inlined; 0 to 4095.
        tails: whether files of a block or more may have inline tails.
    """

    data_fd: int
    leaves_fd: int
    tails_fd: int
    algorithm: str
    salt: bytes
    chunk_size: int
    inline_max: int
    tails: bool


class ScanError(Exception):
    """A file that could not be read as it should: what, and its path; `number` is the errno or 0."""

    def __init__(self, what: str, path: bytes, number: int = 0, *, output: bool = False) -> None:
        super().__init__(what, path, number, output)
        self.what, self.path, self.number, self.output = what, path, number, output


class _Arena:
    """One buffer with the leaf hashes of its blocks, from when it is read until its writes are settled."""

    __slots__ = ("buffer", "leaves", "tails", "used", "view")

    def __init__(self, size: int, digest_size: int) -> None:
        self.buffer = bytearray(size)
        self.view = memoryview(self.buffer)
        self.leaves = bytearray(size // BLOCK * digest_size)
        self.tails: list[bytes] = []
        self.used = 0


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
        self._arenas: dict[int, _Arena] = {}
        self._spare: list[_Arena] = []
        self._next = 0

    # --- reading --------------------------------------------------------------------------------
    def scan(self, task: FileTask) -> Iterator[tuple[int, list[Record]]]:
        """Read a batch of files; yields (arena number, records) whenever an arena is full, and at the end."""
        arena, records = self._new_arena(), list[Record]()
        for directory, names in task:
            try:
                dir_fd = os.open(directory, _DIR_FLAGS)
            except OSError as error:
                raise ScanError("cannot open the directory", directory, error.errno or 0) from error
            try:
                for name in names:
                    if arena.used > ARENA - LARGE:
                        yield self._keep(arena), records
                        arena, records = self._new_arena(), []
                    try:
                        records.append(self._read(arena, dir_fd, name))
                    except ScanError as error:
                        error.path = os.path.join(directory, name)
                        raise
                    except OSError as error:
                        raise ScanError("cannot read", os.path.join(directory, name), error.errno or 0) from error
            finally:
                os.close(dir_fd)
        yield self._keep(arena), records

    def _read(self, arena: _Arena, dir_fd: int, name: bytes) -> Record:
        fd = os.open(name, _FLAGS, dir_fd=dir_fd)
        try:
            data = os.read(fd, BLOCK)
            st = os.fstat(fd)
            names = os.listxattr(fd)
            xattrs = read_xattrs(fd, names) if names else None
            size, mode = st.st_size, st.st_mode
            link = (st.st_dev, st.st_ino, st.st_nlink) if st.st_nlink > 1 else None
            if len(data) == size <= self._config.inline_max:
                if size:
                    arena.tails.append(data)
                return mode, st.st_uid, st.st_gid, st.st_mtime_ns, size, link, xattrs, -1, None, None
            if not stat.S_ISREG(mode):
                raise ScanError("is no regular file any more", name)
            if size > LARGE:
                link = (st.st_dev, st.st_ino, st.st_nlink)
                return mode, st.st_uid, st.st_gid, st.st_mtime_ns, size, link, xattrs, LARGE_FILE, None, None
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
        return mode, st.st_uid, st.st_gid, st.st_mtime_ns, size, link, xattrs, first // BLOCK, ids, alternative

    def _chunks(self, arena: _Arena, first: int, size: int) -> tuple[list[bytes | None], tuple[bool, bytes] | None]:
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
        arena.leaves[first // BLOCK * width : stop // BLOCK * width] = leaves
        arena.used = stop
        ids = self._ids(leaves[: whole // BLOCK * width])
        alternative = None
        if inline:
            arena.tails.append(bytes(arena.view[first + whole : end]))
            if several:
                last = whole // self._chunk * self._chunk // BLOCK * width
                alternative = (whole % self._chunk == 0, self._ids(leaves[last:])[0] or b"")
        return ids, alternative

    def segment(self, task: SegmentTask) -> tuple[int, list[bytes | None]]:
        """Read a piece of a large file; gives (arena number, chunk hashes)."""
        path, offset, length, expected = task
        arena = self._new_arena()
        try:
            fd = os.open(path, _FLAGS)
            try:
                if _identity(fd) != expected:
                    raise ScanError("changed while it was read", path)
                got = 0
                while got < length and (more := os.preadv(fd, [arena.view[got:length]], offset + got)):
                    got += more
                if got != length or _identity(fd) != expected:
                    raise ScanError("changed while it was read", path)
            finally:
                os.close(fd)
        except OSError as error:
            raise ScanError("cannot read", path, error.errno or 0) from error
        padded = length + -length % BLOCK
        arena.view[length:padded] = bytes(padded - length)
        leaves = self._hasher.hash_blocks(arena.view[:padded])
        arena.leaves[: len(leaves)] = leaves
        arena.used = padded
        return self._keep(arena), self._ids(leaves)

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
    def settle(self, number: int, tails_at: int, writes: Sequence[Write]) -> None:
        """Write what the parent decided of an arena, and give the arena back.

        Args:
            number: of the arena.
            tails_at: byte offset in the tail spool for all tails of the arena.
            writes: runs of new blocks, see `Write`.
        """
        arena = self._arenas.pop(number)
        config, width = self._config, self._width
        leaves = memoryview(arena.leaves)
        try:
            if arena.tails:
                _write(config.tails_fd, b"".join(arena.tails), tails_at)
            for source, blocks, target in writes:
                end = source + blocks
                _write(config.data_fd, arena.view[source * BLOCK : end * BLOCK], target * BLOCK)
                _write(config.leaves_fd, leaves[source * width : end * width], target * width)
        except OSError as error:
            raise ScanError("cannot write", b"", error.errno or 0, output=True) from error
        arena.tails = []
        arena.used = 0
        self._spare.append(arena)

    def _new_arena(self) -> _Arena:
        # The slack holds the byte too many that shows growth.
        return self._spare.pop() if self._spare else _Arena(ARENA + BLOCK, self._width)

    def _keep(self, arena: _Arena) -> int:
        self._next += 1
        self._arenas[self._next] = arena
        return self._next


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def _identity(fd: int) -> tuple[int, int, int, int]:
    st = os.fstat(fd)
    return st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns


def read_xattrs(target: int | bytes, names: Sequence[str]) -> tuple[tuple[bytes, bytes], ...]:
    """Values of these xattrs of a descriptor, or of a path without following symlinks, sorted by name."""
    if isinstance(target, int):
        pairs = [(os.fsencode(name), os.getxattr(target, name)) for name in names]
    else:
        pairs = [(os.fsencode(name), os.getxattr(target, name, follow_symlinks=False)) for name in names]
    return tuple(sorted(pairs))
