"""Collections while others write: what is published is whole, and what is leased or young is found where it was."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.unit.store_samples import add_blob, add_image, data_region, sealed_bytes

from eroseal.readat import BytesAt
from eroseal.store import gc_local
from eroseal.store.atomic import TemporaryDirectory, TemporaryFile, remove_abandoned
from eroseal.store.fsck import check_store
from eroseal.store.garbage import Collected, CollectOptions
from eroseal.store.gc_local import collect_local
from eroseal.store.lease import lease
from eroseal.store.local import LocalStore
from eroseal.store.reference import StoreReference
from eroseal.store.remote import RemoteOptions
from eroseal.store.transfer import CopyOptions, copy
from eroseal.store.trash import move_out

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 25

_BUILDER = """
import sys
from pathlib import Path
from tests.unit.store_samples import *
from eroseal.errors import NotFoundError
from eroseal.format.digest import Digest
from eroseal.store.lease import lease
from eroseal.store.local import LocalStore

place, who, rounds, leased = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "leased"
store = LocalStore.open(place, durable=False)
scratch = LocalStore.create(place.parent / f"scratch-{who}", durable=False)
lost = 0
for number in range(rounds):
    # Few contents for all: what one just deleted the next one counts on.
    seeds = [number % 3, 3 + number % 2]
    document = add_image(scratch, "x", seeds=seeds, label=number % 4, replace=True)
    name = f"{who}-{number % 5}"
    try:
        if leased:
            with lease(store, [blob.digest for blob in document.blobs]):
                add_image(store, name, seeds=seeds, label=number % 4, replace=True)
        else:
            add_image(store, name, seeds=seeds, label=number % 4, replace=True)
    except NotFoundError:
        assert not leased, "a leased blob went"
        lost += 1
        continue
    if number % 3 == 0:
        store.delete_image(name)
print(lost)
"""
_COLLECTOR = """
import sys
from pathlib import Path
from eroseal.store.garbage import CollectOptions
from eroseal.store.gc_local import collect_local
from eroseal.store.local import LocalStore

store, collected, begun = LocalStore.open(Path(sys.argv[1])), 0, False
while not Path(sys.argv[2]).exists():
    collected += len(collect_local(store, CollectOptions(grace=0.0)).blobs)
    if not begun:
        print("at work", flush=True)
    begun = True
