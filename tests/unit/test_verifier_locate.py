from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tests.unit.sealing import PARAM_IDS, PARAMS, SHA256, SHA512, Changeable, Sample, meta_region, noise, seal_bytes

from eroseal.errors import IntegrityError
from eroseal.format.digest import BLOCK, TreeParams
from eroseal.format.record import IMAGE_MAGIC, IMAGE_SIGNATURE, Footer, RecordEntry, encode_record
from eroseal.format.sealed import TreeShape
from eroseal.trust.image import open_blob, open_self_consistent
from eroseal.trust.locate import find_seal
from eroseal.trust.verifier import SealLocation


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return seal_bytes(tmp_path_factory.mktemp("sample"), noise(300))


def expected_location(sample: Sample) -> SealLocation:
    shape = TreeShape.of(len(sample.data), sample.sealed.descriptor.params)
    return SealLocation(shape.data_size, shape.record_offset)


@pytest.mark.parametrize("params", PARAMS, ids=PARAM_IDS)
@pytest.mark.parametrize("blocks", [1, 2, 300])
def test_by_its_footer_and_by_its_size(tmp_path: Path, params: TreeParams, blocks: int) -> None:
    sample = seal_bytes(tmp_path, noise(blocks), params)
    for size in (None, len(sample.data)):
        for algorithm in (None, params.algorithm):
            found = find_seal(sample.source(), data_size=size, algorithm=algorithm)
            assert found == expected_location(sample)


def test_a_known_size_needs_one_read(sample: Sample) -> None:
    source = sample.source()
    find_seal(source, data_size=len(sample.data), algorithm=SHA256)
    assert len(source.reads) == 1


def test_an_exported_file_is_found_from_its_end_alone(sample: Sample) -> None:
    """The appended image record ends with the blob's own footer once more."""
    record = encode_record(IMAGE_MAGIC, [RecordEntry(IMAGE_SIGNATURE, b"s" * 5000)])
    padded = record.ljust(-(-(len(record) + 64) // BLOCK) * BLOCK - 64, b"\0")
    source = Changeable(sample.blob + padded + sample.blob[-64:])
    assert find_seal(source) == expected_location(sample)
    assert len(source.reads) == 2
    blob = open_blob(source, sample.sealed.digest)
    assert source.read_at(blob.seal.sealed_size, 8) == IMAGE_MAGIC


def test_before_an_android_vbmeta(sample: Sample) -> None:
    size = len(sample.blob)
    vbmeta = b"AVB0".ljust(BLOCK * 16, b"\0")
    footer = struct.pack(">4sIIQQQ28x", b"AVBf", 1, 0, size, size, 700)
    source = Changeable(sample.blob + vbmeta + bytes(5 << 20) + bytes(BLOCK - 64) + footer)
    assert find_seal(source) == expected_location(sample)


@pytest.mark.parametrize("original", [0, 63, 64, 1 << 63, (1 << 64) - 1])
def test_an_android_footer_that_lies_is_passed_over(sample: Sample, original: int) -> None:
    footer = struct.pack(">4sIIQQQ28x", b"AVBf", 1, 0, original, 0, 0)
    source = Changeable(sample.blob + footer)
    assert find_seal(source) == expected_location(sample)


@pytest.mark.parametrize("length", [1, 31, 32 + 24 * 17, 48 * 5000, (1 << 20) - BLOCK])
def test_before_a_trailing_chunk_index(sample: Sample, length: int) -> None:
    index = b"\xcd\xe4\xec\x67\x01".ljust(length, b"\x55")[:length]
    assert find_seal(Changeable(sample.blob + index)) == expected_location(sample)


def test_by_the_superblock_when_all_else_fails(tmp_path: Path) -> None:
    sample = seal_bytes(tmp_path, meta_region([], blocks=5))
    source = Changeable(sample.blob + b"\x55" * (3 << 20))
    assert find_seal(source) == expected_location(sample)


def test_a_footer_that_lies_is_passed_over(sample: Sample) -> None:
    """Hints are tried until one leads to a seal record."""
    size = len(sample.blob)
    for lie in (Footer(BLOCK, 2 * BLOCK, BLOCK), Footer(1 << 60, 0, 0), Footer(0, 0, 0), Footer(100, 0, 0)):
        source = Changeable(sample.blob + bytes(-size % BLOCK) + bytes(BLOCK - 64) + lie.encode())
        assert find_seal(source) == expected_location(sample)


def test_the_last_seal_of_a_nested_one_is_the_blobs(tmp_path: Path) -> None:
    """A sealed image kept as a file inside a blob does not mislead."""
    inner = seal_bytes(tmp_path, noise(3))
    outer = seal_bytes(tmp_path, inner.blob)
    assert open_self_consistent(outer.source()).digest == outer.sealed.digest
    assert open_self_consistent(Changeable(outer.blob + b"junk")).digest == outer.sealed.digest


@pytest.mark.parametrize("data", [b"", b"x", bytes(64), bytes(BLOCK), bytes(9000), meta_region([], blocks=2)])
def test_what_is_not_sealed_has_no_seal(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="no seal found") as caught:
        find_seal(Changeable(data, "bare"))
    assert (caught.value.step, caught.value.blob) == (1, "bare")
    assert "not sealed" in str(caught.value)


@pytest.mark.parametrize("size", [0, -BLOCK, 100, 1 << 61, 301 * BLOCK])
def test_a_wrong_size_finds_nothing(sample: Sample, size: int) -> None:
    with pytest.raises(IntegrityError, match=f"behind a data region of {size} bytes"):
        find_seal(sample.source(), data_size=size)


def test_only_the_expected_algorithm_is_tried(sample: Sample) -> None:
    with pytest.raises(IntegrityError, match="no seal found"):
        find_seal(sample.source(), algorithm=SHA512)
