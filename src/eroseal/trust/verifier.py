"""The verifier: numbered steps that turn bytes into trusted values (docs/verification.md).

No step reads, asks for the time or looks anything up: bytes come in, a trusted value goes out, or a
`VerificationError` that carries the step's number. The steps in order::

    1  records are well-formed and within limits                        step1_record_length, step1_record
    2  the descriptor is canonical and its data size is D, the
       dm-verity superblock follows from it, all padding is zero        step2_descriptor, step2_tree_padding
    3  the descriptor's digest is the expected one                      step3_digest (a signed one: policy.py)
    4  the tree's top block hashes to the root                          step4_top
    5  every block is checked against its parent before it is used      step5_blocks
    6  superblock and device slots stay inside their device             step6_superblock, step6_devices
       (extents: the structure check of the image package)
    7  each device tag becomes the expected digest of a data blob       step7_devices

`VerifiedSeal`, which only `verify_seal` makes, stands for a blob that passed steps 1 to 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from eroseal.crypto.blocks import BlockHasher
from eroseal.errors import FormatError, IntegrityError, UsageError
from eroseal.format.digest import BLOCK, Digest
from eroseal.format.dmverity import superblock as dmverity_superblock
from eroseal.format.fsverity import Descriptor
from eroseal.format.record import SEAL_MAGIC, record_length
from eroseal.format.sealed import SealRecord, TreeShape, max_record_length, padded_record_length, record_tail

_TOKEN: Final = object()


@dataclass(frozen=True, slots=True)
class SealLocation:
    """Where a seal is thought to be: a hint until step 2 agrees.

    Args:
        data_size: bytes of the data region (D).
        record_offset: byte offset of the seal record.
    """

    data_size: int
    record_offset: int


@dataclass(frozen=True, slots=True)
class SealBytes:
    """Everything that steps 1 to 4 look at.

    Args:
        location: where it was read.
        record: the seal record with its padding and footer.
        dmverity: the 4096 bytes that follow the data region.
        top: the tree's top block; for a single data block, that block.
    """

    location: SealLocation
    record: bytes
    dmverity: bytes
    top: bytes


class VerifiedSeal:
    """A seal that passed steps 1 to 4; only the verifier makes it.

    Attributes:
        name: what errors call the blob.
        digest: the blob's digest.
        descriptor: the verified descriptor.
        shape: levels of the tree.
        top: the verified top block of the tree (of the data, where there is one block only).
        chunk_map: encoded chunk map, a hint without authority, or None.
        sealed_size: bytes of the sealed blob; an image record may follow.
        expected: whether the digest was demanded by someone, or the blob merely agrees with itself.
    """

    __slots__ = ("chunk_map", "descriptor", "digest", "expected", "name", "sealed_size", "shape", "top")

    def __init__(
        self,
        *,
        token: object,
        name: str,
        descriptor: Descriptor,
        top: bytes,
        record: SealRecord,
        expected: bool,
    ) -> None:
        if token is not _TOKEN:
            raise UsageError("a verified seal is made by the verifier alone")
        self.name = name
        self.descriptor = descriptor
        self.digest = descriptor.digest
        self.shape = TreeShape.of(descriptor.data_size, descriptor.params)
        self.top = top
        self.chunk_map = record.chunk_map
        self.sealed_size = self.shape.record_offset + record.padded_length
        self.expected = expected


def verify_seal(
    seal: SealBytes,
    *,
    name: str,
    expected: Digest | None = None,
    vouch: Callable[[Digest], object] | None = None,
) -> VerifiedSeal:
    """Steps 1 to 4 for one blob.

    With neither `expected` nor `vouch`, any blob that agrees with itself passes, which proves nothing about
    where it comes from; the result says so.

    Args:
        seal: bytes of the seal.
        name: what errors call the blob.
        expected: the digest that the blob must have.
        vouch: step 3 by policy: raises AuthenticityError for a digest that nothing accepted stands for.

    Raises:
        IntegrityError: a step refused.
        AuthenticityError: `vouch` refused.
    """
    record = step1_record(seal.record, seal.location, name=name)
    descriptor = step2_descriptor(record, seal, name=name)
    if expected is not None:
        step3_digest(descriptor, expected, name=name)
    if vouch is not None:
        vouch(descriptor.digest)
    step4_top(descriptor, seal.top, name=name)
    return VerifiedSeal(
        token=_TOKEN,
        name=name,
        descriptor=descriptor,
        top=seal.top,
        record=record,
        expected=expected is not None or vouch is not None,
    )


def step1_record_length(header: bytes, location: SealLocation, *, name: str) -> int:
    """Bytes of a seal record with padding and footer, from its first 32 bytes.

    Nothing authenticates the chunk map, so its length is bounded by what the data region can need: else whoever
    serves blobs could fill a reader's memory.
    """
    limit = max_record_length(location.data_size)
    try:
        return padded_record_length(record_length(SEAL_MAGIC, header, limit=limit))
    except FormatError as error:
        raise IntegrityError(error.what, step=1, blob=name, offset=location.record_offset) from error


def step1_record(data: bytes, location: SealLocation, *, name: str) -> SealRecord:
    """The seal record in these bytes, well-formed and within limits."""
    try:
        record = SealRecord.parse(data)
    except FormatError as error:
        raise IntegrityError(error.what, step=1, blob=name, offset=location.record_offset) from error
    if len(data) != record.padded_length:
        raise IntegrityError(
            f"seal record has {len(data)} bytes with its padding, not {record.padded_length}",
            step=1,
            blob=name,
            offset=location.record_offset,
        )
    return record


def step2_descriptor(record: SealRecord, seal: SealBytes, *, name: str) -> Descriptor:
    """The descriptor, after place, dm-verity superblock, padding and footer agreed with it."""
    descriptor, location = record.descriptor, seal.location
    if descriptor.data_size != location.data_size:
        raise IntegrityError(
            f"descriptor speaks of {descriptor.data_size} bytes, the data region has {location.data_size}",
            step=2,
            blob=name,
            offset=location.record_offset,
        )
    shape = TreeShape.of(descriptor.data_size, descriptor.params)
    if shape.record_offset != location.record_offset:
        raise IntegrityError(
            f"seal record is not where its descriptor puts it, at byte {shape.record_offset}",
            step=2,
            blob=name,
            offset=location.record_offset,
        )
    if seal.record[record.length :] != record_tail(descriptor, record.length):
        raise IntegrityError(
            "padding or footer after the seal record is not what it must be",
            step=2,
            blob=name,
            offset=location.record_offset + record.length,
        )
    if seal.dmverity != dmverity_superblock(descriptor):
        raise IntegrityError(
            "dm-verity superblock is not the one that follows from the descriptor",
            step=2,
            blob=name,
            offset=location.data_size,
        )
    return descriptor


def step2_tree_padding(shape: TreeShape, *, level: int, first: int, blocks: bytes | memoryview, name: str) -> None:
    """Zeros after the last hash of a tree level, if its last block is among these.

    Args:
        shape: levels of the tree.
        level: 1 or above.
        first: number of the first block in `blocks`.
        blocks: whole blocks of that level.
        name: what errors call the blob.
    """
    children = shape.data_size // BLOCK if level == 1 else shape.levels[level - 2]
    used = children * shape.digest_size - first * BLOCK
    if used < len(blocks) and any(blocks[max(used, 0) :]):
        raise IntegrityError(
            "padding of the tree is not zero",
            step=2,
            blob=name,
            offset=shape.level_offset(level) + (shape.levels[level - 1] - 1) * BLOCK,
            level=level,
        )


def step3_digest(descriptor: Descriptor, expected: Digest, *, name: str) -> None:
    """The descriptor's digest is the expected one."""
    if descriptor.digest != expected:
        raise IntegrityError(
            f"this is {descriptor.digest}, but {expected} is expected",
            step=3,
            blob=name,
            hint="it is another blob, or it was altered",
        )


