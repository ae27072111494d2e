"""Batches and copies: many blobs that appear together, and blobs that are verified on their way in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.unit.store_samples import (
    add_blob,
    add_image,
    data_region,
    seal_into,
    sealed_bytes,
    signature,
    tree,
)

from eroseal.errors import IntegrityError, NotFoundError, OutputError
from eroseal.format.digest import Digest
from eroseal.readat import BytesAt, FileAt
from eroseal.store.batch import BlobBatch
from eroseal.store.fsck import check_store
from eroseal.store.local import LocalStore
from eroseal.store.single import write_single


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore.create(tmp_path / "store", durable=False)


def add(batch: BlobBatch, seed: int) -> Digest:
    with batch.new_blob() as blob:
        sealed = seal_into(blob.fd, data_region(seed))
        assert blob.commit(sealed.digest) == sealed.size
        return sealed.digest


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_a_batch_appears_when_it_is_published(tmp_path: Path, durable: bool, count: int) -> None:
    store = LocalStore.create(tmp_path / "s", durable=durable)
    with store.batch() as batch:
        digests = [add(batch, seed) for seed in range(count)]
        assert list(store.list_blobs()) == []
        assert check_store(store).in_progress == 1
        assert batch.publish() == count
        assert sorted(digest.hex for digest in digests) == [digest.hex for digest in store.list_blobs()]
    assert check_store(store).findings == ()
    for seed, digest in enumerate(digests):
        assert store.blob_path(digest).read_bytes() == sealed_bytes(data_region(seed))[1]
        assert store.blob_path(digest).stat().st_mode & 0o222 == 0


def test_a_batch_that_is_not_published_vanishes(store: LocalStore) -> None:
    with pytest.raises(KeyboardInterrupt), store.batch() as batch:
        add(batch, 1)
        unfinished = batch.new_blob()
        raise KeyboardInterrupt
    unfinished.discard()
    assert os.listdir(store.path / "blobs") == []


def test_a_batch_keeps_what_is_there_and_heals_what_was_cut(store: LocalStore) -> None:
    kept, cut = add_blob(store, data_region(1)), add_blob(store, data_region(2))
    store.blob_path(cut.digest).chmod(0o600)
    os.truncate(store.blob_path(cut.digest), 4096)
    before = store.blob_path(kept.digest).stat().st_ino
    with store.batch() as batch:
        for seed in (1, 2, 3, 3):
            add(batch, seed)
        assert batch.publish() == 2
    assert store.blob_path(kept.digest).stat().st_ino == before
    assert check_store(store).ok
    assert len(list(store.list_blobs())) == 3


def test_a_batch_can_be_filled_and_published_again(store: LocalStore) -> None:
    with store.batch() as batch:
        add(batch, 1)
        assert batch.publish() == 1
        add(batch, 2)
        assert batch.publish() == 1
        assert batch.publish() == 0
    assert len(list(store.list_blobs())) == 2


def test_a_batch_takes_several_threads_and_few_descriptors(store: LocalStore) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with store.batch() as batch, ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda seed: add(batch, seed % 100), range(200)))
        assert len(os.listdir("/proc/self/fd")) <= before + 2
        assert batch.publish() == 100
    assert set(digests) == set(store.list_blobs())


def test_two_batches_of_the_same_blobs(store: LocalStore) -> None:
    start = threading.Barrier(2)

    def run(_: int) -> int:
        with LocalStore.open(store.path).batch() as batch:
            for seed in range(20):
                add(batch, seed)
            start.wait()
            return batch.publish()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, range(2))) == [20, 20]
    assert check_store(store).findings == ()
    assert len(list(store.list_blobs())) == 20


def test_a_killed_batch_is_litter_that_the_next_writer_removes(store: LocalStore) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from tests.unit.store_samples import *\n"
        "batch = LocalStore.open(Path(sys.argv[1])).batch()\n"
        "with batch.new_blob() as blob: blob.commit(seal_into(blob.fd, data_region(1)).digest)\n"
        "writer = batch.new_blob()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", script, store.path], check=False, cwd=root)
    assert result.returncode == -signal.SIGKILL
    report = check_store(store)
    assert [finding.kind for finding in report.findings] == ["stray-temporary"]
    assert report.ok
    with store.batch() as batch:
        add(batch, 2)
        batch.publish()
    assert check_store(store).findings == ()


def test_a_batch_that_cannot_be_moved_leaves_nothing(store: LocalStore) -> None:
    digest, _ = sealed_bytes(data_region(1))
    (store.path / "blobs" / digest.hex[:2]).touch()
    with pytest.raises(OutputError, match="cannot store blobs"), store.batch() as batch:
        add(batch, 1)
        batch.publish()
    assert os.listdir(store.path / "blobs") == [digest.hex[:2]]


# Copies


def test_a_blob_is_copied_and_verified(store: LocalStore, tmp_path: Path) -> None:
    digest, content = sealed_bytes(data_region(1, 300))
    assert store.put_blob(digest, BytesAt(content)) == len(content)
    assert store.blob_path(digest).read_bytes() == content
    other = LocalStore.create(tmp_path / "other", durable=False)
    with store.open_blob(digest) as source:
        assert other.put_blob(digest, source) == len(content)
        assert other.put_blob(digest, source) == len(content)
    assert tree(other.path / "blobs") == tree(store.path / "blobs")


def test_a_copy_leaves_behind_what_follows_the_records(store: LocalStore, tmp_path: Path) -> None:
    document = add_image(store, "x", record=[signature("s")])
    with store.open_blob(document.image) as meta:
        write_single(meta, [signature("s")], tmp_path / "x.erofs", durable=False)
    other = LocalStore.create(tmp_path / "other", durable=False)
    with FileAt(tmp_path / "x.erofs") as source:
        other.put_blob(document.image, source)
    assert other.blob_path(document.image).read_bytes() == store.blob_path(document.image).read_bytes()


def test_a_copy_of_a_bad_or_wrong_blob_never_appears(store: LocalStore) -> None:
    digest, content = sealed_bytes(data_region(1, 300))
    wrong, _ = sealed_bytes(data_region(2, 300))
    for offset in (0, 299 * 4096, 300 * 4096, 301 * 4096, 305 * 4096):
        flipped = bytearray(content)
        flipped[offset] ^= 1
        with pytest.raises(IntegrityError):
            store.put_blob(digest, BytesAt(bytes(flipped)))
    for bad in (content[:-4096], content[:4096], b""):
        with pytest.raises(IntegrityError):
            store.put_blob(digest, BytesAt(bad))
    with pytest.raises(IntegrityError):
        store.put_blob(wrong, BytesAt(content))
    assert list(store.list_blobs()) == []
    assert check_store(store).findings == ()
    with pytest.raises(NotFoundError):
        store.open_blob(digest)
