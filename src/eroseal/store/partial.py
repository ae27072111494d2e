"""A blob on its way into a local store: fetched in pieces, by several threads, taken up again after an interruption.

::

    blobs/.eroseal-part-<hex digest>/
        data    the blob, sparse where pieces are missing
        map     a line that says what it is, then a byte for each piece of 1 MiB: 1 once the piece is in `data`

A piece is marked after it was written, so a process that was killed leaves at most pieces that are fetched again; a
power cut may leave marks without their pieces, which the verification at the end finds. An flock on `map` tells who is
at work: others wait for it, and then find the blob, or continue. Nothing of it counts as a blob of the store until
every block of the whole was verified and it got its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from eroseal.errors import ErosealError, FormatError, IntegrityError, OutputError, UnsupportedError
from eroseal.format.digest import Digest
from eroseal.limits import MAX_BAD_BLOCKS, MAX_TRANSFER_BLOB
from eroseal.readat import FileAt, ReadAt
from eroseal.store.atomic import make_directory, output_error, sync_directory
from eroseal.store.lanes import Lanes, SharedFds
from eroseal.store.layout import PARTIAL_PREFIX, complete_size, kept_size
from eroseal.store.protocol import Progress
from eroseal.store.staging import require_size

PIECE_SIZE: Final = 1 << 20
"""Bytes of a piece. A request is for several, so an interruption costs what was in flight and no more."""
_DATA: Final = "data"
_MAP: Final = "map"
_HERE: Final = b"\1"
_POLL: Final = 0.05
"""Seconds between looks whether another process is done with a blob: a wait for a lock could not be stopped."""
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def receive_blob(
    blobs: Path,
    final: Path,
    digest: Digest,
    source: ReadAt,
    lanes: Lanes,
    *,
    durable: bool,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Fetch a blob into a store in pieces, verify every block of it, and give it its name.

    Args:
        blobs: the store's directory of blobs.
        final: where the blob goes.
        digest: that it must have.
        source: the sealed blob; several threads read from it.
        lanes: for its requests.
        durable: sync to disk before the blob appears.
        jobs: threads that verify; None means one for each processor.
        progress: told the bytes that arrived; what had arrived before is not told.

    Returns:
        Bytes of the blob that the store has then.

    Raises:
        IntegrityError: it is not that blob, or damaged; nothing is left.
        OutputError: it cannot be written; what arrived stays for the next try, as with every other error.
    """
    from eroseal.trust.image import open_blob  # noqa: PLC0415 - builds seldom fetch blobs

    seal = open_blob(source, digest).seal
    if seal.sealed_size > MAX_TRANSFER_BLOB:
        raise UnsupportedError(f"a blob of {seal.sealed_size} bytes is too large to be fetched", where=str(digest))
    place = blobs / f"{PARTIAL_PREFIX}{digest.hex}"
    try:
        with _Partial(place, digest, seal.sealed_size, final, lanes) as partial:
            kept = kept_size(final)
            if kept is not None:  # whom we waited for has finished it
                partial.remove()
                return kept
            partial.fetch(source, lanes, progress)
            if durable:
                partial.sync()
            partial.verify(source, lanes, data_size=seal.shape.data_size, jobs=jobs, progress=progress)
            partial.publish(durable=durable)
            return seal.sealed_size
    except OSError as error:
        raise output_error(error, final) from error


def is_partial(name: str) -> bool:
    """Whether a directory in `blobs/` is a blob's that has not arrived as a whole."""
    return name.startswith(PARTIAL_PREFIX)


