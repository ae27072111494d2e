"""The image document: the small JSON file that a store keeps for each image name.

It lists the meta blob and the data blobs in device order with their sizes, so that a store can be checked,
copied and collected without opening blobs. A stack's document lists such documents, one a layer. It carries no
authority: readers trust digests, never this file.
Still it is parsed strictly, and only the exact bytes that `encode` writes are accepted, which also refuses
repeated keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import msgspec

from eroseal.errors import ErosealError, FormatError
from eroseal.format.digest import BLOCK, Digest, TreeParams
from eroseal.format.sealed import TreeShape
from eroseal.format.statement import StackDigest
from eroseal.limits import MAX_DEVICES, MAX_STACK_LAYERS

SCHEMA: Final = "eroseal.image/1"
STACK_SCHEMA: Final = "eroseal.stack/1"
MAX_IMAGE_DOCUMENT: Final = 16 << 20
"""Bytes of an image document: 65,536 blobs of at most 230 bytes (SHA-512, 19-digit sizes) fit."""
MAX_BLOB_SIZE: Final = (1 << 63) - 1
"""Bytes of a blob: the largest file offset of the kernel."""


class BlobJson(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One blob, as it is written."""

    digest: str
    data_size: int
    size: int


class ImageJson(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The document, as it is written."""

    schema: Literal["eroseal.image/1"]
    image: str
    blobs: list[BlobJson]


class LayerJson(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One layer of a stack, as it is written."""

    image: str
    blobs: list[BlobJson]


class StackJson(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The document of a stack, as it is written."""

    schema: Literal["eroseal.stack/1"]
    stack: str
    layers: list[LayerJson]


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """One blob of an image.

    Args:
        digest: the blob's name.
        data_size: bytes of the data region, a positive multiple of 4096.
        size: bytes of the whole sealed blob in the store.
    """

    digest: Digest
    data_size: int
    size: int

    def __post_init__(self) -> None:
        shape = TreeShape.of(self.data_size, TreeParams(self.digest.algorithm))
        if not shape.record_offset + BLOCK <= self.size <= MAX_BLOB_SIZE:
            raise FormatError(
                f"a sealed blob with {self.data_size} bytes of data cannot have {self.size} bytes",
                where=str(self.digest),
            )


@dataclass(frozen=True, slots=True)
class ImageDocument:
    """What an image consists of.

    Args:
        image: the image digest, which is the meta blob's.
        blobs: the meta blob, then the data blobs in device order. A data blob may serve as several devices.
    """

    image: Digest
    blobs: tuple[BlobInfo, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.blobs) <= 1 + MAX_DEVICES:
            raise FormatError(f"an image has 1 to {1 + MAX_DEVICES} blobs, not {len(self.blobs)}")
        if self.blobs[0].digest != self.image:
            raise FormatError("the first blob of an image document is not the image's meta blob")
        seen: dict[Digest, BlobInfo] = {}
        for blob in self.blobs:
            if blob.digest.algorithm is not self.image.algorithm:
                raise FormatError("blobs of one image have different hash algorithms", where=str(blob.digest))
            if seen.setdefault(blob.digest, blob) != blob:
                raise FormatError("an image document gives two sizes for one blob", where=str(blob.digest))
        if any(blob.digest == self.image for blob in self.blobs[1:]):
            raise FormatError("an image document lists the meta blob as a data blob too")

    @property
    def meta(self) -> BlobInfo:
        """The meta blob."""
        return self.blobs[0]

    @property
    def data(self) -> tuple[BlobInfo, ...]:
        """The data blobs in device order."""
        return self.blobs[1:]

    @property
    def layers(self) -> tuple[ImageDocument, ...]:
        """The image itself: it is its only layer."""
        return (self,)

    def encode(self) -> bytes:
        """The document's only spelling: compact JSON, keys in the schema's order, one newline at the end."""
        return msgspec.json.encode(ImageJson(SCHEMA, str(self.image), _blobs_json(self))) + b"\n"

    @classmethod
    def parse(cls, data: bytes, *, where: str | None = None) -> ImageDocument:
        """As `parse_document`, for an image that is no stack."""
        return _parse(data, ImageJson, lambda raw: _image(raw.image, raw.blobs), where)


@dataclass(frozen=True, slots=True)
class StackDocument:
    """What a stack of images consists of.

    Args:
        layers: the lowest first.
    """

    layers: tuple[ImageDocument, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.layers) <= MAX_STACK_LAYERS:
            raise FormatError(f"a stack has 1 to {MAX_STACK_LAYERS} layers, not {len(self.layers)}")
        sizes: dict[Digest, BlobInfo] = {}
        for blob in (blob for layer in self.layers for blob in layer.blobs):
            if sizes.setdefault(blob.digest, blob) != blob:
                raise FormatError("an image document gives two sizes for one blob", where=str(blob.digest))

    @property
    def image(self) -> StackDigest:
        """The stack digest."""
        return StackDigest.of([layer.image for layer in self.layers])

    @property
    def blobs(self) -> tuple[BlobInfo, ...]:
        """All blobs, each once, in the order of the layers."""
        return tuple(dict.fromkeys(blob for layer in self.layers for blob in layer.blobs))

    def encode(self) -> bytes:
        """The document's only spelling, as for an image."""
        layers = [LayerJson(str(layer.image), _blobs_json(layer)) for layer in self.layers]
        return msgspec.json.encode(StackJson(STACK_SCHEMA, str(self.image), layers)) + b"\n"

    @classmethod
    def parse(cls, data: bytes, *, where: str | None = None) -> StackDocument:
        """As `parse_document`, for a stack."""

        def build(raw: StackJson) -> StackDocument:
            document = cls(tuple(_image(layer.image, layer.blobs) for layer in raw.layers))
            if str(document.image) != raw.stack:
                raise FormatError("the stack digest is not that of the layers")
            return document

        return _parse(data, StackJson, build, where)


Document = ImageDocument | StackDocument
"""What a store keeps for a name; both have `image`, `blobs`, `layers` and `encode`."""

_Raw = TypeVar("_Raw", bound=msgspec.Struct)
_Parsed = TypeVar("_Parsed", ImageDocument, StackDocument)


def parse_document(data: bytes, *, where: str | None = None) -> Document:
    """Read a document.

    Args:
        data: the file's bytes.
        where: its path, for messages.

    Raises:
        FormatError: anything that `encode` would not write.
    """
    if data.startswith(b'{"schema":"%s"' % STACK_SCHEMA.encode()):
        return StackDocument.parse(data, where=where)
    return ImageDocument.parse(data, where=where)


def _parse(data: bytes, kind: type[_Raw], build: Callable[[_Raw], _Parsed], where: str | None) -> _Parsed:
    if len(data) > MAX_IMAGE_DOCUMENT:
        raise FormatError(f"image document has more than {MAX_IMAGE_DOCUMENT} bytes", where=where)
    try:
        document = build(msgspec.json.decode(data, type=kind))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FormatError(f"not an image document: {error}", where=where) from error
    except ErosealError as error:
        raise FormatError(f"broken image document: {error}", where=where) from error
    if document.encode() != data:
        raise FormatError("image document is not in its canonical spelling", where=where)
    return document


def _image(image: str, blobs: list[BlobJson]) -> ImageDocument:
    infos = tuple(BlobInfo(Digest.parse(blob.digest), blob.data_size, blob.size) for blob in blobs)
    return ImageDocument(Digest.parse(image), infos)


def _blobs_json(document: ImageDocument) -> list[BlobJson]:
    return [BlobJson(str(blob.digest), blob.data_size, blob.size) for blob in document.blobs]
