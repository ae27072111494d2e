"""Which image a build finds as its base: stems, versions, and what does not count."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from eroseal.build.auto import newest_base, newest_first, split_version, version_key
from eroseal.build.builder import build
from eroseal.build.options import BuildOptions
from eroseal.format.digest import HashAlgorithm, TreeParams
from eroseal.store.local import LocalStore
from eroseal.store.reference import StoreReference, parse_reference
from eroseal.store.remote import RemoteOptions

REMOTE = RemoteOptions()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("app", ("app", None)),
        ("app-1.2.3", ("app", "1.2.3")),
        ("app@2", ("app", "2")),
        ("app_v7", ("app", "v7")),
        ("app-1.2.3-rc1", ("app", "1.2.3-rc1")),
        ("app-2026-01-31", ("app", "2026-01-31")),
        ("app+20260131T1200", ("app", "20260131T1200")),
        ("lib-2d-engine-1.0", ("lib-2d-engine", "1.0")),
        ("app-1.2-amd64", ("app-1.2-amd64", None)),
        ("app2", ("app2", None)),
        ("app-v", ("app-v", None)),
        ("1.2.3", ("", "1.2.3")),
        ("v4", ("", "v4")),
        ("latest", ("latest", None)),
        ("app-1." + "0." * 60 + "x", ("app-1." + "0." * 60 + "x", None)),
    ],
)
def test_names_are_split_at_their_version(name: str, expected: tuple[str, str | None]) -> None:
    assert split_version(name) == expected


def test_versions_are_sorted_by_their_numbers() -> None:
    rising = ["0.9", "1.0-alpha", "1.0-beta2", "1.0rc1", "1.0rc2", "v1.0", "1.0-post1", "1.0.1", "1.2", "1.10", "2"]
    keys = [version_key(version) for version in rising]
    assert keys == sorted(keys)
    assert all(earlier < later for earlier, later in itertools.pairwise(keys))


def test_names_without_a_version_come_last() -> None:
    assert newest_first(["latest", "1.9", "edge", "v1.10"]) == ["v1.10", "1.9", "latest", "edge"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    for name in ("app-1.9", "app-1.10", "app", "other-3"):
        built(tmp_path, name)
    return tmp_path / "store"


def built(place: Path, name: str, options: BuildOptions | None = None) -> None:
    (place / "source/file").write_text(f"content of {name}")
    options = options or BuildOptions(jobs=1, durable=False)
    build(place / "source", StoreReference(place / "store", name), options)


@pytest.mark.parametrize(
    ("target", "expected"),
    [("app-2", "app-1.10"), ("app@v1.1", "app-1.10"), ("app-1.9", "app-1.9"), ("other", "other-3"), ("more-1", None)],
)
def test_newest_base(store: Path, target: str, expected: str | None) -> None:
    found = newest_base(StoreReference(store, target), REMOTE)
    assert found == (None if expected is None else f"dir:{store}:{expected}")


def test_no_store_has_no_base(tmp_path: Path) -> None:
    assert newest_base(StoreReference(tmp_path / "none", "app"), REMOTE) is None
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_open_is_passed_over(store: Path) -> None:
    (store / "images/app-3").write_text("{}")
    assert newest_base(StoreReference(store, "app-4"), REMOTE) == f"dir:{store}:app-1.10"
    document, _ = LocalStore.open(store).image("app-1.10")
    LocalStore.open(store).delete_blob(document.blobs[0].digest)
    assert newest_base(StoreReference(store, "app-4"), REMOTE) == f"dir:{store}:app-1.9"


def test_images_with_other_trees_are_passed_over(store: Path) -> None:
    salted = TreeParams(HashAlgorithm.SHA256, b"salt")
    built(store.parent, "app-0.1", BuildOptions(jobs=1, durable=False, params=salted))
    target = StoreReference(store, "app-2")
    assert newest_base(target, REMOTE) == f"dir:{store}:app-1.10"
    assert newest_base(target, REMOTE, params=salted) == f"dir:{store}:app-0.1"
    assert newest_base(target, REMOTE, params=TreeParams(HashAlgorithm.SHA512)) is None


def test_every_tag_of_a_layout_is_a_version(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("content")
    for tag in ("stable", "alpine-3.1", "v2.0"):
        target = parse_reference(f"oci:{tmp_path}/layout:{tag}")
        build(tmp_path / "source", target, BuildOptions(jobs=1, durable=False))
    target = parse_reference(f"oci:{tmp_path}/layout:v3.0")
    assert not isinstance(target, StoreReference)
    assert newest_base(target, REMOTE) == f"oci:{tmp_path}/layout:alpine-3.1"  # type: ignore[arg-type]
