"""The native store: blobs, documents and records with real files, and what happens when things go wrong."""

from __future__ import annotations

import multiprocessing
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from tests.unit.store_samples import (
    SHA256,
    add_blob,
    add_image,
    data_region,
    meta_region,
    seal_into,
    sealed_bytes,
    signature,
    tree,
)

from eroseal.errors import FormatError, NotFoundError, OutputError, UsageError
from eroseal.format.digest import Digest, HashAlgorithm, TreeParams
from eroseal.format.record import ACCESS_TRACE, RecordEntry
from eroseal.store.atomic import TEMPORARY_PREFIX, is_temporary
from eroseal.store.document import BlobInfo, ImageDocument
from eroseal.store.local import LocalStore
from eroseal.store.protocol import BlobStore, ImageStore
from eroseal.store.resolve import resolve
from eroseal.trust.image import open_blob, open_self_consistent_image
from eroseal.trust.scan import scan_blob


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore.create(tmp_path / "store", durable=False)


# Creating and opening


def test_create_makes_a_store_and_open_finds_it(tmp_path: Path) -> None:
    created = LocalStore.create(tmp_path / "s")
    assert sorted(os.listdir(created.path)) == ["blobs", "images"]
    assert LocalStore.open(tmp_path / "s").list_images() == []
    assert LocalStore.create(tmp_path / "s").list_images() == []


def test_create_takes_an_empty_directory_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    LocalStore.create(tmp_path / "empty")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(OutputError, match="not a store, and not empty"):
        LocalStore.create(tmp_path / "home")
    assert os.listdir(tmp_path / "home") == ["letter"]
    with pytest.raises(OutputError, match="not a directory"):
        LocalStore.create(tmp_path / "home" / "letter")
    with pytest.raises(OutputError, match="no such directory"):
        LocalStore.create(tmp_path / "missing" / "store")


def test_open_refuses_what_is_no_store(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NotFoundError, match="no store here"):
            LocalStore.open(path)


def test_abandon_removes_only_what_create_made_and_nobody_used(tmp_path: Path) -> None:
    LocalStore.create(tmp_path / "new").abandon()
    assert not (tmp_path / "new").exists()
    used = LocalStore.create(tmp_path / "used", durable=False)
    info = add_blob(used, data_region(1))
    used.abandon()
    assert used.has_blob(info.digest)
    (tmp_path / "given").mkdir()
    LocalStore.create(tmp_path / "given").abandon()
    assert os.listdir(tmp_path / "given") == []
    LocalStore.open(used.path).abandon()
    assert used.has_blob(info.digest)


# Blobs


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_a_blob_lands_under_its_digest(tmp_path: Path, durable: bool, algorithm: HashAlgorithm) -> None:
    store: BlobStore = LocalStore.create(tmp_path / "s", durable=durable)
    digest, expected = sealed_bytes(data_region(1), TreeParams(algorithm))
    with store.new_blob() as blob:
        assert blob.path.parent == tmp_path / "s" / "blobs"
        sealed = seal_into(blob.fd, data_region(1), TreeParams(algorithm))
        assert not store.has_blob(digest)
        assert blob.commit(sealed.digest) == len(expected)
    path = tmp_path / "s" / "blobs" / digest.hex[:2] / digest.hex[2:]
    assert path.read_bytes() == expected
    assert stat.S_IMODE(path.stat().st_mode) & 0o222 == 0
    assert store.has_blob(digest)
    assert list(store.list_blobs()) == [digest]
    source = store.open_blob(digest)
    assert scan_blob(source, open_blob(source, digest)) == []
    source.close()
    source.close()
    assert os.listdir(tmp_path / "s" / "blobs") == [digest.hex[:2]]


def test_a_blob_that_is_not_committed_vanishes(store: LocalStore) -> None:
    with store.new_blob() as blob:
        seal_into(blob.fd, data_region(1))
    with pytest.raises(KeyboardInterrupt), store.new_blob() as blob:
        seal_into(blob.fd, data_region(1))
        raise KeyboardInterrupt
    assert blob.fd == -1
    assert os.listdir(store.path / "blobs") == []


def test_a_worker_may_write_by_path(store: LocalStore) -> None:
    digest, expected = sealed_bytes(data_region(2))
    with store.new_blob() as blob:
        blob.path.write_bytes(expected)
        assert blob.commit(digest) == len(expected)
    assert store.blob_path(digest).read_bytes() == expected


