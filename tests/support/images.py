"""Building images in tests and looking at them from all sides."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eroseal.build.builder import build
from eroseal.build.options import BuildOptions, BuildResult
from eroseal.image.check import check_image
from eroseal.image.reader import ImageReader
from eroseal.image.unpack import unpack
from eroseal.readat import FileAt
from eroseal.store.local import LocalStore
from eroseal.store.reference import StoreReference
from eroseal.store.resolve import resolve
from eroseal.trust.image import open_blob, open_image
from eroseal.trust.policy import Policy
from eroseal.trust.scan import scan_blob


@dataclass(frozen=True, slots=True)
class Built:
    """An image in a store.

    Args:
        reference: names it.
        result: what the build said.
        paths: files of the meta blob and the data blobs, in device order.
        warnings: what was left out.
    """

    reference: StoreReference
    result: BuildResult
    paths: tuple[Path, ...]
    warnings: tuple[str, ...]

    @property
    def meta(self) -> Path:
        return self.paths[0]

    @property
    def data(self) -> tuple[Path, ...]:
        return self.paths[1:]


def build_image(
    source: Path, store: Path, options: BuildOptions, *, name: str = "image", bases: tuple[str, ...] = ()
) -> Built:
    """Build into a store, which is made if it is not there."""
    warnings: list[str] = []
    reference = StoreReference(store, name)
    result = build(source, reference, options, bases=bases, warn=warnings.append)
    opened = LocalStore.open(store)
    paths = tuple(opened.blob_path(blob.digest) for blob in result.blobs)
    return Built(reference, result, paths, tuple(warnings))


@contextlib.contextmanager
def reading(built: Built) -> Iterator[ImageReader]:
    """A reader of the image, opened under its digest."""
    policy = Policy(time=int(time.time()), digests=(built.result.image,))
    with (
        resolve(built.reference) as stored,
        open_image(stored.meta, policy=policy, record=stored.record, open_data=stored.open_data) as image,
    ):
        yield ImageReader(image)


def verify(built: Built, *, every: int = 1) -> None:
    """Whole-image verification under the image digest: the meta blob, data blobs (or every n-th), the structure."""
    for number, (path, blob) in enumerate(zip(built.paths, built.result.blobs, strict=True)):
        if number == 0 or (number - 1) % every == 0:
            with FileAt(path) as source:
                opened = open_blob(source, blob.digest)
                assert (opened.size, source.size) == (blob.data_size, blob.size)
                assert scan_blob(source, opened, jobs=1) == []
    with reading(built) as reader:
        checked = check_image(reader)
        assert checked.warnings == ()
        assert reader.superblock.inos == checked.inodes


def unpack_image(built: Built, target: Path) -> Path:
    """Unpack, and expect nothing to be left out."""
    with reading(built) as reader:
        assert unpack(reader, target).warnings == ()
    return target


def assert_fsck_accepts(program: str, built: Built, *, read: bool = False) -> None:
    """Have fsck.erofs judge an image.

    Args:
        program: its path.
        built: the image.
        read: have it read all data too. Version 1.5 then reads what is addressed through the unified space from the
            wrong device.
    """
    devices = [f"--device={path}" for path in built.data]
    # Version 1.5 recurses, with pages of stack a level: a thousand levels of directories take more than 8 MiB.
    command = ["sh", "-c", 'ulimit -s unlimited && exec "$@"', "sh", program, *(["--extract"] if read else [])]
    result = subprocess.run(
        [*command, *devices, str(built.meta)], capture_output=True, text=True, check=False, errors="replace"
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, f"{program} ended with {result.returncode}: {output[-2000:]}"
    assert "<E>" not in output, output[-2000:]
