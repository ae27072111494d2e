"""Images for the tests of reports: built, sealed, opened with or without a policy, and bare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eroseal.build.builder import build
from eroseal.build.options import BlobLayout, BuildOptions, BuildResult
from eroseal.format.record import RecordEntry
from eroseal.image.reader import ImageReader
from eroseal.store.local import LocalStore
from eroseal.store.reference import StoreReference
from eroseal.trust.image import UnverifiedImage, open_image, open_self_consistent_image
from eroseal.trust.policy import Policy

NOW = 1_760_000_000


@dataclass
class Images:
    """Builds images into one store and opens them; closes everything at the end."""

    place: Path

    def __post_init__(self) -> None:
        self.store = LocalStore.create(self.place / "store", durable=False)
        self._open: list[object] = []

    def build(self, source: Path, name: str, *bases: str, blobs: str = "build", inline: int = 4095) -> BuildResult:
        options = BuildOptions(
            blobs=BlobLayout(blobs), chunk_size=4096, inline_max=inline, jobs=1, durable=False, timestamp=None
        )
        references = tuple(f"dir:{self.store.path}:{base}" for base in bases)
        return build(source, StoreReference(self.store.path, name), options, bases=references)

    def verified(self, result: BuildResult, record: Sequence[RecordEntry] = ()) -> ImageReader:
        meta = self._keep(self.store.open_blob(result.image))
        policy = Policy(time=NOW, digests=(result.image,))
        image = open_image(meta, policy=policy, record=record, open_data=self.store.open_blob)
        self._open.append(image)
        return ImageReader(image)

    def consistent(self, result: BuildResult) -> ImageReader:
        meta = self._keep(self.store.open_blob(result.image))
        image = open_self_consistent_image(meta, open_data=self.store.open_blob)
        self._open.append(image)
        return ImageReader(image)

    def bare(self, result: BuildResult) -> ImageReader:
        """The same bytes, of which nothing is known."""
        meta, *data = [self._keep(self.store.open_blob(blob.digest)) for blob in result.blobs]
        image = UnverifiedImage(meta, data)
        self._open.append(image)
        return ImageReader(image)

    def _keep(self, source):  # type: ignore[no-untyped-def]
        self._open.append(source)
        return source

    def close(self) -> None:
        while self._open:
            self._open.pop().close()  # type: ignore[attr-defined]
