"""Images of 0, 1, 300 and 65,535 data blobs build, verify and mount; one more is refused."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.images import Built, build_image, reading, verify
from tests.support.kernel import mounted, ramfs
from tests.support.trees import assert_same, image_tree, tree_of

from eroseal.build.options import BlobLayout, BuildOptions
from eroseal.errors import UnsupportedError
from eroseal.format.digest import HashAlgorithm, TreeParams
from eroseal.format.erofs import INCOMPAT_CHUNKED_FILE, INCOMPAT_DEVICE_TABLE
from eroseal.store.local import LocalStore

MOST = 65_535
BLOCK = 4096


@pytest.fixture
def ram(tmp_path: Path, need_kernel_erofs: None) -> Iterator[Path]:
    """Give a place that images mount from, and where removing 65,535 files costs nothing."""
    with ramfs(tmp_path / "ram") as place:
        yield place


def files(source: Path, count: int) -> Path:
    """Small files, all different, in directories of a thousand."""
    source.mkdir()
    for number in range(count):
        directory = source / f"{number // 1000:02}"
        if number % 1000 == 0:
            directory.mkdir()
        (directory / f"{number}").write_bytes(b"file number %d" % number)
    return source


def options(params: TreeParams | None = None) -> BuildOptions:
    return BuildOptions(
        blobs=BlobLayout.FILE, inline_max=0, durable=False, params=params or TreeParams(), chunk_size=BLOCK
    )


def veritysetup(program: str, built: Built, numbers: list[int], digest_size: int = 32) -> None:
    """Have the stock verifier check some blobs, and refuse each of them with one byte altered."""
    for number in numbers:
        blob, path = built.result.blobs[number], built.paths[number]
        command = [program, "verify", path, path, blob.root_hash.hex(), f"--hash-offset={blob.data_size}"]
        assert len(blob.root_hash) == digest_size
        subprocess.run(command, check=True, capture_output=True)
        with path.open("r+b") as file:
            file.seek(3)
            byte = file.read(1)
            file.seek(3)
            file.write(bytes([byte[0] ^ 0x10]))
            file.flush()
            refused = subprocess.run(command, check=False, capture_output=True)
            file.seek(3)
            file.write(byte)
        assert refused.returncode != 0


@pytest.mark.parametrize("algorithm", [HashAlgorithm.SHA256, HashAlgorithm.SHA512])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_some_blobs(
    memory: Path, ram: Path, require_peer: Callable[[str], str], count: int, algorithm: HashAlgorithm
) -> None:
    source = files(memory / "source", count)
    built = build_image(source, ram / "store", options(TreeParams(algorithm)))
    assert len(built.data) == count
    wanted = tree_of(source)
    verify(built)
    with reading(built) as reader:
        assert_same(image_tree(reader), wanted)
        superblock = reader.superblock
        assert superblock.extra_devices == count
        features = INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE
        assert superblock.feature_incompat == (features if count else 0)
    with mounted(built.meta, built.data, ram / "mountpoint") as mountpoint:
        assert_same(tree_of(mountpoint), wanted)
    sample = sorted({0, count // 2, count})
    veritysetup(require_peer("veritysetup"), built, sample, algorithm.digest_size)


def test_the_most_blobs(memory: Path, ram: Path, require_peer: Callable[[str], str]) -> None:
    source = files(memory / "source", MOST)
    built = build_image(source, ram / "store", options())
    assert len(built.data) == MOST == len(set(built.data))
    verify(built, every=2000)
    with reading(built) as reader:
        superblock = reader.superblock
        assert superblock.extra_devices == MOST
        # The table alone takes 8 MiB: it must start below them, and so must the root.
        assert superblock.devt_slotoff * 128 < 8 << 20 and superblock.root_nid <= 0xFFFF
        for number in (0, 1, 999, 32_768, MOST - 1):
            inode = reader.lookup(b"%02d/%d" % (number // 1000, number))
            assert reader.read(inode, 0, 100) == b"file number %d" % number
    wanted = tree_of(source)
    with mounted(built.meta, built.data, ram / "mountpoint") as mountpoint:
        assert_same(tree_of(mountpoint), wanted)
    veritysetup(require_peer("veritysetup"), built, [0, 1, 20_000, MOST])


def test_one_blob_too_many(memory: Path, ram: Path) -> None:
    source = files(memory / "source", MOST + 1)
    with pytest.raises(UnsupportedError, match="65536 data blobs"):
        build_image(source, ram / "store", options())
    if (ram / "store").exists():
        assert list(LocalStore.open(ram / "store").list_blobs()) == []
        assert not [path for path in (ram / "store").rglob("*") if path.is_file() and path.name != ".lock"]