def test_a_blob_that_is_there_is_kept(store: LocalStore) -> None:
    first = add_blob(store, data_region(1))
    os.utime(store.blob_path(first.digest), (1, 1))
    before = store.blob_path(first.digest).stat()
    assert add_blob(store, data_region(1)) == first
    after = store.blob_path(first.digest).stat()
    assert before.st_ino == after.st_ino
    assert after.st_mtime > time.time() - 60, "a collection must not find it old"
    assert len(list(store.list_blobs())) == 1


@pytest.mark.parametrize("keep", [0, 10, 4096, -4096, -1])
def test_a_blob_that_was_cut_short_is_written_again(store: LocalStore, keep: int) -> None:
    info = add_blob(store, data_region(1))
    path = store.blob_path(info.digest)
    whole = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(whole[:keep])
    assert add_blob(store, data_region(1)) == info
    assert path.read_bytes() == whole


def test_missing_blobs_are_named(store: LocalStore) -> None:
    digest = Digest(HashAlgorithm.SHA256, bytes(32))
    with pytest.raises(NotFoundError, match="fsverity-sha256-12:0000"):
        store.open_blob(digest)
    with pytest.raises(NotFoundError, match="fsverity-sha256-12:0000"):
        store.delete_blob(digest)
    info = add_blob(store, data_region(1))
    store.delete_blob(info.digest)
    assert not store.has_blob(info.digest)


def test_listing_passes_over_what_is_not_a_blob(store: LocalStore) -> None:
    info = add_blob(store, data_region(1))
    blobs = store.path / "blobs"
    (blobs / "zz").mkdir()
    (blobs / "AB").mkdir()
    (blobs / "AB" / ("c" * 62)).touch()
    (blobs / "ab").mkdir(exist_ok=True)
    for name in ("c" * 61, "c" * 63, "C" * 62, "README"):
        (blobs / "ab" / name).touch()
    (blobs / "cd").touch()
    assert list(store.list_blobs()) == [info.digest]


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_only_plain_files_are_opened(store: LocalStore, tmp_path: Path, kind: str) -> None:
    digest, content = sealed_bytes(data_region(1))
    path = store.blob_path(digest)
    path.parent.mkdir()
    (tmp_path / "elsewhere").write_bytes(content)
    if kind == "fifo":
        os.mkfifo(path)  # opening it would wait for a writer for ever
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
    with pytest.raises(FormatError, match="not a plain file"):
        store.open_blob(digest)


# Images


def test_an_image_is_published_read_and_deleted(store: LocalStore) -> None:
    images: ImageStore = store
    entries = [signature("one"), RecordEntry(ACCESS_TRACE, b"trace")]
    document = add_image(store, "base", seeds=(1, 2), record=entries)
    assert images.list_images() == ["base"]
    assert images.image("base") == (document, entries)
    assert document.meta.digest == document.image
    assert [blob.data_size for blob in document.data] == [3 * 4096, 3 * 4096]
    images.delete_image("base")
    assert os.listdir(store.path / "images") == []
    assert len(list(store.list_blobs())) == 3
    with pytest.raises(NotFoundError, match="no image has this name"):
        images.image("base")
    with pytest.raises(NotFoundError, match="no image has this name"):
        images.delete_image("base")


def test_an_unsigned_image_has_no_record(store: LocalStore) -> None:
    document = add_image(store, "plain")
    assert store.image("plain") == (document, [])
    assert os.listdir(store.path / "images") == ["plain"]


def test_a_name_that_is_taken_is_refused_unless_replaced(store: LocalStore) -> None:
    first = add_image(store, "x", record=[signature("first")])
    before = tree(store.path / "images")
    with pytest.raises(OutputError, match="exists already") as caught:
        add_image(store, "x", label=7)
    assert caught.value.hint is not None
    assert tree(store.path / "images") == before
    with pytest.raises(OutputError, match="exists already"):
        store.require_new("x")
    store.require_new("y")
    second = add_image(store, "x", label=7, record=[signature("second")], replace=True)
    assert second.image != first.image
    assert store.image("x") == (second, [signature("second")])
    assert len(os.listdir(store.path / "images")) == 2
    add_image(store, "x", label=8, replace=True)
    assert os.listdir(store.path / "images") == ["x"]


def test_names_that_share_a_beginning_do_not_share_records(store: LocalStore) -> None:
    for name in ("a", "a.b", "a.0123456789abcdef0123456789abcdef"):
        add_image(store, name, record=[signature(name)])
    store.delete_image("a")
    assert store.image("a.b")[1] == [signature("a.b")]
    name = "a.0123456789abcdef0123456789abcdef"
    assert store.image(name)[1] == [signature(name)]
    store.delete_image("a.b")
    assert store.image(name)[1] == [signature(name)]


