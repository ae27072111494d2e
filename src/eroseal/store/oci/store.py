"""A store over a registry's repository or an image layout: images in OCI form, by tag.

An image's document is its manifest, its record an artifact of the manifest (`record.py`). A tag appears last: blobs,
config and record are there before it. Nothing in a repository can be locked, nor written on condition: two writers of
one tag both succeed, and the later one's image stays.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from eroseal.errors import NotFoundError
from eroseal.format.digest import Digest
from eroseal.format.record import RecordEntry
from eroseal.format.statement import ImageDigest
from eroseal.image.annex import image_config
from eroseal.readat import BytesAt
from eroseal.store.atomic import exists_error
from eroseal.store.document import Document
from eroseal.store.lanes import Lanes
from eroseal.store.oci.blobs import OciBlobs
from eroseal.store.oci.catalog import check_reference
from eroseal.store.oci.chunks import open_layer
from eroseal.store.oci.config import config_for
from eroseal.store.oci.content import digest_of
from eroseal.store.oci.documents import OCI_CONFIG, OCI_MANIFEST, Descriptor
from eroseal.store.oci.form import encode_form, form_layers
from eroseal.store.oci.layers import diff_id
from eroseal.store.oci.record import merged, read_record, write_record
from eroseal.store.oci.repository import Repository
from eroseal.store.protocol import RecordChange, encode_image_record, replaced_error
from eroseal.store.reference import check_tag
from eroseal.store.remote import DEFAULT_RANGES
from eroseal.trust.image import open_blob


class OciStore(OciBlobs):
    """Sealed images in a repository; implements `Store`.

    Args:
        repository: closed together with the store.
        architecture: of new images whose source does not say, and of those chosen from an index, as Go calls it.
        compress: store new blobs compressed, chunk by chunk (`application/vnd.erofs+zstd`).
        parallel: requests in flight at once, where blobs are looked for, or fetched to be verified.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        architecture: str,
        compress: bool = False,
        parallel: int = DEFAULT_RANGES,
    ) -> None:
        super().__init__(repository, architecture=architecture, compress=compress, parallel=parallel)
        self._architecture = architecture
        self._records = threading.Lock()

    def close(self) -> None:
        """Give connections back; closing twice does no harm."""
        self.repository.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def image(self, name: str) -> tuple[Document, list[RecordEntry]]:
        """The document and the record's entries, which belong together.

        Args:
            name: a tag, or a manifest's digest.

        Raises:
            NotFoundError: no image has this name.
            UnsupportedError: not an EROFS image.
            FormatError: the manifest or the record is broken.
        """
        form = self._catalog.load(name)
        record = read_record(self.repository, form.manifest, form.document.image)
        return form.document, list(record.entries)

    def has_image(self, name: str) -> bool:
        """Whether something has this name, an image of ours or not."""
        return self._manifest_digest(check_reference(name)) is not None

    def put_image(
        self, name: str, document: Document, record: Sequence[RecordEntry] = (), *, replace: bool = False
    ) -> None:
        """Publish an image whose blobs are all in the repository.

        A record that the same image has under other tags is added to, not replaced: they share it.

        Args:
            name: a tag.
            document: its blobs. The manifest tells the sizes that the repository has, should they differ.
            record: entries of the image record; none for an unsigned image.
            replace: take the place of an image of that name, and of its record.

        Raises:
            NotFoundError: a blob is missing.
            IntegrityError: a layer that is said to hold a blob does not.
            OutputError: the name is taken, the manifest is too large for registries, or the repository refuses.
        """
        encode_image_record(record)
        before = self._manifest_digest(check_tag(name))
        if before is not None and not replace:
            raise exists_error(self._place(name), replaceable=True)
        layers = form_layers(document, self._require_blobs(document))
        config = self._put_config(document, layers)
        data = encode_form(document, config, layers)
        manifest = Descriptor(media_type=OCI_MANIFEST, digest=digest_of(data), size=len(data))
        with self._records:
            kept = read_record(self.repository, manifest, document.image)
            wanted = list(record) if before == manifest.digest else merged(kept.entries, record)
            if wanted != list(kept.entries):
                write_record(self.repository, manifest, document.image, wanted, before=kept)
            self.repository.put_manifest(data, OCI_MANIFEST, tag=name)

    def update_record(self, name: str, change: RecordChange, *, expect: ImageDigest | None = None) -> list[RecordEntry]:
        """Replace the record by what `change` makes of it; gives the new entries.

        Threads of this store wait for each other; another writer is noticed, and refused.

        Args:
            name: of the image.
            change: from the entries there are to those wanted; called once.
            expect: the image that the change is about; another one of that name keeps its record.

        Raises:
            NotFoundError: no image has this name.
            FormatError: the manifest or the record is broken.
            OutputError: it cannot be written, it is another image by now, or another writer came between.
        """
        with self._records:
            form = self._catalog.load(name)
            if expect is not None and form.document.image != expect:
                raise replaced_error(self._place(name), expect)
            before = read_record(self.repository, form.manifest, form.document.image)
            entries = list(change(list(before.entries)))
            if entries != list(before.entries):
                write_record(self.repository, form.manifest, form.document.image, entries, before=before)
        return entries

    def list_images(self) -> list[str]:
        """The tags of sealed images, sorted; other tools' images and artifacts are passed over."""
        return self._catalog.image_tags()

    def delete_image(self, name: str) -> None:
        """Remove a tag; blobs stay, and so does the record, with the manifest that it belongs to.

        Raises:
            NotFoundError: no image has this name.
            UnsupportedError: the registry does not delete.
        """
        self.repository.delete_tag(check_tag(name))

    def _manifest_digest(self, name: str) -> str | None:
        try:
            return self.repository.manifest(name)[1].digest
        except NotFoundError:
            return None

    def _require_blobs(self, document: Document) -> dict[Digest, Descriptor]:
        """A layer for each blob, all of them there and sealed as they should be."""
        layers: dict[Digest, Descriptor] = {}

        def look(digest: Digest) -> None:
            layer = self.prove(digest)
            if layer is None:
                raise self._missing(digest)
            layers[digest] = layer

        digests = dict.fromkeys(blob.digest for blob in document.blobs)
        Lanes(self._parallel).run(look, digests, workers=min(self._parallel, len(digests)))
        return layers

    def _put_config(self, document: Document, layers: Sequence[Descriptor]) -> Descriptor:
        """The config: that of the container image it was made from, if its topmost meta blob holds one."""
        top = document.layers[-1].meta
        with contextlib.closing(open_layer(self.repository, layers[-1])) as source:
            original = image_config(open_blob(source, top.digest, data_size=top.data_size, name=str(top.digest)))
        data = config_for(original, architecture=self._architecture, diff_ids=[diff_id(layer) for layer in layers])
        config = Descriptor(media_type=OCI_CONFIG, digest=digest_of(data), size=len(data))
        self.repository.put_blob(config, BytesAt(data, "image config"))
        return config

    def _place(self, name: str) -> str:
        return f"{self.where}{'@' if ':' in name else ':'}{name}"
