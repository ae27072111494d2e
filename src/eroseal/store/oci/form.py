"""Sealed images in OCI form: from a document to a manifest, and back.

No I/O. The form is the EROFS image layer specification's (erofs/erofs-image-spec, a draft): each blob is a layer;
device layers stand before the EROFS layer that mounts them, and the last layer is mounted on top. All that a
manifest says is a hint: the verifier decides.

Reading takes two steps. `parse_form` checks shape and order and gives the layers; `layer_document` then takes the
hints, or says that there are none, for manifests whose annotations other tools dropped or never wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from eroseal.errors import FormatError, NotFoundError, OutputError, UnsupportedError, UsageError
from eroseal.format.digest import Digest
from eroseal.format.statement import ImageDigest, parse_image_digest
from eroseal.limits import MAX_DEVICES, MAX_MANIFEST, MAX_STACK_LAYERS
from eroseal.store.document import BlobInfo, Document, ImageDocument, StackDocument
from eroseal.store.oci.documents import (
    DOCKER_CONFIG,
    EROFS_LAYER,
    EROFS_ZSTD_LAYER,
    MANIFESTS,
    OCI_CONFIG,
    OCI_MANIFEST,
    OCTET_STREAM,
    Descriptor,
    Manifest,
    encode,
    parse,
)
from eroseal.store.oci.layers import (
    CHUNK_INDEX_LAYER,
    DEVICE,
    INDEX_TARGET,
    LOWER,
    ROLE,
    blob_info,
    check_claims,
    claimed_digest,
    hash_offset,
    with_role,
)

IMAGE: Final = "dev.eroseal.image"
"""Annotation of a manifest: the image or stack digest."""

_EROFS: Final = frozenset({EROFS_LAYER, EROFS_ZSTD_LAYER})
_DEVICES: Final = _EROFS | {OCTET_STREAM}
_NOT_OURS: Final = "build a sealed image from it, or seal its EROFS images"


def form_layers(document: Document, layers: Mapping[Digest, Descriptor]) -> list[Descriptor]:
    """The layers of an image's manifest, in order, with their roles.

    Args:
        document: the image.
        layers: a descriptor for each of its blobs.

    Raises:
        NotFoundError: a blob has no descriptor.
    """
    found: list[Descriptor] = []
    for number, image in enumerate(document.layers, 1):
        found += [_device(_layer_of(blob, layers)) for blob in image.data]
        found.append(with_role(_layer_of(image.meta, layers), LOWER if number < len(document.layers) else None))
    return found


def encode_form(document: Document, config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """The bytes of an image's manifest; the same image and config give the same bytes.

    Args:
        document: the image.
        config: descriptor of its config.
        layers: as `form_layers` gives them.

    Raises:
        OutputError: larger than registries accept.
    """
    manifest = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        config=config,
        layers=list(layers),
        annotations={IMAGE: str(document.image)},
    )
    data = encode(manifest)
    if len(data) > MAX_MANIFEST:
        raise OutputError(
            f"a manifest of {len(layers)} layers has {len(data)} bytes, registries take {MAX_MANIFEST}",
            where=str(document.image),
            hint="build it again with --blobs build, or on fewer bases, so that it has fewer data blobs",
        )
    return data


@dataclass(frozen=True, slots=True)
class FormLayer:
    """One EROFS image of a manifest.

    Args:
        meta: the layer that is mounted.
        devices: the layers that it takes its data from, in order.
    """

    meta: Descriptor
    devices: tuple[Descriptor, ...]

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The layers in the order of an image document's blobs."""
        return (self.meta, *self.devices)


@dataclass(frozen=True, slots=True)
class Form:
    """A manifest in order.

    Args:
        config: descriptor of the image's config.
        layers: the EROFS images, the lowest first.
        image: what the manifest says that the image is.
    """

    config: Descriptor
    layers: tuple[FormLayer, ...]
    image: ImageDigest | None

    def document(self, layers: Sequence[ImageDocument], *, where: str) -> Document:
        """The document of the whole.

        Args:
            layers: the documents of `self.layers`.
            where: for messages.

        Raises:
            FormatError: the manifest says that it is another image, or gives two sizes for one blob.
        """
        try:
            stacked = len(layers) > 1 or (self.image is not None and not isinstance(self.image, Digest))
            document = StackDocument(tuple(layers)) if stacked else layers[0]
        except FormatError as error:
            raise FormatError(error.what, where=where) from error
        if self.image is not None and document.image != self.image:
            raise FormatError(
                f"manifest says that the image is {self.image}, its layers make {document.image}", where=where
            )
        return document


