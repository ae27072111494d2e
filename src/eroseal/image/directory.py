"""Directory blocks: entries in front, names behind, every block standing alone.

Order matters for safety, not only for lookups: names that rise strictly over the whole directory cannot
repeat, so a hostile image cannot give two meanings to one path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from eroseal.errors import FormatError
from eroseal.format.erofs import DIRENT, DIRENT_SIZE
from eroseal.limits import MAX_NAME_LEN


@dataclass(frozen=True, slots=True)
class DirEntry:
    """One name in a directory.

    Args:
        name: 1 to 255 bytes without slash and NUL.
        nid: inode number.
        file_type: one of the FT_ values of eroseal.format.erofs, as the entry claims it.
    """

    name: bytes
    nid: int
    file_type: int


def parse_block(data: bytes, *, where: str) -> list[DirEntry]:
    """The entries of one directory block, "." and ".." included.

    Args:
        data: the block; the last one of a directory may be short.
        where: how messages call it.

    Raises:
        FormatError: offsets or names are impossible.
    """
    names_start = _names_start(data, where)
    heads = list(DIRENT.iter_unpack(data[:names_start]))
    bounds = [start for _, start, _ in heads]
    # The last name ends with the block, or earlier at the first NUL.
    stop = data.find(b"\0", bounds[-1])
    bounds.append(len(data) if stop < 0 else stop)
    entries: list[DirEntry] = []
    for index, (nid, start, file_type) in enumerate(heads):
        end = bounds[index + 1]
        # One comparison refuses empty names, offsets that go back, and offsets past the block.
        if not start < end <= min(len(data), start + MAX_NAME_LEN):
            raise FormatError(f"directory entry {index} has its name from byte {start} to {end}", where=where)
        entries.append(DirEntry(data[start:end], nid, file_type))
    names = data[names_start : bounds[-1]]
    if b"/" in names or b"\0" in names:
        raise FormatError("directory entry has a slash or NUL in its name", where=where)
    return entries


def first_name(data: bytes, *, where: str) -> bytes:
    """The name of a block's first entry, for searching."""
    names_start = _names_start(data, where)
    if names_start > DIRENT_SIZE:
        return data[names_start : DIRENT.unpack_from(data, DIRENT_SIZE)[1]]
    return data[names_start:].partition(b"\0")[0]


def in_order(blocks: Iterable[list[DirEntry]], *, where: str) -> Iterator[DirEntry]:
    """The entries of a directory's blocks; raises FormatError where names do not rise strictly."""
    last = b""
    for block in blocks:
        for entry in block:
            if entry.name <= last:
                raise FormatError(
                    f"directory entry {entry.name!r} comes after {last!r}: names are unsorted or repeat",
                    where=where,
                )
            last = entry.name
            yield entry


def _names_start(data: bytes, where: str) -> int:
    """Offset of the first name, which also says how many entries there are."""
    if len(data) < DIRENT_SIZE:
        raise FormatError(f"directory block of {len(data)} bytes is too short for an entry", where=where)
    start: int = DIRENT.unpack_from(data)[1]
    if start < DIRENT_SIZE or start % DIRENT_SIZE or start >= len(data):
        raise FormatError(
            f"first name offset {start} in a directory block of {len(data)} bytes is impossible", where=where
        )
    return start
