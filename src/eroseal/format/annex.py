"""The annex: what an image carries besides its files, authenticated like them.

It lies inside the meta blob's data region, behind the blocks that the superblock counts, so that the tree and the image
digest cover it while no EROFS reader ever looks there. It is a record (docs/format.md, "Annex") with padding up to a
whole block. Today it holds the config of the container image that the image was made from, byte for byte.
"""

from __future__ import annotations

from typing import Final

from eroseal.errors import FormatError
from eroseal.format.digest import BLOCK
from eroseal.format.record import ANNEX_MAGIC, HEADER_SIZE, OCI_CONFIG, RecordEntry, encode_record, parse_record
from eroseal.limits import MAX_ANNEX, MAX_MANIFEST

_NOTHING: Final = b""


def encode_annex(*, config: bytes | None) -> bytes:
    """The annex with its padding; no bytes where there is nothing to say.

    Args:
        config: the OCI image config that came with the source.

    Raises:
        FormatError: the config is larger than registries allow.
    """
    if config is None:
        return _NOTHING
    if len(config) > MAX_MANIFEST:
        raise FormatError(f"an image config of {len(config)} bytes, more than {MAX_MANIFEST}")
    record = encode_record(ANNEX_MAGIC, [RecordEntry(OCI_CONFIG, config)])
    return record + bytes(-len(record) % BLOCK)


def annex_offset(blocks: int, block_size: int) -> int:
    """Byte offset at which an annex starts: the first tree block behind the file system.

    Args:
        blocks: of the file system, from its superblock.
        block_size: of the file system, in bytes.
    """
    return -(-blocks * block_size // BLOCK) * BLOCK


def parse_annex(data: bytes) -> bytes | None:
    """The OCI image config in an annex; None where these bytes are no annex, as in images of other tools.

    Args:
        data: from the annex's offset to the end of the data region, at most MAX_ANNEX bytes of it.

    Raises:
        FormatError: a broken annex.
    """
    if len(data) < HEADER_SIZE or not data.startswith(ANNEX_MAGIC):
        return None
    entries = parse_record(ANNEX_MAGIC, data, limit=MAX_ANNEX)
    return next((entry.value for entry in entries if entry.type == OCI_CONFIG), None)
