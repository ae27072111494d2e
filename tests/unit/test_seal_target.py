"""Targets of sealing: copies in the making beside other writers, and what is left of them."""

from __future__ import annotations

from pathlib import Path

from eroseal.seal.target import copy_of
from eroseal.store.atomic import remove_abandoned


def test_a_copy_in_the_making_is_nobodys_leftover(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x" * 8192)
    with copy_of(tmp_path / "image", tmp_path / "sealed") as target:
        # What a build into the same directory does first.
        assert remove_abandoned(tmp_path) == []
        target.commit(durable=False)
    assert (tmp_path / "sealed").read_bytes() == b"x" * 8192
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image", "sealed"]


def test_what_a_killed_sealing_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x" * 8192)
    (tmp_path / ".eroseal-tmp-sealed-abc").write_bytes(b"half")
    assert [path.name for path in remove_abandoned(tmp_path)] == [".eroseal-tmp-sealed-abc"]
