"""Disks that are full, read-only or not ours: one clear error, and nothing half-written."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.store_samples import (
    SHA256,
    add_blob,
    add_image,
    data_region,
    meta_region,
    run_as_user,
    sealed_bytes,
    signature,
    tree,
)

from eroseal.errors import OutputError
from eroseal.format.record import ACCESS_TRACE, RecordEntry
from eroseal.readat import BytesAt, FileAt
from eroseal.seal.blob import seal_in_place
from eroseal.store.atomic import TemporaryFile, exclusive_lock, output_error, write_atomic
from eroseal.store.fsck import check_store
from eroseal.store.local import LocalStore
from eroseal.store.single import SingleWriter, update_record, write_single

BIG = [RecordEntry(ACCESS_TRACE, bytes(2 << 20))]


@pytest.fixture
def small_disk(tmp_path: Path, need_root: None) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=64", "eroseal-test", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def fill(disk: Path) -> None:
    """Leave no block free."""
    with (disk / "filler").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC


def assert_says_full(error: OutputError, path: Path) -> None:
    assert "the disk is full" in error.what
    assert error.where == str(path)
    assert error.hint is not None
    assert error.exit_code == 1


def test_a_blob_that_does_not_fit(small_disk: Path) -> None:
    store = LocalStore.create(small_disk / "s")
    before = tree(small_disk)
    with pytest.raises(OutputError, match="No space left"), store.new_blob() as blob:
        os.pwrite(blob.fd, bytes(512 << 10), 0)
        seal_in_place(blob.fd, 512 << 10, SHA256, chunk_blocks=[1] * 128)
        os.ftruncate(blob.fd, 64 << 20)
        seal_in_place(blob.fd, 64 << 20, SHA256)
    assert tree(small_disk) == before
    assert os.listdir(store.path / "blobs") == []
    add_blob(store, data_region(1))


def test_a_document_or_record_that_does_not_fit(small_disk: Path) -> None:
    store = LocalStore.create(small_disk / "s")
    document = add_image(store, "x", record=[signature("old")])
    add_image(store, "other", label=1)
    before = tree(store.path)
    with pytest.raises(OutputError) as caught:
        store.update_record("x", lambda old: [*old, *BIG])
    assert_says_full(caught.value, store.record_path("x", document.image))
    fill(small_disk)
    with pytest.raises(OutputError) as caught:
        store.put_image("x", store.image("other")[0], replace=True)
    assert_says_full(caught.value, store.image_path("x"))
    with pytest.raises(OutputError):
        store.put_image("y", store.image("other")[0], [signature("new")])
    assert tree(store.path) == before
    assert store.image("x") == (document, [signature("old")])
    assert check_store(store).findings == ()


def test_no_room_for_another_file(small_disk: Path) -> None:
    store = LocalStore.create(small_disk / "s")
    info = add_blob(store, data_region(1))
    for number in range(100):
        try:
            (small_disk / f"filler{number}").touch()
        except OSError:
            break
    with pytest.raises(OutputError, match="cannot create a file in it: the disk is full"):
        store.new_blob()
    with pytest.raises(OutputError, match="cannot make a store: the disk is full"):
        LocalStore.create(small_disk / "another")
    (small_disk / "filler0").unlink()
    with pytest.raises(OutputError, match="the disk is full"):  # the file fits, its directory does not
        add_blob(store, data_region(2))
    assert list(store.list_blobs()) == [info.digest]
    assert check_store(store).findings == ()


def test_a_single_file_that_does_not_fit(small_disk: Path) -> None:
    _, blob = sealed_bytes(meta_region())
    target = small_disk / "x.erofs"
    with pytest.raises(OutputError) as caught:
        write_single(BytesAt(blob), BIG, target)
    assert_says_full(caught.value, target)
    assert os.listdir(small_disk) == []
    write_single(BytesAt(blob), [signature("old")], target)
    before = target.read_bytes()
    with pytest.raises(OutputError) as caught:
        update_record(target, lambda old: [*old, *BIG])
    assert_says_full(caught.value, target)
    fill(small_disk)
    with pytest.raises(OutputError) as caught:
        update_record(target, lambda old: [*old, signature("new")])
    assert_says_full(caught.value, target)
    assert target.read_bytes() == before
    assert sorted(os.listdir(small_disk)) == ["filler", "x.erofs"]


def test_an_export_from_elsewhere_that_does_not_fit(small_disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "large.erofs"
    write_single(BytesAt(sealed_bytes(data_region(1, 600))[1]), [], source, durable=False)
    with FileAt(source) as file, pytest.raises(OutputError) as caught:
        write_single(file, [], small_disk / "x.erofs")
    assert_says_full(caught.value, small_disk / "x.erofs")
    assert os.listdir(small_disk) == []


def test_a_read_only_disk(small_disk: Path) -> None:
    store = LocalStore.create(small_disk / "s")
    document = add_image(store, "x")
    single = small_disk / "x.erofs"
    write_single(BytesAt(sealed_bytes(meta_region())[1]), [], single)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    store = LocalStore.open(store.path)
    assert store.image("x") == (document, [])
    assert check_store(store).ok
    LocalStore.create(store.path)  # which is there
    for attempt in (
        store.new_blob,
        lambda: store.put_image("y", document),
        lambda: store.update_record("x", lambda old: [*old, signature("a")]),
        lambda: store.delete_image("x"),
        lambda: store.delete_blob(document.image),
        lambda: update_record(single, lambda old: [*old, signature("a")]),
        lambda: SingleWriter(small_disk / "y.erofs"),
        lambda: LocalStore.create(small_disk / "t"),
    ):
        with pytest.raises(OutputError, match="read-only") as caught:
            attempt()
        assert caught.value.hint is not None


def test_a_store_of_somebody_else(tmp_path: Path) -> None:
    store = LocalStore.create(tmp_path / "s", durable=False)
    add_image(store, "x", record=[signature("old")])
    single = store.path / "x.erofs"
    write_single(BytesAt(sealed_bytes(meta_region())[1]), [], single, durable=False)
    for directory in (store.path, store.path / "images", store.path / "blobs"):
        directory.chmod(0o555)
    script = """
