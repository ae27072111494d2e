"""Compressed layers that can be read at any offset: a zstd frame for each chunk, and an index of the frames behind.

A standard zstd decoder gives the sealed blob, because the index lies in a frame that decoders skip. Readers of ours
fetch and decompress the chunks that they need. The index, its checksums included, is advice from whoever stored the
layer; the blob that comes out proves itself block by block.

Source: erofs/erofs-image-spec (draft), 3.3 and 3.4; RFC 8878 for the frames.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from eroseal.crypto.pieces import default_jobs
from eroseal.errors import FormatError, OutputError, UnsupportedError
from eroseal.format.chunkindex import MEDIA_TYPE, Chunk, ChunkIndex, Compression, encode_chunk_index
from eroseal.format.fsverity import Descriptor as SealDescriptor
from eroseal.limits import MAX_CHUNK_INDEX
from eroseal.readat import ReadAt, check_range
from eroseal.store.atomic import write_fully
from eroseal.store.oci.documents import EROFS_ZSTD_LAYER, Descriptor
from eroseal.store.oci.layers import (
    BLOB_SIZE,
    INDEX_DIGEST,
    INDEX_MEDIA_TYPE,
    INDEX_RANGE,
    UNCOMPRESSED_DIGEST,
    index_range,
    seal_annotations,
    sealed_size,
)
from eroseal.store.oci.repository import Repository
from eroseal.store.protocol import OpenBlob

CHUNK_SIZE: Final = 1 << 20
"""Uncompressed bytes of our chunks: a read from afar fetches about that much anyway."""
LEVEL: Final = 3
"""Zstandard's own default: higher levels cost a push more than they save it."""
_CACHE_BYTES: Final = 16 << 20
"""Uncompressed bytes that an open layer remembers: its chunks are read in order, by a few threads."""
_LEAST_CACHED: Final = 4 << 10
"""Bytes that a remembered chunk counts at least: an index may have millions of a byte each."""
_FETCH_BYTES: Final = 4 << 20
"""Stored bytes that are fetched in one request at most, when several chunks are missing."""
_SKIPPABLE: Final = 0x184D2A50
_FRAME_HEADER: Final = struct.Struct("<II")
_NO_SIZE: Final = (1 << 64) - 1


def open_layer(repository: Repository, layer: Descriptor) -> OpenBlob:
    """The blob in a layer, uncompressed and unverified, for reads at any offset.

    Raises:
        NotFoundError: the layer is not there.
        FormatError: a broken chunk index.
        UnsupportedError: compressed without a chunk index.
    """
    source = repository.open_blob(layer)
    if layer.media_type != EROFS_ZSTD_LAYER:
        return source
    try:
        return CompressedBlob(source, _read_index(source, layer), name=layer.digest)
    except BaseException:
        source.close()
        raise


