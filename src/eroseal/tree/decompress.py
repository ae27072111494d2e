"""Compressed byte streams: told by their first bytes, decompressed in pieces of bounded size.

Each decoder is asked for at most `PIECE` bytes of output at a time, however little input they came from, so a
compression bomb costs time in proportion to what its reader takes, and no memory. The decoders let go of the
interpreter's lock, so that several streams decompress at once in threads.

Source: RFC 1952 (gzip), RFC 8878 (zstd), the .xz file format 1.2.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final

from eroseal.errors import FormatError, UnsupportedError
from eroseal.limits import MAX_DECODER_MEMORY

PIECE: Final = 1 << 20
"""Bytes of output that a decoder gives at most at a time."""
_FEED: Final = 64 << 10
"""Bytes of input that zlib and lzma get at a time: what they leave is copied, again and again in a bomb."""
_SNIFF: Final = 10
"""Bytes that tell the formats apart."""
_ZERO: Final = bytes(_FEED)
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


def compression_of(head: bytes) -> str:
    """What a stream is compressed with.

    Args:
        head: its first 10 bytes, or all of a shorter one.

    Returns:
        "gzip", "zstd", "xz", "bzip2", or "none" for everything else.
    """
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(_ZSTD_MAGIC) or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return "zstd"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return "bzip2"
    return "none"


def decompressed(pieces: Iterable[bytes], *, name: str) -> Iterator[bytes]:
    """The bytes behind a stream that may be compressed with gzip, zstd or xz.

    Several gzip members, zstd frames (skippable ones too) or xz streams may follow each other, as may zeros behind
    the last gzip member.

    Args:
        pieces: the stream; what it raises is passed on.
        name: of the stream, for messages.

    Returns:
        Pieces of at most `PIECE` bytes; those of a plain stream as they came.

    Raises:
        FormatError: data that is corrupt, ends too early, has something else behind it, or needs too much memory.
        UnsupportedError: bzip2.
    """
    source = iter(pieces)
    head = b""
    for piece in source:
        head += piece
        if len(head) >= _SNIFF:
            break
    kind = compression_of(head[:_SNIFF])
    stream = chain([head], source) if head else source
    match kind:
        case "gzip":
            return _gunzip(stream, name)
        case "zstd":
            return _unzstd(stream, name)
        case "xz":
            return _unxz(stream, name)
        case "bzip2":
            raise UnsupportedError("is compressed with bzip2", where=name, hint="gzip, zstd and xz are supported")
    return stream


def _fed(pieces: Iterable[bytes]) -> Iterator[bytes | memoryview]:
    for piece in pieces:
        if len(piece) <= _FEED:
            yield piece
        else:
            view = memoryview(piece)
            for start in range(0, len(piece), _FEED):
                yield view[start : start + _FEED]


def _truncated(kind: str, name: str) -> FormatError:
    return FormatError(f"truncated: the {kind} data does not end", where=name)


def _corrupt(kind: str, name: str, error: Exception) -> FormatError:
    return FormatError(f"corrupt {kind} data: {error}", where=name)


# --- gzip ---------------------------------------------------------------------------------------
def _gunzip(pieces: Iterable[bytes], name: str) -> Iterator[bytes]:
    engine: zlib._Decompress | None = None
    padding = False
    for fed in _fed(pieces):
        data: bytes | memoryview = fed
        more = False
        while data or more:
            if engine is None:
                padding = padding or data[0] == 0
                if padding:
                    if data != _ZERO[: len(data)]:
                        raise FormatError("something follows the gzip data that is no gzip", where=name)
                    break
                engine = zlib.decompressobj(wbits=31)
            try:
                out = engine.decompress(data, PIECE)
            except zlib.error as error:
                raise _corrupt("gzip", name, error) from error
            if out:
                yield out
            # With all input taken, there may be output left that found no room.
            data, more = engine.unconsumed_tail, len(out) == PIECE
            if engine.eof:
                data, more, engine = engine.unused_data, False, None
    if engine is not None:
        raise _truncated("gzip", name)


# --- zstd ---------------------------------------------------------------------------------------
class _Frames:
    """A zstd stream as a file, which is followed frame by frame: the decoder does not tell an end within a frame.

    What is wrong with the frames is the decoder's business.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = filter(None, pieces)
        self._header = b""
        self._wanted = 4
        self._then: Callable[[bytes], None] = self._magic
        self._skip = 0
        self._checksum = 0

    @property
    def between(self) -> bool:
        """Whether what was read ends where a frame ends."""
        return self._then == self._magic and not self._header and not self._skip

    def read(self, _size: int) -> bytes:
        """The next piece, whatever its size."""
        piece = next(self._pieces, b"")
        at, end = 0, len(piece)
        while at < end:
            if self._skip:
                step = min(self._skip, end - at)
                self._skip -= step
            else:
                step = min(self._wanted - len(self._header), end - at)
                self._header += piece[at : at + step]
                if len(self._header) == self._wanted:
                    header, self._header = self._header, b""
                    self._then(header)
            at += step
        return piece

    def _expect(self, wanted: int, then: Callable[[bytes], None], *, skip: int = 0) -> None:
        self._wanted, self._then, self._skip = wanted, then, skip

    def _magic(self, magic: bytes) -> None:
        if magic == _ZSTD_MAGIC:
            self._expect(1, self._descriptor)
        else:
            self._expect(4, self._skippable)

    def _skippable(self, size: bytes) -> None:
        self._expect(4, self._magic, skip=int.from_bytes(size, "little"))

    def _descriptor(self, descriptor: bytes) -> None:
        flags = descriptor[0]
        single = flags >> 5 & 1
        self._checksum = 4 * (flags >> 2 & 1)
        size_field = (single, 2, 4, 8)[flags >> 6]
        self._expect(3, self._block, skip=(1 - single) + (0, 1, 2, 4)[flags & 3] + size_field)

    def _block(self, header: bytes) -> None:
        value = int.from_bytes(header, "little")
        repeated = value >> 1 & 3 == 1
        size = 1 if repeated else value >> 3
        if value & 1:
            self._expect(4, self._magic, skip=size + self._checksum)
        else:
            self._expect(3, self._block, skip=size)