from eroseal.store.single import update_record
store = LocalStore.open(Path('.'))
document = store.image('x')[0]
for attempt in (
    store.new_blob,
    lambda: store.put_image('y', document),
    lambda: store.update_record('x', lambda old: []),
    lambda: store.delete_image('x'),
    lambda: update_record(Path('x.erofs'), lambda old: store.image('x')[1]),
    lambda: SingleWriter(Path('y.erofs')),
    lambda: LocalStore.create(Path('t')),
):
    try:
        attempt()
    except OutputError as error:
        print(error.what, '|', error.hint)
print(check_store(store).ok)
"""
    before = tree(store.path)
    lines = run_as_user(store.path, script).splitlines()
    assert len(lines) == 8
    assert all("permission denied | choose a place" in line for line in lines[:-1])
    assert lines[-1] == "True"
    assert tree(store.path) == before


def test_a_store_behind_a_closed_door(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    LocalStore.create(tmp_path / "closed" / "s", durable=False)
    (tmp_path / "closed").chmod(0)
    script = """
for attempt in (
    lambda: LocalStore.open(Path('closed/s')),
    lambda: LocalStore.create(Path('closed/s')),
    lambda: resolve('dir:closed/s:x'),
    lambda: resolve('closed/x'),
    lambda: SingleWriter(Path('closed/x')),
):
    try:
        attempt()
    except ErosealError as error:
        print(error.what.lower())
"""
    lines = run_as_user(tmp_path, script).splitlines()
    (tmp_path / "closed").chmod(0o700)
    assert len(lines) == 5
    assert all("permission denied" in line for line in lines)


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such directory") as caught:
        SingleWriter(tmp_path / "missing" / "x.erofs")
    assert caught.value.hint == "create the directory first"
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="not a directory"):
        write_atomic(tmp_path / "file" / "x", b"")
    with pytest.raises(OutputError, match="cannot lock"), exclusive_lock(tmp_path / "missing" / ".lock"):
        raise AssertionError


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EFBIG, "does not take files of this size"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_errors_say_what_failed_where(number: int, expected: str) -> None:
    error = output_error(OSError(number, os.strerror(number)), Path("x"), "cannot write")
    assert expected in error.what
    assert error.where == "x"
    assert (error.hint is None) == (number == errno.EIO)


def test_a_temporary_that_somebody_removed(tmp_path: Path) -> None:
    with TemporaryFile(tmp_path) as temporary:
        temporary.path.unlink()
        with pytest.raises(OutputError):
            temporary.commit(tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_the_umask_is_respected(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "x", b"content")
        store = LocalStore.create(tmp_path / "s", durable=False)
        info = add_blob(store, data_region(1))
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    assert store.blob_path(info.digest).stat().st_mode & 0o777 == 0o440
