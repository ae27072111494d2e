"""Directories that images are built in before they go to a server, and what killed builds leave there."""

from __future__ import annotations

from pathlib import Path

import pytest

from eroseal.build.scratch import PREFIX, scratch_directory
from eroseal.errors import OutputError


def test_it_goes_with_what_is_in_it(tmp_path: Path) -> None:
    with scratch_directory(tmp_path) as path:
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "store").mkdir()
        (path / "store/blob").write_bytes(b"x")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_build_left_goes_and_what_runs_stays(tmp_path: Path) -> None:
    left = tmp_path / f"{PREFIX}killed"
    (left / "store").mkdir(parents=True)
    (left / "store/blob").write_bytes(b"x")
    with scratch_directory(tmp_path) as first, scratch_directory(tmp_path) as second:
        assert {path.name for path in tmp_path.iterdir()} == {first.name, second.name}


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/one").write_text("dear reader")
    (place / f"{PREFIX}link").symlink_to(tmp_path / "letters")
    (place / f"{PREFIX}file").write_text("dear reader")
    (place / "eroseal").mkdir()
    left = place / f"{PREFIX}killed"
    left.mkdir()
    (left / "link").symlink_to(tmp_path / "letters")
    with scratch_directory(place):
        pass
    assert {path.name for path in place.iterdir()} == {f"{PREFIX}link", f"{PREFIX}file", "eroseal"}
    assert (tmp_path / "letters/one").read_text() == "dear reader"


@pytest.mark.parametrize("where", ["nowhere", "file"])
def test_a_place_that_is_none(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="cannot create a directory in it") as caught,
        scratch_directory(tmp_path / where),
    ):
        pass
    assert caught.value.where == str(tmp_path / where)
