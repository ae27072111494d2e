"""The same properties over many more trees, outside the CI tier: the number of examples comes from the profile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.property import test_bases, test_trees
from tests.support.generated import Node, options, trees

from eroseal.build.options import BuildOptions

pytestmark = pytest.mark.soak


@given(tree=trees, how=options)
def test_any_tree_comes_back(tree: Node, how: BuildOptions) -> None:
    test_trees.assert_comes_back(tree, how)


@given(tree=trees, how=options)
def test_place_and_order_do_not_matter(tree: Node, how: BuildOptions) -> None:
    test_trees.assert_reproducible(tree, how)


@given(tree=trees, how=test_bases.shared_layouts)
def test_an_unchanged_tree_stores_nothing(tree: Node, how: BuildOptions) -> None:
    test_bases.assert_stores_nothing(tree, how)


@given(
    tree=trees,
    how=test_bases.shared_layouts,
    path=st.lists(st.integers(0, 7), max_size=3).map(tuple),
    new=test_bases.changed_files,
)
def test_only_what_changed_is_stored(tree: Node, how: BuildOptions, path: tuple[int, ...], new: Node) -> None:
    test_bases.assert_stores_the_change(tree, how, path, new)
