"""Unpacking: confined to its target, complete, and without leftovers when it fails.

Trees that mkfs.erofs can make come from it; hostile ones, which it refuses to make, from readers that lie.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.reader_images import REG, Mini, open_reader
from tests.unit.report_images import Images

from eroseal.errors import ErosealError, FormatError, IntegrityError, OutputError, UnsupportedError
from eroseal.image import unpack_confine, unpack_data
from eroseal.image.inode import Inode
from eroseal.image.reader import Extent, ImageReader
from eroseal.image.unpack import UnpackResult, unpack
from eroseal.image.unpack_confine import Target, check_name
from eroseal.image.unpack_data import LARGE_FILE
from eroseal.image.unpack_restore import MAX_WARNINGS, Warnings
from eroseal.readat import BytesAt, FileAt, ReadAt

NOBODY = 65534


class PlainSource:
    """An image and its data blobs as files, read as they are."""

    def __init__(self, meta: ReadAt, *devices: ReadAt) -> None:
        self.meta = meta
        self.devices = devices

    def device(self, index: int) -> ReadAt:
        return self.devices[index]


Make = Callable[..., ImageReader]


def newest(tree: Path) -> float:
    return max(
        os.lstat(path).st_mtime for path in [tree, *tree.rglob("*")] if os.lstat(path).st_mtime < time.time() + 1
    )


@pytest.fixture
def make(tmp_path: Path, require_peer: Callable[[str], str]) -> Iterator[Make]:
    """Give a function that makes an image of a directory and opens it."""
    opened: list[FileAt] = []
    mkfs = require_peer("mkfs.erofs")

    def build(source: Path, *options: str) -> ImageReader:
        image = tmp_path / f"image{len(opened)}.erofs"
        # mkfs.erofs 1.9 drops the nanoseconds of files that are dated in the second in which it runs.
        while time.time() < int(newest(source)) + 1:
            time.sleep(0.05)
        subprocess.run([mkfs, *options, image, source], check=True, capture_output=True)
        opened.append(FileAt(image))
        return ImageReader(PlainSource(opened[-1]))

    yield build
    for file in opened:
        file.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give a small tree with something of every kind that needs no privilege."""
    tree = tmp_path / "source"
    (tree / "a" / "deep" / "er").mkdir(parents=True)
    (tree / "a" / "small").write_bytes(b"small")
    (tree / "a" / "empty").touch()
    (tree / "a" / "deep" / "block").write_bytes(os.urandom(4096))
    (tree / "big").write_bytes(os.urandom(3 * LARGE_FILE + 17))
    (tree / "link").symlink_to("a/small")
    (tree / "dangling").symlink_to("/nowhere/at/all")
    (tree / "to-outside").symlink_to("/")
    os.mkfifo(tree / "fifo")
    os.link(tree / "a" / "small", tree / "a" / "zmall")
    os.link(tree / "fifo", tree / "fifo2")
    os.link(tree / "link", tree / "a" / "link-too", follow_symlinks=False)
    (tree / b"bytes-\xff\x80".decode("utf-8", "surrogateescape")).write_bytes(b"not UTF-8")
    (tree / "set-id").touch()
    (tree / "set-id").chmod(0o6755)
    (tree / "a" / "sticky").mkdir()
    (tree / "a" / "sticky").chmod(0o3777)
    (tree / "closed").mkdir()
    (tree / "closed" / "inside").write_bytes(b"inside")
    (tree / "closed").chmod(0o500)
    for number, path in enumerate(sorted(tree.rglob("*"))):
        when = 1_600_000_000_123_456_789 + number * 1_000_000_007
        os.utime(path, ns=(when, when), follow_symlinks=False)
    os.utime(tree, ns=(5, 1_500_000_000_000_000_001))
    return tree


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything that should come back, by path; hard links as the first path of the same inode."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        name = str(path.relative_to(root))
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[name] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_rdev,
            first.setdefault(status.st_ino, name),
            content,
        )
    return found


def xattrs(path: Path) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


# --- what comes back ---


@pytest.mark.parametrize("jobs", [1, 2, 16])
@pytest.mark.usefixtures("need_root")
def test_root_gets_everything_back(tmp_path: Path, source: Path, make: Make, jobs: int) -> None:
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(source / "block", stat.S_IFBLK | 0o640, os.makedev(259, 70000))
    os.mknod(source / "socket", stat.S_IFSOCK | 0o600)
    os.chown(source / "big", 70000, 80000)
    os.chown(source / "link", 1, 2, follow_symlinks=False)
    os.chown(source / "set-id", 1000, 1000)
    (source / "set-id").chmod(0o6755)  # chown cleared the bits
    result = unpack(make(source), tmp_path / "out", jobs=jobs)
    assert listing(tmp_path / "out") == listing(source)
    assert result.warnings == ()
    assert result.hard_links == 3
    assert result.special == 4
    assert result.files == sum(1 for path in source.rglob("*") if path.is_file() and not path.is_symlink()) - 1
    assert result.directories == 6