def test_the_longest_name_works_with_the_longest_digest(store: LocalStore) -> None:
    params = TreeParams(HashAlgorithm.SHA512, b"salt")
    document = add_image(store, "n" * 128, record=[signature("s")], params=params)
    assert store.image("n" * 128) == (document, [signature("s")])


def test_an_image_needs_its_blobs(store: LocalStore) -> None:
    document = add_image(store, "x")
    gone = document.data[0]
    store.delete_blob(gone.digest)
    with pytest.raises(NotFoundError, match=gone.digest.hex):
        store.put_image("y", document)
    larger = replace(document.meta, size=document.meta.size + 4096)
    with pytest.raises(OutputError, match="document says"):
        store.put_image("y", ImageDocument(document.image, (larger,)))
    assert store.list_images() == ["x"]


def test_records_change_alone(store: LocalStore) -> None:
    document = add_image(store, "x")
    blobs = tree(store.path / "blobs")
    text = store.image_path("x").read_bytes()
    assert store.update_record("x", lambda old: [*old, signature("a")]) == [signature("a")]
    assert store.update_record("x", lambda old: [*old, signature("b")]) == [signature("a"), signature("b")]
    assert store.image("x") == (document, [signature("a"), signature("b")])
    assert store.update_record("x", lambda _: []) == []
    assert store.image("x") == (document, [])
    assert tree(store.path / "blobs") == blobs
    assert store.image_path("x").read_bytes() == text
    with pytest.raises(NotFoundError):
        store.update_record("y", lambda old: old)


def test_a_record_that_could_not_be_read_is_not_written(store: LocalStore) -> None:
    add_image(store, "x", record=[signature("good")])
    twice = [RecordEntry(ACCESS_TRACE, b"1"), RecordEntry(ACCESS_TRACE, b"2")]
    with pytest.raises(OutputError, match="repeats entry type 21"):
        store.update_record("x", lambda _: twice)
    with pytest.raises(OutputError, match="repeats entry type 21"):
        add_image(store, "y", record=twice)
    assert store.image("x")[1] == [signature("good")]
    assert store.list_images() == ["x"]


def test_an_error_in_a_change_leaves_the_record(store: LocalStore) -> None:
    add_image(store, "x", record=[signature("good")])

    def refuse(_: list[RecordEntry]) -> list[RecordEntry]:
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        store.update_record("x", refuse)
    assert store.image("x")[1] == [signature("good")]
    store.update_record("x", lambda old: old)  # the lock is free again


def test_a_broken_record_is_refused(store: LocalStore) -> None:
    document = add_image(store, "x", record=[signature("good")])
    path = store.record_path("x", document.image)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="truncated") as caught:
        store.image("x")
    assert str(path) in str(caught.value)


# Documents


def test_a_document_has_one_spelling(store: LocalStore) -> None:
    document = add_image(store, "x", seeds=(1, 2))
    data = store.image_path("x").read_bytes()
    assert data == document.encode()
    assert ImageDocument.parse(data) == document
    assert data.startswith(b'{"schema":"eroseal.image/1","image":"fsverity-sha256-12:')
    assert data.endswith(b"}]}\n")


