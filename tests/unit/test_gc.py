"""Collecting a store in a directory: what goes, what stays, and why."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.store_samples import (
    add_blob,
    add_image,
    data_region,
    run_as_user,
    sealed_bytes,
    signature,
    tree,
)

from eroseal.errors import FormatError, NotFoundError, UnsupportedError
from eroseal.format.digest import Digest
from eroseal.readat import BytesAt
from eroseal.store.atomic import TemporaryFile
from eroseal.store.document import StackDocument
from eroseal.store.fsck import check_store
from eroseal.store.garbage import Collected, CollectOptions
from eroseal.store.gc import collect
from eroseal.store.gc_local import collect_local
from eroseal.store.lanes import Lanes
from eroseal.store.layout import PARTIAL_PREFIX
from eroseal.store.local import LocalStore
from eroseal.store.partial import receive_blob
from eroseal.store.reference import parse_reference, parse_store
from eroseal.store.remote import RemoteOptions

HOUR = 3600.0
LONG_AGO = time.time() - 100 * 24 * HOUR


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore.create(tmp_path / "store", durable=False)


def age(store: LocalStore, *digests: Digest) -> None:
    """Make blobs old: all, unless some are named."""
    for digest in digests or tuple(store.list_blobs()):
        os.utime(store.blob_path(digest), (LONG_AGO, LONG_AGO))


def run(store: LocalStore, **options: object) -> Collected:
    return collect_local(store, CollectOptions(**options))  # type: ignore[arg-type]


def gone(collected: Collected) -> set[str]:
    return {blob.digest for blob in collected.blobs}


def test_what_no_image_names_goes(store: LocalStore) -> None:
    add_image(store, "kept", seeds=[1, 2])
    old = add_image(store, "old", seeds=[2, 3], label=1)
    store.delete_image("old")
    age(store)
    collected = run(store)
    assert gone(collected) == {str(old.image), str(old.data[1].digest)}
    assert sum(blob.size for blob in collected.blobs) == old.meta.size + old.data[1].size
    assert collected.kept == {"named": 3, "leased": 0, "young": 0}
    assert check_store(store).findings == ()
    assert check_store(store).unreferenced == 0
    assert store.has_image("kept")


def test_layers_of_stacks_are_named(store: LocalStore) -> None:
    layers = tuple(add_image(store, str(number), seeds=[number], label=number) for number in (1, 2))
    for number in (1, 2):
        store.delete_image(str(number))
    store.put_image("stack", StackDocument(layers))
    age(store)
    assert run(store, grace=0.0).blobs == ()
    store.delete_image("stack")
    assert len(run(store).blobs) == 4


def test_young_blobs_stay(store: LocalStore) -> None:
    first, second = add_blob(store, data_region(1)), add_blob(store, data_region(2))
    os.utime(store.blob_path(second.digest), (time.time() - 2 * HOUR,) * 2)
    assert run(store).kept["young"] == 2
    assert gone(run(store, grace=HOUR)) == {str(second.digest)}
    assert store.has_blob(first.digest)
    assert gone(run(store, grace=0.0)) == {str(first.digest)}


def test_a_clock_that_was_wrong_keeps_blobs(store: LocalStore) -> None:
    blob = add_blob(store, data_region(1))
    os.utime(store.blob_path(blob.digest), (time.time() + 100 * HOUR,) * 2)
    assert run(store, grace=0.0).blobs == ()


def _commit(store: LocalStore) -> None:
    add_blob(store, data_region(1))


def _put(store: LocalStore) -> None:
    digest, content = sealed_bytes(data_region(1))
    store.put_blob(digest, BytesAt(content, "blob"))


def _batch(store: LocalStore) -> None:
    digest, content = sealed_bytes(data_region(1))
    with store.batch() as batch:
        store.put_blob(digest, BytesAt(content, "blob"), batch=batch)
        batch.publish()


def _receive(store: LocalStore) -> None:
    digest, content = sealed_bytes(data_region(1))
    source = BytesAt(content, "blob")
    receive_blob(store.path / "blobs", store.blob_path(digest), digest, source, Lanes(), durable=False)


def _look(store: LocalStore) -> None:
    assert store.stored_size(sealed_bytes(data_region(1))[0])


@pytest.mark.parametrize("writer", [_commit, _put, _batch, _receive, _look])
def test_whoever_counts_on_a_blob_makes_it_young(store: LocalStore, writer: Callable[[LocalStore], None]) -> None:
    blob = add_blob(store, data_region(1))
    age(store)
    writer(store)
    assert run(store).kept == {"named": 0, "leased": 0, "young": 1}
    assert store.has_blob(blob.digest)


def test_a_blob_that_arrived_long_ago_is_young_once_it_is_whole(store: LocalStore) -> None:
    digest, content = sealed_bytes(data_region(1, blocks=2000))

    class Broken(BytesAt):
        def read_at(self, offset: int, length: int) -> bytes:
            if offset >= 4 << 20 and offset < len(content) - (1 << 20):
                raise NotFoundError("cut")
            return super().read_at(offset, length)

    place = store.path / "blobs"
    with pytest.raises(NotFoundError):
        receive_blob(place, store.blob_path(digest), digest, Broken(content, "blob"), Lanes(1), durable=False)
    (partial,) = place.glob(f"{PARTIAL_PREFIX}*")
    for path in (*partial.iterdir(), partial):
        os.utime(path, (LONG_AGO, LONG_AGO))
    receive_blob(place, store.blob_path(digest), digest, BytesAt(content, "blob"), Lanes(1), durable=False)
    assert run(store).kept["young"] == 1


def test_a_dry_run_changes_nothing(store: LocalStore) -> None:
    add_image(store, "kept")
    add_image(store, "old", seeds=[3], label=1, record=[signature("s")])
    (store.path / "images" / "old").unlink()
    age(store)
    (record,) = (store.path / "images").glob("old.*")
    os.utime(record, (LONG_AGO, LONG_AGO))
    (store.path / "blobs" / ".eroseal-tmp-1-abc").write_bytes(b"left")
    (store.path / "leases").mkdir()
    (store.path / "leases" / ("0" * 32)).write_text("whatever it says")
    os.utime(store.path / "leases" / ("0" * 32), (LONG_AGO, LONG_AGO))
    os.unlink(store.path / ".lock")
    before, times = tree(store.path), {path: path.lstat().st_mtime_ns for path in store.path.rglob("*")}
    told = run(store, dry_run=True)
    assert tree(store.path) == before
    assert {path: path.lstat().st_mtime_ns for path in store.path.rglob("*")} == times
    done = run(store)
    assert (told.blobs, told.kept, told.leftovers) == (done.blobs, done.kept, done.leftovers)
    assert (len(done.blobs), len(done.leftovers)) == (2, 3)
    assert check_store(store).findings == ()
    assert run(store) == replace(done, blobs=(), leftovers=())


def test_unfinished_files_go_with_their_writers(store: LocalStore) -> None:
    place = store.path / "blobs"
    with TemporaryFile(place) as alive:
        (place / ".eroseal-tmp-1-dead").write_bytes(b"x")
        (store.path / "images" / ".eroseal-tmp-1-dead").write_bytes(b"x")
        for digits, old in (("aa" * 32, True), ("bb" * 32, False)):
            partial = place / f"{PARTIAL_PREFIX}{digits}"
            partial.mkdir()
            for name in ("data", "map"):
                (partial / name).write_bytes(b"x")
            for path in (*partial.iterdir(), partial) if old else ():
                os.utime(path, (LONG_AGO, LONG_AGO))
        collected = run(store)
        assert alive.path.exists()
    assert [Path(path).name for path in collected.leftovers] == [
        f"{PARTIAL_PREFIX}{'aa' * 32}",
        ".eroseal-tmp-1-dead",
        ".eroseal-tmp-1-dead",
    ]
    assert not any(os.path.exists(path) for path in collected.leftovers)
    assert (place / f"{PARTIAL_PREFIX}{'bb' * 32}").is_dir()


def test_records_of_images_that_are_there_stay(store: LocalStore) -> None:
    document = add_image(store, "kept", record=[signature("s")])
    stray = store.record_path("gone", document.image)
    stray.write_bytes(store.record_path("kept", document.image).read_bytes())
    other = store.path / "images" / f"kept.{'0' * 32}.record"
    other.write_bytes(b"of the image that was called so before")
    for path in (store.path / "images").iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert run(store).leftovers == tuple(sorted((str(stray), str(other))))
    assert store.image("kept") == (document, [signature("s")])


@pytest.mark.parametrize("content", [b"", b"{}", b"x" * (17 << 20), b'{"schema":"eroseal.image/9"}\n'])
def test_nothing_goes_while_a_document_is_broken(store: LocalStore, content: bytes) -> None:
    blob = add_blob(store, data_region(1))
    age(store)
    path = store.path / "images" / "broken"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="nothing is collected") as caught:
        run(store, grace=0.0)
    assert caught.value.where == str(path)
    assert store.has_blob(blob.digest)
    path.unlink()
    assert gone(run(store)) == {str(blob.digest)}


@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "unreadable"])
@pytest.mark.parametrize("place", ["images/odd", f"leases/{'1' * 32}"])
def test_odd_files_stop_it_at_once(store: LocalStore, kind: str, place: str, tmp_path: Path) -> None:
    blob = add_blob(store, data_region(1))
    age(store)
    path = store.path / place
    path.parent.mkdir(exist_ok=True)
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to("/dev/zero")
        case "directory":
            path.mkdir()
        case _:
            path.write_bytes(b"\xff" * 100)
    with pytest.raises(FormatError, match="nothing is collected") as caught:
        run(store, grace=0.0)
    assert caught.value.where == str(path)
    assert store.has_blob(blob.digest)
    assert check_store(store).findings != ()


def test_a_linked_directory_of_leases_is_not_followed(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (store.path / "leases").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match="not a directory"):
        run(store)
    assert [finding.kind for finding in check_store(store).findings] == ["stray-lease"]


def test_foreign_files_are_left_alone(store: LocalStore, tmp_path: Path) -> None:
    blob = add_blob(store, data_region(1))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "map").write_bytes(b"mine")
    digits = blob.digest.hex
    odd = [
        store.path / "notes",
        store.path / "blobs" / "notes",
        store.path / "blobs" / digits[:2] / "notes",
        store.path / "images" / ".hidden",
    ]
    for path in odd:
        path.write_bytes(b"x")
    (store.path / "blobs" / digits[:2] / ("0" * 62)).symlink_to(outside / "map")
    (store.path / "blobs" / digits[:2] / ("1" * 62)).mkdir()
    (store.path / "blobs" / f"{PARTIAL_PREFIX}{digits}").symlink_to(outside)
    os.utime(outside / "map", (LONG_AGO, LONG_AGO))
    os.utime(outside, (LONG_AGO, LONG_AGO))
    age(store, blob.digest)
    collected = run(store, grace=0.0)
    assert (gone(collected), collected.leftovers) == ({str(blob.digest)}, ())
    assert all(path.exists() for path in odd)
    assert (outside / "map").read_bytes() == b"mine"


def test_a_blob_that_was_cut_short_goes_as_others(store: LocalStore) -> None:
    blob = add_blob(store, data_region(1))
    store.blob_path(blob.digest).chmod(0o600)
    os.truncate(store.blob_path(blob.digest), 100)
    assert [item.size for item in run(store, grace=0.0).blobs] == [100]


def test_a_store_that_is_not_ours_to_change_says_so(tmp_path: Path) -> None:
    place = tmp_path / "place"
    store = LocalStore.create(tmp_path / "store", durable=False)
    blob = add_blob(store, data_region(1))
    age(store)
    place.mkdir()
    os.rename(store.path, place / "store")
    place.chmod(0o755)
    script = (
        "from eroseal.store.gc_local import collect_local\nfrom eroseal.store.garbage import CollectOptions\n"
        "try:\n    collect_local(LocalStore.open(Path('store')), CollectOptions())\n"
        "except OutputError as error:\n    print(error)\n"
        "print(len(collect_local(LocalStore.open(Path('store')), CollectOptions(dry_run=True)).blobs))\n"
    )
    assert "permission denied" in run_as_user(place, script)
    assert run_as_user(place, script).splitlines()[-1] == "1"
    assert LocalStore.open(place / "store").has_blob(blob.digest)


def test_an_image_counts_on_a_blob_that_just_went(store: LocalStore) -> None:
    """What is published is whole, or is not published."""
    document = add_image(store, "x")
    store.delete_image("x")
    age(store)
    run(store)
    with pytest.raises(NotFoundError, match="not in the store"):
        store.put_image("x", document)
    assert store.list_images() == []


@pytest.mark.parametrize("place", ["docker://localhost:1/repo", "https://localhost:1/store"])
def test_what_cannot_be_collected_says_who_does_it(place: str) -> None:
    with pytest.raises(UnsupportedError, match="collect"):
        collect(parse_store(place).reference, CollectOptions(), RemoteOptions())


def test_a_store_that_is_missing_is_not_made(tmp_path: Path) -> None:
    for text in (f"dir:{tmp_path}/none:x", f"oci:{tmp_path}/none:x"):
        with pytest.raises(NotFoundError):
            collect(parse_reference(text), CollectOptions(), RemoteOptions())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
