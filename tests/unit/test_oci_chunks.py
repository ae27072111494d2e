"""Compressed layers: any standard decoder gives the blob, ours gives any part of it, and one that lies is refused."""

from __future__ import annotations

import hashlib
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import zstandard
from tests.unit.sealing import Changeable, Sample, seal_bytes

from eroseal.errors import ErosealError, FormatError, UnsupportedError
from eroseal.format.chunkindex import ChunkIndex, Compression, encode_chunk_index
from eroseal.format.digest import TreeParams
from eroseal.readat import BytesAt
from eroseal.store.oci.chunks import CHUNK_SIZE, CompressedBlob, compress_layer, open_layer
from eroseal.store.oci.documents import Descriptor
from eroseal.store.oci.layers import blob_info, index_range
from eroseal.trust.image import open_blob
from eroseal.trust.scan import scan_blob


class OneLayer:
    """The one method of a repository that reading a layer needs."""

    def __init__(self, data: bytes) -> None:
        self.source = Changeable(data, "layer")

    def open_blob(self, layer: Descriptor) -> Changeable:
        return self.source


@dataclass(frozen=True, slots=True)
class Packed:
    """A sealed blob and its compressed layer."""

    sample: Sample
    layer: Descriptor
    data: bytes


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    place = tmp_path_factory.mktemp("packed")
    # Random, equal and zero pieces; the last chunk is a short one.
    content = random.Random(5).randbytes(2 * CHUNK_SIZE) + b"words " * 400_000 + bytes(CHUNK_SIZE)
    sample = seal_bytes(place, content[: len(content) // 4096 * 4096])
    return pack(place / "layer", sample)


def pack(path: Path, sample: Sample, jobs: int = 2) -> Packed:
    seal = open_blob(BytesAt(sample.blob), sample.sealed.digest).seal
    with path.open("w+b") as file:
        layer = compress_layer(BytesAt(sample.blob), seal.descriptor, len(sample.blob), file.fileno(), jobs=jobs)
    return Packed(sample, layer, path.read_bytes())


def opened(packed: Packed, data: bytes | None = None, layer: Descriptor | None = None) -> object:
    return open_layer(OneLayer(packed.data if data is None else data), layer or packed.layer)  # type: ignore[arg-type]


def test_a_standard_decoder_gives_the_blob(packed: Packed) -> None:
    assert len(packed.data) < len(packed.sample.blob) * 3 // 4
    decoder = zstandard.ZstdDecompressor().stream_reader(packed.data, read_across_frames=True)
    assert decoder.read() == packed.sample.blob


def test_the_descriptor_tells_the_truth(packed: Packed) -> None:
    layer, blob = packed.layer, packed.sample.blob
    assert layer.media_type == "application/vnd.erofs+zstd"
    assert (layer.digest, layer.size) == (f"sha256:{hashlib.sha256(packed.data).hexdigest()}", len(packed.data))
    assert layer.annotations["org.erofs.uncompressed-digest"] == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    info = blob_info(layer)
    assert info is not None
    assert (info.digest, info.data_size, info.size) == (packed.sample.sealed.digest, len(packed.sample.data), len(blob))
    place = index_range(layer)
    assert place is not None
    start, end = place
    assert (start % 4, end) == (0, len(packed.data))
    assert struct.unpack_from("<II", packed.data, start) == (0x184D2A50, end - start - 8)
    index = packed.data[start + 8 :]
    assert layer.annotations["org.erofs.chunk-index.digest"] == f"sha256:{hashlib.sha256(index).hexdigest()}"
    parsed = ChunkIndex.parse(index, end=start)
    for number in range(len(parsed)):
        chunk = parsed.chunk(number)
        stored = packed.data[chunk.stored_offset : chunk.stored_offset + chunk.stored_size]
        assert hashlib.sha256(stored).digest() == chunk.checksum
        assert zstandard.get_frame_parameters(stored).content_size == chunk.size


def test_the_bytes_do_not_depend_on_the_number_of_threads(packed: Packed, tmp_path: Path) -> None:
    assert pack(tmp_path / "again", packed.sample, jobs=1).data == packed.data


def test_any_part_can_be_read(packed: Packed) -> None:
    blob, source = packed.sample.blob, opened(packed)
    assert source.size == len(blob)
    generator = random.Random(1)
    places = [(0, len(blob)), (0, 0), (len(blob), 0), (CHUNK_SIZE - 1, 2), (CHUNK_SIZE, CHUNK_SIZE)]
    for _ in range(200):
        start = generator.randrange(len(blob))
        places.append((start, min(generator.choice((1, 64, 4096, 3 << 20)), len(blob) - start)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda place: source.read_at(*place), places))
    assert found == [blob[offset : offset + length] for offset, length in places]
    for offset, length in ((len(blob), 1), (0, len(blob) + 1), (-1, 1), (0, -1)):
        with pytest.raises(FormatError):
            source.read_at(offset, length)


def test_the_blob_in_it_verifies(packed: Packed) -> None:
    source = opened(packed)
    assert scan_blob(source, open_blob(source, packed.sample.sealed.digest), jobs=2) == []
    source.close()
    source.close()


def test_neighbours_come_by_one_request_and_are_remembered(packed: Packed) -> None:
    repository = OneLayer(packed.data)
    source = open_layer(repository, packed.layer)  # type: ignore[arg-type]
    repository.source.reads.clear()
    source.read_at(0, 2 * CHUNK_SIZE)
    source.read_at(100, CHUNK_SIZE)
    assert len(repository.source.reads) == 1


def test_tiny_chunks_do_not_fill_memory() -> None:
    count = 20_000
    frame = zstandard.ZstdCompressor().compress(b"x")
    index = encode_chunk_index(
        Compression.ZSTD, count, ((number * len(frame), number, b"") for number in range(count)), hash_size=0
    )
    source = CompressedBlob(
        OneLayer(frame * count).source,  # type: ignore[arg-type]
        ChunkIndex.parse(index, end=count * len(frame)),
        name="tiny",
    )
    assert source.read_at(0, count) == b"x" * count
    assert len(source._cache) <= 4096
    assert source._cached <= 16 << 20


def test_closing_closes_the_layer(packed: Packed) -> None:
    repository = OneLayer(packed.data)
    open_layer(repository, packed.layer).close()  # type: ignore[arg-type]
    assert repository.source.closed


@pytest.mark.parametrize("blocks", [1, 2])
def test_small_blobs(tmp_path: Path, blocks: int) -> None:
    small = pack(tmp_path / "small", seal_bytes(tmp_path, bytes(blocks * 4096), TreeParams()))
    source = opened(small)
    assert source.read_at(0, source.size) == small.sample.blob


# Layers that lie


def annotated(packed: Packed, name: str, value: str | None) -> Descriptor:
    annotations = {key: old for key, old in packed.layer.annotations.items() if key != name}
    if value is not None:
        annotations[name] = value
    return msgspec.structs.replace(packed.layer, annotations=annotations)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("org.erofs.chunk-index.range", None, UnsupportedError),
        ("org.erofs.chunk-index.mediaType", "application/vnd.novelty", UnsupportedError),
        ("org.erofs.chunk-index.range", "4096", FormatError),
        ("org.erofs.chunk-index.range", "x", FormatError),
        ("org.erofs.chunk-index.digest", f"sha256:{'0' * 64}", FormatError),
        ("org.erofs.chunk-index.digest", "sha256:", FormatError),
        ("dev.eroseal.size", "8192", FormatError),
    ],
)
def test_annotations_that_lie_are_refused(
    packed: Packed, name: str, value: str | None, kind: type[ErosealError]
) -> None:
    repository = OneLayer(packed.data)
    with pytest.raises(kind):
        open_layer(repository, annotated(packed, name, value))  # type: ignore[arg-type]
    assert repository.source.closed


