"""Every kind of uncompressed image that mkfs.erofs writes, read back and held against the source tree."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from tests.unit.reader_images import open_reader, resum

from eroseal.errors import ErosealError, UnsupportedError
from eroseal.format.erofs import INCOMPAT_48BIT, INCOMPAT_METABOX
from eroseal.image.check import CheckResult, check_image
from eroseal.image.reader import ImageReader, Inode
from eroseal.readat import FileAt
from eroseal.trust.image import UnverifiedImage, VerifiedImage

Require = Callable[[str], str]

BLOB = "--blobdev=BLOB"
WAYS_OF_ANY: list[list[str]] = [
    [],
    ["-Eforce-inode-extended"],
    ["-Enoinline_data"],
    ["-Enosbcrc"],
    ["-Elegacy-compress"],
    ["-x-1"],
    ["-x0"],
    ["-x1"],
    ["--chunksize=4096"],
    ["--chunksize=65536"],
    ["--chunksize=1048576", "-Eforce-inode-extended"],
    ["--chunksize=4096", "-Eforce-chunk-indexes"],
    ["--chunksize=4096", BLOB],
    ["--chunksize=65536", BLOB, "-Eforce-inode-extended"],
    ["-T123456"],
    ["--ignore-mtime"],
    ["--preserve-mtime"],
    ["--all-root"],
    ["--force-uid=99999", "--force-gid=3"],
    ["-Eforce-inode-compact", "--force-uid=1", "--force-gid=2", "-T5"],
]
WAYS_OF_NEWEST: list[list[str]] = [
    ["-b512"],
    ["-b1024"],
    ["-b2048", "--chunksize=65536", BLOB],
    ["-b512", "--chunksize=4096"],
    ["-Ededupe"],
    ["-Ededupe", "--chunksize=4096"],
    ["-Exattr-name-filter"],
    ["-E^xattr-name-filter"],
    ["-E^inline_data"],
    ["-E48bit"],
    ["-E48bit", "--chunksize=4096"],
    ["-E48bit", "--chunksize=65536", BLOB],
    ["-E48bit", "-Eforce-inode-extended"],
    ["-Edot-omitted"],
    ["--xattr-prefix=user.prefix."],
    ["--xattr-prefix=user.prefix.", "--xattr-prefix=trusted.", "-x0"],
    ["--xattr-prefix=user.prefix.", "-Eplain-xattr-prefixes"],
    ["--xattr-prefix=user.prefix.", "-E48bit", "--MZ"],
    ["--MZ"],
    ["--MZ=id"],
    ["--MZ=id", "--chunksize=4096"],
    ["-m4096"],
    ["-m65536", "--xattr-prefix=user.prefix."],
    ["-m4096", "-x1", "-Eplain-xattr-prefixes", "--xattr-prefix=user.prefix."],
    ["-m4096", "--chunksize=4096", BLOB],
    ["--root-xattr-isize=200"],
    ["--dsunit=4"],
    ["--fsalignblks=16"],
    ["--mkfs-time", "-T5"],
    ["--hard-dereference"],
]
WAYS_OF_COMPRESSION: list[tuple[list[str], str]] = [
    (["-zlz4"], "compact indexes"),
    (["-zlz4", "-Elegacy-compress"], "full indexes"),
    (["-zlz4hc", "-C65536"], "compressed"),
]


@dataclass
class Source:
    """An image whose data blobs are taken as they are, whatever its device table says of their sizes."""

    meta: FileAt
    devices: tuple[FileAt, ...]

    def device(self, k: int) -> FileAt:
        return self.devices[k]


def _fill(root: Path) -> None:
    """A tree with all that EROFS can hold: types, sizes, names, times, owners, links, xattrs, ACLs."""
    chance = random.Random(7)
    for name in ("dir/sub/deep", "empty", "big", "chunks"):
        (root / name).mkdir(parents=True)
    for number in range(600):
        (root / "big" / f"name-{number:04d}-{'x' * (number % 180)}").write_text(f"{number}\n")
    for size in (0, 1, 4064, 4095, 4096, 4097, 8192, 5000, 65_536, 65_537, 300_000):
        (root / "chunks" / f"{size}").write_bytes(chance.randbytes(size))
    repeated = chance.randbytes(65_536)
    (root / "repeated").write_bytes(repeated * 3 + b"tail")
    (root / "mixed").write_bytes(bytes(65_536) + repeated + bytes(200_000) + b"end")
    with (root / "sparse").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(1_234_567)
        file.write(b"island")
    with (root / "hole").open("wb") as file:
        file.truncate(1 << 20)
    for name, target in {"sym": "chunks/1", "abs": "/dir/sub", "loop": "loop", "long": "l" * 3000}.items():
        os.symlink(target, root / name)
    os.symlink("../../chunks/5000", root / "dir/sub/up")
    os.link(root / "chunks/1", root / "hard")
    os.link(root / "chunks/1", root / "dir/hard too")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(root / "sock"))
    for name in (b"!before dots", b"-x", b"\xff\xfe", b"new\nline", "grüße".encode(), b"n" * 250):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).touch()
    (root / "chunks/5000").chmod(0o4755)
    (root / "empty").chmod(0o1777)
    (root / "chunks/0").chmod(0)
    if os.geteuid() == 0:
        _fill_as_root(root)
    _set_xattrs(root)
    _set_times(root)


def _fill_as_root(root: Path) -> None:
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(259, 100_000))
    os.chown(root / "chunks/8192", 70_000, 80_000)
    os.chown(root / "chunks/4097", 5, 6)


def _set_times(root: Path) -> None:
    """Times of long ago: mkfs.erofs drops the nanoseconds of files as young as the image itself."""
    for number, (directory, _, names) in enumerate(os.walk(root, topdown=False)):
        for name in (*names, "."):
            stamp = 1_700_000_000_123_456_789 + number * 1_000_001
            os.utime(Path(directory, name), ns=(0, stamp), follow_symlinks=False)
    os.utime(root / "chunks/4096", ns=(0, 1_893_553_445_987_654_321))
    os.utime(root / "sym", ns=(0, 978_307_200_000_000_000), follow_symlinks=False)
    os.utime(root / "repeated", ns=(0, -315_521_754_876_543_211))


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _set_xattrs(root: Path) -> None:
    values = {
        "chunks/1": {"user.a": b"1"},
        "chunks/5000": {"user.empty": b"", "user.big": b"v" * 2500, "user." + "n" * 240: b"long name"},
        "hole": {"user.prefix.one": b"1", "user.prefix.two": b"2", "user.prefix.": b"none"},
    }
    for number in range(0, 600, 7):
        name = f"big/name-{number:04d}-{'x' * (number % 180)}"
        values[name] = {"user.shared": b"the same everywhere", f"user.prefix.{number}": b"%d" % number}
    anyone = 0xFFFFFFFF
    access = _acl((1, 7, anyone), (2, 5, 1234), (4, 5, anyone), (16, 5, anyone), (32, 5, anyone))
    values["dir"] = {"system.posix_acl_access": access, "system.posix_acl_default": access}
    if os.geteuid() == 0:
        values["dir"] |= {"trusted.t": b"T", "security.test": b"label"}
    for name, attributes in values.items():
        for key, value in attributes.items():
            try:
                os.setxattr(root / name, key, value)
            except OSError:
                continue


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    _fill(root)
    return root


def _make(mkfs: str, options: Sequence[str], source: Path, place: Path) -> tuple[Path, list[Path]]:
    image, blob = place / "image", place / "blob"
    options = [option.replace("BLOB", str(blob)) for option in options]
    command = [mkfs, "--quiet", *options, str(image), str(source)]
    result = subprocess.run(command, capture_output=True, check=False)
    assert result.returncode == 0, (command, result.stderr[-2000:])
    return image, [blob] if blob.exists() else []


@pytest.fixture
def files() -> Iterator[Callable[[Path], FileAt]]:
    """Open files for reading, and close them in the end."""
    opened: list[FileAt] = []

    def open_one(path: Path) -> FileAt:
        opened.append(FileAt(path))
        return opened[-1]

    yield open_one
    for file in opened:
        file.close()


Open = Callable[[Path], FileAt]


def _reader(image: Path, blobs: Sequence[Path], files: Open) -> ImageReader:
    meta, data = files(image), tuple(files(blob) for blob in blobs)
    # mkfs.erofs 1.5 leaves a device slot's block count zero: then the blob is taken whole.
    return ImageReader(cast(VerifiedImage, Source(meta, data)))


def _mtime_fits(options: Sequence[str], reader: ImageReader, inode: Inode, expected: int) -> bool:
    if any(option.startswith("-T") or option == "--ignore-mtime" for option in options) and (
        "--mkfs-time" not in options
    ):
        return inode.mtime == reader.superblock.epoch + inode.raw.i_mtime or inode.raw.extended
    if reader.superblock.feature_incompat & (INCOMPAT_48BIT | INCOMPAT_METABOX) and not inode.raw.extended:
        # Compact inodes hold 32 bits of seconds; the kernel shows the same.
        return inode.mtime == expected // 10**9 % (1 << 32)
    return inode.mtime * 10**9 + inode.mtime_nsec == expected


def _compare_metadata(options: Sequence[str], reader: ImageReader, inode: Inode, path: Path, name: bytes) -> None:
    status = path.lstat()
    assert inode.mode == status.st_mode, name
    if "--all-root" in options:
        assert (inode.uid, inode.gid) == (0, 0), name
    elif not any(option.startswith("--force-uid") for option in options):
        assert (inode.uid, inode.gid) == (status.st_uid, status.st_gid), name
    if not inode.is_dir:
        assert inode.size == status.st_size, name
        assert inode.nlink == (1 if "--hard-dereference" in options else status.st_nlink), name
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        assert os.makedev(*inode.rdev) == status.st_rdev, name
    # The root's own time differs between versions of mkfs.erofs.
    assert not name or _mtime_fits(options, reader, inode, status.st_mtime_ns), name


def _compare_content(reader: ImageReader, inode: Inode, path: Path, name: bytes) -> None:
    if inode.is_dir:
        names = sorted(os.fsencode(entry) for entry in os.listdir(path))
        assert [entry.name for entry in reader.entries(inode)] == names, name
    elif inode.is_symlink:
        assert reader.readlink(inode) == os.fsencode(os.readlink(path)), name
    elif inode.is_regular:
        content = path.read_bytes()
        extents = list(reader.extents(inode))
        assert sum(extent.length for extent in extents) == len(content), name
        assert [extent.logical for extent in extents] == [
            sum(extent.length for extent in extents[:k]) for k in range(len(extents))
        ]
        assert reader.read(inode, 0, 1 << 40) == content, name
        for start in (1, 4095, 4096, 65_535, 70_000):
            assert reader.read(inode, start, 5000) == content[start : start + 5000], name


def _compare(options: Sequence[str], reader: ImageReader, tree: Path) -> None:
    names = []
    for name, inode in reader.walk():
        names.append(name)
        path = Path(os.fsdecode(os.fsencode(tree) + b"/" + name)) if name else tree
        _compare_metadata(options, reader, inode, path, name)
        _compare_content(reader, inode, path, name)
        if "-x-1" not in options:
            expected = sorted(
                (os.fsencode(key), os.getxattr(path, key, follow_symlinks=False))
                for key in os.listxattr(path, follow_symlinks=False)
            )
            assert reader.xattrs(inode) == expected, name
        assert reader.lookup(b"/" + name, follow=False) == inode, name
    everything = [str(path) for _, names_, files_ in os.walk(tree) for path in (*names_, *files_)]
    assert len(names) == 1 + len(everything)
    assert names[0] == b""


def _check(reader: ImageReader, *, odd: bool = False) -> CheckResult:
    result = check_image(reader)
    assert result.compressed == 0
    assert bool(result.warnings) == odd, result.warnings
    return result


@pytest.mark.parametrize("options", WAYS_OF_ANY, ids=" ".join)
def test_images_of_any_mkfs(options: list[str], require_peer: Require, tree: Path, tmp_path: Path, files: Open) -> None:
    image, blobs = _make(require_peer("mkfs.erofs"), options, tree, tmp_path)
    reader = _reader(image, blobs, files)
    _compare(options, reader, tree)
    _check(reader, odd=bool(blobs) and not reader.devices[0].blocks)


@pytest.mark.parametrize("options", WAYS_OF_ANY + WAYS_OF_NEWEST, ids=" ".join)
def test_images_of_the_newest_mkfs(
    options: list[str], require_peer: Require, tree: Path, tmp_path: Path, files: Open
) -> None:
    image, blobs = _make(require_peer("mkfs.erofs>=1.9"), options, tree, tmp_path)
    # Through the type that users have, device sizes come from the device table.
    reader = ImageReader(UnverifiedImage(files(image), [files(blob) for blob in blobs]))
    _compare(options, reader, tree)
    _check(reader, odd="-Ededupe" in options and "--chunksize=4096" not in options)


def test_fingerprints_are_hidden(require_peer: Require, tree: Path, tmp_path: Path, files: Open) -> None:
    image, _ = _make(require_peer("mkfs.erofs>=1.9"), ["--xattr-inode-digest"], tree, tmp_path)
    reader = _reader(image, [], files)
    inode = reader.lookup(b"chunks/1")
    assert [name for name, _ in reader.xattrs(inode)] == [b"user.a"]
    hidden = dict(reader.xattrs(inode, hidden=True))
    assert hidden[b"erofs.fingerprint.v1"].startswith(b"sha256:")
    _check(reader)


@pytest.mark.parametrize("block", ["", "-b4096"])
def test_tar_index_reads_from_the_tarball(
    block: str, require_peer: Require, tree: Path, tmp_path: Path, files: Open
) -> None:
    mkfs = require_peer("mkfs.erofs>=1.9")
    tarball, image = tmp_path / "tar", tmp_path / "image"
    names = [name for name in os.listdir(tree) if name != "sock"]
    subprocess.run(["tar", "cf", tarball, "-C", tree, "--", *sorted(names)], check=True)
    subprocess.run([mkfs, "--quiet", *([block] if block else []), "--tar=i", image, tarball], check=True)
    reader = ImageReader(UnverifiedImage(files(image), [files(tarball)]))
    _check(reader, odd=True)
    seen = 0
    for name, inode in reader.walk():
        if name:
            path = Path(os.fsdecode(os.fsencode(tree) + b"/" + name))
            _compare_content(reader, inode, path, name)
            seen += inode.is_regular
    assert seen > 600


def test_merged_images_apart_and_flattened(require_peer: Require, tmp_path: Path, files: Open) -> None:
    mkfs = require_peer("mkfs.erofs>=1.9")
    chance = random.Random(3)
    contents: dict[bytes, bytes] = {}
    images = []
    for name in ("first", "second", "third"):
        source = tmp_path / name
        source.mkdir()
        for size in (1, 5000, 100_000):
            contents[f"{name}-{size}".encode()] = content = chance.randbytes(size)
            (source / f"{name}-{size}").write_bytes(content)
        images.append(_make(mkfs, ["--chunksize=4096"], source, source.parent)[0].rename(tmp_path / f"{name}.img"))
    merged = tmp_path / "merged"
    subprocess.run([mkfs, "--quiet", merged, *images], check=True)
    flat = tmp_path / "flat"
    with flat.open("wb") as file:
        for part in (merged, *images):
            file.write(part.read_bytes())
    for reader in (_reader(merged, images, files), _reader(flat, [], files)):
        found = {name: reader.read(inode, 0, 1 << 20) for name, inode in reader.walk() if inode.is_regular}
        assert found == contents
        _check(reader, odd=True)


@pytest.mark.parametrize(("options", "message"), WAYS_OF_COMPRESSION, ids=str)
def test_compressed_images_are_listed_and_their_data_refused(
    options: list[str], message: str, require_peer: Require, tree: Path, tmp_path: Path, files: Open
) -> None:
    image, _ = _make(require_peer("mkfs.erofs"), options, tree, tmp_path)
    reader = _reader(image, [], files)
    refused = 0
    for name, inode in reader.walk():
        path = Path(os.fsdecode(os.fsencode(tree) + b"/" + name)) if name else tree
        _compare_metadata(options, reader, inode, path, name)
        reader.xattrs(inode)
        if inode.compressed:
            refused += 1
            with pytest.raises(UnsupportedError, match=message):
                reader.read(inode, 0, 1)
        else:
            _compare_content(reader, inode, path, name)
    result = check_image(reader)
    # Names with hard links come several times, inodes once.
    assert 0 < result.compressed <= refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-zlz4", "--zD"], "directory is compressed"),
        (["-zlz4", "-m4096"], "metadata is compressed"),
        (["-zlz4", "-Efragments", "--xattr-prefix=user.prefix."], "compressed packed inode"),
    ],
    ids=str,
)
def test_compressed_metadata_is_refused_by_name(
    options: list[str], message: str, require_peer: Require, tree: Path, tmp_path: Path, files: Open
) -> None:
    image, _ = _make(require_peer("mkfs.erofs>=1.9"), options, tree, tmp_path)
    reader = _reader(image, [], files)
    with pytest.raises(UnsupportedError, match=message):
        check_image(reader)


def test_mutants_of_a_real_image(require_peer: Require, tmp_path: Path) -> None:
    """Whatever is overwritten in a small image, only our errors come out, and soon."""
    source = tmp_path / "source"
    (source / "dir/sub").mkdir(parents=True)
    for number in range(20):
        (source / "dir" / f"name-{number:02d}").write_bytes(bytes(400 * number))
    os.symlink("dir/sub", source / "link")
    os.setxattr(source / "dir", "user.name", b"value")
    image, _ = _make(require_peer("mkfs.erofs"), ["--chunksize=4096"], source, tmp_path)
    original = image.read_bytes()
    used = [at for at in range(1024, len(original) - 8) if any(original[at & ~31 : (at | 31) + 1])]
    chance = random.Random(11)
    refused = 0
    for _ in range(2000):
        data = bytearray(original)
        for _ in range(chance.choice((1, 1, 2, 4))):
            at, size = chance.choice(used), chance.choice((1, 2, 4, 8))
            data[at : at + size] = chance.choice((bytes(size), b"\xff" * size, chance.randbytes(size)))
        start = time.monotonic()
        try:
            # Half of them with the checksum right, so that the check comes further.
            _read_all(resum(data) if chance.random() < 0.5 and data[1036] == 12 else bytes(data))
        except ErosealError:
            refused += 1
        assert time.monotonic() - start < 10
    assert refused > 1000


def _read_all(image: bytes) -> None:
    reader = open_reader(image)
    with contextlib.suppress(ErosealError):
        for name, inode in reader.walk():
            reader.xattrs(inode, hidden=True)
            reader.lookup(name)
            reader.read(inode, 0, 1 << 16)
    check_image(reader)


def test_real_tree(require_peer: Require, tmp_path: Path, files: Open) -> None:
    source = Path("/usr/include/linux")
    if not source.is_dir() or shutil.disk_usage(tmp_path).free < 1 << 30:
        pytest.skip("needs /usr/include/linux and 1 GiB of space")
    image, blobs = _make(require_peer("mkfs.erofs"), [], source, tmp_path)
    reader = _reader(image, blobs, files)
    _compare([], reader, source)
    _check(reader)
