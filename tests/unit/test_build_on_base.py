"""An image with chunks of its own that also uses a base's data blobs: where its device table lies."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from eroseal.build.builder import build
from eroseal.build.options import BlobLayout, BuildOptions
from eroseal.errors import UnsupportedError
from eroseal.image.check import check_image
from eroseal.image.reader import ImageReader
from eroseal.store.reference import parse_reference
from eroseal.store.resolve import resolve
from eroseal.trust.image import open_image
from eroseal.trust.policy import Policy

MIB = 1 << 20


def make(tmp_path: Path, *, blobs: int, own: int) -> dict[bytes, bytes]:
    """A base with so many data blobs, and an image on it with so many new bytes; gives what must be in it."""
    rng = random.Random(1)
    source, store = tmp_path / "source", tmp_path / "store"
    source.mkdir()
    files = {b"f%d" % number: rng.randbytes(8192) for number in range(blobs)}
    for name, data in files.items():
        (source / name.decode()).write_bytes(data)
    options = BuildOptions(blobs=BlobLayout.FILE, jobs=1, durable=False)
    build(source, parse_reference(f"dir:{store}:base"), options)
    files[b"own"] = rng.randbytes(own)
    (source / "own").write_bytes(files[b"own"])
    options = BuildOptions(blobs=BlobLayout.NONE, jobs=1, durable=False)
    build(source, parse_reference(f"dir:{store}:image"), options, bases=(f"dir:{store}:base",))
    return files


@pytest.mark.parametrize(
    ("blobs", "own"), [(1, 8192), (23, 8192), (24, 8192), (70, 8192), (23, 9 * MIB), (30, 7 * MIB)]
)
def test_an_image_with_chunks_of_its_own_finds_those_of_its_base(tmp_path: Path, blobs: int, own: int) -> None:
    files = make(tmp_path, blobs=blobs, own=own)
    with resolve(f"dir:{tmp_path / 'store'}:image") as stored:
        assert stored.document is not None
        policy = Policy(time=0, digests=(stored.document.image,))
        with open_image(stored.meta, policy=policy, open_data=stored.open_data) as image:
            reader = ImageReader(image)
            check_image(reader)
            assert len(image.devices) == blobs
            found = {name: reader.read(inode, 0, inode.size) for name, inode in reader.walk() if inode.is_regular}
    assert found == files


def test_a_device_table_beyond_its_reach_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="24 data blobs of bases"):
        make(tmp_path, blobs=24, own=9 * MIB)
    assert not (tmp_path / "store" / "images" / "image").exists()
