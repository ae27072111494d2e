"""Leases: what they keep, for how long, and how strictly they are read."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from tests.unit.store_samples import add_blob, add_image, data_region

from eroseal.errors import FormatError
from eroseal.format.digest import Digest, HashAlgorithm, TreeParams
from eroseal.limits import MAX_LEASE_SECONDS, MAX_LEASED
from eroseal.store import lease_places
from eroseal.store.fsck import check_store
from eroseal.store.garbage import Collected, CollectOptions
from eroseal.store.gc_local import collect_local
from eroseal.store.lease import lease
from eroseal.store.lease_places import LEASE_MARGIN, DirectoryLeases, Lease, has_run_out, read_leases
from eroseal.store.local import LocalStore

SHA512 = TreeParams(HashAlgorithm.SHA512)
NAME = "0123456789abcdef" * 2


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore.create(tmp_path / "store", durable=False)


def digests(count: int, algorithm: HashAlgorithm = HashAlgorithm.SHA256) -> list[Digest]:
    return [Digest(algorithm, number.to_bytes(algorithm.digest_size)) for number in range(count)]


def run(store: LocalStore) -> Collected:
    return collect_local(store, CollectOptions(grace=0.0))


def files(store: LocalStore) -> list[Path]:
    return list((store.path / "leases").iterdir())


def test_leased_blobs_stay_until_the_lease_ends(store: LocalStore) -> None:
    mine, other = add_blob(store, data_region(1)), add_blob(store, data_region(2), SHA512)
    with lease(store, [mine.digest]):
        collected = run(store)
        assert [blob.digest for blob in collected.blobs] == [str(other.digest)]
        assert collected.kept == {"named": 0, "leased": 1, "young": 0}
        assert len(files(store)) == 1
        assert check_store(store).findings == ()
    assert files(store) == []
    assert [blob.digest for blob in run(store).blobs] == [str(mine.digest)]


def test_a_lease_ends_with_its_holder(store: LocalStore) -> None:
    with pytest.raises(KeyboardInterrupt), lease(store, digests(1)):
        raise KeyboardInterrupt
    assert files(store) == []
    assert [thread.name for thread in threading.enumerate() if thread.name == "lease"] == []


def test_a_lease_on_too_many_keeps_all(store: LocalStore) -> None:
    blob = add_blob(store, data_region(1))
    with lease(store, digests(MAX_LEASED + 1)):
        assert b'"blobs":"all"' in files(store)[0].read_bytes()
        assert run(store).kept["leased"] == 1
    with lease(store, digests(MAX_LEASED)):
        assert [item.digest for item in run(store).blobs] == [str(blob.digest)]


def test_a_lease_is_renewed_while_it_is_held(store: LocalStore) -> None:
    with lease(store, digests(1), seconds=1):
        (path,) = files(store)
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.stat().st_mtime > time.time() - 20
        # A collection takes one that ran out while its holder slept: it comes back.
        path.unlink()
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert path.exists()
    assert files(store) == []


def test_a_lease_that_ran_out_keeps_nothing(store: LocalStore) -> None:
    blob = add_blob(store, data_region(1))
    place = DirectoryLeases(store)
    place.put(NAME, Lease.of([blob.digest], 100))
    for ago, kept in ((100 + LEASE_MARGIN - 20, 1), (100 + LEASE_MARGIN + 20, 0)):
        os.utime(store.path / "leases" / NAME, (time.time() - ago,) * 2)
        assert run(store).kept["leased"] == kept
        assert store.has_blob(blob.digest) == bool(kept)
        assert len(files(store)) == kept


def test_a_lease_that_ran_out_is_found_by_a_check(store: LocalStore) -> None:
    DirectoryLeases(store).put(NAME, Lease.of([], 100))
    os.utime(store.path / "leases" / NAME, (1, 1))
    (store.path / "leases" / "notes").write_text("not ours")
    findings = check_store(store).findings
    assert [(finding.kind, Path(finding.path).name) for finding in findings] == [
        ("stray-lease", NAME),
        ("foreign-file", "notes"),
    ]
    assert check_store(store).ok


def test_the_storage_tells_the_time_and_not_the_holder(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lives in the past or in the future has leases as good as anybody's, and deletes nothing early."""
    blob, document = add_blob(store, data_region(9)), add_image(store, "x")
    real = time.time
    for shift in (-10 * MAX_LEASE_SECONDS, 10 * MAX_LEASE_SECONDS):
        monkeypatch.setattr(time, "time", lambda shift=shift: real() + shift)
        with lease(store, [blob.digest]):
            monkeypatch.undo()
            assert run(store).kept["leased"] == 1
    monkeypatch.setattr(time, "time", lambda: real() + 10 * MAX_LEASE_SECONDS)
    assert collect_local(store, CollectOptions()).kept == {"named": len(document.blobs), "leased": 0, "young": 1}


