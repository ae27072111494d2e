"""A real image of many layers, merged: the tree is the one that umoci unpacks and that overlayfs shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.containers import make_layered_image, unpack_with_umoci
from tests.support.program import eroseal
from tests.support.trees import Tree, assert_same, tree_of

pytestmark = pytest.mark.usefixtures("need_root")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory, require_peer: object) -> Path:
    require_peer("umoci")  # type: ignore[operator]
    return make_layered_image(tmp_path_factory.mktemp("containers"))


@pytest.fixture(scope="module")
def wanted(layout: Path, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return tree_of(unpack_with_umoci(layout, tmp_path_factory.mktemp("umoci") / "bundle"))


def test_a_merged_image_is_what_umoci_unpacks(layout: Path, wanted: Tree, tmp_path: Path) -> None:
    digest = eroseal("build", f"oci:{layout}:app", "dir:store:app", "--no-sync", cwd=tmp_path).last
    eroseal("verify", "dir:store:app", "--digest", digest, cwd=tmp_path)
    eroseal("unpack", "dir:store:app", "out", "--digest", digest, cwd=tmp_path)
    assert_same(tree_of(tmp_path / "out"), wanted)
