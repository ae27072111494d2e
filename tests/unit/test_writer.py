"""What the writer makes of trees that no source on a test machine has."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from eroseal.image.check import check_image
from eroseal.image.layout import ImageOptions, plan
from eroseal.image.reader import ImageReader
from eroseal.image.writer import ImageWriter
from eroseal.readat import FileAt
from eroseal.tree.model import NULL_CHUNK, Directory, Inode
from eroseal.trust.image import UnverifiedImage

TIB = 1 << 40


@pytest.mark.parametrize("size", [8 * TIB, 8 * TIB + 1, 16 * TIB, 16 * TIB + 4097, (1 << 56) - 1])
def test_a_hole_of_any_size_takes_few_chunk_indexes(tmp_path: Path, size: int) -> None:
    root = Directory(stat.S_IFDIR | 0o755, 0, 0, 0, 0)
    hole = Inode(stat.S_IFREG | 0o644, 0, 0, 0, 0, size)
    hole.chunks = NULL_CHUNK
    root.names, root.children = [b"hole"], [hole]
    options = ImageOptions()
    path = tmp_path / "image"
    with path.open("w+b") as file:
        ImageWriter(plan(root, options), options, lambda at, length: b"").write(file.fileno())
    with FileAt(path) as source, UnverifiedImage(source) as image:
        reader = ImageReader(image)
        check_image(reader)
        (extent,) = reader.extents(reader.lookup(b"hole"))
        assert (extent.length, extent.device) == (size, None)
        assert reader.read(reader.lookup(b"hole"), size - 10, 100) == bytes(10)
