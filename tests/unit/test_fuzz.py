"""Mutated bytes in front of every parser and reader: our own errors only, soon, and in little memory.

Seeds are fixed, so a failure repeats; its message names the seed. Stores have such a test of their own
(test_store_hostile.py), CMS too (test_policy.py).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import stat
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import google_crc32c
import pytest
from tests.unit import reader_images
from tests.unit.small_images import MemoryImage, build_image, pin, region_of, seal_of, shape_of

from eroseal.build.options import BlobLayout
from eroseal.crypto.blocks import BlockHasher
from eroseal.errors import ErosealError, FormatError, IntegrityError, UsageError, VerificationError
from eroseal.format.chunkmap import decode_chunk_map, encode_chunk_map
from eroseal.format.digest import BLOCK, Digest, HashAlgorithm, TreeParams
from eroseal.format.dmverity import superblock as dmverity_superblock
from eroseal.format.erofs import SUPER_OFFSET, RawInode, Superblock, superblock_checksum
from eroseal.format.fsverity import Descriptor
from eroseal.format.record import (
    CHUNK_MAP,
    DESCRIPTOR,
    IMAGE_MAGIC,
    IMAGE_SIGNATURE,
    SEAL_MAGIC,
    Footer,
    RecordEntry,
    encode_record,
    parse_record,
)
from eroseal.format.sealed import SealRecord, TreeShape, encode_seal
from eroseal.format.statement import ImageSignature, SignatureKind, Statement, parse_image_digest
from eroseal.image.check import check_image
from eroseal.image.reader import ImageReader
from eroseal.image.unpack import unpack
from eroseal.limits import MAX_IMAGE_RECORD
from eroseal.readat import BytesAt
from eroseal.report.diff import diff_images
from eroseal.report.inspect import inspect_image
from eroseal.report.inspect_text import inspect_text
from eroseal.report.listing import ls_entry, ls_lines
from eroseal.store.reference import parse_reference
from eroseal.trust.image import UnverifiedImage, open_blob, open_image, open_self_consistent
from eroseal.trust.scan import scan_blob

PATIENCE = 5.0
"""Seconds that one input may take; honest ones take milliseconds."""
MEMORY = 48 << 20
"""Bytes that reading one hostile image may take: caches are bounded, and nothing is allocated on an image's word."""
SCALE = 50 if os.environ.get("EROSEAL_HYPOTHESIS") == "soak" else 1
PARSES = 3000 * SCALE
IMAGES = 900 * SCALE


class TooSlow(BaseException):
    """Not an Exception, so that nothing swallows it."""