def _unzstd(pieces: Iterable[bytes], name: str) -> Iterator[bytes]:
    import zstandard  # noqa: PLC0415  # few streams need it

    source = _Frames(pieces)
    decoder = zstandard.ZstdDecompressor(max_window_size=MAX_DECODER_MEMORY)
    reader = decoder.stream_reader(source, read_across_frames=True)  # type: ignore[arg-type]  # it needs read alone
    while True:
        try:
            out = reader.read(PIECE)
        except zstandard.ZstdError as error:
            raise _corrupt("zstd", name, error) from error
        if not out:
            break
        yield out
    if not source.between:
        raise _truncated("zstd", name)


# --- xz -----------------------------------------------------------------------------------------
def _unxz(pieces: Iterable[bytes], name: str) -> Iterator[bytes]:
    import lzma  # noqa: PLC0415  # few streams need it

    engine: lzma.LZMADecompressor | None = None
    padding = 0
    for fed in _fed(pieces):
        data: bytes | memoryview = fed
        while data or (engine is not None and not engine.needs_input):
            if engine is None:
                data, zeros = _strip_zeros(data)
                padding += zeros
                if not data:
                    break
                if padding % 4:
                    raise FormatError("xz streams are padded to multiples of 4 bytes", where=name)
                engine = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DECODER_MEMORY)
            try:
                out = engine.decompress(data, PIECE)
            except lzma.LZMAError as error:
                raise _corrupt("xz", name, error) from error
            if out:
                yield out
            data = b""
            if engine.eof:
                data, engine, padding = engine.unused_data, None, 0
    if engine is not None:
        raise _truncated("xz", name)
    if padding % 4:
        raise FormatError("xz streams are padded to multiples of 4 bytes", where=name)


def _strip_zeros(data: bytes | memoryview) -> tuple[bytes, int]:
    rest = bytes(data).lstrip(b"\0")
    return rest, len(data) - len(rest)
