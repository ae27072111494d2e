"""What the images of a repository are, and in which of its layers their blobs lie.

A repository knows contents by their OCI digests, a device table names blobs by their own: only manifests connect the
two. The catalog reads the manifest of each image that is asked for, and, once a blob is asked for that none of them
names, those of all tags. Manifests can claim anything; whoever opens a blob verifies it.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from eroseal.errors import (
    FormatError,
    NotFoundError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from eroseal.format.digest import Digest
from eroseal.limits import MAX_TAGS
from eroseal.store.document import BlobInfo, Document, ImageDocument
from eroseal.store.lanes import Lanes
from eroseal.store.oci.chunks import open_layer
from eroseal.store.oci.config import FEATURE
from eroseal.store.oci.documents import (
    EROFS_LAYER,
    INDEXES,
    MANIFESTS,
    OCTET_STREAM,
    Descriptor,
    Index,
    check_digest,
    parse,
)
from eroseal.store.oci.form import FormLayer, layer_document, parse_form
from eroseal.store.oci.layers import BLOB_DIGEST, HASH_OFFSET, claimed_digest, hash_offset, sealed_size, with_role
from eroseal.store.oci.repository import Repository
from eroseal.store.protocol import OpenBlob
from eroseal.store.reference import check_tag, is_tag
from eroseal.trust.image import open_self_consistent_image

REQUESTS: Final = 8
"""Manifests that are asked for at once."""
_OS: Final = "linux"
# Tags that stand for referrers (distribution specification) or signatures of other tools, not for images.
_DERIVED: Final = re.compile(r"sha(?:256|512)-[0-9a-f]{64,128}(?:\..*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoredForm:
    """An image of a repository.

    Args:
        document: what its manifest says that it consists of.
        manifest: descriptor of the manifest.
        layers: the layer of each of its blobs.
    """

    document: Document
    manifest: Descriptor
    layers: dict[Digest, Descriptor]


class Catalog:
    """The images of one repository.

    Args:
        repository: that they are in.
        architecture: that is chosen from an index.
    """

    def __init__(self, repository: Repository, *, architecture: str) -> None:
        self._repository = repository
        self._architecture = architecture
        self._known: dict[Digest, Descriptor] = {}
        self._lock = threading.Lock()
        self._searched = False

    def load(self, name: str) -> StoredForm:
        """The image of a tag or manifest digest; its blobs are known from then on.

        Raises:
            NotFoundError: there is none.
            FormatError: a broken manifest.
            UnsupportedError: not an EROFS image.
            IntegrityError: a manifest without annotations of ours, over layers that are not sealed.
        """
        try:
            data, manifest = self._manifest(check_reference(name))
        except NotFoundError as error:
            raise NotFoundError("no image has this name", where=self._place(name), hint=error.hint) from error
        form = self._form(data, manifest, where=self._place(name))
        with self._lock:
            self._known.update(form.layers)
        return form

    def find(self, digest: Digest) -> Descriptor | None:
        """The layer that is said to hold a blob, or None if no image names it."""
        with self._lock:
            if digest not in self._known and not self._searched:
                for form in self.forms():
                    for blob, layer in form.layers.items():
                        self._known.setdefault(blob, layer)
                self._searched = True
            return self._known.get(digest)

    def forms(self) -> Iterable[StoredForm]:
        """The images behind all tags, each once; what is no sealed image is passed over."""
        seen = set()
        for tag, data, manifest in self._manifests():
            if manifest.digest not in seen:
                seen.add(manifest.digest)
                with contextlib.suppress(*_NOT_OURS):
                    yield self._form(data, manifest, where=self._place(tag))

    def image_tags(self) -> list[str]:
        """The tags of sealed images, sorted."""
        return sorted(tag for tag, data, _ in self._manifests() if _is_sealed(data))

    def _manifests(self) -> Iterable[tuple[str, bytes, Descriptor]]:
        """Tag, manifest and its descriptor of every tag that may stand for an image."""
        tags = [tag for tag in self._repository.tags() if is_tag(tag) and not _DERIVED.fullmatch(tag)]
        if len(tags) > MAX_TAGS:
            raise FormatError(f"has {len(tags)} tags, more than {MAX_TAGS}", where=self._repository.where)

        # In groups: a manifest may have megabytes.
        for start in range(0, len(tags), REQUESTS):
            group, found = tags[start : start + REQUESTS], dict[str, tuple[bytes, Descriptor]]()
            Lanes(REQUESTS).run(functools.partial(self._fetch, found), group, workers=len(group))
            yield from ((tag, *found[tag]) for tag in group if tag in found)

    def _fetch(self, found: dict[str, tuple[bytes, Descriptor]], tag: str) -> None:
        with contextlib.suppress(*_NOT_OURS):
            found[tag] = self._manifest(tag)

    def _manifest(self, name: str) -> tuple[bytes, Descriptor]:
        """An image's manifest; of an index, that of its EROFS image for our architecture."""
        data, descriptor = self._repository.manifest(name)
        if descriptor.media_type not in INDEXES:
            return data, descriptor
        for entry in parse(data, Index, where=self._place(name)).manifests:
            platform = entry.platform
            if entry.media_type not in MANIFESTS or platform is None or FEATURE not in platform.os_features:
                continue
            if (platform.os, platform.architecture) == (_OS, self._architecture):
                return self._repository.manifest(entry.digest)
        raise UnsupportedError(
            f"an index without an EROFS image for {_OS}/{self._architecture}",
            where=self._place(name),
            hint="name the image's own tag or digest, or build a sealed image from it",
        )

    def _form(self, data: bytes, manifest: Descriptor, *, where: str) -> StoredForm:
        form = parse_form(data, where=where)
        documents = [layer_document(layer, where=where) or self._unseal(layer, where) for layer in form.layers]
        layers = {
            blob.digest: msgspec.structs.replace(with_role(descriptor, None), media_type=_carrier(descriptor))
            for layer, document in zip(form.layers, documents, strict=True)
            for descriptor, blob in zip(layer.blobs, document.blobs, strict=True)
        }
        return StoredForm(form.document(documents, where=where), manifest, layers)

    def _unseal(self, layer: FormLayer, where: str) -> ImageDocument:
        """The document of an image whose annotations do not tell it, from its seal and device table."""
        with (
            contextlib.closing(open_layer(self._repository, layer.meta)) as source,
            open_self_consistent_image(
                source, open_data=_no_data, data_size=hash_offset(layer.meta), name=where
            ) as image,
        ):
            named = [(image.digest, image.meta.size), *((device.digest, device.size) for device in image.devices)]
        if len(named) != len(layer.blobs):
            raise FormatError(
                f"image has {len(named) - 1} devices, its manifest gives it {len(layer.devices)}", where=where
            )
        blobs = []
        for descriptor, (digest, data_size) in zip(layer.blobs, named, strict=True):
            if digest is None or claimed_digest(descriptor) not in (None, digest):
                raise FormatError(f"layer {descriptor.digest} is not blob {digest}, as its manifest says", where=where)
            blobs.append(BlobInfo(digest, data_size, self._size(descriptor)))
        return ImageDocument(blobs[0].digest, tuple(blobs))

    def _size(self, layer: Descriptor) -> int:
        size = sealed_size(layer)
        if size is None:
            with contextlib.closing(open_layer(self._repository, layer)) as source:
                return source.size
        return size

    def _place(self, name: str) -> str:
        return f"{self._repository.where}{'@' if ':' in name else ':'}{name}"


_NOT_OURS: Final = (FormatError, UnsupportedError, NotFoundError, VerificationError)


def check_reference(name: str) -> str:
    """The name itself, if it is a tag or a manifest's digest; raises UsageError."""
    if ":" not in name:
        return check_tag(name)
    try:
        return check_digest(name)
    except ValueError as error:
        raise UsageError(str(error), hint="write sha256: and 64 hex digits") from error


def _is_sealed(data: bytes) -> bool:
    """Whether a manifest looks like that of a sealed image, without a look at its layers."""
    try:
        form = parse_form(data, where="")
        top = form.layers[-1].meta.annotations
        return form.image is not None or BLOB_DIGEST in top or HASH_OFFSET in top
    except _NOT_OURS:
        return False


def _carrier(layer: Descriptor) -> str:
    """The media type of a blob by itself, whatever role it had."""
    return EROFS_LAYER if layer.media_type == OCTET_STREAM else layer.media_type


def _no_data(digest: Digest) -> OpenBlob:
    raise NotFoundError(f"data blob {digest} is not needed here")
