from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.sealing import PARAM_IDS, PARAMS, noise, reference_tree, seal_bytes

from eroseal.crypto.blocks import BlockHasher
from eroseal.errors import FormatError, OutputError, SourceError
from eroseal.format.chunkmap import decode_chunk_map
from eroseal.format.digest import BLOCK, TreeParams
from eroseal.format.dmverity import superblock
from eroseal.format.sealed import SealRecord, TreeShape
from eroseal.seal.blob import finish_seal, seal_in_place


@pytest.mark.parametrize("params", PARAMS, ids=PARAM_IDS)
@pytest.mark.parametrize("blocks", [1, 2, 127, 128, 129, 700])
def test_the_layout_is_the_specified_one(tmp_path: Path, params: TreeParams, blocks: int) -> None:
    data = noise(blocks)
    sample = seal_bytes(tmp_path, data, params, chunk_blocks=[blocks])
    tree, root = reference_tree(data, params)
    size = len(data)
    assert sample.blob[:size] == data
    assert sample.blob[size : size + BLOCK] == superblock(sample.sealed.descriptor)
    assert sample.blob[size + BLOCK : size + BLOCK + len(tree)] == tree
    record = SealRecord.parse(sample.blob[size + BLOCK + len(tree) :])
    assert record.descriptor == sample.sealed.descriptor
    assert record.padded_length == len(sample.blob) - size - BLOCK - len(tree)
    assert sample.sealed.root_hash == root == record.descriptor.root_hash
    assert sample.sealed.size == len(sample.blob)
    assert sample.sealed.digest == record.descriptor.digest
    assert record.chunk_map is not None
    assert list(decode_chunk_map(record.chunk_map, total_blocks=blocks)) == [(blocks, 1)]


@pytest.mark.parametrize("jobs", [1, 2, 3, None])
def test_a_sealed_blob_is_canonical(tmp_path: Path, jobs: int | None) -> None:
    """The same data gives the same blob, whatever the number of workers and whatever lay behind the data."""
    data = noise(700)
    expected = seal_bytes(tmp_path, data).blob
    path = tmp_path / "blob"
    path.write_bytes(data + b"\xee" * (50 * BLOCK))
    with path.open("r+b") as file:
        seal_in_place(file.fileno(), len(data), TreeParams(), jobs=jobs)
    assert path.read_bytes() == expected
    with path.open("r+b") as file:
        seal_in_place(file.fileno(), len(data), TreeParams(), jobs=jobs)
    assert path.read_bytes() == expected


@pytest.mark.parametrize("blocks", [1, 2, 300])
def test_a_builder_that_has_the_leaves_gets_the_same_blob(tmp_path: Path, blocks: int) -> None:
    data = noise(blocks)
    params = TreeParams()
    expected = seal_bytes(tmp_path, data, params, chunk_blocks=[1] * blocks)
    shape = TreeShape.of(len(data), params)
    path = tmp_path / "blob"
    with path.open("w+b") as file:
        fd = file.fileno()
        os.pwrite(fd, data, 0)
        if shape.levels:
            os.pwrite(fd, BlockHasher(params).hash_blocks(data), shape.level_offset(1))
        assert finish_seal(fd, len(data), params, chunk_blocks=iter([1] * blocks)) == expected.sealed
    assert path.read_bytes() == expected.blob


def test_the_cursor_of_the_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(noise(3))
    with path.open("r+b") as file:
        os.lseek(file.fileno(), 17, os.SEEK_SET)
        seal_in_place(file.fileno(), 3 * BLOCK, TreeParams())
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 17


def test_progress_counts_the_data(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(noise(300))
    done: list[int] = []
    with path.open("r+b") as file:
        seal_in_place(file.fileno(), 300 * BLOCK, TreeParams(), progress=done.append)
    assert sum(done) == 300 * BLOCK


@pytest.mark.parametrize("size", [0, 100, BLOCK - 1, BLOCK + 1])
def test_only_whole_blocks_are_sealed(tmp_path: Path, size: int) -> None:
    path = tmp_path / "blob"
    path.write_bytes(bytes(2 * BLOCK))
    with path.open("r+b") as file, pytest.raises(FormatError, match="positive multiple of 4096"):
        seal_in_place(file.fileno(), size, TreeParams())
    assert path.read_bytes() == bytes(2 * BLOCK)


def test_a_file_that_shrank_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(noise(3))
    with path.open("r+b") as file, pytest.raises(SourceError, match="file ends at byte 12288"):
        seal_in_place(file.fileno(), 4 * BLOCK, TreeParams(), jobs=1)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "blob"
    path.write_bytes(noise(3))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_file_that_cannot_be_written_is_an_output_error(read_only: int) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        seal_in_place(read_only, 3 * BLOCK, TreeParams())


def test_chunks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="covers 4 blocks, the blob has 3"):
        seal_bytes(tmp_path, noise(3), chunk_blocks=[4])


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A sparse gigabyte is hashed within a few buffers."""
    path = tmp_path / "blob"
    size = 1 << 30
    with path.open("w+b") as file:
        os.truncate(file.fileno(), size)
        tracemalloc.start()
        try:
            sealed = seal_in_place(file.fileno(), size, TreeParams(), jobs=2)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert sealed.size == path.stat().st_size
    assert peak < 4 << 20
