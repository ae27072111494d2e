"""Checking a store: each kind of damage and litter is found, named, and told from the others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests.unit.store_samples import add_blob, add_image, data_region, run_as_user, sealed_bytes, signature, tree

from eroseal.format.digest import Digest, HashAlgorithm, TreeParams
from eroseal.store.atomic import TEMPORARY_PREFIX, write_atomic
from eroseal.store.document import BlobInfo, ImageDocument
from eroseal.store.fsck import StoreReport, check_store
from eroseal.store.local import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore.create(tmp_path / "store", durable=False)
    add_image(store, "a", seeds=(1, 2), record=[signature("s")])
    add_image(store, "b", seeds=(2, 3), label=1)
    return store


def kinds(report: StoreReport) -> list[str]:
    return sorted(finding.kind for finding in report.findings)


def rewrite(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    rewrite(path, bytes(data))


def test_a_sound_store_has_no_findings(store: LocalStore) -> None:
    before = tree(store.path)
    done: list[int] = []
    report = check_store(store, progress=done.append)
    assert report == StoreReport(
        schema="eroseal.fsck/1",
        store=str(store.path),
        ok=True,
        images=2,
        blobs=5,
        bytes=sum(len(content) for name, content in before.items() if name.startswith("blobs/")),
        unreferenced=0,
        unreferenced_bytes=0,
        in_progress=0,
        findings=(),
    )
    assert report.exit_code == 0
    assert sum(done) == sum(4096 * blocks for blocks in (1, 1, 3, 3, 3))
    assert tree(store.path) == before


def test_an_empty_store_is_sound(tmp_path: Path) -> None:
    report = check_store(LocalStore.create(tmp_path / "s"))
    assert (report.ok, report.images, report.blobs, report.findings) == (True, 0, 0, ())


@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_other_algorithms_and_salts_are_sound(tmp_path: Path, algorithm: HashAlgorithm) -> None:
    store = LocalStore.create(tmp_path / "s", durable=False)
    add_image(store, "x", seeds=(1, 2), params=TreeParams(algorithm, b"salt"))
    assert check_store(store).findings == ()


def test_the_report_is_a_document(store: LocalStore) -> None:
    store.delete_blob(next(store.list_blobs()))
    report = check_store(store)
    document = msgspec.json.decode(msgspec.json.encode(report))
    assert document["schema"] == "eroseal.fsck/1"
    assert document["ok"] is False
    assert set(document["findings"][0]) == {"kind", "path", "what", "hint"}
    assert msgspec.convert(document, StoreReport) == report


def test_a_missing_blob_is_found_for_each_image_that_needs_it(store: LocalStore) -> None:
    shared = store.image("a")[0].data[1].digest
    store.delete_blob(shared)
    report = check_store(store)
    assert kinds(report) == ["missing-blob", "missing-blob"]
    assert [finding.path for finding in report.findings] == [
        str(store.image_path("a")),
        str(store.image_path("b")),
    ]
    assert shared.hex in report.findings[0].what
    assert not report.ok
    assert report.exit_code == 1


@pytest.mark.parametrize("data", [True, False])
def test_a_truncated_blob_is_told_from_a_corrupt_one(store: LocalStore, data: bool) -> None:
    document = store.image("a")[0]
    path = store.blob_path(document.data[0].digest)
    for keep in (0, 4096, -4096, -1):
        whole = path.read_bytes()
        rewrite(path, whole[:keep])
        report = check_store(store, data=data)
        assert kinds(report) == (["truncated-blob"] if data else []) + ["wrong-size"]
        assert {finding.path for finding in report.findings} <= {str(path), str(store.image_path("a"))}
        assert report.exit_code == 3
        rewrite(path, whole)
    assert check_store(store).ok


def test_a_flipped_byte_anywhere_is_found(store: LocalStore) -> None:
    """Data, dm-verity superblock, tree, seal record and its padding; the footer is a hint and may be wrong."""
    path = store.blob_path(store.image("a")[0].data[0].digest)
    whole = path.read_bytes()
    assert len(whole) == 6 * 4096
    for offset in (0, 4095, 2 * 4096, 3 * 4096, 4 * 4096 - 1, 4 * 4096, 5 * 4096 - 1, 5 * 4096 + 50, 5 * 4096 + 3000):
        flip(path, offset)
        report = check_store(store)
        assert kinds(report) == ["corrupt-blob"], offset
        assert report.findings[0].path == str(path)
        assert report.exit_code == 3
        rewrite(path, whole)
    flip(path, 4096)
    flip(path, 2 * 4096)
    (finding,) = check_store(store).findings
    assert "2 bad blocks" in finding.what
    assert "byte 4096 (level 0)" in finding.what
    assert check_store(store, data=False).ok  # sizes alone cannot tell


def test_a_flipped_byte_in_the_meta_blob_is_found_once(store: LocalStore) -> None:
    flip(store.blob_path(store.image("a")[0].image), 1024)
    assert kinds(check_store(store)) == ["corrupt-blob"]


def test_a_blob_under_another_name_is_found(store: LocalStore) -> None:
    first, second = store.image("a")[0].data
    rewrite(store.blob_path(first.digest), store.blob_path(second.digest).read_bytes())
    report = check_store(store)
    assert kinds(report) == ["misnamed-blob"]
    assert str(second.digest) in report.findings[0].what
    assert report.exit_code == 3


def test_bytes_behind_a_blob_are_found(store: LocalStore) -> None:
    unused = add_blob(store, data_region(9))
    path = store.blob_path(unused.digest)
    rewrite(path, path.read_bytes() + bytes(100))
    report = check_store(store)
    assert kinds(report) == ["wrong-size"]
    assert "100 bytes follow" in report.findings[0].what


def test_unreferenced_blobs_are_counted_not_blamed(store: LocalStore) -> None:
    unused = add_blob(store, data_region(9))
    report = check_store(store)
    assert report.findings == ()
    assert (report.unreferenced, report.unreferenced_bytes) == (1, unused.size)


def test_a_document_that_lies_about_its_image_is_found(store: LocalStore) -> None:
    document = store.image("a")[0]
    other = store.image("b")[0].data[1]
    for blobs in ((document.meta, other, document.data[1]), (document.meta,), document.blobs[::2]):
        rewrite(store.image_path("a"), ImageDocument(document.image, blobs).encode())
        report = check_store(store)
        assert kinds(report) == ["wrong-devices"]
        assert report.findings[0].path == str(store.image_path("a"))
    digest, content = sealed_bytes(data_region(1, 300))
    small = BlobInfo(digest, 4096, len(content))
    with store.new_blob() as blob:
        blob.path.write_bytes(content)
        blob.commit(digest)
    rewrite(store.image_path("a"), ImageDocument(document.image, (document.meta, small)).encode())
    assert kinds(check_store(store)) == ["wrong-devices"]


def test_broken_documents_and_records_are_found(store: LocalStore) -> None:
    record = store.record_path("a", store.image("a")[0].image)
    rewrite(record, record.read_bytes()[:-1])
    report = check_store(store)
    assert kinds(report) == ["broken-record"]
    rewrite(record, b"")
    assert kinds(check_store(store)) == ["broken-record"]
    rewrite(store.image_path("b"), b"{}")
    os.mkfifo(store.path / "images" / "pipe")
    report = check_store(store)
    assert kinds(report) == ["broken-document", "broken-document", "broken-record"]
    assert report.exit_code == 3
    assert report.images == 2  # the FIFO was not opened


def test_a_record_without_its_image_is_litter(store: LocalStore) -> None:
    record = store.record_path("a", store.image("a")[0].image)
    shutil.copy(record, store.record_path("gone", store.image("a")[0].image))
    shutil.copy(record, store.record_path("a", store.image("b")[0].image))
    report = check_store(store)
    assert kinds(report) == ["stray-record", "stray-record"]
    assert report.ok
    assert report.exit_code == 0
    assert all(finding.is_litter and finding.hint for finding in report.findings)
    assert report.damage == ()


def test_foreign_files_are_litter_wherever_they_lie(store: LocalStore, tmp_path: Path) -> None:
    root = store.path
    names = ["README", "blobs/note", "blobs/zz", "blobs/ab/short", "images/.hidden", "images/with space", "tmp"]
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")
    (root / "lost+found").mkdir()
    report = check_store(store)
    assert kinds(report) == ["foreign-file"] * (len(names) + 1)
    assert {finding.path for finding in report.findings} == {str(root / name) for name in [*names, "lost+found"]}
    assert report.ok


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_what_is_not_a_file_is_no_blob(store: LocalStore, kind: str) -> None:
    digest = store.image("a")[0].data[0].digest
    path = store.blob_path(digest)
    elsewhere = store.path.parent / "elsewhere"
    path.rename(elsewhere)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(elsewhere)
    else:
        path.mkdir()
    report = check_store(store)
    assert kinds(report) == ["foreign-file", "missing-blob"]
    assert report.exit_code == 1


def test_temporaries_of_living_writers_are_not_litter(store: LocalStore) -> None:
    with store.new_blob() as blob:
        report = check_store(store)
        assert (report.in_progress, report.findings) == (1, ())
        LocalStore.open(store.path).new_blob().discard()  # which cleans up
        assert blob.path.exists()
    assert check_store(store).in_progress == 0


def test_temporaries_of_killed_writers_are_litter_and_go(store: LocalStore) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from eroseal.store.local import LocalStore\n"
        "blob = LocalStore.open(Path(sys.argv[1])).new_blob()\n"
        "os.pwrite(blob.fd, b'x' * 100000, 0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, store.path], check=False)
    assert result.returncode == -signal.SIGKILL
    (store.path / "images" / f"{TEMPORARY_PREFIX}1-x").touch()
    report = check_store(store)
    assert kinds(report) == ["stray-temporary", "stray-temporary"]
    assert report.ok
    assert len(store.remove_abandoned()) == 2
    assert check_store(store).findings == ()


def test_a_next_writer_cleans_up_by_itself(store: LocalStore) -> None:
    (store.path / "blobs" / f"{TEMPORARY_PREFIX}1-x").write_bytes(bytes(5000))
    (store.path / "blobs" / f"{TEMPORARY_PREFIX}2-x").mkdir()
    (store.path / "blobs" / f"{TEMPORARY_PREFIX}2-x" / "blob").touch(0o444)
    (store.path / "blobs" / f"{TEMPORARY_PREFIX}3-x").symlink_to(store.path)
    again = LocalStore.open(store.path)
    add_blob(again, data_region(1))
    left = [name for name in os.listdir(store.path / "blobs") if name.startswith(TEMPORARY_PREFIX)]
    assert left == [f"{TEMPORARY_PREFIX}3-x"]  # never made by us, and not followed
    assert again.list_images() == ["a", "b"]


def test_a_store_in_use_can_be_checked(store: LocalStore) -> None:
    """Images come and go between the steps of a check; none of that is damage."""
    from threading import Event, Thread

    stop = Event()

    def work() -> None:
        own = LocalStore.open(store.path, durable=False)
        number = 0
        while not stop.is_set():
            number += 1
            add_image(own, "busy", seeds=(100 + number,), label=number, record=[signature("x")], replace=True)

    thread = Thread(target=work)
    thread.start()
    try:
        for _ in range(15):
            report = check_store(store)
            assert report.damage == ()
    finally:
        stop.set()
        thread.join()


def test_an_unreadable_blob_is_reported_and_the_rest_is_checked(store: LocalStore) -> None:
    path = store.blob_path(store.image("a")[0].data[0].digest)
    path.chmod(0)
    script = (
        "report = check_store(LocalStore.open(Path('.')))\n"
        "print(report.exit_code, [(f.kind, f.path, f.what) for f in report.findings])"
    )
    output = run_as_user(store.path, script)
    assert output.startswith("1 [('unreadable', ")
    assert str(path.relative_to(store.path)) in output
    assert "ermission denied" in output


def test_a_digest_that_nobody_has_stays_unknown(store: LocalStore) -> None:
    document = store.image("a")[0]
    ghost = Digest(HashAlgorithm.SHA256, b"\7" * 32)
    blobs = (document.meta, *document.data, BlobInfo(ghost, 4096, 12288))
    write_atomic(store.image_path("c"), ImageDocument(document.image, blobs).encode())
    assert kinds(check_store(store)) == ["missing-blob", "wrong-devices"]