@cache
def _hostile_documents() -> dict[str, bytes]:
    meta = BlobInfo(Digest(HashAlgorithm.SHA256, b"\1" * 32), 4096, 12288)
    other = BlobInfo(Digest(HashAlgorithm.SHA256, b"\2" * 32), 4096, 12288)
    good = ImageDocument(meta.digest, (meta, other)).encode()
    blob = good[good.index(b"[") + 1 : good.index(b"}") + 1]
    digits = b"01" * 32

    def swap(old: bytes, new: bytes) -> bytes:
        assert good.replace(old, new, 1) != good
        return good.replace(old, new, 1)

    return {
        "empty": b"",
        "nothing": b"{}\n",
        "null": b"null\n",
        "list": b"[]\n",
        "no JSON": b"\x7fELF",
        "not UTF-8": swap(b"fsverity", b"\xff\xfeverity"),
        "cut short": good[:-5],
        "no newline": good[:-1],
        "trailing garbage": good + b"x",
        "second document": good + good,
        "spaces": swap(b",", b", "),
        "unknown field": swap(b'"image"', b'"extra":1,"image"'),
        "unknown field of a blob": swap(b'"size"', b'"path":"/etc/passwd","size"'),
        "missing field": swap(b'"data_size":4096,', b""),
        "repeated key": swap(b'"image"', b'"schema":"eroseal.image/1","image"'),
        "repeated list": swap(b'"blobs"', b'"blobs":[],"blobs"'),
        "other schema": swap(b"eroseal.image/1", b"eroseal.image/2"),
        "no schema": swap(b'"schema":"eroseal.image/1",', b""),
        "number as text": swap(b"4096", b'"4096"'),
        "fraction": swap(b"4096", b"4096.5"),
        "integral fraction": swap(b"4096", b"4096.0"),
        "truth": swap(b"4096", b"true"),
        "negative": swap(b"4096", b"-4096"),
        "zero": swap(b'"data_size":4096', b'"data_size":0'),
        "not whole blocks": swap(b'"data_size":4096', b'"data_size":4097'),
        "beyond 64 bits": swap(b"4096", b"9" * 40),
        "many digits": swap(b"4096", b"9" * 10_000),
        "smaller than its seal": swap(b'"size":12288', b'"size":8192'),
        "larger than a file": swap(b'"size":12288', b'"size":18446744073709551615'),
        "digest is a path": swap(digits, b"../" * 20 + b"etc/"),
        "digest in capitals": swap(digits, b"0A" * 32),
        "digest too short": swap(digits, b"01" * 31),
        "digest of another kind": swap(b"fsverity-sha256-12:", b"sha256:"),
        "digest is a list": swap(b'"' + b"fsverity-sha256-12:" + digits + b'"', b"[" * 5000 + b"]" * 5000),
        "no blobs": good[: good.index(b"[") + 1] + b"]}\n",
        "first is not the meta blob": swap(blob + b",", b""),
        "meta blob as data": swap(blob, blob + b"," + blob),
        "two sizes for one blob": good[:-3] + b"," + good[good.rindex(b"{") : -4] + b"4}]}\n",
        "mixed algorithms": swap(b"fsverity-sha256-12:" + b"02" * 32, b"fsverity-sha512-12:" + b"02" * 64),
        "deep nesting": b'{"schema":' * 100_000,
        "too many blobs": good[:-3] + (b"," + good[good.rindex(b"{") : -3]) * 65_535 + b"]}\n",
        "too long": good + b" " * (16 << 20),
    }


@pytest.mark.parametrize("case", _hostile_documents())
def test_hostile_documents_are_refused(store: LocalStore, case: str) -> None:
    add_image(store, "x")
    store.image_path("x").write_bytes(_hostile_documents()[case])
    with pytest.raises(FormatError) as caught:
        store.image("x")
    assert str(store.image_path("x")) in str(caught.value)
    with pytest.raises(FormatError):
        store.update_record("x", lambda old: old)


def test_a_data_blob_may_serve_as_several_devices(store: LocalStore) -> None:
    document = add_image(store, "x", seeds=(1, 2, 1))
    assert len(document.blobs) == 4
    assert store.image("x")[0] == document
    with resolve(f"dir:{store.path}:x") as image:
        opened = open_self_consistent_image(image.meta, open_data=image.open_data)
        assert opened.device(0).digest == opened.device(2).digest == document.data[0].digest


def test_the_largest_document_fits_its_bound() -> None:
    algorithm = HashAlgorithm.SHA512
    size, total = 1 << 60, (1 << 63) - 1
    blobs = [BlobInfo(Digest(algorithm, n.to_bytes(64, "big")), size, total) for n in range(65_536)]
    document = ImageDocument(blobs[0].digest, tuple(blobs))
    assert ImageDocument.parse(document.encode()) == document


@pytest.mark.parametrize("kind", ["fifo", "directory", "link"])
def test_documents_are_plain_files(store: LocalStore, kind: str) -> None:
    path = store.image_path("x")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/etc/passwd")
    with pytest.raises(FormatError, match="not a plain file"):
        store.image("x")
    with pytest.raises(OutputError, match="exists already"):
        add_image(store, "x")


# Resolving


def test_a_reference_opens_the_image(store: LocalStore) -> None:
    document = add_image(store, "x", seeds=(1, 2), record=[signature("a")])
    with resolve(f"dir:{store.path}:x") as image:
        assert image.record == (signature("a"),)
        assert image.document == document
        opened = open_self_consistent_image(image.meta, open_data=image.open_data)
        assert opened.digest == document.image
        assert [device.digest for device in opened.devices] == [blob.digest for blob in document.data]
        assert opened.device(1).read_at(0, 3 * 4096) == data_region(2)
        opened.close()
        assert image.blob_path(document.data[0].digest) == store.blob_path(document.data[0].digest)
        assert image.blob_path(Digest(HashAlgorithm.SHA256, bytes(32))) is None
        image.update_record(lambda old: [*old, signature("b")])
    assert store.image("x")[1] == [signature("a"), signature("b")]


