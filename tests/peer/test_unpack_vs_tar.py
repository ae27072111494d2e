"""Unpacking against GNU tar: the same tree through both must come out the same, as root and as a user."""

from __future__ import annotations

import os
import random
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eroseal.image.reader import ImageReader
from eroseal.image.unpack import UnpackResult, unpack
from eroseal.readat import FileAt
from eroseal.trust.image import UnverifiedImage

USER = 4242
ANYONE = 2**32 - 1


def acl(group_mask: int) -> bytes:
    entries = [(1, 7, ANYONE), (2, 6, 33), (4, 4, ANYONE), (16, group_mask, ANYONE), (32, 0, ANYONE)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a directory that other users can come to."""
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    return tmp_path


def make_tree(root: Path, *, seed: int, privileged: bool) -> None:
    """A nasty tree, the same for the same seed; without sockets, which tar leaves out."""
    chance = random.Random(seed)
    root.mkdir()
    directories, files = [root], []
    names = [b"plain", b"sp ace", b"new\nline", b"\xff\xfe", "ünï☃".encode(), b"-rf", b"a" * 255, b"..x", b"*"]
    for number in range(150):
        parent = chance.choice(directories)
        path = parent / os.fsdecode(b"%s%d" % (chance.choice(names)[:250], number))
        kind = chance.choice("ddfffffflpsh" + ("cb" if privileged else ""))
        if kind == "d":
            path.mkdir()
            directories.append(path)
        elif kind == "f":
            size = chance.choice([0, 1, 100, 4095, 4096, 4097, 70000, 3 << 20])
            path.write_bytes(chance.randbytes(size))
            files.append(path)
        elif kind == "s":
            with open(path, "wb") as file:
                file.seek(chance.choice([4096, 65536, 1 << 20]))
                file.write(b"end" if chance.random() < 0.5 else b"")
                file.truncate((2 << 20) + chance.randrange(5000))
            files.append(path)
        elif kind == "l":
            path.symlink_to(chance.choice(["", "../", "/"]) + "t" * chance.randrange(1, 300))
        elif kind == "p":
            os.mkfifo(path)
        elif kind == "h" and files:
            os.link(chance.choice(files), path)
        elif kind in "cb":
            mode = stat.S_IFCHR if kind == "c" else stat.S_IFBLK
            os.mknod(path, mode | 0o600, os.makedev(chance.randrange(1, 4000), chance.randrange(1 << 20)))
    everything = sorted(root.rglob("*"), reverse=True)
    for path in everything:
        if privileged:
            os.chown(path, chance.choice([0, 1, 65534, 70000]), chance.choice([0, 7, 99999]), follow_symlinks=False)
    for path in everything:
        if path.is_symlink():
            continue
        if path.is_dir() or path.is_file():
            if chance.random() < 0.2:
                os.setxattr(path, "user.some", chance.randbytes(chance.randrange(1, 200)))
            if chance.random() < 0.2:
                os.setxattr(path, "system.posix_acl_access", acl(chance.randrange(8)))
            if privileged and chance.random() < 0.2:
                os.setxattr(path, "trusted.other", b"x" * chance.randrange(1, 50))
            if privileged and path.is_file() and chance.random() < 0.2:
                os.setxattr(path, "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
        if path.is_dir() and chance.random() < 0.2:
            os.setxattr(path, "system.posix_acl_default", acl(7))
    for path in everything:
        if not path.is_symlink() and "system.posix_acl_access" not in os.listxattr(path):
            bits = chance.choice([0o644, 0o755, 0o600, 0o4755, 0o2755, 0o6711, 0o1777, 0o444, 0o777])
            path.chmod(bits | 0o700 if path.is_dir() else bits)
    for path in [*everything, root]:
        when = chance.randrange(1_000_000_000, 2_000_000_000) * 1_000_000_000 + chance.randrange(1_000_000_000)
        os.utime(path, ns=(when, when), follow_symlinks=False)


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """All that tar and we restore, by path."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        name = str(path.relative_to(root))
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        names = os.listxattr(path, follow_symlinks=False)
        found[name] = (
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_rdev,
            status.st_nlink if not stat.S_ISDIR(status.st_mode) else 0,
            first.setdefault(status.st_ino, name),
            content,
            {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(names)},
        )
    return found


@pytest.fixture
def image_of(place: Path, require_peer: Callable[[str], str]) -> Iterator[Callable[..., ImageReader]]:
    """Give a function that makes and opens an image of a directory."""
    opened: list[FileAt] = []

    def make(source: Path, *options: str, mkfs: str = "mkfs.erofs") -> ImageReader:
        image = place / f"image{len(opened)}"
        subprocess.run([require_peer(mkfs), *options, image, source], check=True, capture_output=True)
        opened.append(FileAt(image))
        return ImageReader(UnverifiedImage(opened[-1]))

    yield make
    for file in opened:
        file.close()


def as_user(action: Callable[[], None], umask: int) -> None:
    """Run something in a child process without any privilege."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
            os.umask(umask)
            action()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


TAR_ALL = ["--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--format=posix", "--numeric-owner"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("need_root")
def test_as_root(
    place: Path, image_of: Callable[..., ImageReader], require_peer: Callable[[str], str], seed: int
) -> None:
    source = place / "source"
    make_tree(source, seed=seed, privileged=True)
    tar = require_peer("tar")
    (place / "tar").mkdir()
    subprocess.run([tar, *TAR_ALL, "-cf", place / "archive", "-C", source, "."], check=True)
    subprocess.run([tar, *TAR_ALL, "-xpf", place / "archive", "-C", place / "tar"], check=True)
    result = unpack(image_of(source), place / "out")
    assert result.warnings == ()
    wanted, got, ours = listing(source), listing(place / "tar"), listing(place / "out")
    assert ours == wanted
    assert ours == got


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.usefixtures("need_root")
def test_as_a_user(
    place: Path, image_of: Callable[..., ImageReader], require_peer: Callable[[str], str], umask: int
) -> None:
    source = place / "source"
    make_tree(source, seed=100 + umask, privileged=False)
    for path in source.rglob("*"):  # tar's --acls switches its umask off, so this comparison is without
        if not path.is_symlink():
            for name in os.listxattr(path):
                os.removexattr(path, name)
    tar = require_peer("tar")
    subprocess.run([tar, "--format=posix", "-cf", place / "archive", "-C", source, "."], check=True)
    reader = image_of(source)
    for name in ("tar", "out"):
        (place / name).mkdir()
        os.chown(place / name, USER, USER)
    results: list[UnpackResult] = []

    def check() -> None:
        subprocess.run([tar, "-xf", place / "archive", "-C", place / "tar"], check=True)
        results.append(unpack(reader, place / "out"))
        assert results[0].warnings == ()

    as_user(check, umask)
    assert listing(place / "out") == listing(place / "tar")


@pytest.mark.usefixtures("need_root")
def test_sparse_files_take_as_little_as_with_tar(
    place: Path, image_of: Callable[..., ImageReader], require_peer: Callable[[str], str]
) -> None:
    source = place / "source"
    source.mkdir()
    for number, runs in enumerate([[(1 << 20, 8192)], [], [(0, 4096), (16 << 20, 1)], [((1 << 30) - 10, 10)]]):
        with open(source / f"sparse{number}", "wb") as file:
            for start, length in runs:
                file.seek(start)
                file.write(b"x" * length)
            file.truncate(max(file.tell(), 20 << 20))
    tar = require_peer("tar")
    (place / "tar").mkdir()
    subprocess.run([tar, *TAR_ALL, "-cf", place / "archive", "-C", source, "."], check=True)
    subprocess.run([tar, *TAR_ALL, "-xpf", place / "archive", "-C", place / "tar"], check=True)
    # Only newer ones look for holes.
    unpack(image_of(source, "--chunksize=4096", mkfs="mkfs.erofs>=1.9"), place / "out")
    for path in source.iterdir():
        ours, theirs = (place / "out" / path.name).stat(), (place / "tar" / path.name).stat()
        assert ours.st_size == theirs.st_size
        assert ours.st_blocks <= theirs.st_blocks


@pytest.mark.usefixtures("need_root")
def test_the_system_s_own_files(place: Path, image_of: Callable[..., ImageReader]) -> None:
    source = Path("/usr/include")
    unpack(image_of(source), place / "out")
    assert listing(place / "out") == listing(source)