def test_annotations_that_may_be_missing(packed: Packed) -> None:
    for name in ("org.erofs.chunk-index.digest", "org.erofs.chunk-index.mediaType", "dev.eroseal.size"):
        assert opened(packed, layer=annotated(packed, name, None)).size == len(packed.sample.blob)
    start = packed.layer.annotations["org.erofs.chunk-index.range"].split(":")[0]
    assert opened(packed, layer=annotated(packed, "org.erofs.chunk-index.range", start)).size > 0


def test_a_damaged_index_is_refused(packed: Packed) -> None:
    place = index_range(packed.layer)
    assert place is not None
    for at in (place[0], place[0] + 4, place[0] + 8, place[0] + 30, place[1] - 1):
        data = bytearray(packed.data)
        data[at] ^= 0x80
        with pytest.raises(FormatError):
            opened(packed, bytes(data))


def test_a_damaged_chunk_is_refused(packed: Packed) -> None:
    data = bytearray(packed.data)
    data[1000] ^= 1
    source = opened(packed, bytes(data))
    assert source.read_at(CHUNK_SIZE, 10) == packed.sample.blob[CHUNK_SIZE : CHUNK_SIZE + 10]
    with pytest.raises(FormatError, match="does not match its checksum"):
        source.read_at(0, 1)


def layer_of(frames: list[bytes], sizes: list[int]) -> tuple[bytes, Descriptor]:
    """A layer of any frames, with an index without checksums that says what it should."""
    entries, stored, offset = [], 0, 0
    for frame, size in zip(frames, sizes, strict=True):
        entries.append((stored, offset, b""))
        stored, offset = stored + len(frame), offset + size
    index = encode_chunk_index(Compression.ZSTD, offset, entries, hash_size=0)
    data = b"".join(frames) + struct.pack("<II", 0x184D2A50, len(index)) + index
    return data, Descriptor(
        media_type="application/vnd.erofs+zstd",
        digest=f"sha256:{'0' * 64}",
        size=len(data),
        annotations={"org.erofs.chunk-index.range": str(stored)},
    )


def frame(data: bytes, *, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=sized).compress(data)


def test_other_makers_frames_are_read() -> None:
    data, layer = layer_of([frame(b"a" * 100, sized=False), frame(b"b" * 50)], [100, 50])
    source = open_layer(OneLayer(data), layer)  # type: ignore[arg-type]
    assert source.read_at(99, 2) == b"ab"


@pytest.mark.parametrize(
    "stored",
    [
        frame(bytes(4097)),
        frame(bytes(4095)),
        frame(bytes(4095), sized=False),
        frame(bytes(1 << 30)),
        frame(bytes(64 << 20), sized=False),
        frame(b"abc" * 2000)[:-3],
        b"not a frame at all",
        b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8,
        struct.pack("<II", 0x184D2A50, 4) + b"skip",
        b"x",
    ],
    ids=["longer", "shorter", "shorter, unsized", "bomb", "bomb, unsized", "cut", "noise", "claims", "skips", "byte"],
)
def test_frames_that_are_not_their_chunk_are_refused(stored: bytes) -> None:
    data, layer = layer_of([stored], [4096])
    source = open_layer(OneLayer(data), layer)  # type: ignore[arg-type]
    with pytest.raises(FormatError):
        source.read_at(0, 1)
