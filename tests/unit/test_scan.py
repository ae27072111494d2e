from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.sealing import PARAM_IDS, PARAMS, Changeable, Sample, noise, seal_bytes

from eroseal.errors import IntegrityError
from eroseal.format.digest import BLOCK, TreeParams
from eroseal.format.sealed import TreeShape
from eroseal.readat import FileAt
from eroseal.trust import scan as scan_module
from eroseal.trust.image import open_blob, open_self_consistent
from eroseal.trust.scan import BadBlock, scan_blob

BLOCKS = 1000


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return seal_bytes(tmp_path_factory.mktemp("sample"), noise(BLOCKS))


def shape_of(sample: Sample) -> TreeShape:
    return TreeShape.of(len(sample.data), sample.sealed.descriptor.params)


@pytest.mark.parametrize("params", PARAMS, ids=PARAM_IDS)
@pytest.mark.parametrize("blocks", [1, 2, 128, 129, 4097])
@pytest.mark.parametrize("jobs", [1, 3])
def test_a_whole_blob_has_no_bad_blocks(tmp_path: Path, params: TreeParams, blocks: int, jobs: int) -> None:
    sample = seal_bytes(tmp_path, noise(blocks), params)
    source = sample.source()
    done: list[int] = []
    blob = open_blob(source, sample.sealed.digest)
    assert scan_blob(source, blob, jobs=jobs, progress=done.append) == []
    assert scan_blob(source, blob, jobs=jobs, keep_going=True) == []
    assert sum(done) == len(sample.data)


def test_files_are_read_without_copies(tmp_path: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "blob"
    path.write_bytes(sample.blob)
    with FileAt(path) as source:
        blob = open_blob(source, sample.sealed.digest)
        reads: list[int] = []
        read_at = FileAt.read_at
        monkeypatch.setattr(
            FileAt,
            "read_at",
            lambda self, offset, length: reads.append(length) or read_at(self, offset, length),
        )
        assert scan_blob(source, blob) == []
        # Only seal and tree went through read_at.
        assert sum(reads) < 32 * BLOCK


def test_a_self_consistent_blob_can_be_scanned(sample: Sample) -> None:
    source = sample.source()
    assert scan_blob(source, open_self_consistent(source)) == []


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_the_first_bad_block_is_named_whatever_the_timing(sample: Sample, jobs: int) -> None:
    source = sample.source()
    blob = open_blob(source, sample.sealed.digest)
    for block in (999, 500, 257, 130, 131):
        source.flip(block * BLOCK + 9)
    for _ in range(10):
        with pytest.raises(IntegrityError) as caught:
            scan_blob(source, blob, jobs=jobs)
        assert (caught.value.level, caught.value.offset, caught.value.step) == (0, 130 * BLOCK, 5)


@pytest.mark.parametrize("jobs", [1, 2])
def test_keep_going_lists_every_bad_block(sample: Sample, jobs: int) -> None:
    source = sample.source()
    blob = open_blob(source, sample.sealed.digest)
    wrong = [0, 1, 130, 131, 500, 999]
    for block in wrong:
        source.flip(block * BLOCK + 9)
    bad = scan_blob(source, blob, jobs=jobs, keep_going=True)
    assert bad == [
        BadBlock(0, block, block * BLOCK, "data block does not match the hash in its parent") for block in wrong
    ]


def test_the_tree_is_judged_before_the_data(sample: Sample) -> None:
    shape = shape_of(sample)
    source = sample.source()
    blob = open_blob(source, sample.sealed.digest)
    source.flip(3 * BLOCK)
    source.flip(shape.level_offset(1) + 5 * BLOCK)
    with pytest.raises(IntegrityError) as caught:
        scan_blob(source, blob)
    assert (caught.value.level, caught.value.offset) == (1, shape.level_offset(1) + 5 * BLOCK)


def test_blocks_below_a_bad_tree_block_are_not_judged(sample: Sample) -> None:
    shape = shape_of(sample)
    source = sample.source()
    blob = open_blob(source, sample.sealed.digest)
    source.flip(shape.level_offset(1) + 2 * BLOCK)  # covers data blocks 256 to 383
    for block in (255, 256, 300, 383, 384):
        source.flip(block * BLOCK)
    bad = scan_blob(source, blob, keep_going=True)
    assert [(item.level, item.index) for item in bad] == [(1, 2), (0, 255), (0, 384)]
    assert bad[0].offset == shape.level_offset(1) + 2 * BLOCK


def test_a_bad_block_of_an_upper_level_hides_all_below(tmp_path: Path) -> None:
    params = PARAMS[2]
    sample = seal_bytes(tmp_path, noise(64 * 64 + 10), params)
    shape = shape_of(sample)
    assert len(shape.levels) == 3
    source = sample.source()
    blob = open_blob(source, sample.sealed.digest)
    source.flip(shape.level_offset(2))  # covers data blocks 0 to 4095
    source.flip(7 * BLOCK)
    source.flip((64 * 64 + 3) * BLOCK)
    bad = scan_blob(source, blob, keep_going=True)
    assert [(item.level, item.index) for item in bad] == [(2, 0), (0, 64 * 64 + 3)]


def test_a_blob_that_shrinks_is_refused_where_it_ends(tmp_path: Path, sample: Sample) -> None:
    """The data region of a file can be cut out while the tree stays: a hole reads as zeros, a short file not at all."""
    path = tmp_path / "blob"
    path.write_bytes(sample.blob)
    with FileAt(path) as source:
        blob = open_blob(source, sample.sealed.digest)
        with path.open("r+b") as file:
            file.truncate(700 * BLOCK)
        with pytest.raises(IntegrityError) as caught:
            scan_blob(source, blob)
        assert caught.value.step == 1


def test_the_top_and_the_seal_are_checked_again(sample: Sample) -> None:
    shape = shape_of(sample)
    for offset, step in [(shape.offset, 4), (shape.data_size, 2), (shape.record_offset, 1), (-1, 2)]:
        source = sample.source()
        blob = open_blob(source, sample.sealed.digest)
        source.flip(offset % len(sample.blob))
        with pytest.raises(IntegrityError) as caught:
            scan_blob(source, blob)
        assert caught.value.step == step


def test_the_list_of_bad_blocks_is_bounded(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "MAX_BAD_BLOCKS", 20)
    source = sample.source()
    blob = open_blob(source, sample.sealed.digest)
    source.data[: len(sample.data)] = bytes(len(sample.data))
    bad = scan_blob(source, blob, keep_going=True, jobs=1)
    assert [item.index for item in bad] == list(range(20))


def test_unreadable_blocks_are_listed_like_bad_ones(sample: Sample) -> None:
    class Holes(Changeable):
        def read_at(self, offset: int, length: int) -> bytes:
            if offset <= 600 * BLOCK < offset + length:
                return super().read_at(self.size, 1)
            return super().read_at(offset, length)

    source = Holes(sample.blob)
    blob = open_blob(source, sample.sealed.digest)
    bad = scan_blob(source, blob, keep_going=True)
    assert [(item.level, item.index) for item in bad] == [(0, 600)]
    assert "cannot be read" in bad[0].what


def test_a_thread_that_fell_behind_still_gets_its_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "_WINDOW_BLOCKS", 128)
    sample = seal_bytes(tmp_path, noise(BLOCKS))
    blob = open_self_consistent(sample.source())
    level = scan_module._LevelScan(sample.source(), blob, 0, set())
    for window in (1, 2, 3, 4, 0):  # others went on by more windows than are kept
        first = window * 128
        assert level._expected(first, 128) == blob.hashes(0, first, 128)