def is_partial_in_use(path: Path) -> bool:
    """Whether somebody is fetching this blob; in doubt (no permission, no locks here) somebody is."""
    try:
        fd = _lock(path, create=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    os.close(fd)
    return False


def remove_partial(path: Path) -> bool:
    """Remove what has arrived of a blob, unless somebody is fetching it; whether it is gone. Never raises."""
    try:
        fd = _lock(path, create=True)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    try:
        return _remove(path)
    finally:
        os.close(fd)


def remove_needless(blobs: Path) -> list[Path]:
    """Remove partials whose blobs are there, as somebody leaves them who is killed at the very end; never raises."""
    removed = []
    for path in blobs.glob(f"{PARTIAL_PREFIX}*"):
        digits = path.name.removeprefix(PARTIAL_PREFIX)
        with contextlib.suppress(ErosealError):
            if complete_size(blobs / digits[:2] / digits[2:]) is not None and remove_partial(path):
                removed.append(path)
    return removed


class _Partial:
    """A partial blob that is ours, locked; a context manager that leaves it for the next one."""

    def __init__(self, place: Path, digest: Digest, size: int, final: Path, lanes: Lanes) -> None:
        self._place = place
        self._digest = digest
        self._size = size
        self._final = final
        self._lock = threading.Lock()
        self._count = -(-size // PIECE_SIZE)
        self._head = f"eroseal-partial/1 {digest} {size} {PIECE_SIZE}\n".encode()
        self._map_fd = _wait_for_lock(place, lanes)
        try:
            self._data_fd = _open_data(place / _DATA)
        except BaseException:
            os.close(self._map_fd)
            raise
        self._fds = SharedFds(self._data_fd, self._map_fd)
        try:
            self._map = self._load()
        except BaseException:
            self.remove()
            self._fds.close()
            raise
        self._resumed = bytearray(self._map)
        self._refused = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._refused or not any(self._map):
            self.remove()
        self._fds.close()

    def remove(self) -> None:
        """Leave nothing; never raises."""
        _remove(self._place)

    def fetch(self, source: ReadAt, lanes: Lanes, progress: Progress | None) -> None:
        """Get the pieces that are missing, and mark each when it is there."""

        def told(amount: int) -> None:
            with self._lock:
                if progress is not None:
                    progress(amount)

        def work(run: range) -> None:
            with self._fds.use() as (data_fd, map_fd):
                start, stop = run.start * PIECE_SIZE, min(run.stop * PIECE_SIZE, self._size)
                try:
                    lanes.fetch(source, data_fd, start, stop, progress=told)
                    os.pwrite(map_fd, _HERE * len(run), len(self._head) + run.start)
                except OSError as error:
                    raise output_error(error, self._final) from error
                self._map[run.start : run.stop] = _HERE * len(run)

        runs = _missing_runs(bytes(self._map), max(1, lanes.read_size // PIECE_SIZE))
        lanes.run(work, runs, workers=min(lanes.count, self._map.count(0)))

    def sync(self) -> None:
        """Wait until the disk has the data; OSError passes through."""
        os.fsync(self._data_fd)

    def verify(
        self, source: ReadAt, lanes: Lanes, *, data_size: int, jobs: int | None, progress: Progress | None
    ) -> None:
        """Check every block; pieces that were there before and are bad are fetched again, once.

        Raises:
            IntegrityError: what was fetched now is bad.
        """
        while (found := self._bad_pieces(data_size, jobs)) is not None:
            error, bad = found
            again = [number for number in bad if self._resumed[number]]
            if not again:
                self._refused = True
                raise error
            for number in again:
                os.pwrite(self._map_fd, b"\0", len(self._head) + number)
                self._map[number] = self._resumed[number] = 0
            self.fetch(source, lanes, progress)

    def publish(self, *, durable: bool) -> None:
        """Give the blob its name; OSError passes through."""
        os.fchmod(self._data_fd, stat.S_IMODE(os.fstat(self._data_fd).st_mode) & 0o444)
        make_directory(self._final.parent, durable=durable)
        os.utime(self._data_fd)  # its age counts from now: most of it may have arrived long ago
        if durable:
            self.sync()  # what verification had fetched again
        os.rename(self._place / _DATA, self._final)
        if durable:
            sync_directory(self._final.parent)
        self.remove()

    def _bad_pieces(self, data_size: int, jobs: int | None) -> tuple[ErosealError, set[int]] | None:
        """The pieces that are not what the digest says, and an error that says so; None if all is well."""
        from eroseal.trust.image import open_blob  # noqa: PLC0415
        from eroseal.trust.scan import scan_blob  # noqa: PLC0415

        with FileAt(self._place / _DATA) as file:
            try:
                blob = open_blob(file, self._digest, data_size=data_size, name=str(self._digest))
                require_size(blob.seal, self._size)
            except (IntegrityError, FormatError) as error:
                return error, set(range(data_size // PIECE_SIZE, self._count))
            bad = scan_blob(file, blob, jobs=jobs, keep_going=True)
        if not bad:
            return None
        first = min(bad, key=lambda block: block.offset)
        refusal = IntegrityError(first.what, step=5, blob=str(self._digest), offset=first.offset, level=first.level)
        if len(bad) >= MAX_BAD_BLOCKS:  # there are more than are listed
            return refusal, set(range(self._count))
        return refusal, {block.offset // PIECE_SIZE for block in bad}

    def _load(self) -> bytearray:
        """The marks of a partial of this very blob; anything else is begun anew. OSError passes through."""
        length = len(self._head) + self._count
        known = os.fstat(self._map_fd).st_size == length and os.fstat(self._data_fd).st_size == self._size
        content = os.pread(self._map_fd, length, 0) if known else b""
        if len(content) == length and content.startswith(self._head):
            return bytearray(mark == _HERE[0] for mark in content[len(self._head) :])
        # The head comes last: without it, what a crash in between leaves is begun anew once more.
        os.ftruncate(self._map_fd, 0)
        os.ftruncate(self._data_fd, 0)
        os.ftruncate(self._data_fd, self._size)
        os.ftruncate(self._map_fd, length)
        os.pwrite(self._map_fd, self._head, 0)
        return bytearray(self._count)


def _missing_runs(marks: bytes, longest: int) -> Iterator[range]:
    """The pieces that are not marked, neighbours together, at most `longest` of them."""
    number = marks.find(0)
    while number >= 0:
        end = marks.find(_HERE, number, number + longest)
        stop = min(number + longest, len(marks)) if end < 0 else end
        yield range(number, stop)
        number = marks.find(0, stop)


def _wait_for_lock(place: Path, lanes: Lanes) -> int:
    """The descriptor of the map, locked; OSError passes through."""
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(place, 0o777)
        if not stat.S_ISDIR(os.lstat(place).st_mode):
            raise OutputError("not a directory", where=str(place), hint="remove it")
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            return _lock(place, create=True)
        lanes.pause(_POLL)


def _lock(place: Path, *, create: bool) -> int:
    """The descriptor of the map, locked; BlockingIOError while somebody else has it."""
    flags = _FLAGS if create else _FLAGS & ~os.O_CREAT
    fd = os.open(place / _MAP, flags, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it before may have removed it, so that nobody else would ever see this lock.
        if not os.path.samestat(os.fstat(fd), os.lstat(place / _MAP)):
            raise FileNotFoundError
    except BaseException:
        os.close(fd)
        raise
    return fd


def _remove(place: Path) -> bool:
    """Remove a partial whose lock we hold; the lock goes last, so that nobody new gets a file of theirs removed."""
    try:
        for name in (_DATA, _MAP):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place / name)
        os.rmdir(place)
    except OSError:
        return False
    return True


def _open_data(path: Path) -> int:
    """The file, made where it is missing; OSError passes through."""
    try:
        fd = os.open(path, _FLAGS, 0o666)
    except PermissionError:
        os.chmod(path, 0o644)  # killed a moment before it got its name
        fd = os.open(path, _FLAGS, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OutputError("not a plain file", where=str(path), hint="remove its directory")
    return fd