@pytest.mark.parametrize("layout", ["--chunksize=4096", "-Enoinline_data", "-Eforce-inode-extended"])
@pytest.mark.usefixtures("need_root")
def test_layouts(tmp_path: Path, source: Path, make: Make, layout: str) -> None:
    unpack(make(source, layout), tmp_path / "out")
    assert listing(tmp_path / "out") == listing(source)


@pytest.mark.usefixtures("need_root")
def test_xattrs_and_acls(tmp_path: Path, source: Path, make: Make) -> None:
    # user::rwx, user:33:rw-, group::r--, mask::rw-, other::---
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in [
            (1, 7, 2**32 - 1),
            (2, 6, 33),
            (4, 4, 2**32 - 1),
            (16, 6, 2**32 - 1),
            (32, 0, 2**32 - 1),
        ]
    )
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    wanted = {
        "a/small": {"user.text": b"value", "user.empty": b"", "trusted.t": bytes(range(256))},
        "big": {"system.posix_acl_access": acl, "user.big": b"x" * 900},
        "set-id": {"security.capability": capability},
        "a": {"system.posix_acl_default": acl, "system.posix_acl_access": acl},
        ".": {"user.root": b"yes"},
        "link": {"trusted.on-a-link": b"1"},
        "fifo": {"trusted.on-a-fifo": b"2"},
    }
    for name, values in wanted.items():
        for key, value in values.items():
            os.setxattr(source / name, key, value, follow_symlinks=False)
    unpack(make(source), tmp_path / "out")
    assert listing(tmp_path / "out") == listing(source)
    for path in [source, *source.rglob("*")]:
        out = tmp_path / "out" / path.relative_to(source)
        assert xattrs(out) == xattrs(path), path
    assert xattrs(tmp_path / "out" / "a") == wanted["a"]
    plain = unpack(make(source), tmp_path / "plain", keep_xattrs=False)
    assert os.listxattr(tmp_path / "plain" / "a" / "small") == []
    assert plain.warnings == ()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    "runs", [[(8 << 20, 4096)], [], [(0, 4096)], [((40 << 20) - 5000, 5000)], [(0, 100), (9 << 20, 3 << 20)]]
)
def test_holes_stay_holes(tmp_path: Path, source: Path, make: Make, jobs: int, runs: list[tuple[int, int]]) -> None:
    honest = make(source)
    sparse = replace(honest.lookup(b"big"), size=40 << 20, layout=4)

    def walk() -> Iterator[tuple[bytes, Inode]]:
        yield b"", honest.root()
        yield b"sparse", sparse

    def extents(_: Inode) -> Iterator[Extent]:
        at = 0
        for start, length in [*runs, (sparse.size, 0)]:
            if start > at:
                yield Extent(at, start - at, None, 0)
            if length:
                yield Extent(start, length, 0, 0)
            at = start + length

    def read(_: Inode, offset: int, length: int) -> bytes:
        assert any(start <= offset and offset + length <= start + size for start, size in runs)
        assert length <= 1 << 20
        return b"x" * length

    reader = LyingReader(honest, walk=walk, extents=extents, read=read)
    result = unpack(reader, tmp_path / "out", jobs=jobs)
    made = (tmp_path / "out" / "sparse").stat()
    assert made.st_size == sparse.size
    assert made.st_blocks * 512 <= sum(length + 8192 for _, length in runs)
    content = bytearray(sparse.size)
    for start, length in runs:
        content[start : start + length] = b"x" * length
    assert (tmp_path / "out" / "sparse").read_bytes() == content
    assert result.bytes_written == sum(length for _, length in runs)


def test_root_without_owners(tmp_path: Path, source: Path, make: Make, need_root: None) -> None:
    """A program that is set-uid for someone must not become one that is set-uid root."""
    for name, uid, gid in [("foreign", 4321, 4321), ("half", 0, 4321), ("own", 0, 0)]:
        (source / name).touch()
        os.chown(source / name, uid, gid)
        (source / name).chmod(0o6755)
    unpack(make(source), tmp_path / "out", keep_owners=False)
    modes = {"foreign": 0o755, "half": 0o4755, "own": 0o6755}
    for name, mode in modes.items():
        made = (tmp_path / "out" / name).stat()
        assert (made.st_uid, made.st_gid) == (os.geteuid(), os.getegid())
        assert stat.S_IMODE(made.st_mode) == mode