print(collected)
"""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore.create(tmp_path / "store", durable=False)


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> int:
    """The last number that a process printed, when it has ended."""
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 0
    return int(output.split()[-1])


def collecting(store: LocalStore, stop: Path) -> subprocess.Popen[str]:
    """A collector that has begun."""
    process = start(_COLLECTOR, store.path, stop)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    return process


def test_builders_and_collectors_in_one_store(store: LocalStore) -> None:
    """With no grace at all: a lease alone protects, and whoever has none fails instead of publishing half an image."""
    stop = store.path.parent / "stop"
    collectors = [collecting(store, stop) for _ in range(2)]
    try:
        builders = [start(_BUILDER, store.path, f"leased{number}", ROUNDS, "leased") for number in range(2)]
        builders.append(start(_BUILDER, store.path, "bold", ROUNDS, "bold"))
        while any(builder.poll() is None for builder in builders):
            assert check_store(store).damage == ()
        assert [said(builder) for builder in builders[:2]] == [0, 0]
        said(builders[2])
    finally:
        stop.touch()
        collected = sum(map(said, collectors))
    assert collected > 0
    assert any(name.startswith("leased") for name in store.list_images())
    collect_local(store, CollectOptions(grace=0.0))
    report = check_store(store)
    assert (report.findings, report.unreferenced, report.in_progress) == ((), 0, 0)


def test_copies_into_a_store_that_is_collected(store: LocalStore) -> None:
    source = LocalStore.create(store.path.parent / "source", durable=False)
    for number in range(3):
        add_image(source, f"x{number}", seeds=[number, number + 1], label=number)
    stop = store.path.parent / "stop"
    collector = collecting(store, stop)
    try:
        for number in range(60):
            name = f"x{number % 3}"
            copied = copy(
                StoreReference(source.path, name),
                StoreReference(store.path, name),
                CopyOptions(replace=True, durable=False, jobs=1),
                remote=RemoteOptions(),
            )
            assert copied.image == source.image(name)[0].image
            if number % 2:
                store.delete_image(name)
    finally:
        stop.touch()
        collected = said(collector)
    assert collected > 0
    assert check_store(store).findings == ()
    assert list((store.path / "leases").iterdir()) == []


def test_a_killed_collection_leaves_garbage_and_no_damage(store: LocalStore, tmp_path: Path) -> None:
    document = add_image(store, "kept")
    for number in range(60):
        for seed in range(100 + 5 * number, 105 + 5 * number):
            add_blob(store, data_region(seed, blocks=1))
        process = start(_COLLECTOR, store.path, tmp_path / "never")
        for _ in range(number % 6):
            with pytest.raises(subprocess.TimeoutExpired):
                process.communicate(timeout=0.05)
        process.kill()
        process.communicate()
        if number % 10 == 9:
            assert check_store(store).damage == ()
        if number >= 11:
            break
    assert store.image("kept")[0] == document
    collect_local(store, CollectOptions(grace=0.0))
    report = check_store(store)
    assert (report.findings, report.unreferenced) == ((), 0)


def test_a_blob_that_became_young_on_its_way_out_goes_back(tmp_path: Path) -> None:
    path, trash = tmp_path / "blob", tmp_path / "trash"
    path.write_bytes(b"bytes")
    asked = []

    def condemned(modified: float) -> bool:
        asked.append(modified)
        os.utime(path if path.exists() else trash, (100 + len(asked),) * 2)
        return modified < 101 or modified > 1e9

    assert not move_out(path, trash, condemned)
    assert asked[1:] == [101]
    assert path.read_bytes() == b"bytes"


def test_a_blob_that_another_writer_stored_meanwhile_stays_the_new_one(tmp_path: Path) -> None:
    path, trash = tmp_path / "blob", tmp_path / "trash"
    path.write_bytes(b"old")

    def condemned(modified: float) -> bool:
        if path.exists():
            return True
        path.write_bytes(b"new")
        return False

    assert not move_out(path, trash, condemned)
    assert path.read_bytes() == b"new"
    path.unlink()
    assert not move_out(path, tmp_path / "more", lambda modified: True)


def test_what_is_published_between_the_two_looks_stays(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    document = add_image(store, "x")
    store.delete_image("x")
    for blob in document.blobs:
        os.utime(store.blob_path(blob.digest), (1, 1))
    lock = gc_local.exclusive_lock

    def late(path: Path) -> object:
        store.put_image("x", document)
        return lock(path)

    monkeypatch.setattr(gc_local, "exclusive_lock", late)
    assert collect_local(store, CollectOptions()) == Collected(
        blobs=(), kept={"named": 2, "leased": 0, "young": 0}, leftovers=()
    )
    assert check_store(store).findings == ()


def test_a_lease_waits_for_a_collection_and_then_knows_what_is_there(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can find a blob, count on it, and lose it: a lease is made before or after, never within."""
    digest, content = sealed_bytes(data_region(1))
    add_blob(store, data_region(1))
    os.utime(store.blob_path(digest), (1, 1))
    asked, found = threading.Event(), []

    def write() -> None:
        asked.set()
        with lease(store, [digest]):
            found.append(store.has_blob(digest))
            store.put_blob(digest, BytesAt(content, "blob"))
            found.append(collect_local(store, CollectOptions(grace=0.0)).kept["leased"])

    writer = threading.Thread(target=write)
    move = gc_local.move_out

    def slowly(path: Path, trash: Path, condemned: object) -> bool:
        writer.start()
        asked.wait()
        writer.join(0.2)
        assert found == []
        monkeypatch.undo()
        return move(path, trash, condemned)  # type: ignore[arg-type]

    monkeypatch.setattr(gc_local, "move_out", slowly)
    assert len(collect_local(store, CollectOptions()).blobs) == 1
    writer.join()
    assert found == [False, 1]
    assert store.has_blob(digest)


@pytest.mark.parametrize("kind", [TemporaryFile, TemporaryDirectory])
def test_a_file_that_a_cleaner_holds_at_its_birth_is_not_used(
    kind: type[TemporaryFile | TemporaryDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maker could not lock it, so the cleaner, or a later one, would take it for a leftover."""
    lock, held = fcntl.flock, list[int]()

    def flock(fd: int, operation: int) -> None:
        if not held:
            held.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
            lock(held[0], fcntl.LOCK_EX)
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    made = kind(tmp_path)
    os.close(held[0])
    assert remove_abandoned(tmp_path) == []
    assert list(tmp_path.iterdir()) == [made.path]
    made.discard()
    assert list(tmp_path.iterdir()) == []
