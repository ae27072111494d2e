"""What an image consists of, before it is moved: its document, held against what is verified.

A document is a list that anybody could have written. The device table of a meta blob that has the right digest is not.
"""

from __future__ import annotations

from eroseal.errors import FormatError
from eroseal.store.document import BlobInfo, Document, ImageDocument
from eroseal.store.lanes import Lanes
from eroseal.store.protocol import StoredImage
from eroseal.store.remote import DEFAULT_RANGES
from eroseal.store.resolve import StoredStack
from eroseal.trust.blob import SelfConsistentBlob
from eroseal.trust.image import UnverifiedImage, open_blob, open_self_consistent


def checked_document(source: StoredStack, *, parallel: int = DEFAULT_RANGES) -> Document:
    """What an image or stack consists of, as its verified device tables say.

    Args:
        source: opened; of any kind.
        parallel: requests in flight at once.

    Raises:
        FormatError: its document says something else.
        IntegrityError: a meta blob is not what its digest says.
        NotFoundError: a data blob of a single file is not there.
    """
    layers: dict[int, ImageDocument] = {}

    def check(number: int) -> None:
        layers[number] = _checked_layer(source.layers[number])

    numbers = range(len(source.layers))
    Lanes(parallel).run(check, numbers, workers=min(parallel, len(numbers)))
    return layers[0] if source.document is None else source.document


def _checked_layer(layer: StoredImage) -> ImageDocument:
    """The document of one image, made where there is none, held against the verified device table."""
    given = layer.document
    if given is None:
        return _made_document(layer)
    meta = open_blob(layer.meta, given.image, data_size=given.meta.data_size)
    with UnverifiedImage(meta, layer.open_data) as image:
        listed = [(blob.digest, blob.data_size) for blob in given.blobs]
        if listed != [(meta.digest, meta.size), *((device.digest, device.size) for device in image.devices)]:
            raise FormatError(
                "the document's blobs or their data sizes are not those of the image's device table",
                where=str(layer.reference),
                hint="run fsck on its store, or copy it from elsewhere",
            )
        return given


def _made_document(layer: StoredImage) -> ImageDocument:
    """The document of an image in single files: each data blob is opened, which verifies its seal."""
    meta = open_self_consistent(layer.meta)
    infos = [_info(meta)]
    with UnverifiedImage(meta, layer.open_data) as image:
        for number in range(len(image.devices)):
            blob = image.device(number)
            assert isinstance(blob, SelfConsistentBlob)
            infos.append(_info(blob))
    return ImageDocument(meta.digest, tuple(infos))


def _info(blob: SelfConsistentBlob) -> BlobInfo:
    return BlobInfo(blob.digest, blob.size, blob.seal.sealed_size)