def parse_form(data: bytes, *, where: str) -> Form:
    """Read the manifest of an EROFS image and check its order (specification, 3.8).

    Unknown annotations are passed over, and so are chunk indexes that are layers of their own.

    Args:
        data: the manifest.
        where: for messages.

    Raises:
        FormatError: broken, out of order, or annotations that contradict each other.
        UnsupportedError: an image of other layers, or with roles that this version does not know.
    """
    manifest = parse(data, Manifest, where=where)
    if manifest.schema_version != 2 or manifest.media_type not in MANIFESTS | {""}:
        raise FormatError(f"not an image manifest: its type is {manifest.media_type[:80]!r}", where=where)
    if manifest.config.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
        kind = manifest.config.media_type[:80]
        raise UnsupportedError(f"an artifact, not an image: its config is {kind!r}", where=where)
    try:
        layers = _group(manifest.layers)
        named = manifest.annotations.get(IMAGE)
        form = Form(manifest.config, layers, None if named is None else parse_image_digest(named))
        _check_claims(form)
    except (FormatError, UsageError) as error:
        raise FormatError(error.what, where=where) from error
    except UnsupportedError as error:
        raise UnsupportedError(error.what, where=where, hint=error.hint) from error
    return form


def layer_document(layer: FormLayer, *, where: str) -> ImageDocument | None:
    """The document of one EROFS image from its annotations; None if they do not tell all of it.

    Raises:
        FormatError: they contradict each other, or cannot be true.
    """
    try:
        blobs = [blob_info(descriptor) for descriptor in layer.blobs]
        known = [blob for blob in blobs if blob is not None]
        return ImageDocument(known[0].digest, tuple(known)) if len(known) == len(blobs) else None
    except FormatError as error:
        raise FormatError(error.what, where=where) from error


def _layer_of(blob: BlobInfo, layers: Mapping[Digest, Descriptor]) -> Descriptor:
    try:
        return layers[blob.digest]
    except KeyError as error:
        raise NotFoundError(f"blob {blob.digest} is not in the store") from error


def _device(layer: Descriptor) -> Descriptor:
    """A data blob's layer. It is no file system by itself, which `application/vnd.erofs` promises (7, Constraints)."""
    kind = OCTET_STREAM if layer.media_type == EROFS_LAYER else layer.media_type
    return msgspec.structs.replace(with_role(layer, DEVICE), media_type=kind)


def _group(layers: Sequence[Descriptor]) -> tuple[FormLayer, ...]:
    """Give each EROFS layer the device layers before it; refuses what breaks the order."""
    images: list[FormLayer] = []
    devices: list[Descriptor] = []
    previous: Descriptor | None = None
    for number, layer in enumerate(layers, 1):
        if layer.media_type == CHUNK_INDEX_LAYER:
            _check_index_layer(layer, previous, number)
        elif _is_device(layer, number):
            devices.append(layer)
        else:
            images.append(FormLayer(layer, tuple(devices)))
            devices = []
        if len(devices) > MAX_DEVICES or len(images) > MAX_STACK_LAYERS:
            raise FormatError(f"more than {MAX_STACK_LAYERS} EROFS layers, or than {MAX_DEVICES} devices of one")
        previous = layer
    if previous is None:
        raise FormatError("manifest has no layers")
    if devices:
        raise FormatError("device layers stand after the last EROFS layer, where nothing can mount them")
    if previous.media_type == CHUNK_INDEX_LAYER:
        raise FormatError("the last layer is a chunk index: it must be an EROFS layer")
    return tuple(images)


def _is_device(layer: Descriptor, number: int) -> bool:
    """Whether a layer serves as a device, not as an image that is mounted; refuses all others."""
    role = layer.annotations.get(ROLE)
    if role not in (None, DEVICE, LOWER):
        raise UnsupportedError(f"layer {number} has the role {role[:80]!r}", hint="device and overlay-lower are known")
    if layer.media_type not in (_DEVICES if role == DEVICE else _EROFS):
        if layer.media_type == OCTET_STREAM:
            raise FormatError(f"layer {number} is {OCTET_STREAM}, but not a device")
        raise UnsupportedError(f"layer {number} has the type {layer.media_type[:80]!r}, not EROFS", hint=_NOT_OURS)
    return role == DEVICE


def _check_index_layer(layer: Descriptor, previous: Descriptor | None, number: int) -> None:
    if previous is None or previous.media_type == CHUNK_INDEX_LAYER:
        raise FormatError(f"layer {number} is a chunk index that does not follow the layer that it is for")
    if layer.annotations.get(INDEX_TARGET, previous.digest) != previous.digest:
        raise FormatError(f"layer {number} is a chunk index for another layer than the one before it")


def _check_claims(form: Form) -> None:
    """Refuse annotations that contradict each other, within a layer or between two."""
    by_blob: dict[Digest, str] = {}
    by_content: dict[str, tuple[object, ...]] = {}
    for layer in (blob for image in form.layers for blob in image.blobs):
        check_claims(layer)
        digest = claimed_digest(layer)
        if digest is not None and by_blob.setdefault(digest, layer.digest) != layer.digest:
            raise FormatError(f"two layers are said to hold blob {digest}")
        claims = (layer.media_type == EROFS_ZSTD_LAYER, layer.size, digest, hash_offset(layer))
        if by_content.setdefault(layer.digest, claims) != claims:
            raise FormatError(f"layer {layer.digest} is described in two ways")
