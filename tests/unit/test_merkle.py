from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from tests.unit.sealing import PARAM_IDS, PARAMS, noise, reference_tree

from eroseal.crypto.blocks import BlockHasher
from eroseal.crypto.merkle import hash_region, write_tree
from eroseal.crypto.pieces import PIECE_SIZE, read_into, run_pieces, write_at
from eroseal.errors import FormatError, OutputError, SourceError
from eroseal.format.digest import BLOCK, TreeParams
from eroseal.format.sealed import TreeShape


@pytest.mark.parametrize("params", PARAMS, ids=PARAM_IDS)
@pytest.mark.parametrize("blocks", [2, 3, 63, 64, 65, 127, 128, 129, 64 * 64, 64 * 64 + 1])
def test_tree_equals_the_reference(tmp_path: Path, params: TreeParams, blocks: int) -> None:
    data = noise(blocks)
    shape = TreeShape.of(len(data), params)
    hasher = BlockHasher(params)
    path = tmp_path / "blob"
    # What lies where padding must go is not zero beforehand.
    path.write_bytes(data + b"\xff" * (BLOCK + shape.size))
    with path.open("r+b") as file:
        fd = file.fileno()
        write_at(fd, hasher.hash_blocks(data), shape.level_offset(1))
        root = write_tree(fd, shape, hasher)
    tree, expected = reference_tree(data, params)
    assert root == expected
    assert path.read_bytes()[shape.offset :] == tree


def test_a_single_block_has_no_tree(tmp_path: Path) -> None:
    shape = TreeShape.of(BLOCK, TreeParams())
    assert shape.levels == ()
    with (tmp_path / "blob").open("w+b") as file, pytest.raises(FormatError, match="has no tree"):
        write_tree(file.fileno(), shape, BlockHasher(TreeParams()))


@pytest.mark.parametrize("jobs", [1, 2, 5, None])
@pytest.mark.parametrize("size", [BLOCK, PIECE_SIZE - BLOCK, PIECE_SIZE, 3 * PIECE_SIZE + BLOCK])
def test_leaves_come_whole_whatever_the_number_of_jobs(tmp_path: Path, jobs: int | None, size: int) -> None:
    data = noise(size // BLOCK)
    path = tmp_path / "blob"
    path.write_bytes(data)
    params = TreeParams()
    leaves = bytearray(len(data) // BLOCK * 32)
    done: list[int] = []

    def keep(block: int, hashes: bytes) -> None:
        leaves[block * 32 : block * 32 + len(hashes)] = hashes

    with path.open("rb") as file:
        hash_region(file.fileno(), size, BlockHasher(params), write_leaves=keep, jobs=jobs, progress=done.append)
    assert bytes(leaves) == BlockHasher(params).hash_blocks(data)
    assert sum(done) == size


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_file_that_is_too_short_is_refused_where_it_ends(tmp_path: Path, jobs: int) -> None:
    path = tmp_path / "blob"
    path.write_bytes(noise(300))
    with path.open("rb") as file, pytest.raises(SourceError, match=f"file ends at byte {300 * BLOCK}"):
        hash_region(
            file.fileno(),
            8 * PIECE_SIZE,
            BlockHasher(TreeParams()),
            write_leaves=lambda block, hashes: None,
            jobs=jobs,
        )


def test_the_lowest_failing_piece_decides() -> None:
    barrier = threading.Barrier(2)

    def work(piece: int, buffer: memoryview) -> int:
        if piece < 2:
            barrier.wait(timeout=10)  # both are under way before either fails
        raise SourceError(f"piece {piece}")

    for _ in range(20):
        with pytest.raises(SourceError, match="piece 0"):
            run_pieces(50, work, jobs=2)


def test_no_piece_is_begun_after_a_failure() -> None:
    begun: list[int] = []

    def work(piece: int, buffer: memoryview) -> int:
        begun.append(piece)
        if piece == 3:
            raise SourceError("enough")
        return 1

    with pytest.raises(SourceError, match="enough"):
        run_pieces(100, work, jobs=1)
    assert begun == [0, 1, 2, 3]


def test_an_interrupt_ends_all_threads() -> None:
    def work(piece: int, buffer: memoryview) -> int:
        if piece == 5:
            raise KeyboardInterrupt
        return 1

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_pieces(1000, work, jobs=4)
    assert threading.active_count() == before


def test_a_failing_progress_report_is_not_swallowed() -> None:
    def report(done: int) -> None:
        raise OutputError("terminal is gone")

    with pytest.raises(OutputError, match="terminal is gone"):
        run_pieces(10, lambda piece, buffer: 1, jobs=2, progress=report)


def test_errors_of_the_system_are_wrapped(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * BLOCK)
    reader = os.open(path, os.O_RDONLY)
    writer = os.open(path, os.O_WRONLY)
    try:
        with pytest.raises(OutputError, match="cannot write at byte 7"):
            write_at(reader, b"data", 7)
        with pytest.raises(SourceError, match="cannot read at byte 0"):
            read_into(writer, memoryview(bytearray(4)), 0)
    finally:
        os.close(reader)
        os.close(writer)
