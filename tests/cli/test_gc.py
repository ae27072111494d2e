"""`eroseal gc`: removes what nobody needs, and says what."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.cli.conftest import Run, Samples, files_below
from tests.support.program import NO_OVERRIDE, eroseal

from eroseal.store.fsck import check_store
from eroseal.store.local import LocalStore

LONG_AGO = time.time() - 100 * 24 * 3600


@pytest.fixture
def doomed(place: Path) -> Path:
    """Give the store of `place`, whose image is gone and whose blobs are old."""
    store = LocalStore.open(place / "store")
    store.delete_image("app")
    for digest in store.list_blobs():
        os.utime(store.blob_path(digest), (LONG_AGO, LONG_AGO))
    return place / "store"


def test_a_store_in_use_stays_as_it_is(run: Run, place: Path) -> None:
    run("gc", "store")
    before = files_below(place / "store")
    done = run("gc", "store", "--grace", "0")
    assert (done.text, done.err) == ("removed 0 blobs, 0, and 0 leftovers; kept 2 in use, 0 leased, 0 young\n", "")
    assert files_below(place / "store") == before
    run("verify", "dir:store:app", "--insecure")


def test_dry_run_then_for_real(run: Run, doomed: Path) -> None:
    before = files_below(doomed)
    told = run("gc", "dir:store", "--dry-run")
    lines = told.text.splitlines()
    assert files_below(doomed) == before
    assert [line.partition(":")[0] for line in lines[:-1]] == ["blob", "blob"]
    assert lines[-1].startswith("would remove 2 blobs, ")
    done = run("gc", "dir:store")
    assert done.last == lines[-1].replace("would remove", "removed")
    assert check_store(LocalStore.open(doomed)).blobs == 0


def test_the_document(run: Run, doomed: Path) -> None:
    (doomed / "blobs" / ".eroseal-tmp-1-a\udcff\n").write_bytes(b"left")
    blobs = [
        {"digest": f"fsverity-sha256-12:{path.parent.name}{path.name}", "size": path.stat().st_size}
        for path in sorted(doomed.glob("blobs/*/*"))
    ]
    expected = {
        "schema": "eroseal.gc/1",
        "store": "dir:store",
        "dry_run": True,
        "grace": 86_400.0,
        "blobs": blobs,
        "bytes": sum(blob["size"] for blob in blobs),
        "kept": {"named": 0, "leased": 0, "young": 0},
        "leftovers": ["store/blobs/.eroseal-tmp-1-a\udcff\n"],
    }
    assert run("gc", "store", "--dry-run").text.splitlines()[2] == ("leftover: store/blobs/.eroseal-tmp-1-a\\xff\\x0a")
    assert run("gc", "store", "--dry-run", "--json").document == expected
    assert run("gc", "store", "--json").document == expected | {"dry_run": False}
    assert run("gc", "store", "--json", "--grace", "7d").document == expected | {
        "dry_run": False,
        "grace": 604_800.0,
        "blobs": [],
        "bytes": 0,
        "leftovers": [],
    }


@pytest.mark.parametrize(("grace", "kept"), [("5000s", 0), ("80m", 0), ("2h", 2), ("9000", 2)])
def test_grace(run: Run, doomed: Path, grace: str, kept: int) -> None:
    for path in doomed.glob("blobs/*/*"):
        os.utime(path, (time.time() - 90 * 60,) * 2)
    assert run("gc", "store", "--dry-run", "--json", "--grace", grace).document["kept"]["young"] == kept


@pytest.mark.parametrize("grace", ["", "-1", "1.5h", "\u0661h"])
def test_what_is_no_duration(run: Run, grace: str) -> None:
    assert "not a duration" in run("gc", "store", "--grace", grace, code=2).error


def test_a_broken_document(run: Run, doomed: Path) -> None:
    (doomed / "images" / "broken").write_bytes(b"{}")
    before = files_below(doomed)
    for options in ([], ["--dry-run"], ["--json"]):
        refused = run("gc", "store", *options, code=3)
        assert refused.out == b""
        assert refused.error.startswith("store/images/broken: ")
        assert "nothing is collected" in refused.error
    assert files_below(doomed) == before


@pytest.mark.parametrize(
    ("store", "code", "text"),
    [
        ("nowhere", 1, "no store here"),
        ("oci:nowhere", 1, "is not an OCI image layout"),
        ("docker://localhost:1/repo", 1, "a registry collects blobs itself"),
        ("https://localhost:1/store", 1, "a web server can only be read from"),
        ("", 2, "a reference is empty"),
    ],
)
def test_what_cannot_be_collected(run: Run, store: str, code: int, text: str) -> None:
    assert text in run("gc", store, code=code).error


def test_a_layout(run: Run, place: Path) -> None:
    run("copy", "dir:store:app", "oci:layout:app", "--no-sync")
    (place / "layout/blobs/sha256" / ("0" * 64)).write_bytes(b"x" * 5)
    assert run("gc", "oci:layout", "--json").document["kept"] == {"named": 4, "leased": 0, "young": 1}
    document = run("gc", "oci:layout", "--grace", "0", "--json").document
    assert document["blobs"] == [{"digest": f"sha256:{'0' * 64}", "size": 5}]
    assert document["store"] == "oci:layout"
    run("verify", "oci:layout:app", "--insecure")


def test_blobs_of_a_base_stay_with_the_image_on_it(run: Run, place: Path, samples: Samples) -> None:
    run("build", samples.tree, "dir:store:next", "--base", "dir:store:app", "--no-sync")
    LocalStore.open(place / "store").delete_image("app")
    run("gc", "store", "--grace", "0")
    run("verify", "dir:store:next", "--insecure")
    assert check_store(LocalStore.open(place / "store")).findings == ()


def test_the_store_itself_is_read_only(place: Path, doomed: Path) -> None:
    (doomed / "blobs").chmod(0o555)
    refused = eroseal("gc", "store", cwd=place, code=1, wrapper=NO_OVERRIDE)
    assert "permission denied" in refused.error
    assert eroseal("gc", "store", "--dry-run", cwd=place, wrapper=NO_OVERRIDE).text.startswith("blob: ")