class CompressedBlob:
    """`OpenBlob` over a layer that is compressed chunk by chunk.

    Args:
        source: the layer; closed together with this.
        index: of its chunks.
        name: what errors call it.
    """

    def __init__(self, source: OpenBlob, index: ChunkIndex, *, name: str) -> None:
        self._source = source
        self._index = index
        self.name = name
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cached = 0

    @property
    def size(self) -> int:
        """Uncompressed bytes."""
        return self._index.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly `length` uncompressed bytes from byte `offset` on.

        Raises:
            FormatError: past the end, or a chunk that is not what the index says.
        """
        check_range(self.name, self.size, offset, length)
        if not length:
            return b""
        pieces = []
        for chunk, data in self._chunks(self._index.covering(offset, length)):
            pieces.append(data[max(0, offset - chunk.offset) : offset + length - chunk.offset])
        return b"".join(pieces)

    def close(self) -> None:
        """Close the layer; closing twice does no harm."""
        self._source.close()

    def _chunks(self, numbers: range) -> Iterator[tuple[Chunk, bytes]]:
        """Chunks and their bytes, in order; neighbours that are missing are fetched together."""
        number = numbers.start
        while number < numbers.stop:
            chunk = self._index.chunk(number)
            data = self._remembered(number)
            if data is None:
                for following, stored in self._fetch(range(number, numbers.stop)):
                    yield following, self._expand(number, following, stored)
                    number += 1
            else:
                yield chunk, data
                number += 1

    def _fetch(self, numbers: range) -> Iterator[tuple[Chunk, bytes]]:
        """The first chunk of a range and those right behind it, as they are stored, by one request."""
        chunks: list[Chunk] = []
        for number in numbers:
            chunk = self._index.chunk(number)
            if chunks and chunk.stored_offset + chunk.stored_size - chunks[0].stored_offset > _FETCH_BYTES:
                break
            chunks.append(chunk)
        start, end = chunks[0].stored_offset, chunks[-1].stored_offset + chunks[-1].stored_size
        stored = memoryview(self._source.read_at(start, end - start))
        for chunk in chunks:
            at = chunk.stored_offset - start
            yield chunk, bytes(stored[at : at + chunk.stored_size])

    def _expand(self, number: int, chunk: Chunk, stored: bytes) -> bytes:
        where = f"{self.name} at byte {chunk.stored_offset}"
        if chunk.checksum and hashlib.new(f"sha{8 * len(chunk.checksum)}", stored).digest() != chunk.checksum:
            raise FormatError("chunk does not match its checksum", where=where)
        data = _decompress(stored, chunk.size, where=where)
        self._remember(number, data)
        return data

    def _remembered(self, number: int) -> bytes | None:
        with self._lock:
            data = self._cache.get(number)
            if data is not None:
                self._cache.move_to_end(number)
            return data

    def _remember(self, number: int, data: bytes) -> None:
        with self._lock:
            if number not in self._cache:
                self._cache[number] = data
                self._cached += _cost(data)
            while self._cached > _CACHE_BYTES and len(self._cache) > 1:
                self._cached -= _cost(self._cache.popitem(last=False)[1])


def _cost(data: bytes) -> int:
    return max(len(data), _LEAST_CACHED)


def compress_layer(source: ReadAt, seal: SealDescriptor, size: int, fd: int, *, jobs: int | None = None) -> Descriptor:
    """Write a sealed blob to a file as a compressed layer with its chunk index.

    Args:
        source: the sealed blob.
        seal: its verified fs-verity descriptor.
        size: bytes of the sealed blob.
        fd: of an empty file.
        jobs: threads that compress; None means one for each processor.

    Returns:
        The layer's descriptor.

    Raises:
        OutputError: the file cannot be written.
    """
    whole, stored, entries, position = hashlib.sha256(), hashlib.sha256(), [], 0

    def append(data: bytes) -> None:
        nonlocal position
        try:
            write_fully(fd, data, position)
        except OSError as error:
            raise OutputError(f"cannot write a compressed layer: {error.strerror}") from error
        stored.update(data)
        position += len(data)

    offset = 0
    for data, frame in _frames(source, size, jobs or default_jobs()):
        whole.update(data)
        odd = (position + len(frame)) % 4 if offset + len(data) == size else 0
        # The index should be aligned, and readers take all that lies before it for the last chunk (3.4.2).
        padded = frame + _skippable(bytes(4 - odd)) if odd else frame
        entries.append((position, offset, hashlib.sha256(padded).digest()))
        append(padded)
        offset += len(data)
    start = position
    index = encode_chunk_index(Compression.ZSTD, size, entries)
    append(_skippable(index))
    annotations = seal_annotations(seal) | {
        BLOB_SIZE: str(size),
        INDEX_DIGEST: f"sha256:{hashlib.sha256(index).hexdigest()}",
        INDEX_MEDIA_TYPE: MEDIA_TYPE,
        INDEX_RANGE: f"{start}:{position}",
        UNCOMPRESSED_DIGEST: f"sha256:{whole.hexdigest()}",
    }
    return Descriptor(
        media_type=EROFS_ZSTD_LAYER,
        digest=f"sha256:{stored.hexdigest()}",
        size=position,
        annotations=dict(sorted(annotations.items())),
    )


def _frames(source: ReadAt, size: int, jobs: int) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a blob in order, plain and compressed; a few are in memory at once."""
    import zstandard  # noqa: PLC0415 - most layers are not compressed

    local = threading.local()

    def compress(offset: int) -> tuple[bytes, bytes]:
        compressor = getattr(local, "compressor", None)
        if compressor is None:
            compressor = local.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)
        data = source.read_at(offset, min(CHUNK_SIZE, size - offset))
        return data, compressor.compress(data)

    group = 2 * jobs * CHUNK_SIZE
    with ThreadPoolExecutor(jobs) as pool:
        for start in range(0, size, group):
            yield from pool.map(compress, range(start, min(start + group, size), CHUNK_SIZE))