@pytest.mark.parametrize("blobs", [[], digests(3), digests(MAX_LEASED, HashAlgorithm.SHA512), None])
def test_leases_are_read_as_they_were_written(blobs: list[Digest] | None) -> None:
    made = Lease(3600, None if blobs is None else frozenset(blobs))
    assert Lease.parse(made.encode(), where="here") == made


GOOD = Lease.of(digests(2), 60).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null\n",
        GOOD[:-1],
        GOOD + b"\n",
        GOOD.replace(b'"seconds":60', b'"seconds": 60'),
        GOOD.replace(b'"seconds":60', b'"seconds":60,"seconds":60'),
        GOOD.replace(b'"seconds":60', b'"seconds":0'),
        GOOD.replace(b'"seconds":60', b'"seconds":-1'),
        GOOD.replace(b'"seconds":60', b'"seconds":1e3'),
        GOOD.replace(b'"seconds":60', b'"seconds":%d' % (MAX_LEASE_SECONDS + 1)),
        GOOD.replace(b'"seconds":60', b'"seconds":%d' % 10**400),
        GOOD.replace(b"lease/1", b"lease/2"),
        GOOD.replace(b"sha256-12", b"sha256-13"),
        GOOD.replace(b"00000000", b"0000000g"),
        Lease.of(digests(2), 60).encode().replace(str(digests(2)[1]).encode(), str(digests(1)[0]).encode()),
        b'{"schema":"eroseal.lease/1","seconds":60,"blobs":"some"}\n',
        b'{"schema":"eroseal.lease/1","seconds":60,"blobs":[1]}\n',
        b'{"schema":"eroseal.lease/1","seconds":60,"blobs":[],"more":1}\n',
        b"[" * 100_000,
        b'{"schema":"eroseal.lease/1","seconds":60,"blobs":["\xff"]}\n',
    ],
)
def test_what_is_no_lease_is_refused(data: bytes, store: LocalStore) -> None:
    with pytest.raises(FormatError) as caught:
        Lease.parse(data, where="here")
    assert caught.value.where == "here"
    blob = add_blob(store, data_region(1))
    (store.path / "leases").mkdir()
    (store.path / "leases" / NAME).write_bytes(data)
    with pytest.raises(FormatError, match="nothing is collected"):
        run(store)
    assert store.has_blob(blob.digest)
    # Whatever it says, no lease lasts so long.
    os.utime(store.path / "leases" / NAME, (1, 1))
    assert len(run(store).blobs) == 1


def test_a_lease_of_any_size_is_bounded(store: LocalStore) -> None:
    (store.path / "leases").mkdir()
    with (store.path / "leases" / NAME).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="more than"):
        run(store)
    with pytest.raises(FormatError, match="at most"):
        Lease.parse(
            b'{"schema":"eroseal.lease/1","seconds":60,"blobs":[%s]}\n'
            % b",".join(b'"%s"' % str(digest).encode() for digest in digests(MAX_LEASED + 1)),
            where="here",
        )


def test_too_many_leases_are_refused(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_places, "MAX_LEASES", 10)
    data = Lease.of([], 60).encode()
    (store.path / "leases").mkdir()
    for number in range(11):
        (store.path / "leases" / f"{number:032x}").write_bytes(data)
    with pytest.raises(FormatError, match="leases"):
        run(store)


def test_leases_of_collections_keep_nothing() -> None:
    """They are found in a directory only if somebody copied an object store."""

    class Place:
        def listed(self) -> list[tuple[str, float]]:
            return [(f"{NAME}.gc", 1000.0), (NAME, 1000.0)]

        def get(self, name: str) -> Lease:
            return Lease.of(digests(1), 60)

    assert list(read_leases(Place(), 1001.0).live) == [NAME]  # type: ignore[arg-type]
    assert read_leases(Place(), 2000.0).dead == (f"{NAME}.gc", NAME)  # type: ignore[arg-type]
    assert not has_run_out(1000.0, 60, 1060 + LEASE_MARGIN)


def test_a_copy_that_fails_leaves_no_store(tmp_path: Path) -> None:
    store = LocalStore.create(tmp_path / "new")
    with lease(store, digests(1)):
        pass
    store.abandon()
    assert not (tmp_path / "new").exists()
