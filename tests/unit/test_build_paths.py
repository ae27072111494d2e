"""The two ways in which small files are read, and the two kinds of pools, give the same image."""

import os
from pathlib import Path

import pytest

from eroseal.build import worker
from eroseal.build.builder import build
from eroseal.build.options import BlobLayout, BuildOptions
from eroseal.errors import SourceError, UsageError
from eroseal.format.digest import Digest
from eroseal.image.check import check_image
from eroseal.image.reader import ImageReader
from eroseal.store.reference import parse_reference
from eroseal.store.resolve import resolve
from eroseal.trust.image import open_self_consistent_image


def make_tree(root: Path) -> Path:
    root.mkdir()
    for number, size in enumerate(
        [0, 1, 100, 4000, 4032, 4033, 4095, 4096, 4097, 9000, 70_000, 1 << 20, (1 << 20) + 1]
    ):
        (root / f"f{number}").write_bytes(bytes([number + 1]) * size)
    (root / "linked").write_bytes(b"linked")
    os.link(root / "linked", root / "other name")
    (root / "sub").mkdir()
    (root / "sub" / "same").write_bytes(b"\x0b" * 70_000)
    os.utime(root / "f2", ns=(1, 1_234_567_890_123_456_789))
    return root


def image_of(source: Path, target: Path, options: BuildOptions) -> Digest:
    return build(source, parse_reference(f"dir:{target}:i"), options).image


@pytest.mark.parametrize("options", [{}, {"timestamp": 1_600_000_000}, {"clamp": 1_500_000_000}, {"inline_max": 0}])
def test_native_and_plain_reading_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    source = make_tree(tmp_path / "source")
    wanted = BuildOptions(jobs=1, durable=False, **options)  # type: ignore[arg-type]
    native = image_of(source, tmp_path / "native", wanted)
    monkeypatch.setattr(worker, "_read_small", None)
    assert image_of(source, tmp_path / "plain", wanted) == native


def test_processes_and_one_process_agree(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    images = {image_of(source, tmp_path / f"store{jobs}", BuildOptions(jobs=jobs, durable=False)) for jobs in (1, 2, 5)}
    assert len(images) == 1


@pytest.mark.skipif(worker._read_small is None, reason="built without a compiler")
def test_the_shortcut_takes_ordinary_small_files_only(tmp_path: Path) -> None:
    assert worker._read_small is not None
    source = make_tree(tmp_path / "source")
    os.mkfifo(source / "fifo")
    os.symlink("f1", source / "symlink")
    names = [b"f2", b"f5", b"f7", b"linked", b"sub", b"fifo", b"symlink", b"missing"]
    fd = os.open(source, os.O_RDONLY)
    try:
        small, *rest = worker._read_small(fd, names, 4032)
    finally:
        os.close(fd)
    st = os.stat(source / "f2")
    assert small == (st.st_mode, st.st_uid, st.st_gid, 1_234_567_890, 123_456_789, b"\3" * 100)
    assert rest == [None] * 7


def test_a_single_file_takes_no_data_blobs(tmp_path: Path) -> None:
    target = parse_reference(str(tmp_path / "image.erofs"))
    with pytest.raises(UsageError, match="single file"):
        build(make_tree(tmp_path / "source"), target, BuildOptions(blobs=BlobLayout.BUILD))
    assert not (tmp_path / "image.erofs").exists()


def test_a_failed_build_leaves_no_store(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a directory"):
        image_of(Path("/etc/hostname"), tmp_path / "store", BuildOptions(jobs=2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{}, {"timestamp": 1_600_000_000}])
def test_names_outside_the_source_change_nothing(tmp_path: Path, options: dict[str, int]) -> None:
    source = make_tree(tmp_path / "source")
    wanted = BuildOptions(jobs=1, durable=False, **options)  # type: ignore[arg-type]
    alone = image_of(source, tmp_path / "alone", wanted)
    for number, path in enumerate(sorted(source.iterdir())):
        if path.is_file():
            os.link(path, tmp_path / f"outside{number}")
    assert image_of(source, tmp_path / "linked", wanted) == alone


def test_names_inside_the_source_are_one_file(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    for number in range(700):  # so many that they come in several batches
        os.link(source / "linked", source / "sub" / f"name{number}")
    result = build(source, parse_reference(f"dir:{tmp_path / 'store'}:i"), BuildOptions(durable=False))
    with resolve(f"dir:{tmp_path / 'store'}:i") as stored:
        image = open_self_consistent_image(stored.meta, open_data=stored.open_data)
        reader = ImageReader(image)
        inodes = {reader.lookup(b"sub/name%d" % number).nid for number in range(700)}
        inodes |= {reader.lookup(name).nid for name in (b"linked", b"other name")}
        assert len(inodes) == 1
        inode = reader.inode(inodes.pop())
        assert inode.nlink == 702
        assert reader.read(inode, 0, 100) == b"linked"
        assert check_image(reader).warnings == ()
        assert reader.superblock.inos == check_image(reader).inodes
    assert result.files == 702 + 16
