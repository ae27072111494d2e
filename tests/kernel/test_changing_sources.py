"""Sources that change while they are read are refused, and nothing of them appears."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.kernel import bound
from tests.support.nasty import noise

from eroseal.build.builder import build
from eroseal.build.options import BlobLayout, BuildOptions
from eroseal.errors import SourceError
from eroseal.store.reference import FileReference, Reference, StoreReference

ALONE = BuildOptions(jobs=1, durable=False)
Change = Callable[[Path], None]


def refused(source: Path, target: Reference, options: BuildOptions, act: Callable[[], None] | None = None) -> str:
    """Build while `act` is called at the first sign of progress; gives what the refusal says."""
    calls = 0

    def progress(files: int, size: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1 and act is not None:
            act()

    with pytest.raises(SourceError) as caught:
        build(source, target, options, progress=progress)
    assert act is None or calls > 0
    return str(caught.value)


def assert_nothing_there(place: Path) -> None:
    """No image, no blob, no temporary file."""
    assert [path for path in place.rglob("*") if path.is_file() and path.name != ".lock"] == []


# --- files that do not hold what their size says: the kernel has such, no timing needed ---
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    "strange",
    [
        "/proc/version",  # 0 bytes by its size, more when read: a file that grows
        "/proc/kallsyms",  # the same, beyond any limit for small files
        "/sys/kernel/mm/transparent_hugepage/enabled",  # 4096 bytes by its size, fewer when read: it shrinks
    ],
)
def test_files_of_another_length_than_their_size(
    tmp_path: Path, need_root: None, need_kernel_erofs: None, strange: str, jobs: int
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(5):
        (source / f"file-{number}").write_bytes(noise(number * 3000, number))
    (source / "strange").touch()
    target = StoreReference(tmp_path / "store", "image")
    with bound(Path(strange), source / "strange"):
        message = refused(source, target, replace(ALONE, jobs=jobs))
    assert "changed while it was read" in message and str(source / "strange") in message
    assert_nothing_there(tmp_path / "store")


# --- files that change between two reads ---
def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def rewrite(path: Path) -> None:
    """Other bytes, the same size: the time gives it away."""
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(0, 1))


def supplant(path: Path) -> None:
    """Another file under the name, with the same size and time."""
    st = path.stat()
    other = path.with_name("supplant")
    other.write_bytes(bytes(st.st_size))
    os.utime(other, ns=(0, st.st_mtime_ns))
    other.replace(path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("change", [append, truncate, rewrite, supplant, remove])
def test_a_large_file_that_changes(tmp_path: Path, change: Change, jobs: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "first").write_bytes(b"seen before")
    (source / "large").write_bytes(noise(90 << 20, 1))  # more segments than can be under way at once
    target = StoreReference(tmp_path / "store", "image")
    message = refused(source, target, replace(ALONE, jobs=jobs), lambda: change(source / "large"))
    assert str(source / "large") in message
    assert "changed while it was read" in message or change is remove
    assert_nothing_there(tmp_path / "store")


def to_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_PATH)
        try:
            server.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


@pytest.mark.parametrize("change", [remove, to_symlink, to_directory, to_fifo, to_socket])
def test_a_name_that_is_no_regular_file_any_more(tmp_path: Path, change: Change) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20_000):  # many batches: the last of them is read long after the names are known
        os.mknod(source / f"file-{number:05}")
    target = StoreReference(tmp_path / "store", "image")
    message = refused(source, target, ALONE, lambda: change(source / "file-19999"))
    assert str(source / "file-19999") in message
    assert_nothing_there(tmp_path / "store")


def test_a_device_in_the_place_of_a_file(tmp_path: Path, need_root: None) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20_000):
        os.mknod(source / f"file-{number:05}")

    def to_device() -> None:
        (source / "file-19999").unlink()
        os.mknod(source / "file-19999", 0o20600, os.makedev(1, 3))

    target = StoreReference(tmp_path / "store", "image")
    assert "regular file" in refused(source, target, ALONE, to_device)


def test_a_directory_that_goes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "z-last").mkdir(parents=True)
    for number in range(20_000):
        os.mknod(source / f"file-{number:05}")
    message = refused(source, StoreReference(tmp_path / "store", "image"), ALONE, (source / "z-last").rmdir)
    assert str(source / "z-last") in message


def test_a_single_file_target_stays_away_too(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "first").write_bytes(b"seen before")
    (source / "large").write_bytes(noise(40 << 20, 1))
    place = tmp_path / "place"
    place.mkdir()
    options = replace(ALONE, blobs=BlobLayout.NONE)
    refused(source, FileReference(place / "image.erofs"), options, lambda: truncate(source / "large"))
    assert list(place.iterdir()) == []


def test_what_no_path_can_name_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    here = os.open(source, os.O_RDONLY)
    for _ in range(25):  # 5,000 bytes of path: more than PATH_MAX
        os.mkdir("n" * 200, dir_fd=here)
        below = os.open("n" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    message = refused(source, StoreReference(tmp_path / "store", "image"), ALONE)
    assert "File name too long" in message
    assert_nothing_there(tmp_path / "store")
