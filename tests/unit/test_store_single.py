"""Single sealed files: their layout, their image record, and how both change."""

from __future__ import annotations

import multiprocessing
import os
import struct
from pathlib import Path

import pytest
from tests.unit.store_samples import (
    SHA256,
    data_region,
    meta_region,
    seal_into,
    sealed_bytes,
    signature,
)

from eroseal.errors import ErosealError, FormatError, NotFoundError, OutputError, UnsupportedError
from eroseal.format.digest import HashAlgorithm, TreeParams
from eroseal.format.record import ACCESS_TRACE, IMAGE_MAGIC, Footer, RecordEntry, encode_record, parse_record
from eroseal.limits import MAX_IMAGE_RECORD
from eroseal.readat import BytesAt, FileAt
from eroseal.store.atomic import TEMPORARY_PREFIX
from eroseal.store.document import BlobInfo
from eroseal.store.reference import FileReference, StoreReference
from eroseal.store.resolve import resolve
from eroseal.store.single import SingleWriter, copy_range, read_layout, update_record, write_single
from eroseal.trust.image import open_blob, open_self_consistent_image
from eroseal.trust.locate import find_seal
from eroseal.trust.scan import scan_blob

DIGEST, BLOB = sealed_bytes(meta_region(label=1))
ENTRIES = [signature("one"), signature("two"), RecordEntry(ACCESS_TRACE, b"t" * 5000)]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A sealed file without an image record."""
    path = tmp_path / "plain.erofs"
    path.write_bytes(BLOB)
    return path


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    """A sealed file with an image record."""
    path = tmp_path / "signed.erofs"
    write_single(BytesAt(BLOB), ENTRIES, path, durable=False)
    return path


# Layout


def test_the_file_is_blob_record_and_footer(signed: Path) -> None:
    data = signed.read_bytes()
    assert data.startswith(BLOB)
    tail = data[len(BLOB) :]
    assert len(tail) % 4096 == 0
    record = encode_record(IMAGE_MAGIC, ENTRIES)
    assert tail[: len(record)] == record
    assert not any(tail[len(record) : -64])
    assert parse_record(IMAGE_MAGIC, tail, limit=MAX_IMAGE_RECORD) == ENTRIES
    footer = Footer.parse(tail[-64:])
    assert footer == Footer.parse(BLOB[-64:])
    assert footer is not None
    assert footer.record_offset + footer.record_length == len(BLOB)


@pytest.mark.parametrize("size", [1, 3000, 3984, 3985, 3992, 3993, 4096, 9000])
def test_a_record_of_any_length_ends_in_whole_blocks(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x"
    entries = [RecordEntry(ACCESS_TRACE, b"t" * size)]
    assert write_single(BytesAt(BLOB), entries, path, durable=False) == path.stat().st_size
    assert path.stat().st_size % 4096 == 0
    with FileAt(path) as file:
        layout = read_layout(file)
        assert list(layout.entries) == entries
        assert (layout.seal_end, layout.end) == (len(BLOB), file.size)
        assert layout.digest == DIGEST
        assert find_seal(file).record_offset == layout.footer.record_offset


def test_without_entries_the_file_is_the_blob(tmp_path: Path, signed: Path) -> None:
    with FileAt(signed) as file:
        write_single(file, [], tmp_path / "x", durable=False)
    assert (tmp_path / "x").read_bytes() == BLOB


@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_other_algorithms_and_salts(tmp_path: Path, algorithm: HashAlgorithm) -> None:
    digest, blob = sealed_bytes(data_region(1, 300), TreeParams(algorithm, b"pepper"))
    path = tmp_path / "x"
    write_single(BytesAt(blob), ENTRIES, path, durable=False)
    with resolve(str(path)) as image:
        assert list(image.record) == ENTRIES
        assert scan_blob(image.meta, open_blob(image.meta, digest)) == []


# Reading


def test_a_reference_opens_the_file(signed: Path) -> None:
    with resolve(str(signed)) as image:
        assert list(image.record) == ENTRIES
        assert image.document is None
        assert image.blob_path(DIGEST) == signed
        opened = open_self_consistent_image(image.meta, open_data=image.open_data)
        assert opened.digest == DIGEST
        assert opened.devices == ()


def test_data_blobs_may_be_given_as_files(tmp_path: Path) -> None:
    blobs, paths = [], []
    for seed in (1, 2):
        digest, content = sealed_bytes(data_region(seed))
        blobs.append(BlobInfo(digest, 3 * 4096, len(content)))
        paths.append(tmp_path / f"data{seed}")
        paths[-1].write_bytes(content)
    meta = tmp_path / "meta"
    meta.write_bytes(sealed_bytes(meta_region(blobs))[1])
    with resolve(str(meta), data_files=reversed(paths)) as image:
        opened = open_self_consistent_image(image.meta, open_data=image.open_data)
        assert opened.device(0).read_at(0, 3 * 4096) == data_region(1)
        assert opened.device(1).read_at(0, 3 * 4096) == data_region(2)
        opened.close()
        assert image.blob_path(blobs[1].digest) == paths[1]
    with resolve(str(meta)) as image:
        opened = open_self_consistent_image(image.meta, open_data=image.open_data)
        with pytest.raises(NotFoundError, match=blobs[0].digest.hex):
            opened.device(0)


def test_what_is_no_sealed_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        resolve(str(tmp_path / "missing"))
    with pytest.raises(NotFoundError, match="dir:PATH:NAME"):
        resolve(f"{tmp_path}/store:name")
    with pytest.raises(FormatError, match="is a directory"):
        resolve(str(tmp_path))
    with pytest.raises(NotFoundError):
        resolve(str(tmp_path / ("n" * 300)))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FormatError, match="not a file"):
        resolve(str(tmp_path / "fifo"))
    for content in (b"", b"x", bytes(64), bytes(100_000), b"\xff" * 5000, BLOB[:-1], BLOB[:4096], BLOB[4096:]):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ErosealError) as caught:
            resolve(str(tmp_path / "x"))
        assert caught.value.exit_code == 3


def test_descriptors_are_closed_when_opening_fails(tmp_path: Path, plain: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(ErosealError):
            resolve(str(tmp_path / "x"))
        with pytest.raises(ErosealError):
            resolve(str(plain), data_files=[tmp_path / "x"])
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("cut", [1, 64, 4095, 4096, 4097])
def test_a_record_that_was_cut_is_refused(signed: Path, cut: int) -> None:
    os.truncate(signed, signed.stat().st_size - cut)
    with pytest.raises(FormatError, match="image record is truncated"):
        resolve(str(signed))


def test_every_flipped_byte_of_the_record_is_refused_or_harmless(signed: Path) -> None:
    data = signed.read_bytes()
    record_end = len(BLOB) + len(encode_record(IMAGE_MAGIC, ENTRIES))
    for offset in range(len(BLOB), len(data), 7):
        flipped = bytearray(data)
        flipped[offset] ^= 0x40
        source = BytesAt(bytes(flipped))
        if offset >= len(BLOB) + 8 and offset < record_end:
            with pytest.raises(FormatError):
                read_layout(source)
        elif offset >= record_end:
            assert list(read_layout(source).entries) == ENTRIES
        else:  # without its magic it is not an image record, but bytes that nobody knows
            assert read_layout(source).entries == ()


def test_a_record_that_claims_too_much_is_refused_before_it_is_read() -> None:
    record = bytearray(encode_record(IMAGE_MAGIC, ENTRIES))
    struct.pack_into("<Q", record, 16, 1 << 60)
    with pytest.raises(FormatError):
        read_layout(BytesAt(BLOB + bytes(record) + BLOB[-64:]))


def test_a_footer_that_points_into_the_data_is_not_followed() -> None:
    """Else a signer could be made to cut the file in the middle of its data."""
    inner = sealed_bytes(data_region(9, 1))[1]
    digest, outer = sealed_bytes(inner + bytes(4096))
    assert len(inner) % 4096 == 0
    lying = outer + Footer.parse(inner[-64:]).encode().rjust(4096, b"\0")  # type: ignore[union-attr]
    layout = read_layout(BytesAt(lying))
    assert layout.size != layout.end  # so that no record is written into it
    layout = read_layout(BytesAt(outer))
    assert layout.digest == digest


# Changing the record


def test_signing_appends_and_replaces_the_record_only(plain: Path) -> None:
    plain.chmod(0o640)
    assert update_record(plain, lambda old: [*old, signature("a")]) == [signature("a")]
    assert plain.read_bytes()[: len(BLOB)] == BLOB
    assert update_record(plain, lambda old: [*old, signature("b" * 9000)])[0] == signature("a")
    with resolve(str(plain)) as image:
        assert [entry.value for entry in image.record] == [b"a", b"b" * 9000]
        assert image.update_record(lambda old: old[:1]) == [signature("a")]
    assert plain.read_bytes()[: len(BLOB)] == BLOB
    assert plain.stat().st_mode & 0o777 == 0o640
    assert update_record(plain, lambda _: []) == []
    assert plain.read_bytes() == BLOB
    assert os.listdir(plain.parent) == ["plain.erofs"]


def test_an_unchanged_record_leaves_the_file_alone(signed: Path) -> None:
    before = signed.stat()
    update_record(signed, lambda old: old)
    assert signed.stat().st_ino == before.st_ino


def test_a_symlink_stays_and_its_target_changes(plain: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(plain)
    update_record(link, lambda old: [*old, signature("a")])
    assert link.is_symlink()
    with resolve(str(plain)) as image:
        assert image.record == (signature("a"),)


def test_the_owner_stays(plain: Path, need_root: None) -> None:
    os.chown(plain, 1234, 5678)
    update_record(plain, lambda old: [*old, signature("a")])
    assert (plain.stat().st_uid, plain.stat().st_gid) == (1234, 5678)


def test_what_follows_the_records_is_not_thrown_away(signed: Path) -> None:
    with signed.open("ab") as file:
        file.write(b"vbmeta" * 100)
    before = signed.read_bytes()
    with resolve(str(signed)) as image:
        assert list(image.record) == ENTRIES
    with pytest.raises(UnsupportedError, match="600 bytes of something else"):
        update_record(signed, lambda old: [*old, signature("a")])
    assert signed.read_bytes() == before


def test_a_failing_change_leaves_the_file(signed: Path) -> None:
    before = signed.read_bytes()
    twice = [RecordEntry(ACCESS_TRACE, b"1"), RecordEntry(ACCESS_TRACE, b"2")]
    with pytest.raises(OutputError, match="repeats"):
        update_record(signed, lambda _: twice)
    with pytest.raises(OutputError, match="outside"):
        update_record(signed, lambda _: [RecordEntry(ACCESS_TRACE, bytes(MAX_IMAGE_RECORD))])
    assert signed.read_bytes() == before
    assert os.listdir(signed.parent) == ["signed.erofs"]


def _sign_many(path: Path, worker: int) -> None:
    for number in range(10):
        text = f"{worker}-{number}"
        update_record(path, lambda old, t=text: [*old, signature(t)], durable=False)  # type: ignore[misc]


def test_processes_that_sign_at_once_lose_no_signature(plain: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_sign_many, args=(plain, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with resolve(str(plain)) as image:
        assert len({entry.value for entry in image.record}) == len(image.record) == 30
    assert os.listdir(plain.parent) == ["plain.erofs"]


# Writing


def test_a_writer_makes_the_file_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "x.erofs"
    with pytest.raises(KeyboardInterrupt), SingleWriter(target) as writer:
        seal_into(writer.fd, data_region(1))
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with SingleWriter(target) as writer:
        sealed = seal_into(writer.fd, data_region(1))
        assert not target.exists()
        assert writer.path.parent == tmp_path
        assert writer.commit(ENTRIES) == target.stat().st_size
    with resolve(str(target)) as image:
        assert open_blob(image.meta, sealed.digest).params == SHA256
        assert list(image.record) == ENTRIES
    with pytest.raises(OutputError, match="exists already"):
        SingleWriter(target)
    assert os.listdir(tmp_path) == ["x.erofs"]


def test_a_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}1-x").write_bytes(bytes(5000))
    with SingleWriter(tmp_path / "a"), SingleWriter(tmp_path / "b"):
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == []


def test_odd_paths_are_refused_in_our_own_words(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    for path in (tmp_path / ("n" * 300), tmp_path / "loop", tmp_path / "file" / "x", Path("x\0y")):
        with pytest.raises(ErosealError):
            update_record(path, lambda old: old)
        with pytest.raises(ErosealError):
            resolve(FileReference(path))
        with pytest.raises(ErosealError):
            resolve(StoreReference(path, "x"))


def test_a_writer_refuses_what_is_not_sealed(tmp_path: Path) -> None:
    for content in (b"", data_region(1), BLOB + bytes(4096), BLOB[:-4096]):
        with pytest.raises(ErosealError), SingleWriter(tmp_path / "x") as writer:
            os.pwrite(writer.fd, content, 0)
            writer.commit()
        assert os.listdir(tmp_path) == []


def test_an_existing_target_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        write_single(BytesAt(BLOB), [], target)
    with SingleWriter(tmp_path / "y") as writer:
        seal_into(writer.fd, data_region(1))
        (tmp_path / "y").write_text("came later")
        with pytest.raises(OutputError, match="exists already"):
            writer.commit()
    assert (tmp_path / "y").read_text() == "came later"
    assert target.read_text() == "precious"
    write_single(BytesAt(BLOB), [], target, replace=True)
    assert target.read_bytes() == BLOB
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="exists already"):
        write_single(BytesAt(BLOB), [], tmp_path / "x")


def test_an_exported_file_can_be_exported_again(tmp_path: Path, signed: Path) -> None:
    with resolve(str(signed)) as image:
        write_single(image.meta, list(image.record), tmp_path / "again", durable=False)
    assert (tmp_path / "again").read_bytes() == signed.read_bytes()


def test_copies_keep_holes(tmp_path: Path) -> None:
    length = 64 << 20
    with (tmp_path / "a").open("wb+") as source, (tmp_path / "b").open("wb+") as target:
        os.ftruncate(source.fileno(), length + 5000)
        os.pwrite(source.fileno(), b"start", 0)
        os.pwrite(source.fileno(), b"middle", length // 2)
        copy_range(source.fileno(), target.fileno(), length)
        assert os.fstat(target.fileno()).st_size == length
        assert os.pread(target.fileno(), 5, 0) == b"start"
        assert os.pread(target.fileno(), 6, length // 2) == b"middle"
        assert os.fstat(target.fileno()).st_blocks * 512 < 1 << 20


def test_copies_notice_a_source_that_is_too_short(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb+") as source, (tmp_path / "b").open("wb+") as target:
        os.pwrite(source.fileno(), b"x" * 5000, 0)
        with pytest.raises(FormatError, match="ended at byte 5000"):
            copy_range(source.fileno(), target.fileno(), 6000)