@contextlib.contextmanager
def patience(label: str) -> Iterator[None]:
    """Give up on an input that takes too long."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooSlow(f"{label} takes more than {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


INTERESTING = (0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 64, 127, 128, 255, 256, 4095, 4096, 4097, 32767, 32768, 65535)
WIDE = (*INTERESTING, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 47, 1 << 62, (1 << 63) - 1)
EVERYWHERE = (*WIDE, 1 << 63, (1 << 64) - 1)


def mutate(data: bytes, choose: random.Random, places: list[int] | None = None) -> bytes:
    """One to four changes: a bit, a byte, a field with an interesting value, or a piece moved, repeated or cut."""
    out = bytearray(data)
    for _ in range(choose.choice((1, 1, 1, 2, 4))):
        if not out:
            return b"\0"
        at = choose.choice(places) if places else choose.randrange(len(out))
        at = min(at, len(out) - 1)
        kind = choose.randrange(10 if places is None else 7)
        if kind <= 1:
            out[at] ^= 1 << choose.randrange(8)
        elif kind == 2:
            out[at] = choose.randrange(256)
        elif kind <= 6:
            width, values = choose.choice(((2, INTERESTING), (4, WIDE), (8, EVERYWHERE)))
            at -= at % width if choose.random() < 0.8 else 0
            value = choose.choice(values) & (1 << 8 * width) - 1
            out[at : at + width] = value.to_bytes(width, "little")[: len(out) - at]
        elif kind == 7:
            del out[at:]
        elif kind == 8:
            out[at:at] = out[at : at + choose.randrange(40)]
        else:
            source = choose.randrange(len(out))
            piece = bytes(out[source : source + choose.randrange(1, 64)])
            out[at : at + len(piece)] = piece
    return bytes(out)


# --- parsers ---

DESCRIPTOR_BYTES = Descriptor(TreeParams(HashAlgorithm.SHA256, b"salt"), 5000 * BLOCK, bytes(range(32))).encode()
CHUNKS = encode_chunk_map([16] * 200 + [3, 4, 16, 16, 300])
STATEMENT = Statement(Digest(HashAlgorithm.SHA256, bytes(32)), "a name", 7, 1_700_000_000)
SIGNATURE = ImageSignature(SignatureKind.ED25519, STATEMENT.encode(), bytes(range(64)), bytes(range(32)))
RECORD = encode_record(
    IMAGE_MAGIC, [RecordEntry(IMAGE_SIGNATURE, SIGNATURE.encode()), RecordEntry(17, b"x"), RecordEntry(21, b"trace")]
)
SEAL = encode_record(
    SEAL_MAGIC, [RecordEntry(DESCRIPTOR, DESCRIPTOR_BYTES, critical=True), RecordEntry(CHUNK_MAP, CHUNKS)]
)
SUPERBLOCK = Superblock(blkszbits=12, root_nid=36, inos=5, blocks=9, extra_devices=2, devt_slotoff=16, sb_extslots=1)


def fitted(record: bytes) -> bytes:
    """A record with its checksums made right, so that mutations reach what lies behind them."""
    if len(record) < 32:
        return record
    total = min(int.from_bytes(record[16:24], "little"), len(record))
    body = google_crc32c.value(record[32:total]).to_bytes(4, "little")
    head = record[:24] + body
    return head + google_crc32c.value(head).to_bytes(4, "little") + record[32:]


def parse_entries(data: bytes) -> None:
    for entry in parse_record(IMAGE_MAGIC, fitted(data), limit=MAX_IMAGE_RECORD):
        if entry.type == IMAGE_SIGNATURE:
            Statement.parse(ImageSignature.parse(entry.value).statement)


def parse_seal(data: bytes) -> None:
    seal = SealRecord.parse(fitted(data))
    TreeShape.of(seal.descriptor.data_size, seal.descriptor.params)
    if seal.chunk_map is not None:
        list(decode_chunk_map(seal.chunk_map, total_blocks=seal.descriptor.data_size // BLOCK))


def parse_text(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    with contextlib.suppress(UsageError):
        parse_image_digest(text)
    parse_reference(text)


PARSERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "descriptor": (DESCRIPTOR_BYTES, Descriptor.parse),
    "chunk map": (CHUNKS, lambda data: list(decode_chunk_map(data, total_blocks=5000))),
    "statement": (STATEMENT.encode(), Statement.parse),
    "image signature": (SIGNATURE.encode(), lambda data: Statement.parse(ImageSignature.parse(data).statement)),
    "image record": (RECORD, parse_entries),
    "seal record": (SEAL, parse_seal),
    "footer": (Footer(BLOCK, 3 * BLOCK, BLOCK).encode(), Footer.parse),
    "superblock": (SUPERBLOCK.encode(), Superblock.parse),
    "inode": (bytes(64), RawInode.parse),
    "reference": (f"dir:/srv/store:{STATEMENT.digest}".encode(), parse_text),
}


@pytest.mark.parametrize("name", PARSERS)
def test_parsers(name: str) -> None:
    good, parse = PARSERS[name]
    parse(good)
    refused = 0
    for seed in range(PARSES):
        data = mutate(good, random.Random(f"{name} {seed}"))
        try:
            with patience(f"{name}, seed {seed}"):
                parse(data)
        except ErosealError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}: {data.hex()}") from error
    if name not in ("footer", "inode", "superblock", "reference"):
        assert refused > PARSES // 4


# --- blobs: seals that do not fit, under a pinned digest and without one ---


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, MemoryImage]:
    """Images with all kinds of files: data blobs for each file, one data blob, and everything in one."""
    found = {}
    for layout in (BlobLayout.FILE, BlobLayout.BUILD, BlobLayout.NONE):
        directory = tmp_path_factory.mktemp(layout.value)
        target = {"target": directory / "image.erofs"} if layout is BlobLayout.NONE else {}
        make_tree(directory / "source")
        _, image = build_image(
            directory, {"dir/plain": bytes(range(256)) * 32}, blobs=layout, timestamp=None, all_root=False, **target
        )
        found[layout.value] = image
    return found


def make_tree(directory: Path) -> None:
    """A bit of everything that fits into a few blocks."""
    choose = random.Random(11)
    (directory / "dir" / "deep" / "er").mkdir(parents=True)
    (directory / "many").mkdir()
    for number in range(60):
        (directory / "many" / f"file with a longer name {number:03}").write_bytes(choose.randbytes(number))
    (directory / "chunks").write_bytes(choose.randbytes(2 * BLOCK) + bytes(20 * BLOCK) + choose.randbytes(BLOCK + 9))
    (directory / "again").write_bytes((directory / "chunks").read_bytes()[: 2 * BLOCK])
    with (directory / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (directory / "link").symlink_to("dir/deep/../../chunks")
    (directory / "loop").symlink_to("loop")
    os.link(directory / "chunks", directory / "dir" / "hard")
    os.mkfifo(directory / "fifo")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as bound:
        place = os.getcwd()
        os.chdir(directory)  # the address has room for 107 bytes only
        try:
            bound.bind("socket")
        finally:
            os.chdir(place)
    for name in ("link", "many", "again"):
        for key, value in ((b"user.one", b"shared value"), (b"user.two", name.encode() * 20), (b"user.empty", b"")):
            with contextlib.suppress(OSError):
                os.setxattr(directory / name, key, value, follow_symlinks=False)


@dataclass
class Counts:
    refused: int = 0
    passed: int = 0


@pytest.mark.parametrize("layout", ["file", "none"])
def test_blobs_with_other_bytes(images: dict[str, MemoryImage], layout: str) -> None:
    """Nothing but what was sealed is ever read under a pinned digest; without one, nothing breaks."""
    image, counts = images[layout], Counts()
    blob = image.data[0] if image.data else image.meta
    digest = image.digests[0] if image.data else image.digest
    region, shape = region_of(blob), shape_of(blob)
    places = [*range(shape.data_size, len(blob), 3), *range(shape.record_offset, shape.record_offset + 400)]
    for seed in range(IMAGES):
        choose = random.Random(f"blob {layout} {seed}")
        data = mutate(blob, choose, places if choose.random() < 0.7 else None)
        if choose.random() < 0.5:
            data = data[: shape.record_offset] + fitted(data[shape.record_offset :])
        source = BytesAt(data)
        with patience(f"blob {layout}, seed {seed}"):
            for size in (None, shape.data_size):
                try:
                    verified = open_blob(source, digest, data_size=size)
                    scan_blob(source, verified, jobs=1)
                    assert verified.read_at(0, verified.size) == region
                    counts.passed += 1
                except IntegrityError:
                    counts.refused += 1
            with contextlib.suppress(ErosealError):
                lone = open_self_consistent(source)
                scan_blob(source, lone, jobs=1, keep_going=True)
                lone.read_at(0, lone.size)
    assert counts.refused > IMAGES
    assert counts.passed > 0  # bytes after the end, and changes that change nothing


# --- hostile images whose seal is in order ---


def seal_in_memory(region: bytes, params: TreeParams) -> tuple[bytes, Digest]:
    """Seal a region of 2 to 128 blocks."""
    leaves = BlockHasher(params).hash_blocks(region)
    tree = leaves.ljust(BLOCK, b"\0")
    assert len(region) > BLOCK and len(tree) == BLOCK
    descriptor = Descriptor(params, len(region), BlockHasher(params).hash_blocks(tree))
    return region + dmverity_superblock(descriptor) + tree + encode_seal(descriptor, None), descriptor.digest


def metadata_places(image: MemoryImage) -> list[int]:
    """Bytes of the meta blob that hold metadata: not the zeros, and file data seldom."""
    region = region_of(image.meta)
    with open_image(BytesAt(image.meta), policy=image.pinned, open_data=lambda digest: BytesAt(b"")) as opened:
        reader = ImageReader(opened)
        places = [*range(SUPER_OFFSET, SUPER_OFFSET + 128)] * 3
        for _, inode in reader.walk():
            places += range(inode.position, min(inode.end + 80, len(region)))
            if inode.is_dir:
                for extent in reader.extents(inode):
                    places += range(extent.offset, extent.offset + extent.length)
    return places


def exercise(reader: ImageReader, honest: ImageReader) -> None:
    """Everything that reads an image; each refuses by itself."""
    with contextlib.suppress(ErosealError):
        check_image(reader)
    entries = []
    with contextlib.suppress(ErosealError):
        for path, inode in reader.walk():
            entries.append(ls_entry(path, inode))
            with contextlib.suppress(ErosealError):
                reader.xattrs(inode)
            with contextlib.suppress(ErosealError):
                if stat.S_ISREG(inode.mode):
                    reader.read(inode, 0, 70_000)
                    reader.read(inode, max(0, inode.size - 5000), 5000)
                elif inode.is_symlink:
                    reader.readlink(inode)
            with contextlib.suppress(ErosealError):
                for count, _ in enumerate(reader.extents(inode)):
                    if count > 10_000:
                        break
    ls_lines(entries)
    for path in (b"dir/deep/er", b"many/file with a longer name 030", b"link", b"loop/x", b"nothing"):
        with contextlib.suppress(ErosealError):
            reader.lookup(path)
    with contextlib.suppress(ErosealError):
        inspect_text(inspect_image(reader))
    with contextlib.suppress(ErosealError):
        diff_images(honest, reader)


@pytest.mark.parametrize("layout", ["file", "build", "none"])
def test_sealed_and_pinned_and_hostile(images: dict[str, MemoryImage], layout: str, tmp_path: Path) -> None:
    """The signer himself is hostile, or his tools are broken: every reader copes."""
    image, counts = images[layout], Counts()
    region, params = region_of(image.meta), seal_of(image.meta).descriptor.params
    data = {digest: BytesAt(blob) for digest, blob in zip(image.digests, image.data, strict=True)}
    places = metadata_places(image)

    def find(digest: Digest) -> BytesAt:
        if digest not in data:
            raise FormatError("no such blob")
        return data[digest]

    with open_image(BytesAt(image.meta), policy=image.pinned, open_data=find) as opened:
        honest = ImageReader(opened)
        exercise(honest, honest)
        for seed in range(IMAGES // 3):
            choose = random.Random(f"image {layout} {seed}")
            altered = bytearray(mutate(region, choose, places))
            if choose.random() < 0.9:
                struct.pack_into("<I", altered, SUPER_OFFSET + 4, superblock_checksum(altered[:BLOCK], 12))
            meta, digest = seal_in_memory(bytes(altered), params)
            label = f"image {layout}, seed {seed}"
            try:
                with patience(label), open_image(BytesAt(meta), policy=pin(digest), open_data=find) as hostile:
                    reader = ImageReader(hostile)
                    exercise(reader, honest)
                    check_image(reader)
                    counts.passed += 1
            except ErosealError:
                counts.refused += 1
            except Exception as error:
                raise AssertionError(label) from error
    assert min(counts.refused, counts.passed) > 20, counts


def test_hostile_images_take_little_memory(images: dict[str, MemoryImage]) -> None:
    image = images["none"]
    region, params, places = region_of(image.meta), seal_of(image.meta).descriptor.params, metadata_places(image)
    with open_image(BytesAt(image.meta), policy=image.pinned, open_data=lambda digest: BytesAt(b"")) as opened:
        honest = ImageReader(opened)
        for seed in range(IMAGES // 20):
            altered = mutate(region, random.Random(f"memory {seed}"), places)
            meta, digest = seal_in_memory(altered, params)
            tracemalloc.start()
            try:
                with (
                    contextlib.suppress(ErosealError),
                    patience(f"memory, seed {seed}"),
                    open_image(BytesAt(meta), policy=pin(digest), open_data=lambda digest: BytesAt(b"")) as hostile,
                ):
                    exercise(ImageReader(hostile), honest)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < MEMORY, f"seed {seed} took {peak} bytes"


def test_unsealed_images_with_features_that_we_do_not_write() -> None:
    """Block maps, holes, shared attributes, a name filter: made by hand, read because someone asked for that."""
    meta, data, _ = reader_images.sample()
    sources = [BytesAt(data)]
    honest = ImageReader(UnverifiedImage(BytesAt(meta), sources))
    exercise(honest, honest)
    places = [at for at, byte in enumerate(meta[: 4 << 12]) if byte]
    places += range(SUPER_OFFSET, SUPER_OFFSET + 160)
    counts = Counts()
    for seed in range(IMAGES):
        altered = reader_images.resum(mutate(meta, random.Random(f"by hand {seed}"), places))
        try:
            with patience(f"by hand, seed {seed}"):
                reader = ImageReader(UnverifiedImage(BytesAt(altered), sources))
                exercise(reader, honest)
                check_image(reader)
            counts.passed += 1
        except ErosealError:
            counts.refused += 1
        except Exception as error:
            raise AssertionError(f"by hand, seed {seed}") from error
    assert min(counts.refused, counts.passed) > 20, counts


def test_hostile_images_unpack_or_leave_nothing(images: dict[str, MemoryImage], tmp_path: Path) -> None:
    image = images["build"]
    region, places = region_of(image.meta), metadata_places(image)
    sources = [BytesAt(region_of(blob)) for blob in image.data]
    counts = Counts()
    for seed in range(IMAGES // 10):
        altered = bytearray(mutate(region, random.Random(f"unpack {seed}"), places))
        target = tmp_path / f"out{seed}"
        try:
            with patience(f"unpack, seed {seed}"):
                unpack(ImageReader(UnverifiedImage(BytesAt(bytes(altered)), sources)), target, as_root=False, jobs=1)
            counts.passed += 1
        except ErosealError:
            counts.refused += 1
            assert not target.exists()
        except Exception as error:
            raise AssertionError(f"unpack, seed {seed}") from error
        assert {path.name for path in tmp_path.iterdir()} <= {f"out{number}" for number in range(seed + 1)}
    assert min(counts.refused, counts.passed) > 5, counts


def test_verification_errors_are_the_only_refusals_of_the_verifier(images: dict[str, MemoryImage]) -> None:
    """Steps 1 to 7 by themselves, on any bytes: the family is narrower than ErosealError."""
    image = images["none"]
    for seed in range(IMAGES):
        choose = random.Random(f"open {seed}")
        data = mutate(image.meta, choose)
        try:
            with patience(f"open, seed {seed}"):
                open_image(BytesAt(data), policy=image.pinned, open_data=lambda digest: BytesAt(b"")).close()
        except VerificationError as error:
            assert 1 <= error.step <= 7