def test_as_a_user_bits_that_speak_of_the_owner_are_dropped(tmp_path: Path, source: Path, make: Make) -> None:
    os.setxattr(source / "big", "user.kept", b"1")
    unpack(make(source), tmp_path / "out", as_root=False, umask=0o027)
    for path in source.rglob("*"):
        made = (tmp_path / "out" / path.relative_to(source)).lstat()
        wanted = path.lstat().st_mode
        if not path.is_symlink():
            wanted = stat.S_IFMT(wanted) | wanted & 0o750
        assert made.st_mode == wanted, path
        assert made.st_uid == os.geteuid()
        assert made.st_mtime_ns == path.lstat().st_mtime_ns
    assert os.getxattr(tmp_path / "out" / "big", "user.kept") == b"1"


def run_as_nobody(check: Callable[[], None]) -> None:
    """Run a check in a child process without privileges; it says on its exit what went wrong."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.umask(0o022)
            check()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.usefixtures("need_root")
def test_an_ordinary_user(tmp_path: Path, source: Path, make: Make) -> None:
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.link(source / "null", source / "null2")
    os.setxattr(source / "big", "trusted.t", b"1")
    os.setxattr(source / "big", "user.u", b"1")
    os.setxattr(source / "a" / "small", "security.s", b"1")
    os.setxattr(source / "a" / "empty", "security.s", b"1")
    os.chown(source / "big", 1000, 1000)
    reader = make(source)
    place = tmp_path / "place"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)

    def check() -> None:
        result = unpack(reader, place / "out")
        warnings = {item.what: (item.path, item.count) for item in result.warnings}
        assert warnings == {
            "attribute trusted.t not restored: only root may set it": (b"big", 1),
            "attribute security.s not restored: only root may set it": (b"a/empty", 2),
            "device node not made: only root may": (b"null", 2),
        }, warnings
        made = (place / "out" / "big").stat()
        assert (made.st_uid, made.st_gid) == (NOBODY, NOBODY)
        assert os.getxattr(place / "out" / "big", "user.u") == b"1"
        assert stat.S_IMODE((place / "out" / "set-id").stat().st_mode) == 0o755
        assert stat.S_IMODE((place / "out" / "closed").stat().st_mode) == 0o500
        assert (place / "out" / "closed" / "inside").read_bytes() == b"inside"
        assert not (place / "out" / "null").exists()
        with pytest.raises(OutputError, match="cannot unpack here"):
            unpack(reader, tmp_path / "not-mine")

    run_as_nobody(check)
    assert not (tmp_path / "not-mine").exists()


@pytest.mark.usefixtures("need_root")
def test_an_ordinary_user_can_clean_up_behind_closed_modes(
    tmp_path: Path, source: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "closed" / "sub").mkdir(mode=0)
    (source / "closed" / "sub" / "file").touch()
    reader = make(source)
    place = tmp_path / "place"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)

    def check() -> None:
        # The last thing before the target itself is finished, when all modes below are set.
        monkeypatch.setattr(Target, "check_in_place", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            unpack(reader, place / "out")
        monkeypatch.undo()

    run_as_nobody(check)
    left = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
    # The target itself stays, as its name could no longer be checked.
    assert left == ["out"]


# --- the target ---


def test_the_target_must_be_new_or_empty(tmp_path: Path, source: Path, make: Make) -> None:
    reader = make(source)
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("mine")
    for target, message in [
        (full, "not empty"),
        (full / "precious", "not a directory"),
        (tmp_path / "missing" / "out", "No such file"),
    ]:
        with pytest.raises(OutputError, match=message):
            unpack(reader, target)
    assert os.listdir(full) == ["precious"]
    link = tmp_path / "link"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link.symlink_to(elsewhere)
    with pytest.raises(OutputError, match="not a directory"):
        unpack(reader, link)
    assert os.listdir(elsewhere) == []


@pytest.mark.parametrize("form", ["{}", "{}/", "{}//"])
def test_an_empty_directory_is_taken(tmp_path: Path, source: Path, make: Make, form: str) -> None:
    (tmp_path / "out").mkdir(mode=0o711)
    unpack(make(source), form.format(tmp_path / "out"), as_root=False, umask=0)
    assert (tmp_path / "out" / "a" / "small").read_bytes() == b"small"
    assert (tmp_path / "out").stat().st_mtime_ns == source.stat().st_mtime_ns


def test_the_current_directory_is_taken(
    tmp_path: Path, source: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    unpack(make(source), b".")
    assert (tmp_path / "out" / "a" / "small").read_bytes() == b"small"


def test_a_default_acl_of_the_target_is_not_inherited(tmp_path: Path, source: Path, make: Make) -> None:
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in [
            (1, 7, 2**32 - 1),
            (2, 7, os.getuid()),
            (4, 7, 2**32 - 1),
            (16, 7, 2**32 - 1),
            (32, 7, 2**32 - 1),
        ]
    )
    for directory in ("here", "above"):
        (tmp_path / directory).mkdir()
        os.setxattr(tmp_path / directory, "system.posix_acl_default", acl)
    for target in (tmp_path / "here", tmp_path / "above" / "out"):
        unpack(make(source), target)
        for path in [target, *target.rglob("*")]:
            names = os.listxattr(path, follow_symlinks=False)
            assert "system.posix_acl_access" not in names, path
            assert "system.posix_acl_default" not in names, path


def test_progress_is_told(tmp_path: Path, source: Path, make: Make) -> None:
    calls: list[tuple[int, int]] = []
    result = unpack(make(source), tmp_path / "out", progress=lambda *now: calls.append(now))
    assert calls == sorted(calls)
    assert calls[-1][0] == sum(1 for _ in source.rglob("*")) + 1
    assert result.bytes_written >= calls[-1][1]


def test_deep_trees_and_few_descriptors(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack_confine, "MAX_OPEN_DIRECTORIES", 4)
    tree = tmp_path / "tree"
    at = tree
    for level in range(60):
        at = at / f"level{level}"
        at.mkdir(parents=True)
        (at / "file").write_bytes(b"%d" % level)
        (at / "zdir").mkdir()
        if level:
            os.link(tree / "level0" / "file", at / "zdir" / "far-link")
    reader = make(tree)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 16, hard))
    try:
        unpack(reader, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert listing(tmp_path / "out") == listing(tree)


# --- failing ---


class LyingReader(ImageReader):
    """A reader of which some answers are replaced, as a hostile image or a broken disk would."""

    def __init__(self, honest: ImageReader, **answers: object) -> None:
        super().__init__(honest.source)
        for name, answer in answers.items():
            setattr(self, name, answer)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (IntegrityError("block differs", step=5), IntegrityError),
        (FormatError("extent leaves its device"), FormatError),
        (UnsupportedError("compressed"), UnsupportedError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (MemoryError(), MemoryError),
        (OSError(errno.EIO, "Input/output error"), OutputError),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_midway_leaves_nothing(
    tmp_path: Path,
    source: Path,
    make: Make,
    jobs: int,
    error: BaseException,
    expected: type[BaseException],
    existing: bool,
) -> None:
    honest = make(source)
    big = honest.lookup(b"big").nid

    def read(inode: Inode, offset: int, length: int) -> bytes:
        if inode.nid == big and offset:
            raise error
        return honest.read(inode, offset, length)

    place = tmp_path / "place"
    place.mkdir()
    target = place / "out"
    before: tuple[object, ...] = ()
    if existing:
        target.mkdir(mode=0o751)
        os.setxattr(target, "user.mine", b"1")
        os.utime(target, ns=(1, 2))
        before = (target.stat().st_mode, target.stat().st_mtime_ns)
    open_before, threads_before = descriptors(), threading.active_count()
    with pytest.raises(expected):
        unpack(LyingReader(honest, read=read), target, jobs=jobs)
    assert descriptors() == open_before
    assert threading.active_count() == threads_before
    if existing:
        assert os.listdir(target) == []
        assert (target.stat().st_mode, target.stat().st_mtime_ns) == before
        assert os.listxattr(target) == ["user.mine"]
    else:
        assert os.listdir(place) == []


def test_interrupted_at_every_step(tmp_path: Path, source: Path, make: Make) -> None:
    """Whatever entry an interrupt falls on, nothing stays."""
    reader = make(source)
    entries = sum(1 for _ in reader.walk())
    for step in range(1, entries + 1):

        def interrupt(made: int, _written: int, step: int = step) -> None:
            if made == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            unpack(reader, tmp_path / "out", progress=interrupt)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("at", ["open", "mkdir", "symlink", "link", "mknod", "chmod", "utime", "rename-guard"])
def test_a_system_call_that_fails_leaves_nothing(
    tmp_path: Path, source: Path, make: Make, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    reader = make(source)
    if at == "rename-guard":
        monkeypatch.setattr(Target, "check_in_place", lambda self: self._gone())
        monkeypatch.setattr(Target, "_gone", lambda _: (_ for _ in ()).throw(OutputError("gone")), raising=False)
    else:
        real = getattr(os, at)
        calls = iter(range(1000))

        def fail(*args: object, **options: object) -> object:
            # Late enough that something is there, early enough that every call of the tree is met.
            if next(calls) == (2 if at not in ("link", "mknod") else 0):
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            return real(*args, **options)

        monkeypatch.setattr(os, at, fail)
    with pytest.raises(OutputError) as caught:
        unpack(reader, tmp_path / "out", jobs=1)
    monkeypatch.undo()
    if at == "rename-guard":
        assert os.listdir(tmp_path / "out") == []
    else:
        assert not (tmp_path / "out").exists()
        assert "Disk quota exceeded" in str(caught.value)


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("which", [0, 1])
def test_a_sealed_image_with_a_flipped_bit(tmp_path: Path, source: Path, jobs: int, which: int) -> None:
    """Of the meta blob, which is met when the image is opened, and of a data blob, met while unpacking."""
    images = Images(tmp_path)
    result = images.build(source, "image")
    unpack(images.verified(result), tmp_path / "whole", jobs=jobs)
    assert (tmp_path / "whole" / "big").read_bytes() == (source / "big").read_bytes()
    blob = result.blobs[which]
    path = images.store.blob_path(blob.digest)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(blob.data_size - 3 * 4096 if which else 4096 + 100)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(IntegrityError, match="byte"):
        unpack(images.verified(result), tmp_path / "out", jobs=jobs)
    assert not (tmp_path / "out").exists()
    images.close()


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_large_file_that_cannot_be_written_is_named(
    tmp_path: Path, source: Path, make: Make, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """Also where a thread finds out when the walk is somewhere else."""
    reader = make(source)
    real = os.pwrite

    def fail(fd: int, data: bytes, offset: int) -> int:
        if offset > LARGE_FILE:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OutputError, match=r"^big: cannot unpack: Input/output error"):
        unpack(reader, tmp_path / "out", jobs=jobs)
    assert not (tmp_path / "out").exists()


def test_short_writes_are_continued(tmp_path: Path, source: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = make(source)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:70_000], offset))
    unpack(reader, tmp_path / "out")
    assert (tmp_path / "out" / "big").read_bytes() == (source / "big").read_bytes()


@pytest.mark.parametrize("jobs", [1, 2])
def test_segments_of_a_very_large_file(
    tmp_path: Path, source: Path, make: Make, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setattr(unpack_data, "SEGMENT_BYTES", 10_000)
    monkeypatch.setattr(unpack_data, "SEGMENT_RUNS", 2)
    reader = make(source, "--chunksize=4096")
    result = unpack(reader, tmp_path / "out", jobs=jobs)
    assert (tmp_path / "out" / "big").read_bytes() == (source / "big").read_bytes()
    assert (tmp_path / "out" / "big").stat().st_mtime_ns == (source / "big").stat().st_mtime_ns
    assert result.bytes_written > 3 * LARGE_FILE


@pytest.mark.usefixtures("need_root")
def test_a_root_that_may_not_give_files_away(tmp_path: Path, source: Path, make: Make) -> None:
    """As in a user namespace or a container: tell it, and offer the way out."""
    os.chown(source / "big", 1234, 1234)
    reader = make(source)
    place = tmp_path / "place"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)

    def check() -> None:
        # Which of the two it is first depends on the order of names: all of them belong to someone else.
        with pytest.raises(OutputError, match=r"cannot give it to (0:0|1234:1234): .* \(unpack without owners"):
            unpack(reader, place / "out", as_root=True)
        assert os.listdir(place) == []
        unpack(reader, place / "out", as_root=True, keep_owners=False)
        assert stat.S_IMODE((place / "out" / "set-id").stat().st_mode) == 0o755

    run_as_nobody(check)


@pytest.mark.usefixtures("need_root")
def test_a_root_that_may_not_make_devices(tmp_path: Path, source: Path, make: Make) -> None:
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    reader = make(source)
    place = tmp_path / "place"
    place.mkdir()
    os.chown(place, NOBODY, NOBODY)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)

    def check() -> None:
        with pytest.raises(OutputError, match=r"null: cannot unpack: .* \(unpack as an ordinary user"):
            unpack(reader, place / "out", as_root=True, keep_owners=False)
        assert os.listdir(place) == []

    run_as_nobody(check)


@pytest.mark.usefixtures("need_root")
def test_a_full_disk(tmp_path: Path, source: Path, make: Make) -> None:
    reader = make(source)
    place = tmp_path / "mount"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "none", place], check=True)
    try:
        with pytest.raises(OutputError, match=r": cannot unpack: No space left on device \(free some space"):
            unpack(reader, place / "out")
        assert os.listdir(place) == []
        with pytest.raises(OutputError, match="No space left"):
            unpack(reader, place)
        assert os.listdir(place) == []
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.usefixtures("need_root")
def test_a_file_system_without_xattrs_warns(tmp_path: Path, source: Path, make: Make) -> None:
    os.setxattr(source / "big", "user.u", b"1")
    os.setxattr(source / "a", "user.u", b"1")
    reader = make(source)
    place = tmp_path / "mount"
    place.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", place], check=True)
    try:
        result = unpack(reader, place / "out")
        # Order of paths is that of restoring: directories come last.
        assert [(item.what, item.path, item.count) for item in result.warnings] == [
            ("attribute user.u not restored: Operation not supported", b"big", 2)
        ]
    finally:
        subprocess.run(["umount", place], check=True)


# --- hostile images ---


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0b", b"x" * 256])
def test_names_that_are_no_names(name: bytes) -> None:
    with pytest.raises(FormatError):
        check_name(name)


@pytest.mark.parametrize(
    "path", [b"", b"../escaped", b"a/../../escaped", b"/escaped", b"a//escaped", b".", b"a/..", b"x\0y"]
)
@pytest.mark.parametrize("kind", ["a/small", "a", "link", "fifo"])
def test_hostile_paths_are_refused(tmp_path: Path, source: Path, make: Make, path: bytes, kind: str) -> None:
    honest = make(source)

    def walk() -> Iterator[tuple[bytes, Inode]]:
        yield b"", honest.root()
        yield b"a", honest.lookup(b"a")
        if path == b"":
            yield b"a/small", honest.lookup(b"a/small")
        yield path, honest.lookup(kind.encode(), follow=False)

    place = tmp_path / "deep" / "place"
    place.mkdir(parents=True)
    with pytest.raises(FormatError):
        unpack(LyingReader(honest, walk=walk), place / "out")
    assert os.listdir(place) == []
    assert os.listdir(place.parent) == ["place"]


def test_a_symlink_is_not_followed_even_if_a_tree_says_it_is_a_directory(
    tmp_path: Path, source: Path, make: Make
) -> None:
    """The classic attack: a link to outside, then a file below its name."""
    honest = make(source)
    outside = tmp_path / "outside"
    outside.mkdir()
    link, directory, file = (
        honest.lookup(b"link", follow=False),
        honest.lookup(b"a"),
        honest.lookup(b"a/small"),
    )

    def readlink(_: Inode) -> bytes:
        return os.fsencode(outside)

    for second in (
        [(b"x/evil", file)],
        [(b"x", directory), (b"x/evil", file)],
        [(b"x", file)],
        [(b"y", directory), (b"y/../x/evil", file)],
    ):

        def walk(
            second: list[tuple[bytes, Inode]] = second,
        ) -> Iterator[tuple[bytes, Inode]]:
            yield b"", honest.root()
            yield b"x", link
            yield from second

        with pytest.raises((FormatError, OutputError)):
            unpack(LyingReader(honest, walk=walk, readlink=readlink), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert os.listdir(outside) == []


def test_hard_links_across_lies(tmp_path: Path, source: Path, make: Make) -> None:
    """Link counts that lie cost a copy or a table entry, never correctness."""
    honest = make(source)
    small = honest.lookup(b"a/small")

    def walk(nlink: int) -> Iterator[tuple[bytes, Inode]]:
        yield b"", honest.root()
        for number in range(5):
            yield b"n%d" % number, replace(small, nlink=nlink)

    for nlink, inodes in [(1, 5), (2, 3), (5, 1), (2**32 - 1, 1)]:
        unpack(LyingReader(honest, walk=lambda nlink=nlink: walk(nlink)), tmp_path / f"out{nlink}")
        made = [path.stat() for path in (tmp_path / f"out{nlink}").iterdir()]
        assert len({status.st_ino for status in made}) == inodes
        assert {path.read_bytes() for path in (tmp_path / f"out{nlink}").iterdir()} == {b"small"}


@pytest.mark.parametrize("target", [b"", b"a\0b"])
def test_impossible_symlink_targets(tmp_path: Path, source: Path, make: Make, target: bytes) -> None:
    with pytest.raises(FormatError, match="symlink's target"):
        unpack(LyingReader(make(source), readlink=lambda _: target), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_size_that_no_file_has(tmp_path: Path, source: Path, make: Make) -> None:
    honest = make(source)
    big = replace(honest.lookup(b"big"), size=(1 << 63) - 1)

    def walk() -> Iterator[tuple[bytes, Inode]]:
        yield b"", honest.root()
        yield b"big", big

    reader = LyingReader(honest, walk=walk, extents=lambda _: iter(()))
    with pytest.raises(OutputError, match="big: cannot unpack"):
        unpack(reader, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_time_that_no_file_has(tmp_path: Path, source: Path, make: Make) -> None:
    honest = make(source)
    small = replace(honest.lookup(b"a/small"), mtime=1 << 63)

    def walk() -> Iterator[tuple[bytes, Inode]]:
        yield b"", honest.root()
        yield b"small", small

    with pytest.raises(FormatError, match="small: owner or time is out of range"):
        unpack(LyingReader(honest, walk=walk), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("need_root")
def test_hostile_xattr_names(tmp_path: Path, source: Path, make: Make) -> None:
    reader = LyingReader(make(source), xattrs=lambda _: [(b"user.a\0b", b"")])
    with pytest.raises(FormatError, match="zero byte"):
        unpack(reader, tmp_path / "out")
    reader = LyingReader(make(source), xattrs=lambda _: [(b"no-such-space.x", b"1")])
    result = unpack(reader, tmp_path / "out")
    assert [item.what for item in result.warnings] == [
        "attribute no-such-space.x not restored: Operation not supported"
    ]


def test_warnings_are_bounded() -> None:
    warnings = Warnings()
    for number in range(MAX_WARNINGS + 500):
        warnings.add(f"kind {number}", b"path")
    found = warnings.result()
    assert len(found) == MAX_WARNINGS + 1
    assert sum(item.count for item in found) == MAX_WARNINGS + 500


# --- someone else in the target ---


def meddle(at: bytes, action: Callable[[], None], reader: ImageReader) -> ImageReader:
    """Do something just before the walk comes to a path."""
    honest = reader.walk

    def walk() -> Iterator[tuple[bytes, Inode]]:
        for path, inode in honest():
            if path == at:
                action()
            yield path, inode

    return LyingReader(reader, walk=walk)


def test_a_directory_swapped_for_a_link(
    tmp_path: Path, source: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack_confine, "MAX_OPEN_DIRECTORIES", 1)  # so that directories are opened anew
    outside = tmp_path / "outside"
    outside.mkdir()
    out = tmp_path / "out"

    def swap() -> None:
        (out / "a").rename(tmp_path / "moved")
        (out / "a").symlink_to(outside)

    with pytest.raises(OutputError, match=r"a/zmall: cannot unpack"):
        unpack(meddle(b"a/zmall", swap, make(source)), out)
    assert os.listdir(outside) == []
    assert (out / "a").is_symlink()  # not ours, so it stays
    assert [path.name for path in out.iterdir()] == ["a"]


def test_a_directory_swapped_for_another(
    tmp_path: Path, source: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack_confine, "MAX_OPEN_DIRECTORIES", 1)
    out = tmp_path / "out"

    def swap() -> None:
        (out / "a").rename(tmp_path / "moved")
        (out / "a").mkdir()
        (out / "a" / "precious").touch()

    with pytest.raises(OutputError, match="replaced by someone else"):
        unpack(meddle(b"a/zmall", swap, make(source)), out)
    assert os.listdir(out / "a") == ["precious"]


@pytest.mark.parametrize("replacement", ["link", "directory", "nothing"])
def test_the_target_itself_swapped(tmp_path: Path, source: Path, make: Make, replacement: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    out = tmp_path / "out"

    def swap() -> None:
        out.rename(tmp_path / "moved")
        if replacement == "link":
            out.symlink_to(outside)
        elif replacement == "directory":
            out.mkdir()

    with pytest.raises(OutputError, match="while it was unpacked to"):
        unpack(meddle(b"fifo", swap, make(source)), out)
    assert os.listdir(outside) == ["precious"]
    assert os.listdir(tmp_path / "moved") == []  # what was made is gone, wherever it is now
    assert out.is_symlink() == (replacement == "link")


def test_what_others_put_there_stays(tmp_path: Path, source: Path, make: Make) -> None:
    out = tmp_path / "out"

    def put() -> None:
        (out / "a" / "zmall").write_text("theirs")
        (out / "a" / "other").write_text("theirs")

    with pytest.raises(OutputError, match="a/zmall: cannot unpack: the target has it already"):
        unpack(meddle(b"a/zmall", put, make(source)), out)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*")) == ["a", "a/other", "a/zmall"]
    assert (out / "a" / "zmall").read_text() == "theirs"


# --- the whole thing, from outside ---

INTERRUPTED = """
import os, sys
from eroseal.image.reader import ImageReader
from eroseal.image.unpack import unpack
from eroseal.readat import FileAt
from eroseal.trust.image import UnverifiedImage
reader = ImageReader(UnverifiedImage(FileAt(sys.argv[1])))
print("ready", flush=True)
for number in range(2000):
    unpack(reader, sys.argv[2], jobs=2)
    os.rename(sys.argv[2], f"{sys.argv[2]}-{number}")
