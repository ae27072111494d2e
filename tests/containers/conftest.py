"""A registry, and one real image of many layers, for all tests of containers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.containers import make_layered_image, unpack_with_umoci
from tests.support.registry import Registry
from tests.support.trees import Tree, tree_of


@dataclass(frozen=True, slots=True)
class Layered:
    """The image.

    Args:
        layout: an OCI image layout that has it under the tag `app`.
        tree: what umoci unpacks.
    """

    layout: Path
    tree: Tree

    @property
    def source(self) -> str:
        return f"oci:{self.layout}:app"


@pytest.fixture(scope="session")
def layered(require_peer: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Layered:
    require_peer("umoci")
    place = tmp_path_factory.mktemp("layered")
    layout = make_layered_image(place)
    return Layered(layout, tree_of(unpack_with_umoci(layout, place / "unpacked")))


@pytest.fixture(scope="session")
def registry(require_peer: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    server = Registry(require_peer("docker-registry"), tmp_path_factory.mktemp("registry"))
    yield server
    server.stop()
