"""What the kernel tests share: a tmpfs with the nasty tree, and a place on disk for images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.kernel import tmpfs
from tests.support.nasty import make_nasty
from tests.support.trees import Tree, tree_of


@dataclass(frozen=True, slots=True)
class Nasty:
    """The nasty tree.

    Args:
        source: its directory.
        tree: what is in it.
    """

    source: Path
    tree: Tree


@pytest.fixture(scope="session")
def _memory(tmp_path_factory: pytest.TempPathFactory, _own_directory: Path) -> Iterator[Path | None]:
    """Give a tmpfs for the whole run; None where `need_kernel_erofs` will say why there is none."""
    if os.geteuid() != 0:
        yield None
        return
    with tmpfs(tmp_path_factory.mktemp("memory")) as place:
        yield place


@pytest.fixture
def memory(need_kernel_erofs: None, _memory: Path | None) -> Iterator[Path]:
    """Give an empty directory on a tmpfs: trees that no disk file system holds, made and removed quickly."""
    assert _memory is not None
    place = _memory / "place"
    place.mkdir()
    yield place
    _remove(place)


@pytest.fixture(scope="session")
def _nasty(_memory: Path | None) -> Callable[[], Nasty]:
    made: list[Nasty] = []

    def get() -> Nasty:
        assert _memory is not None
        if not made:
            source = make_nasty(_memory / "nasty")
            made.append(Nasty(source, tree_of(source)))
        return made[0]

    return get


@pytest.fixture
def nasty(need_kernel_erofs: None, _nasty: Callable[[], Nasty]) -> Nasty:
    """Give the nasty tree; nobody changes it."""
    return _nasty()


@pytest.fixture
def disk(tmp_path: Path, need_kernel_erofs: None) -> Iterator[Path]:
    """Give an empty directory on a disk file system, emptied afterwards: images are large."""
    place = tmp_path / "disk"
    place.mkdir()
    yield place
    shutil.rmtree(place)


def _remove(place: Path) -> None:
    """Remove a tree of any depth; shutil.rmtree recurses."""
    for path in sorted(tree_of(place, content=False), reverse=True):
        full = os.path.join(os.fsencode(place), path) if path else os.fsencode(place)
        if os.path.isdir(full) and not os.path.islink(full):
            os.rmdir(full)
        else:
            os.unlink(full)
