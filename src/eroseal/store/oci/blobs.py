"""Blobs of a repository: by their own digests, though the repository knows them by SHA-256.

A blob that goes up was verified here, every block, and its SHA-256 is that of the very bytes. A blob that the
repository is said to have (by a manifest, which can claim anything) shows its seal before it takes part in a new image:
that takes a few small requests, and whoever reads the blob checks every block anyway.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Final, Protocol, runtime_checkable

import msgspec

from eroseal.errors import NotFoundError, UnsupportedError
from eroseal.format.digest import Digest
from eroseal.limits import IO_CHUNK
from eroseal.readat import FileAt, ReadAt
from eroseal.store.atomic import output_error
from eroseal.store.oci.catalog import Catalog
from eroseal.store.oci.chunks import compress_layer, open_layer
from eroseal.store.oci.documents import EROFS_ZSTD_LAYER, Descriptor
from eroseal.store.oci.layers import (
    BLOB_SIZE,
    INDEX_DIGEST,
    INDEX_MEDIA_TYPE,
    INDEX_RANGE,
    UNCOMPRESSED_DIGEST,
    hash_offset,
    raw_layer,
    seal_annotations,
    sealed_size,
)
from eroseal.store.oci.repository import Repository
from eroseal.store.protocol import BlobStore, OpenBlob, Progress
from eroseal.store.remote import DEFAULT_RANGES
from eroseal.store.staging import provable, require_size
from eroseal.trust.image import open_blob
from eroseal.trust.scan import scan_blob
from eroseal.trust.verifier import VerifiedSeal

# What a layer says about how the blob lies in it; all else follows from the seal.
_FRAMING: Final = frozenset({BLOB_SIZE, INDEX_DIGEST, INDEX_MEDIA_TYPE, INDEX_RANGE, UNCOMPRESSED_DIGEST})


@runtime_checkable
class Deleting(Protocol):
    """A repository whose content can be deleted."""

    def delete_blob(self, descriptor: Descriptor) -> None:
        """Remove content; raises NotFoundError."""
        ...


class OciBlobs:
    """The blobs that a repository's images name; implements `BlobStore`.

    Args:
        repository: that they are in; closed by whoever opened it.
        architecture: of the images that are looked at where an index has several.
        compress: store new blobs compressed, chunk by chunk.
        parallel: requests in flight at once, where a blob is fetched to be verified.
    """

    def __init__(
        self, repository: Repository, *, architecture: str, compress: bool = False, parallel: int = DEFAULT_RANGES
    ) -> None:
        self.repository = repository
        self._catalog = Catalog(repository, architecture=architecture)
        self._compress = compress
        self._parallel = parallel
        self._proved: dict[Digest, Descriptor] = {}

    @property
    def where(self) -> str:
        """What messages call it."""
        return self.repository.where

    def open_blob(self, digest: Digest) -> OpenBlob:
        """The blob's bytes, uncompressed and unverified; raises NotFoundError."""
        layer = self._find(digest)
        if layer is None:
            raise self._missing(digest)
        return open_layer(self.repository, layer)

    def has_blob(self, digest: Digest) -> bool:
        """Whether an image of the repository names the blob, and its layer is there."""
        layer = self._find(digest)
        return layer is not None and self.repository.has_blob(layer)

    def put_blob(
        self, digest: Digest, source: ReadAt, *, jobs: int | None = None, progress: Progress | None = None
    ) -> int:
        """Put a sealed blob into the repository, unless it is there; it is sent after every block was verified.

        It is found by others once an image names it, and may be collected by the registry until then.

        Args:
            digest: that it must have.
            source: the sealed blob; what follows its records is left behind. Several threads read from it.
            jobs: threads that verify; None means one for each processor.
            progress: told the bytes that were sent, as they are; compressed ones, where they are compressed.

        Returns:
            Bytes of the sealed blob.

        Raises:
            IntegrityError: it is not that blob, or damaged.
            OutputError: the repository refuses it.
        """
        known = self.prove(digest)
        if known is not None:
            return sealed_size(known) or known.size
        seal = open_blob(source, digest).seal
        with provable(source, seal.sealed_size, parallel=self._parallel) as local:
            # Opened anew: the copy is what must be right, not what its source said before.
            blob = open_blob(local, digest, data_size=seal.descriptor.data_size, name=str(digest))
            require_size(blob.seal, seal.sealed_size)
            hashing = _Hashing(local, blob.seal.sealed_size)
            try:
                scan_blob(local, blob, jobs=jobs)
                layer = raw_layer(seal.descriptor, size=seal.sealed_size, oci_digest=hashing.result())
            finally:
                hashing.stop()
            self._send(layer, local, blob.seal, jobs, progress)
        return seal.sealed_size

    def adopt_blob(self, digest: Digest, origin: BlobStore) -> bool:
        """Take a blob over from another repository of the same registry, once it has shown its seal there.

        Raises:
            IntegrityError: what the other repository has under this name is another blob, or damaged.
        """
        if not isinstance(origin, OciBlobs) or type(origin.repository) is not type(self.repository):
            return False
        if self.prove(digest) is not None:
            return True
        found = origin.prove(digest)
        if found is None or not self.repository.mount_blob(found, origin.repository):
            return False
        self._proved[digest] = found
        return True

    def list_blobs(self) -> Iterator[Digest]:
        """The digests of all blobs that the repository's images name, in order of their hex digits."""
        found = {digest for form in self._catalog.forms() for digest in form.layers}
        return iter(sorted(found, key=lambda digest: digest.hex))

    def delete_blob(self, digest: Digest) -> None:
        """Remove a blob; whether an image needs it is for the caller to know.

        Raises:
            NotFoundError: it is not there.
            UnsupportedError: a registry, which collects by itself what no manifest names.
        """
        layer = self._find(digest)
        if layer is None:
            raise self._missing(digest)
        if not isinstance(self.repository, Deleting):
            raise UnsupportedError(
                "a registry collects blobs itself", where=self.where, hint="delete images, and run its own collection"
            )
        self.repository.delete_blob(layer)
        self._proved.pop(digest, None)

    def prove(self, digest: Digest) -> Descriptor | None:
        """The layer of a blob that is there and has the right seal; None without one.

        Raises:
            IntegrityError: the layer that is said to hold it does not.
        """
        layer = self._proved.get(digest)
        if layer is not None:
            return layer if self.repository.has_blob(layer) else None
        layer = self._catalog.find(digest)
        if layer is None:
            return None
        try:
            source = open_layer(self.repository, layer)
        except NotFoundError:
            return None
        with contextlib.closing(source):
            place = f"{self.where}@{layer.digest}"
            seal = open_blob(source, digest, data_size=hash_offset(layer), name=place).seal
            self._proved[digest] = layer = _with_seal(layer, seal, source)
        return layer

    def _find(self, digest: Digest) -> Descriptor | None:
        return self._proved.get(digest) or self._catalog.find(digest)

    def _missing(self, digest: Digest) -> NotFoundError:
        return NotFoundError(
            f"blob {digest} is not in the store",
            where=self.where,
            hint="no image here names it: copy or build it again",
        )

    def _send(
        self, layer: Descriptor, local: FileAt, seal: VerifiedSeal, jobs: int | None, progress: Progress | None
    ) -> None:
        if not self._compress or self.repository.has_blob(layer):
            self.repository.put_blob(layer, local, progress=progress)
        else:
            with _unnamed_file() as packed:
                layer = compress_layer(local, seal.descriptor, seal.sealed_size, packed.fileno(), jobs=jobs)
                with FileAt(f"/proc/self/fd/{packed.fileno()}") as file:
                    self.repository.put_blob(layer, file, progress=progress)
        self._proved[seal.digest] = layer


