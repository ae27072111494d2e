"""References: what parses, what is refused, and how it is told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eroseal.errors import ErosealError, UsageError
from eroseal.store.layout import record_owner
from eroseal.store.reference import (
    FileReference,
    StoreReference,
    check_name,
    is_image_name,
    parse_reference,
    parse_store,
)


@pytest.mark.parametrize(
    ("text", "store", "name"),
    [
        ("dir:/srv/images:base", "/srv/images", "base"),
        ("dir:store:v1.2.3_x86-64+deb@2", "store", "v1.2.3_x86-64+deb@2"),
        ("dir:a:b:c", "a:b", "c"),
        ("dir:dir:x:y", "dir:x", "y"),
        ("dir:/:x", "/", "x"),
        ("dir:..:x", "..", "x"),
        ("dir:with space:0", "with space", "0"),
        ("dir:\udcff:x", "\udcff", "x"),
        ("dir:s:" + "n" * 128, "s", "n" * 128),
    ],
)
def test_store_references_split_at_the_last_colon(text: str, store: str, name: str) -> None:
    reference = parse_reference(text)
    assert reference == StoreReference(Path(store), name)
    assert str(reference) == text


@pytest.mark.parametrize("text", ["a.erofs", "/x/y", "./dir:a:b", "./s3://x", "a:b", "-", "C:", "dirx:y", "é"])
def test_anything_else_is_a_file(text: str) -> None:
    assert parse_reference(text) == FileReference(Path(text))


@pytest.mark.parametrize(
    "text",
    ["oci:layout:latest", "docker://host/repo:tag", "s3://bucket/prefix:x", "https://host/p:x", "http://h/p:x"],
)
def test_other_kinds_are_known_but_not_supported(text: str) -> None:
    with pytest.raises(UsageError, match="not supported by this version") as caught:
        parse_reference(text)
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match="not supported by this version"):
        parse_store(text)


@pytest.mark.parametrize(
    "text",
    ["", "\0", "a\0b", "dir:", "dir:x", "dir::x", "dir:x:", "dir:x:a/b", "dir:x:..", "dir:x:.a", "ftp://h/x"],
)
def test_malformed_references_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".x", "-x", "_x", "a/b", "a\\b", "a b", "a\n", "a:b", "ä", "１", "a\udcff", "n" * 129, "a\0"),
        *("../../etc/passwd", "a/../b", "x.record", "x.0123456789abcdef0123456789abcdef.record"),
    ],
)
def test_names_that_could_leave_the_store_or_hide_in_it_are_refused(name: str) -> None:
    assert not is_image_name(name)
    with pytest.raises(UsageError):
        check_name(name)


def test_a_whole_store_may_be_named_with_or_without_prefix() -> None:
    assert parse_store("dir:/srv/x") == parse_store("/srv/x") == Path("/srv/x")
    assert parse_store("dir:a:b") == Path("a:b")
    for text in ("", "dir:", "\0"):
        with pytest.raises(UsageError):
            parse_store(text)


@given(st.text() | st.text(alphabet="dir:ocis3/tp.x\0-"))
def test_only_usage_errors_come_out_and_names_stay_names(text: str) -> None:
    try:
        reference = parse_reference(text)
    except ErosealError as error:
        assert isinstance(error, UsageError)
        return
    if isinstance(reference, StoreReference):
        assert "/" not in reference.name
        assert not reference.name.startswith((".", "-"))
        assert record_owner(reference.name) is None
