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
    LayoutReference,
    ObjectReference,
    Place,
    RegistryReference,
    StoreReference,
    WebReference,
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
    ("text", "expected"),
    [
        ("oci:layout:latest", LayoutReference(Path("layout"), "latest")),
        ("oci:a:b:1.0_x", LayoutReference(Path("a:b"), "1.0_x")),
        ("docker://host.io/repo:tag", RegistryReference("host.io", "repo", "tag")),
        ("docker://localhost/repo", RegistryReference("localhost", "repo", "latest")),
        ("docker://[::1]:5000/a/b-c:v1", RegistryReference("[::1]:5000", "a/b-c", "v1")),
        ("docker://h:1/x@sha256:" + "a" * 64, RegistryReference("h:1", "x", "sha256:" + "a" * 64)),
        ("s3://bucket/a/b:x", ObjectReference("s3", "bucket", "a/b", "x")),
        ("gs://bucket:x", ObjectReference("gs", "bucket", "", "x")),
        ("https://host:8443/p/q:x", WebReference("https://host:8443/p/q", "x")),
        ("http://127.0.0.1:80:x", WebReference("http://127.0.0.1:80", "x")),
    ],
)
def test_other_places_are_told_apart(text: str, expected: object) -> None:
    reference = parse_reference(text)
    assert reference == expected
    assert parse_reference(str(reference)) == reference


def test_names_without_a_host_are_those_of_container_tools() -> None:
    assert parse_reference("docker://alpine") == RegistryReference("docker.io", "library/alpine", "latest")
    assert parse_reference("docker://me/app:1") == RegistryReference("docker.io", "me/app", "1")


@pytest.mark.parametrize(
    "text",
    [
        "oci:",
        "oci::tag",
        "oci:x:.tag",
        "oci:x:" + "t" * 129,
        "docker://",
        "docker:///x",
        "docker://h.io/Upper:1",
        "docker://h.io/a//b:1",
        "docker://h.io/../b:1",
        "docker://h_.io/b:1",
        "docker://h.io/b@sha256:12",
        "docker://h.io/b@md5:" + "a" * 32,
        "docker://h.io/" + "a/" * 130 + "b:1",
        "docker://user:pass@h.io/b",
        "s3://",
        "s3://bucket",
        "s3:///prefix:x",
        "s3://bucket/../x:n",
        "https://host",
        "https://host/../x:n",
        "https://ho st/x:n",
        "https://host/x?y:n",
    ],
)
def test_malformed_places_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x", "dir:x"),
        ("dir:x", "dir:x"),
        ("oci:x", "oci:x"),
        ("docker://h:1/x/y", "docker://h:1/x/y"),
        ("s3://b/p/", "s3://b/p"),
        ("https://h:80/p", "https://h:80/p"),
    ],
)
def test_whole_stores(text: str, shown: str) -> None:
    assert str(parse_store(text)) == shown


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
    assert parse_store("dir:/srv/x") == parse_store("/srv/x") == Place(StoreReference(Path("/srv/x"), "x"))
    assert str(parse_store("dir:a:b")) == "dir:a:b"
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