def _skippable(data: bytes) -> bytes:
    return _FRAME_HEADER.pack(_SKIPPABLE, len(data)) + data


def _read_index(source: ReadAt, layer: Descriptor) -> ChunkIndex:
    """The chunk index at a compressed layer's end."""
    place = index_range(layer)
    if place is None or layer.annotations.get(INDEX_MEDIA_TYPE, MEDIA_TYPE) != MEDIA_TYPE:
        raise UnsupportedError(
            "compressed without a chunk index: it can only be read from begin to end",
            where=layer.digest,
            hint="push the image again from where it is not compressed",
        )
    start, end = place
    if end - start > MAX_CHUNK_INDEX + _FRAME_HEADER.size:
        raise FormatError(f"chunk index has {end - start} bytes, more than {MAX_CHUNK_INDEX}", where=layer.digest)
    frame = source.read_at(start, end - start)
    data = frame[_FRAME_HEADER.size :]
    if len(frame) < _FRAME_HEADER.size or not _is_skippable(frame, len(data)):
        raise FormatError("no chunk index where the manifest says: its frame is missing", where=layer.digest)
    expected = layer.annotations.get(INDEX_DIGEST)
    if expected is not None and expected != _digest_like(expected, data):
        raise FormatError("chunk index does not match its digest", where=layer.digest)
    try:
        index = ChunkIndex.parse(data, end=start)
    except FormatError as error:
        raise FormatError(error.what, where=layer.digest) from error
    size = sealed_size(layer)
    if index.compression is not Compression.ZSTD or (size is not None and index.size != size):
        raise FormatError("chunk index and layer disagree about compression or size", where=layer.digest)
    return index


def _is_skippable(frame: bytes, length: int) -> bool:
    magic, announced = _FRAME_HEADER.unpack_from(frame)
    return bool(magic & ~0xF == _SKIPPABLE and announced == length)


def _digest_like(expected: str, data: bytes) -> str:
    """The digest of some bytes by the algorithm of another one."""
    name = "sha512" if expected.startswith("sha512:") else "sha256"
    return f"{name}:{hashlib.new(name, data).hexdigest()}"


def _decompress(stored: bytes, size: int, *, where: str) -> bytes:
    """One frame; what its header claims meets the chunk's size before anything is allocated."""
    import zstandard  # noqa: PLC0415 - most layers are not compressed

    try:
        parameters = zstandard.get_frame_parameters(stored)
        if parameters.content_size not in (size, _NO_SIZE):
            raise FormatError(f"chunk's frame is for {parameters.content_size} bytes, not {size}", where=where)
        data = zstandard.ZstdDecompressor().decompress(stored, max_output_size=size, allow_extra_data=True)
    except zstandard.ZstdError as error:
        raise FormatError(f"chunk cannot be decompressed: {error}", where=where) from error
    if len(data) != size:
        raise FormatError(f"chunk has {len(data)} bytes, not {size}", where=where)
    return data