def _unnamed_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(prefix=".eroseal-tmp-")
    except OSError as error:
        raise output_error(error, tempfile.gettempdir(), "cannot create a file in it") from error


class _Hashing:
    """The SHA-256 of a file, made in a thread beside the verification, which reads the same pages."""

    def __init__(self, source: ReadAt, size: int) -> None:
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._future = self._pool.submit(self._run, source, size)

    def result(self) -> str:
        """The digest as OCI writes it."""
        return self._future.result()

    def stop(self) -> None:
        """Have it end early, and wait until it has."""
        self._stopped.set()
        self._pool.shutdown()

    def _run(self, source: ReadAt, size: int) -> str:
        return _sha256(source, size, self._stopped)


def _sha256(source: ReadAt, size: int, stopped: threading.Event) -> str:
    state = hashlib.sha256()
    for offset in range(0, size, IO_CHUNK):
        if stopped.is_set():
            break
        state.update(source.read_at(offset, min(IO_CHUNK, size - offset)))
    return f"sha256:{state.hexdigest()}"


def _with_seal(layer: Descriptor, seal: VerifiedSeal, source: ReadAt) -> Descriptor:
    """The layer with the annotations of its verified seal: whoever stored it, manifests come out the same."""
    framing = {name: value for name, value in layer.annotations.items() if name in _FRAMING}
    if layer.media_type == EROFS_ZSTD_LAYER:
        framing[BLOB_SIZE] = str(source.size)
        if UNCOMPRESSED_DIGEST not in framing:  # the specification demands it, so this is rare
            framing[UNCOMPRESSED_DIGEST] = _sha256(source, source.size, threading.Event())
    annotations = dict(sorted((seal_annotations(seal.descriptor) | framing).items()))
    return msgspec.structs.replace(layer, annotations=annotations, platform=None, artifact_type=None, urls=[])
