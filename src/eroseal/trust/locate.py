"""Finding a seal: hints, in the order of their cost; the verified descriptor decides.

A blob's end carries a footer, which also ends an exported file (its appended image record repeats it), and
which lies before whatever other tools append: Android's vbmeta says where in its own footer, a chunk index
does not, so the blocks before the end are searched. The superblock's size is the last resort.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from eroseal.errors import FormatError, IntegrityError
from eroseal.format.digest import BLOCK, HashAlgorithm, TreeParams
from eroseal.format.erofs import SUPER_OFFSET, SUPER_SIZE, Superblock
from eroseal.format.record import FOOTER_MAGIC, FOOTER_SIZE, HEADER_SIZE, SEAL_MAGIC, Footer, record_length
from eroseal.format.sealed import TreeShape
from eroseal.limits import FOOTER_SEARCH, MAX_DATA_SIZE, MAX_SEAL_RECORD
from eroseal.readat import ReadAt
from eroseal.trust.verifier import SealLocation

# AvbFooter (libavb/avb_footer.h), big endian: magic, version_major, version_minor, original_image_size
_AVB_FOOTER: Final = struct.Struct(">4sIIQ")
_AVB_MAGIC: Final = b"AVBf"
_AVB_FOOTER_SIZE: Final = 64


def find_seal(source: ReadAt, *, data_size: int | None = None, algorithm: HashAlgorithm | None = None) -> SealLocation:
    """Where the seal record of a blob seems to be.

    Args:
        source: the blob; anything may follow its records.
        data_size: D in bytes, where a device slot or an annotation gives it; no other place is then tried.
        algorithm: of the expected digest, where there is one; others are then not tried.

    Raises:
        IntegrityError: no seal record is found (step 1): not sealed, or truncated.
    """
    algorithms = tuple(HashAlgorithm) if algorithm is None else (algorithm,)
    for candidate in _data_sizes(source) if data_size is None else iter((data_size,)):
        if not 0 < candidate <= MAX_DATA_SIZE or candidate % BLOCK:
            continue
        for item in algorithms:
            offset = TreeShape.of(candidate, TreeParams(item)).record_offset
            if _is_seal(source, offset):
                return SealLocation(candidate, offset)
    what = "no seal found"
    if data_size is not None:
        what += f" behind a data region of {data_size} bytes"
    raise IntegrityError(
        what,
        step=1,
        blob=getattr(source, "name", None),
        hint="it is not sealed, or it is truncated",
    )


def _data_sizes(source: ReadAt) -> Iterator[int]:
    """Values of D to try, from all hints."""
    end = source.size
    footer = _footer_at(source, end - FOOTER_SIZE)
    if footer is not None:
        yield footer.data_size
    yield from _before_avb(source, end)
    yield from _search_footers(source, end)
    yield from _from_superblock(source)


def _footer_at(source: ReadAt, offset: int) -> Footer | None:
    if offset < 0 or offset + FOOTER_SIZE > source.size:
        return None
    return Footer.parse(source.read_at(offset, FOOTER_SIZE))


def _before_avb(source: ReadAt, end: int) -> Iterator[int]:
    if end < _AVB_FOOTER_SIZE:
        return
    magic, _, _, original = _AVB_FOOTER.unpack_from(source.read_at(end - _AVB_FOOTER_SIZE, _AVB_FOOTER_SIZE))
    if magic == _AVB_MAGIC and (footer := _footer_at(source, original - FOOTER_SIZE)) is not None:
        yield footer.data_size


def _search_footers(source: ReadAt, end: int) -> Iterator[int]:
    """Footers at the end of whole blocks near the end of the file, the last one first."""
    start = max(0, end - FOOTER_SEARCH) // BLOCK * BLOCK
    tail = source.read_at(start, end - start)
    for at in range(len(tail) // BLOCK * BLOCK - FOOTER_SIZE, 0, -BLOCK):
        if tail.startswith(FOOTER_MAGIC, at):
            footer = Footer.parse(tail[at : at + FOOTER_SIZE])
            if footer is not None:
                yield footer.data_size


def _from_superblock(source: ReadAt) -> Iterator[int]:
    if source.size < SUPER_OFFSET + SUPER_SIZE:
        return
    try:
        superblock = Superblock.parse(source.read_at(SUPER_OFFSET, SUPER_SIZE))
    except FormatError:
        return
    if 9 <= superblock.blkszbits <= 16:
        yield -(-(superblock.blocks << superblock.blkszbits) // BLOCK) * BLOCK


def _is_seal(source: ReadAt, offset: int) -> bool:
    if offset + HEADER_SIZE > source.size:
        return False
    try:
        record_length(SEAL_MAGIC, source.read_at(offset, HEADER_SIZE), limit=MAX_SEAL_RECORD)
    except FormatError:
        return False
    return True
