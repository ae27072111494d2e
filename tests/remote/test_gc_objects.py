"""Collecting native stores in object stores: the same rule, and an order of steps instead of a lock."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.s3 import S3Server, s3_options, s3_store
from tests.support.stores import Sample, fill, publish, publish_stack, sample_blob, sample_image

from eroseal.errors import FormatError, NotFoundError, RemoteError
from eroseal.format.digest import Digest
from eroseal.readat import BytesAt
from eroseal.store import gc_keyed, lease_places
from eroseal.store.garbage import Collected, CollectOptions
from eroseal.store.gc import collect
from eroseal.store.gc_keyed import collect_keyed
from eroseal.store.keyed import KeyedStore
from eroseal.store.lease import announced, lease
from eroseal.store.lease_places import KeyedLeases, Lease
from eroseal.store.reference import ObjectReference
from eroseal.trust.image import open_blob
from eroseal.trust.scan import scan_blob

pytestmark = pytest.mark.usefixtures("s3_server")

ROOT = Path(__file__).resolve().parents[2]
NAME = "0123456789abcdef" * 2


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


@pytest.fixture
def store(s3_server: S3Server, bucket: str) -> Iterator[KeyedStore]:
    with s3_store(s3_server.url, bucket, "place") as opened:
        yield opened


def run(store: KeyedStore, **options: object) -> Collected:
    return collect_keyed(store, CollectOptions(**{"grace": 0.0} | options), parallel=4)  # type: ignore[arg-type]


def put(store: KeyedStore, seed: int) -> Digest:
    digest, content = sample_blob(seed)
    store.put_blob(digest, BytesAt(content), jobs=1)
    return digest


def check_whole(store: KeyedStore) -> None:
    """Every image has every blob, and all of it verifies."""
    for name in store.list_images():
        for blob in store.image(name)[0].blobs:
            source = store.open_blob(blob.digest)
            scan_blob(source, open_blob(source, blob.digest), jobs=1)


def test_what_no_image_names_goes(store: KeyedStore, s3_server: S3Server, bucket: str) -> None:
    kept = publish(store, "kept", sample_image((1, 2)))
    stack = publish_stack(store, "stack", [sample_image((3,)), sample_image((4,), 1)])
    old = publish(store, "old", sample_image((2, 5)))
    store.delete_image("old")
    s3_server.call("PUT", f"{bucket}/place/blobs/notes", b"not ours")
    collected = run(store)
    assert {blob.digest for blob in collected.blobs} == {str(old.image), str(old.data[1].digest)}
    assert collected.kept == {"named": len(kept.blobs) + len(stack.blobs), "leased": 0, "young": 0}
    assert run(store).blobs == ()
    check_whole(store)
    assert [key for key in s3_server.keys(bucket) if not key.startswith("place/blobs/")] == [
        "place/images/kept",
        "place/images/stack",
    ]
    assert "place/blobs/notes" in s3_server.keys(bucket)


def test_by_reference(store: KeyedStore, s3_server: S3Server, bucket: str) -> None:
    digest = put(store, 1)
    place = ObjectReference("s3", bucket, "place", "x")
    collected = collect(place, CollectOptions(grace=0.0), s3_options(s3_server.url))
    assert [blob.digest for blob in collected.blobs] == [str(digest)]
    with pytest.raises(NotFoundError, match="no such bucket"):
        collect(ObjectReference("s3", "nobodys", "", "x"), CollectOptions(), s3_options(s3_server.url))


def test_young_and_leased_blobs_stay(store: KeyedStore, s3_server: S3Server, bucket: str) -> None:
    young = put(store, 1)
    assert run(store, grace=3600.0).kept["young"] == 1
    with lease(store, [young]):
        leased = put(store, 2)
        with lease(store, [leased]):
            assert run(store).kept == {"named": 0, "leased": 2, "young": 0}
        assert [blob.digest for blob in run(store).blobs] == [str(leased)]
    assert [blob.digest for blob in run(store).blobs] == [str(young)]
    assert s3_server.keys(bucket) == []


def test_a_dry_run_changes_nothing(
    store: KeyedStore, s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "kept", sample_image((1,)))
    garbage = put(store, 2)
    monkeypatch.setattr(lease_places, "LEASE_MARGIN", -10.0)
    KeyedLeases(store.keys).put(NAME, Lease.of([garbage], 1))
    before = s3_server.keys(bucket)
    told = run(store, dry_run=True)
    assert s3_server.keys(bucket) == before
    assert told == run(store)
    assert (len(told.blobs), told.leftovers) == (1, (f"leases/{NAME}",))
    assert len(s3_server.keys(bucket)) == len(before) - 2


@pytest.mark.parametrize("key", ["images/broken", f"leases/{NAME}"])
def test_nothing_goes_while_something_is_broken(store: KeyedStore, key: str) -> None:
    digest = put(store, 1)
    store.keys.put(key, b"{}")
    for dry_run in (True, False):
        with pytest.raises(FormatError, match="nothing is collected") as caught:
            run(store, dry_run=dry_run)
        assert caught.value.where == f"{store.where}/{key}"
    assert store.has_blob(digest)
    store.keys.delete(key)
    assert len(run(store).blobs) == 1


def test_batches(store: KeyedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc_keyed, "_BATCH", 2)
    done = []
    for seed in range(1, 6):
        put(store, seed)
    publish(store, "kept", sample_image((1,)))
    assert len(run(store, progress=done.append).blobs) == 4
    assert sum(done) == 6 + 4
    check_whole(store)


def test_deletions_end_before_their_announcement_does(store: KeyedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = put(store, 1)
    monkeypatch.setattr(gc_keyed, "_HURRY", -1.0)
    with pytest.raises(RemoteError, match="too slowly"):
        run(store)
    assert store.has_blob(digest)
    assert list(KeyedLeases(store.keys).listed()) == []


# Steps of others between ours


def test_an_image_that_appears_while_leases_are_read_is_seen(
    store: KeyedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer's lease ends after its document is there, so leases are looked at before documents."""
    sample = sample_image((1, 2))
    fill(store, sample)
    read, looks = gc_keyed.read_leases, []

    def late(*arguments: object) -> object:
        found = read(*arguments)  # type: ignore[arg-type]
        looks.append(None)
        if len(looks) == 2:
            store.put_image("late", sample.document)
        return found

    monkeypatch.setattr(gc_keyed, "read_leases", late)
    assert run(store).kept == {"named": 3, "leased": 0, "young": 0}
    check_whole(store)


