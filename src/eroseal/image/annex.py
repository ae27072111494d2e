"""Reading an image's annex: what it carries besides its files (see `eroseal.format.annex`)."""

from __future__ import annotations

from eroseal.errors import FormatError
from eroseal.format.annex import annex_offset, parse_annex
from eroseal.format.erofs import SUPER_OFFSET, SUPER_SIZE, Superblock
from eroseal.format.record import ANNEX_MAGIC, HEADER_SIZE, record_length
from eroseal.limits import MAX_ANNEX
from eroseal.readat import ReadAt


def image_config(meta: ReadAt) -> bytes | None:
    """The OCI image config that the image was made with, byte for byte, or None.

    Args:
        meta: the meta blob's data region, as far as it is trusted: verified blocks for a verified config.

    Raises:
        FormatError: no superblock, or a broken annex.
    """
    if meta.size < SUPER_OFFSET + SUPER_SIZE:
        return None
    superblock = Superblock.parse(meta.read_at(SUPER_OFFSET, SUPER_SIZE))
    offset = annex_offset(superblock.blocks, superblock.block_size)
    if offset + HEADER_SIZE > meta.size:
        return None
    header = meta.read_at(offset, HEADER_SIZE)
    if not header.startswith(ANNEX_MAGIC):
        return None
    length = record_length(ANNEX_MAGIC, header, limit=MAX_ANNEX)
    if offset + length > meta.size:
        raise FormatError(f"an annex of {length} bytes at byte {offset} leaves the data region of {meta.size} bytes")
    return parse_annex(meta.read_at(offset, length))