"""


def interrupt(child: subprocess.Popen[bytes]) -> bytes:
    """Send SIGINT until it is heard: the interpreter loses one that falls into a weak reference's callback."""
    for _ in range(10):
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.communicate(timeout=5)[1]
    child.kill()
    raise AssertionError("SIGINT is not heard")


def test_signals_at_any_moment(tmp_path: Path, source: Path, require_peer: Callable[[str], str]) -> None:
    image = tmp_path / "image"
    subprocess.run([require_peer("mkfs.erofs"), image, source], check=True, capture_output=True)
    chance = random.Random(1)
    for attempt in range(8):
        out = tmp_path / f"out{attempt}"
        with subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, image, out], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(chance.random() / 20)
            errors = interrupt(child)
        assert b"KeyboardInterrupt" in errors
        # A signal that comes when all is done, while descriptors are closed, finds all of it: the time comes last.
        assert not out.exists() or out.stat().st_mtime_ns == source.stat().st_mtime_ns, errors.decode()


def test_mutated_images(tmp_path: Path, require_peer: Callable[[str], str]) -> None:
    """Whatever an image's bytes say: our errors only, nothing outside, and nothing left when it is refused."""
    tree = tmp_path / "tree"
    (tree / "dir" / "below").mkdir(parents=True)
    (tree / "dir" / "file").write_bytes(b"content" * 1000)
    (tree / "link").symlink_to("dir/file")
    os.link(tree / "dir" / "file", tree / "hard")
    os.setxattr(tree / "hard", "user.x", b"1")
    image = tmp_path / "image"
    subprocess.run([require_peer("mkfs.erofs"), image, tree], check=True, capture_output=True)
    original = image.read_bytes()
    used = [at for at, byte in enumerate(original[1024:8192], 1024) if byte] + list(range(1024, 1024 + 400))
    chance = random.Random(7)
    outcomes = {"unpacked": 0, "refused": 0}
    place = tmp_path / "place"
    place.mkdir()
    for _ in range(400):
        data = bytearray(original)
        for _ in range(chance.choice([1, 1, 1, 2, 4])):
            data[chance.choice(used)] = chance.choice([0, 0xFF, 0x2F, 0x2E, chance.randrange(256)])
        try:
            unpack(ImageReader(PlainSource(BytesAt(bytes(data)))), place / "out", as_root=False, jobs=1)
            outcomes["unpacked"] += 1
            subprocess.run(["chmod", "-R", "u+rwX", place / "out"], check=True)
            shutil.rmtree(place / "out")
        except ErosealError:
            outcomes["refused"] += 1
        assert os.listdir(place) == []
    assert min(outcomes.values()) > 20, outcomes


@pytest.mark.parametrize("name", [b"a/b", b"", b"/tmp/x", b"../x"])
def test_hostile_names_on_disk(tmp_path: Path, name: bytes) -> None:
    """The same as bytes of an image, through the real reader."""
    image = Mini()
    file = image.place(REG, tail=b"evil")
    image.add(name, REG, file)
    image.root(dots=False)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(FormatError):
        unpack(open_reader(image.image()), place / "out")
    assert os.listdir(place) == []


@pytest.mark.parametrize("name", [b"..", b"."])
def test_dots_that_lead_elsewhere_are_no_files(tmp_path: Path, name: bytes) -> None:
    image = Mini()
    image.add(name, REG, image.place(REG, tail=b"evil"))
    image.root(dots=False)
    unpack(open_reader(image.image()), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
    assert os.listdir(tmp_path) == ["out"]


def test_the_result_is_a_value(tmp_path: Path, source: Path, make: Make) -> None:
    result = unpack(make(source), tmp_path / "out")
    assert isinstance(result, UnpackResult)
    with pytest.raises(AttributeError):
        result.files = 3  # type: ignore[misc]


def test_not_an_image() -> None:
    with pytest.raises(FormatError):
        ImageReader(PlainSource(BytesAt(bytes(8192))))
