"""The files inside an uncompressed tar archive, read where they lie.

The members are listed once, by the reader of all our archives; nothing is extracted. (Python's own `tarfile` takes
time in the square of what a hostile header has, in versions that are still around.) Names are looked up, never used as
paths.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eroseal.errors import FormatError, UnsupportedError, UsageError
from eroseal.format import tar
from eroseal.format.tar import BLOCK, Header
from eroseal.limits import MAX_SAVED_MEMBERS, MAX_TAR_EXTENSION
from eroseal.readat import FileAt, ReadAt, check_range
from eroseal.tree.archive_members import Extra, Members

_MAX_LINKS: Final = 8
"""Links that lead to one file: `docker save` makes one of a layer that occurs twice."""
_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
    b"\xfd7zXZ\x00": "xz -d",
    b"BZh": "bzip2 -d",
}
_FILES: Final = frozenset({tar.FILE, tar.OLD_FILE, tar.CONTIGUOUS})
_WITHOUT_CONTENT: Final = frozenset(
    {tar.DIRECTORY, tar.CHARACTER, tar.BLOCK_DEVICE, tar.FIFO, tar.GNU_VOLUME, tar.SYMLINK, tar.HARD_LINK}
)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a file, as a file of its own; closing it does nothing.

    Args:
        file: that it is a piece of.
        start: its first byte.
        size: in bytes.
        name: for messages.
    """

    file: ReadAt
    start: int
    size: int
    name: str

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from byte `offset` on; raises FormatError past the end."""
        check_range(self.name, self.size, offset, length)
        return self.file.read_at(self.start + offset, length)

    def close(self) -> None:
        """The archive stays open."""


class TarFiles:
    """An archive's files by name; implements `LayoutFiles`.

    Args:
        path: of the archive.

    Raises:
        NotFoundError: there is none.
        UsageError: it is a directory.
        UnsupportedError: it is compressed.
        FormatError: it is no tar archive, or a hostile one.
    """

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise UsageError("is a directory, not an archive", where=str(path), hint="a layout in one is oci:PATH:TAG")
        self._file = FileAt(path)
        self._name = str(path)
        self._members: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        try:
            self._refuse_compressed()
            self._list()
        except BaseException:
            self._file.close()
            raise

    def read(self, path: str, *, limit: int) -> bytes | None:
        part = self.open(path)
        if part is None:
            return None
        if part.size > limit:
            raise FormatError(f"{path[:200]!r} has {part.size} bytes, more than {limit}", where=self._name)
        return part.read_at(0, part.size)

    def open(self, path: str) -> Part | None:
        path = posixpath.normpath(path)
        for _ in range(_MAX_LINKS):
            if path in self._members:
                return Part(self._file, *self._members[path], f"{self._name}: {path}")
            if path not in self._links:
                return None
            path = self._links[path]
        raise FormatError(f"more than {_MAX_LINKS} links lead to {path[:200]!r}", where=self._name)

    def close(self) -> None:
        """Close the archive; closing twice does no harm."""
        self._file.close()

    def _refuse_compressed(self) -> None:
        head = self._file.read_at(0, min(8, self._file.size))
        for magic, command in _COMPRESSED.items():
            if head.startswith(magic):
                raise UnsupportedError("is compressed as a whole", where=self._name, hint=f"unpack it with {command}")

    def _list(self) -> None:
        blocks, kept = _FileBlocks(self._file), 0

        def keep(amount: int) -> None:
            nonlocal kept
            kept += amount
            if kept > MAX_TAR_EXTENSION:
                raise FormatError(f"more than {MAX_TAR_EXTENSION} bytes of extended attributes")

        members = Members(blocks, container=False, keep=keep)
        try:
            for header, extra, _ in members.read():
                if members.entries > MAX_SAVED_MEMBERS:
                    raise FormatError(f"has more than {MAX_SAVED_MEMBERS} members")
                self._note(header, extra, blocks)
        except (FormatError, UnsupportedError) as error:
            kind = UnsupportedError if isinstance(error, UnsupportedError) else FormatError
            raise kind(f"no tar archive, or a broken one: {error.what}", where=self._name) from error

    def _note(self, header: Header, extra: Extra, blocks: _FileBlocks) -> None:
        """The last member of a name counts, as for whoever unpacks the archive."""
        if header.kind == tar.GNU_SPARSE:
            raise UnsupportedError("a sparse file")
        name = _normal(header.name)
        self._members.pop(name, None)
        self._links.pop(name, None)
        if header.kind == tar.SYMLINK:
            self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), os.fsdecode(header.link)))
        elif header.kind == tar.HARD_LINK:
            self._links[name] = _normal(header.link)
        elif header.kind not in _WITHOUT_CONTENT:
            start = blocks.position
            blocks.skip(header.size)
            if header.kind in _FILES and not header.name.endswith(b"/") and extra.sparse is None:
                self._members[name] = (start, header.size)


class _FileBlocks:
    """A file as `Members` reads it, and passed over without being read."""

    def __init__(self, file: FileAt) -> None:
        self._file = file
        self.position = 0

    def block(self) -> bytes:
        """The next block; b"" at the end of the file."""
        return b"" if self.position >= self._file.size else self.take(BLOCK)

    def take(self, length: int) -> bytes:
        """The next bytes; the padding behind them is passed over."""
        start = self.position
        self.skip(length)
        return self._file.read_at(start, length)

    def skip(self, length: int) -> None:
        """Pass over bytes, and the padding behind them; raises FormatError where there are not as many."""
        if not 0 <= length <= self._file.size - self.position:
            raise FormatError("ends within a member")
        self.position += length + -length % BLOCK

    def drain(self, limit: int, *, zeros: bool) -> None:
        """What follows the end does not matter here."""


def _normal(name: bytes) -> str:
    return posixpath.normpath(os.fsdecode(name))
