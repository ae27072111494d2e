"""What of a large file is read: every byte of data, and little else, in pieces of whole chunks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from eroseal.build import segments
from eroseal.build.segments import stored_segments
from eroseal.build.wire import ARENA

CHUNK = 64 << 10
SIZE = 20 << 20


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(opened, SIZE)
    yield opened
    os.close(opened)


def pieces(fd: int, start: int = 0, size: int = SIZE) -> list[tuple[int, int]]:
    found = list(stored_segments(fd, start, size, CHUNK))
    end = 0
    for offset, length in found:
        assert offset >= end
        assert offset % CHUNK == 0
        assert 0 < length <= ARENA
        end = offset + length
        assert end == size or end % CHUNK == 0
    assert end <= size
    return found


def test_a_hole_is_not_read(fd: int) -> None:
    assert pieces(fd) == []


def test_data_is_read_in_arenas(fd: int) -> None:
    os.pwrite(fd, b"x" * SIZE, 0)
    assert pieces(fd) == [(start, ARENA) for start in range(0, SIZE, ARENA)]
    assert pieces(fd, 4096, 3 * ARENA + 5) == [(0, ARENA), (ARENA, ARENA), (2 * ARENA, ARENA), (3 * ARENA, 5)]


def test_single_bytes_cost_a_chunk_each(fd: int) -> None:
    """An archive says where bytes lie for less than it costs to read an arena around each."""
    for offset in (0, 5 * CHUNK - 1, 9 << 20, SIZE - 1):
        os.pwrite(fd, b"x", offset)
    assert pieces(fd) == [(0, CHUNK), (4 * CHUNK, CHUNK), (9 << 20, CHUNK), (SIZE - CHUNK, CHUNK)]


def test_offsets_count_from_the_start(fd: int) -> None:
    os.pwrite(fd, b"x", 4096 + CHUNK - 1)
    os.pwrite(fd, b"x", 4096 + 3 * CHUNK)
    assert pieces(fd, 4096, 10 * CHUNK) == [(0, CHUNK), (3 * CHUNK, CHUNK)]
    assert pieces(fd, 4096, 3 * CHUNK) == [(0, CHUNK)]


@pytest.mark.parametrize("hole", ["at the data", "unknown"])
def test_a_file_that_changes_or_cannot_tell_ends_nevertheless(
    fd: int, monkeypatch: pytest.MonkeyPatch, hole: str
) -> None:
    def lseek(fd: int, offset: int, whence: int) -> int:
        if whence == os.SEEK_HOLE and hole == "unknown":
            raise OSError(22, "Invalid argument")
        return offset

    monkeypatch.setattr(segments.os, "lseek", lseek)
    assert sum(length for _, length in pieces(fd)) == SIZE
