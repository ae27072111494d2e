"""Every single bit of a small sealed image, flipped: the verifier refuses under a pinned digest.

The image is really built: a meta blob, and a data blob of two blocks, at most 64 KiB together. Each flip runs the
whole verification: open the image, open its data blobs, scan all blocks, check the structure. `parts_of` names
every byte of a blob.

The parts in `NO_AUTHORITY` are covered by no digest; what guards them is that padding and footer must equal what
follows from the descriptor, and checksums against accidents. An attacker can make checksums right, so these parts
are flipped a second time with checksums that fit: what passes then must change nothing that can be read.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import pytest
from tests.unit.small_images import (
    Altered,
    Content,
    MemoryImage,
    build_image,
    finder,
    read_whole,
    seal_of,
    shape_of,
    verify_whole,
)

from eroseal.build.options import BlobLayout
from eroseal.errors import VerificationError
from eroseal.format.digest import BLOCK, HashAlgorithm, TreeParams
from eroseal.format.record import FOOTER_SIZE, HEADER_SIZE, IMAGE_SIGNATURE, RecordEntry
from eroseal.store.single import image_tail, read_layout
from eroseal.trust.image import open_image

FILES = {"first": bytes(range(256)) * 16, "second": b"eroseal\n" * 512, "inlined": b"a short file\n"}

NO_AUTHORITY = frozenset(
    {
        "header: checksum of the entries",
        "header: checksum of the header",
        "chunk map: head",
        "chunk map: runs",
        "chunk map: padding",
        "padding after the entries",
        "footer",
    }
)
"""Parts of a sealed blob that no digest covers. Bytes that follow the blob are covered by none either."""


@dataclass(frozen=True, slots=True)
class Part:
    """A named range of bytes of a sealed blob."""

    name: str
    start: int
    end: int


def parts_of(blob: bytes) -> Iterator[Part]:
    """Every byte of a sealed blob, by name, in order and without gaps."""
    descriptor = seal_of(blob).descriptor
    shape = shape_of(blob)
    record = shape.record_offset
    for block in range(0, descriptor.data_size, BLOCK):
        yield Part(f"data block {block // BLOCK}", block, block + BLOCK)
    yield Part("dm-verity superblock", descriptor.data_size, descriptor.data_size + 512)
    yield Part("padding of the dm-verity superblock", descriptor.data_size + 512, shape.offset)
    for level in range(len(shape.levels), 0, -1):
        children = descriptor.data_size // BLOCK if level == 1 else shape.levels[level - 2]
        start = shape.level_offset(level)
        end, used = start + shape.levels[level - 1] * BLOCK, start + children * shape.digest_size
        yield Part(f"tree level {level}", start, used)
        if used < end:
            yield Part(f"padding of tree level {level}", used, end)
    yield Part("header: magic, version, lengths", record, record + 24)
    yield Part("header: checksum of the entries", record + 24, record + 28)
    yield Part("header: checksum of the header", record + 28, record + HEADER_SIZE)
    yield Part("descriptor: head", record + HEADER_SIZE, record + HEADER_SIZE + 8)
    at = record + HEADER_SIZE + 8 + 256
    yield Part("descriptor", at - 256, at)
    chunk_map = seal_of(blob).chunk_map
    if chunk_map is not None:
        end = at + 8 + len(chunk_map)
        yield Part("chunk map: head", at, at + 8)
        yield Part("chunk map: runs", at + 8, end)
        at = end + -end % 8
        if end < at:
            yield Part("chunk map: padding", end, at)
    yield Part("padding after the entries", at, len(blob) - FOOTER_SIZE)
    yield Part("footer", len(blob) - FOOTER_SIZE, len(blob))


# Blocks are split so that several processes share the work: 64 KiB of bits make half a million verifications.
SLICES = 16


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> MemoryImage:
    _, built = build_image(tmp_path_factory.mktemp("flips"), FILES, inline_max=1000)
    assert len(built.data) == 1
    assert len(built.meta) + len(built.data[0]) <= 64 << 10
    assert shape_of(built.data[0]).levels == (1,)
    return built


@pytest.fixture(scope="module")
def honest(image: MemoryImage) -> Content:
    return read_whole(verify_whole(*image.sources(), image.pinned))


def flips_that_pass(image: MemoryImage, blob: int, offsets: range, *, stride: int = 1) -> list[str]:
    """What verification lets pass, by name; nothing, if all is well.

    Args:
        image: the honest image.
        blob: 0 for the meta blob, then the data blobs.
        offsets: bytes to flip bits of.
        stride: 1 for all bits; 24 for one bit of each third byte, a different one each time.
    """
    meta, data = image.sources()
    target = meta if blob == 0 else data[image.digests[blob - 1]]
    parts = list(parts_of(bytes(target.data)))
    policy = image.pinned
    passed = []
    for index in range(0, 8 * len(offsets), stride):
        offset = offsets[index // 8]
        bit = (index + offset) % 8 if stride > 1 else index % 8
        target.data[offset] ^= 1 << bit
        try:
            verify_whole(meta, data, policy)
        except VerificationError:
            pass
        else:
            name = next(part.name for part in parts if part.start <= offset < part.end)
            passed.append(f"bit {bit} of byte {offset} of blob {blob} ({name})")
        target.data[offset] ^= 1 << bit
    verify_whole(meta, data, policy)
    return passed


def test_the_parts_cover_every_byte_once(image: MemoryImage) -> None:
    for blob in (image.meta, *image.data):
        at = 0
        for part in parts_of(blob):
            assert (part.start, part.end > part.start) == (at, True), part
            at = part.end
        assert at == len(blob)


def test_parts_without_authority_lie_in_the_record_and_are_few(image: MemoryImage) -> None:
    """The list is meant to be read: nothing that decides what is read may hide in it."""
    for blob in (image.meta, *image.data):
        bare = [part for part in parts_of(blob) if part.name in NO_AUTHORITY]
        assert min(part.start for part in bare) > shape_of(blob).record_offset
        assert sum(part.end - part.start for part in bare if part.name != "padding after the entries") <= 96


@pytest.mark.parametrize("piece", range(SLICES))
@pytest.mark.parametrize("blob", [0, 1], ids=["meta", "data"])
def test_every_flipped_bit_is_refused(image: MemoryImage, blob: int, piece: int) -> None:
    size = len((image.meta, *image.data)[blob])
    offsets = range(piece * size // SLICES, (piece + 1) * size // SLICES)
    assert flips_that_pass(image, blob, offsets) == []


VARIANTS = [
    (TreeParams(HashAlgorithm.SHA512), BlobLayout.BUILD),
    (TreeParams(HashAlgorithm.SHA256, b"salt"), BlobLayout.FILE),
    (TreeParams(HashAlgorithm.SHA512, bytes(range(32))), BlobLayout.NONE),
]


@pytest.mark.parametrize(("params", "layout"), VARIANTS, ids=["sha512", "sha256-salt-files", "sha512-salt-single"])
def test_sampled_bits_of_other_kinds_are_refused(tmp_path: Path, params: TreeParams, layout: BlobLayout) -> None:
    _, image = build_image(tmp_path, FILES, inline_max=1000, params=params, blobs=layout)
    for blob, data in enumerate((image.meta, *image.data)):
        assert flips_that_pass(image, blob, range(len(data)), stride=24) == []


# --- with checksums that fit ---


def fit_checksums(blob: bytearray, record: int) -> None:
    """Make the checksums of the record and the footer right, as an attacker would."""
    length = min(int.from_bytes(blob[record + 16 : record + 24], "little"), len(blob))
    for at, start, end in ((24, HEADER_SIZE, length), (28, 0, 28)):
        covered = bytes(blob[record + start : record + end])
        blob[record + at : record + at + 4] = google_crc32c.value(covered).to_bytes(4, "little")
    footer = blob[-FOOTER_SIZE : -FOOTER_SIZE + 12] + bytes(4) + blob[-FOOTER_SIZE + 16 :]
    blob[-FOOTER_SIZE + 12 : -FOOTER_SIZE + 16] = google_crc32c.value(bytes(footer)).to_bytes(4, "little")


@pytest.mark.parametrize("blob", [0, 1], ids=["meta", "data"])
def test_with_fitting_checksums_only_the_chunk_map_passes_and_changes_nothing(
    image: MemoryImage, honest: Content, blob: int
) -> None:
    meta, data = image.sources()
    target = meta if blob == 0 else data[image.digests[0]]
    intact = bytes(target.data)
    record = shape_of(intact).record_offset
    passed = set()
    for part in parts_of(intact):
        if part.start < record:
            continue
        # One bit of each byte of the long run of zeros, all bits of everything else.
        bits = range(1) if part.name == "padding after the entries" else range(8)
        for offset in range(part.start, part.end):
            for bit in bits:
                target.data[offset] ^= 1 << bit
                fit_checksums(target.data, record)
                altered = target.data != intact
                try:
                    opened = verify_whole(meta, data, image.pinned)
                except VerificationError:
                    pass
                else:
                    assert read_whole(opened) == honest
                    if altered:
                        passed.add(part.name)
                target.data[:] = intact
    assert passed == ({"chunk map: head", "chunk map: runs"} if blob else set())
    assert passed <= NO_AUTHORITY


@pytest.mark.parametrize("tail_kind", ["image record", "zeros", "noise", "another blob"])
def test_bytes_after_the_blob_change_nothing(tmp_path: Path, image: MemoryImage, tail_kind: str) -> None:
    """Whatever follows, and each bit of it flipped: the same image is read."""
    _, single = build_image(tmp_path, FILES, inline_max=1000, blobs=BlobLayout.NONE, target=tmp_path / "single.erofs")
    honest = read_whole(verify_whole(Altered(single.meta, "single"), {}, single.pinned))
    record = image_tail(read_layout(Altered(single.meta, "single")), [RecordEntry(IMAGE_SIGNATURE, bytes(range(200)))])
    tails = {
        "image record": record,
        "zeros": bytes(1000),
        "noise": random.Random(1).randbytes(1000),
        "another blob": image.meta,
    }
    meta = Altered(single.meta + tails[tail_kind], "single")
    start = len(single.meta)
    for offset in range(start, len(meta.data)):
        bit = 1 << offset % 8
        meta.data[offset] ^= bit
        with open_image(meta, policy=single.pinned, open_data=finder({})) as opened:
            assert opened.digest == single.digest
            assert opened.meta.seal.sealed_size == start
        meta.data[offset] ^= bit
    assert read_whole(verify_whole(meta, {}, single.pinned)) == honest