def test_a_document_that_changed_a_moment_ago_is_read_again(store: KeyedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listings tell sizes and whole seconds: two documents of one size can look the same."""
    first, second = sample_image((1,)), sample_image((2,))
    publish(store, "x", first)
    fill(store, second)
    assert len(first.document.encode()) == len(second.document.encode())
    announce = gc_keyed.announced

    def late(place: KeyedLeases, digests: Iterator[Digest]) -> object:
        wanted = list(digests)
        if wanted:
            store.put_image("x", second.document, replace=True)
        return announce(place, wanted)

    monkeypatch.setattr(gc_keyed, "announced", late)
    assert run(store).blobs == ()
    check_whole(store)


def _with_lease(store: KeyedStore, sample: Sample, said: list[str]) -> Callable[[], None]:
    def write() -> None:
        with lease(store, [blob.digest for blob in sample.document.blobs]):
            said.append("begun")
            publish(store, "mine", sample)

    return write


def test_a_writer_waits_for_a_collection_that_may_take_what_it_wants(
    store: KeyedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = sample_image((1,))
    fill(store, sample)
    said: list[str] = []
    writer = threading.Thread(target=_with_lease(store, sample, said))
    read, looks = gc_keyed.read_leases, []

    def late(*arguments: object) -> object:
        found = read(*arguments)  # type: ignore[arg-type]
        looks.append(None)
        if len(looks) == 2:  # announced, and has just seen that there is no lease
            writer.start()
            writer.join(1.0)
            said.append("looked")
        return found

    monkeypatch.setattr(gc_keyed, "read_leases", late)
    assert len(run(store).blobs) == 2
    writer.join(30)
    assert said == ["looked", "begun"]
    check_whole(store)
    assert store.list_images() == ["mine"]


def test_a_writer_does_not_wait_for_other_collections(store: KeyedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, said = sample_image((1,)), list[str]()
    with announced(KeyedLeases(store.keys), [sample_blob(9)[0]]) as now:
        assert abs(now - time.time()) < 60
        _with_lease(store, sample, said)()
    # Nor for one that was killed, once its time is over.
    KeyedLeases(store.keys).put(f"{NAME}.gc", Lease.of([sample.document.image], 300))
    monkeypatch.setattr(lease_places, "LEASE_MARGIN", -400.0)
    with lease(store, [sample.document.image]):
        said.append("again")
    assert said == ["begun", "again"]
    assert run(store).leftovers == (f"leases/{NAME}.gc",)


def test_a_lease_is_renewed_and_given_back(store: KeyedStore) -> None:
    place = KeyedLeases(store.keys)
    with lease(store, [sample_blob(1)[0]], seconds=1):
        ((name, _),) = place.listed()
        place.remove(name)
        deadline = time.monotonic() + 20
        while place.modified(name) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert place.get(name) == Lease.of([sample_blob(1)[0]], 1)
    assert list(place.listed()) == []


_BUILDER = """
import sys
from eroseal.store.lease import lease
from tests.support.s3 import s3_store
from tests.support.stores import publish, sample_image

url, bucket, who, rounds = *sys.argv[1:4], int(sys.argv[4])
with s3_store(url, bucket, "place") as store:
    for number in range(rounds):
        sample = sample_image((number % 2, 2 + number % 3), number % 2)
        with lease(store, sample.blobs):
            publish(store, f"{who}-{number % 3}", sample, replace=True)
        if number % 2:
            store.delete_image(f"{who}-{number % 3}")
"""
_COLLECTOR = """
import sys
from pathlib import Path
from eroseal.store.garbage import CollectOptions
from eroseal.store.gc_keyed import collect_keyed
from tests.support.s3 import s3_store

with s3_store(sys.argv[1], sys.argv[2], "place") as store:
    collected, begun = 0, False
    while not Path(sys.argv[3]).exists():
        collected += len(collect_keyed(store, CollectOptions(grace=0.0), parallel=4).blobs)
        if not begun:
            print("at work", flush=True)
        begun = True
    print(collected)
"""


def test_builders_and_a_collector_in_one_bucket(
    store: KeyedStore, s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    """With no grace at all, so that leases alone protect."""

    def start(script: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, s3_server.url, bucket, *map(str, arguments)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    stop = tmp_path / "stop"
    collector = start(_COLLECTOR, stop)
    assert collector.stdout is not None
    assert collector.stdout.readline() == "at work\n"
    try:
        builders = [start(_BUILDER, who, 7) for who in ("a", "b")]
        assert [builder.communicate(timeout=100)[0] for builder in builders] == ["", ""]
        assert [builder.returncode for builder in builders] == [0, 0]
    finally:
        stop.touch()
        collected = int(collector.communicate(timeout=100)[0])
    assert collected > 0
    assert len(store.list_images()) > 1
    check_whole(store)
    run(store)
    named = {blob.digest for name in store.list_images() for blob in store.image(name)[0].blobs}
    assert set(store.list_blobs()) == named
