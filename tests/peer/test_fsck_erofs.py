"""fsck.erofs, every version at hand, accepts every image that we write, and reads it where it can."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.images import assert_fsck_accepts, build_image
from tests.support.nasty import SIZES, make_nasty, noise
from tests.support.trees import assert_same, tree_of

from eroseal.build.builder import build
from eroseal.build.options import BlobLayout, BuildOptions
from eroseal.format.digest import HashAlgorithm, TreeParams
from eroseal.store.reference import FileReference

OPTIONS = {
    "none": BuildOptions(blobs=BlobLayout.NONE, durable=False),
    "build": BuildOptions(durable=False),
    "build-4K": BuildOptions(chunk_size=4096, durable=False),
    "file": BuildOptions(blobs=BlobLayout.FILE, durable=False),
    "no-inline": BuildOptions(inline_max=0, durable=False),
    "sha512-salt": BuildOptions(params=TreeParams(HashAlgorithm.SHA512, b"salt"), durable=False),
    "timestamp": BuildOptions(timestamp=1_700_000_000, all_root=True, durable=False),
}


@pytest.fixture(params=["fsck.erofs", "fsck.erofs>=1.9"])
def program(request: pytest.FixtureRequest, require_peer: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the system's own fsck.erofs, and a new one."""
    name: str = request.param
    return require_peer(name) if ">" in name else system_program(name) or require_peer(name)


def system_program(name: str) -> str | None:
    """The program of the distribution, whatever newer one comes first on the way."""
    for place in ("/usr/bin", "/usr/sbin"):
        if os.access(f"{place}/{name}", os.X_OK):
            return f"{place}/{name}"
    return None


def is_new(program: str) -> bool:
    """Whether it reads all that kernels do: 1.9 and later know `--version`, 1.5 does not."""
    return subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Give a tree that an ordinary user can make."""
    source = tmp_path / "source"
    source.mkdir()
    for size in SIZES:
        (source / f"size-{size}").write_bytes(noise(size, size))
    (source / "zeros-and-tail").write_bytes(bytes(4096) + b"tail")
    (source / "holes").write_bytes(bytes(1 << 20) + b"data" + bytes(1 << 21))
    (source / "again").write_bytes(noise(3 << 20, 1) + noise(70_000, 2) + noise(3 << 20, 1))
    (source / "directory").mkdir()
    for number in range(1000):
        (source / "directory" / f"entry-{number}").write_bytes(b"%d" % number)
    (source / "symlink").symlink_to("x" * 4000)
    os.link(source / "holes", source / "directory" / "holes")
    os.mkfifo(source / "fifo")
    os.setxattr(source / "fifo" if os.geteuid() == 0 else source, "trusted.x" if os.geteuid() == 0 else "user.x", b"x")
    return source


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_images_are_accepted(plain: Path, tmp_path: Path, program: str, options: BuildOptions) -> None:
    built = build_image(plain, tmp_path / "store", options)
    assert_fsck_accepts(program, built, read=is_new(program))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_nasty_tree_is_accepted(tmp_path: Path, need_root: None, program: str, options: BuildOptions) -> None:
    source = make_nasty(tmp_path / "source", roomy=False, deep=20)
    assert_fsck_accepts(program, build_image(source, tmp_path / "store", options), read=is_new(program))


def test_a_single_file_is_accepted(plain: Path, tmp_path: Path, program: str) -> None:
    path = tmp_path / "image.erofs"
    build(plain, FileReference(path), BuildOptions(blobs=BlobLayout.NONE, durable=False))
    result = subprocess.run([program, "--extract", path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("count", [0, 1, 250])
def test_numbers_of_data_blobs(tmp_path: Path, program: str, count: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(count):
        (source / f"file-{number}").write_bytes(noise(5000, number))
    built = build_image(source, tmp_path / "store", BuildOptions(blobs=BlobLayout.FILE, durable=False))
    assert len(built.data) == count
    assert_fsck_accepts(program, built, read=is_new(program))


@pytest.mark.parametrize("blobs", [BlobLayout.NONE, BlobLayout.BUILD, BlobLayout.FILE])
def test_an_extracted_tree_is_the_source(
    plain: Path, tmp_path: Path, require_peer: Callable[[str], str], blobs: BlobLayout
) -> None:
    program = require_peer("fsck.erofs>=1.9")
    (plain / "holes").unlink()  # it cuts off files that end in a hole
    (plain / "directory" / "holes").unlink()
    built = build_image(plain, tmp_path / "store", BuildOptions(blobs=blobs, durable=False))
    devices = [f"--device={path}" for path in built.data]
    target = tmp_path / "extracted"
    subprocess.run([program, f"--extract={target}", *devices, built.meta], check=True, capture_output=True)
    found = tree_of(target)
    # Xattrs are restored on request only.
    assert_same(found, {path: replace(entry, xattrs=()) for path, entry in tree_of(plain).items()})
