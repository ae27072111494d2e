"""The chunk index against a plain dict, and the allocator's bookkeeping."""

import random

import pytest

from eroseal.errors import UnsupportedError, UsageError
from eroseal.seal.chunker import BlobAllocator, ChunkIndex, check_chunk_size


@pytest.mark.parametrize("width", [32, 64])
def test_the_index_agrees_with_a_dict(width: int) -> None:
    random_source = random.Random(width)
    index, reference = ChunkIndex(width), dict[tuple[int, bytes], int]()
    # Digests that share their first 8 bytes land in one slot, so that probing and whole comparison are tried.
    digests = [random_source.choice([b"\0" * 8, b"\1" * 8]) + random_source.randbytes(width - 8) for _ in range(400)]
    digests += [random_source.randbytes(width) for _ in range(20_000)]
    for location, digest in enumerate(digests + digests[:1000]):
        blocks = random_source.randint(1, 256)
        assert index.find(blocks, digest) == reference.get((blocks, digest))
        index.add(blocks, digest, location)
        reference.setdefault((blocks, digest), location)
    assert len(index) == len(reference)
    for (blocks, digest), location in reference.items():
        assert index.find(blocks, digest) == location


def test_the_number_of_blocks_is_part_of_the_id() -> None:
    index = ChunkIndex(32)
    index.add(1, b"h" * 32, 7)
    assert index.find(128, b"h" * 32) is None
    assert index.find(1, b"h" * 32) == 7


def test_the_first_location_stays() -> None:
    index = ChunkIndex(32)
    index.add(3, b"h" * 32, 7)
    index.add(3, b"h" * 32, 8)
    assert index.find(3, b"h" * 32) == 7
    assert len(index) == 1


def test_blocks_are_handed_out_in_order() -> None:
    allocator = BlobAllocator(2, first_block=1, spool_start=100)
    assert allocator.next_location == 2 << 32 | 1
    assert [allocator.take(16), allocator.take(3)] == [100, 116]
    assert allocator.next_location == 2 << 32 | 20
    assert allocator.blocks == 19
    assert list(allocator.chunk_blocks) == [16, 3]


@pytest.mark.parametrize("size", [0, 2048, 4097, 65535, 1 << 21, -4096])
def test_odd_chunk_sizes_are_refused(size: int) -> None:
    with pytest.raises(UsageError, match="power of two"):
        check_chunk_size(size)


def test_a_blob_ends_where_addresses_do() -> None:
    allocator = BlobAllocator(2)
    allocator.next_block = (1 << 32) - 17
    allocator.take(16)
    with pytest.raises(UnsupportedError, match="16 TiB"):
        allocator.take(1)