def step4_top(descriptor: Descriptor, top: bytes, *, name: str) -> None:
    """The top block (the data itself, where there is one block) hashes to the root."""
    shape = TreeShape.of(descriptor.data_size, descriptor.params)
    level = len(shape.levels)
    where = shape.level_offset(level) if level else 0
    if len(top) != BLOCK or BlockHasher(descriptor.params).hash_blocks(top) != descriptor.root_hash:
        raise IntegrityError(
            "top block of the tree does not hash to the root",
            step=4,
            blob=name,
            offset=where,
            level=level,
        )
    if level:
        step2_tree_padding(shape, level=level, first=0, blocks=top, name=name)


def step5_blocks(expected: bytes, hashes: bytes, shape: TreeShape, *, level: int, first: int, name: str) -> None:
    """Hashes of blocks equal those that their verified parents hold.

    Args:
        expected: joined hashes out of verified parents.
        hashes: joined hashes of the blocks that were read.
        shape: levels of the tree.
        level: 0 for data, 1 and above for the tree.
        first: number of the first block.
        name: what errors call the blob.
    """
    if hashes == expected:
        return
    block = first + bad_blocks(expected, hashes, shape.digest_size)[0]
    raise IntegrityError(
        f"{block_kind(level)} does not match the hash in its parent",
        step=5,
        blob=name,
        offset=block_offset(shape, level, block),
        level=level,
    )


def bad_blocks(expected: bytes, hashes: bytes, digest_size: int) -> list[int]:
    """Indexes of the hashes that differ."""
    return [
        at // digest_size
        for at in range(0, max(len(expected), len(hashes)), digest_size)
        if expected[at : at + digest_size] != hashes[at : at + digest_size]
    ]


def block_offset(shape: TreeShape, level: int, block: int) -> int:
    """Byte offset in the blob of a block of level 0 (data), 1, and so on."""
    return block * BLOCK + (shape.level_offset(level) if level else 0)


def block_kind(level: int) -> str:
    """What errors call a block of this level."""
    return f"tree block of level {level}" if level else "data block"