def test_references_to_nothing_say_so(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no image has this name"):
        resolve(f"dir:{store.path}:missing")
    with pytest.raises(NotFoundError, match="no store here"):
        resolve(f"dir:{tmp_path}:x")
    document = add_image(store, "x")
    with pytest.raises(UsageError, match="no data files"):
        resolve(f"dir:{store.path}:x", data_files=[tmp_path])
    store.delete_blob(document.image)
    with pytest.raises(NotFoundError, match=document.image.hex):
        resolve(f"dir:{store.path}:x")


# Several at once


def test_two_writers_of_one_blob_both_succeed(store: LocalStore) -> None:
    digest, expected = sealed_bytes(data_region(1, blocks=40))
    start = threading.Barrier(8)

    def write(_: int) -> int:
        with LocalStore.open(store.path).new_blob() as blob:
            sealed = seal_into(blob.fd, data_region(1, blocks=40))
            start.wait()
            return blob.commit(sealed.digest)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(write, range(8))) == {len(expected)}
    assert tree(store.path / "blobs") == {f"{digest.hex[:2]}/{digest.hex[2:]}": expected}


def _sign_many(path: Path, worker: int) -> None:
    store = LocalStore.open(path, durable=False)
    for number in range(20):
        store.update_record("x", lambda old, n=number: [*old, signature(f"{worker}-{n}")])  # type: ignore[misc]


def test_processes_that_sign_at_once_lose_no_signature(store: LocalStore) -> None:
    add_image(store, "x")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_sign_many, args=(store.path, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    expected = {signature(f"{worker}-{number}").value for worker in range(3) for number in range(20)}
    entries = store.image("x")[1]
    assert len(entries) == 60
    assert {entry.value for entry in entries} == expected


def test_of_two_publishers_of_one_name_one_wins(store: LocalStore) -> None:
    documents = [add_image(store, f"i{number}", label=number) for number in range(8)]
    start = threading.Barrier(8)

    def publish(document: ImageDocument) -> bool:
        start.wait()
        try:
            store.put_image("x", document, [signature(document.image.hex)])
        except OutputError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(publish, documents)) == 1
    document, record = store.image("x")
    assert record == [signature(document.image.hex)]


def test_readers_always_see_a_document_with_its_own_record(store: LocalStore) -> None:
    documents = [add_image(store, f"i{number}", label=number) for number in range(2)]
    stop = threading.Event()
    store.put_image("x", documents[0], [signature(documents[0].image.hex)])

    def swap() -> None:
        for turn in range(150):
            document = documents[(turn + 1) % 2]
            store.put_image("x", document, [signature(document.image.hex)], replace=True)
        stop.set()

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        while not stop.is_set():
            document, record = store.image("x")
            assert record == [signature(document.image.hex)]
            seen.add(document.image)
    finally:
        thread.join()
    assert seen == {document.image for document in documents}


def test_many_blobs_need_few_descriptors(store: LocalStore) -> None:
    before = len(os.listdir("/proc/self/fd"))
    seeds = range(300)
    document = add_image(store, "many", seeds=seeds)
    assert len(os.listdir("/proc/self/fd")) == before
    with resolve(f"dir:{store.path}:many") as image:
        opened = open_self_consistent_image(image.meta, open_data=image.open_data)
        most = 0
        for number in seeds:
            assert opened.device(number).digest == document.data[number].digest
            most = max(most, len(os.listdir("/proc/self/fd")))
        opened.close()
        assert most < before + 300
    assert len(os.listdir("/proc/self/fd")) == before


def test_temporary_names_cannot_be_images_or_blobs(store: LocalStore) -> None:
    with store.new_blob() as blob:
        assert is_temporary(blob.path.name)
        assert blob.path.name.startswith(TEMPORARY_PREFIX)
        assert list(store.list_blobs()) == []
    (store.path / "images" / f"{TEMPORARY_PREFIX}1-x").touch()
    assert store.list_images() == []
    with pytest.raises(UsageError):
        store.image(f"{TEMPORARY_PREFIX}1-x")


def test_meta_and_data_blobs_differ_only_in_use(store: LocalStore) -> None:
    info = add_blob(store, meta_region())
    store.put_image("alone", ImageDocument(info.digest, (info,)))
    with resolve(f"dir:{store.path}:alone") as image:
        assert open_blob(image.meta, info.digest).params == SHA256
