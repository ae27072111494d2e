"""The files inside an uncompressed tar archive, read where they lie.

The members are listed once; nothing is extracted. `tarfile` parses the headers, over a file that gives it no more
than a header may have, and its names are looked up, never used as paths.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eroseal.errors import ErosealError, FormatError, UnsupportedError, UsageError
from eroseal.limits import MAX_SAVED_MEMBERS, MAX_TAR_EXTENSION
from eroseal.readat import FileAt, ReadAt, check_range

_MAX_LINKS: Final = 8
"""Links that lead to one file: `docker save` makes one of a layer that occurs twice."""
_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
    b"\xfd7zXZ\x00": "xz -d",
    b"BZh": "bzip2 -d",
}


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
            raise FormatError(f"{path!r} has {part.size} bytes, more than {limit}", where=self._name)
        return part.read_at(0, part.size)

    def open(self, path: str) -> Part | None:
        path = posixpath.normpath(path)
        for _ in range(_MAX_LINKS):
            if path in self._members:
                return Part(self._file, *self._members[path], f"{self._name}: {path}")
            if path not in self._links:
                return None
            path = self._links[path]
        raise FormatError(f"more than {_MAX_LINKS} links lead to {path!r}", where=self._name)

    def close(self) -> None:
        """Close the archive; closing twice does no harm."""
        self._file.close()

    def _refuse_compressed(self) -> None:
        head = self._file.read_at(0, min(8, self._file.size))
        for magic, command in _COMPRESSED.items():
            if head.startswith(magic):
                raise UnsupportedError("is compressed as a whole", where=self._name, hint=f"unpack it with {command}")

    def _list(self) -> None:
        count = 0
        try:
            with tarfile.open(fileobj=_Bounded(self._file), mode="r:") as archive:
                for member in archive:
                    count += 1
                    if count > MAX_SAVED_MEMBERS:
                        raise FormatError(f"has more than {MAX_SAVED_MEMBERS} members", where=self._name)
                    self._note(member)
        except ErosealError:
            raise
        except (tarfile.TarError, ValueError, OverflowError, EOFError, LookupError, OSError, RecursionError) as error:
            raise FormatError("is not a tar archive, or a broken one", where=self._name) from error

    def _note(self, member: tarfile.TarInfo) -> None:
        """The last member of a name counts, as for whoever unpacks the archive."""
        name = posixpath.normpath(member.name)
        self._members.pop(name, None)
        self._links.pop(name, None)
        if member.issym():
            self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.islnk():
            self._links[name] = posixpath.normpath(member.linkname)
        elif member.isreg() and member.sparse is None:
            if member.size < 0 or member.offset_data + member.size > self._file.size:
                raise FormatError("ends within a member", where=self._name)
            self._members[name] = (member.offset_data, member.size)


class _Bounded(io.RawIOBase):
    """A file for `tarfile`: it wants headers, so nothing larger than the largest header is read."""

    def __init__(self, file: FileAt) -> None:
        self._source = file
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < 0:
            raise FormatError("is not a tar archive, or a broken one", where=self._source.name)
        self._position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_TAR_EXTENSION:
            raise FormatError(f"a header of {size} bytes, more than {MAX_TAR_EXTENSION}", where=self._source.name)
        size = max(min(size, self._source.size - self._position), 0)
        data = self._source.read_at(self._position, size) if size else b""
        self._position += size
        return data
