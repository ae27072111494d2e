"""A tree of everything that has ever broken an image tool, made anew and always the same."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.support.trees import paths_below

BLOCK = 4096
KIB, MIB = 1 << 10, 1 << 20
SIZES = sorted(
    {0, 1, 31, 32, 33, 4031, 4032, 4033, 4063, 4064, 4065, 5 * MIB, 5 * MIB + 1}
    | {edge + step for edge in (BLOCK, 2 * BLOCK, 64 * KIB, 128 * KIB, MIB, 4 * MIB) for step in (-1, 0, 1)}
    | {BLOCK - 2, BLOCK - 3, BLOCK + 100, 64 * KIB + BLOCK, 64 * KIB + BLOCK + 100}
)
_ROOT_TIME = 1_700_000_000


def noise(size: int, seed: int) -> bytes:
    """Bytes that look random and are the same every time."""
    return random.Random(seed).randbytes(size)


def capability() -> bytes:
    """A security.capability value (struct vfs_cap_data, revision 2): cap_net_raw, effective."""
    return struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as xattr: (tag, permissions, id) each, in the kernel's order."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 0xFFFFFFFF
ACCESS_ACL = acl((1, 6, NO_ID), (2, 7, 70_000), (4, 4, NO_ID), (8, 5, 4_000_000_000), (16, 7, NO_ID), (32, 0, NO_ID))
DEFAULT_ACL = acl((1, 7, NO_ID), (2, 5, 1000), (4, 5, NO_ID), (16, 5, NO_ID), (32, 1, NO_ID))


def make_nasty(root: Path, *, roomy: bool = True, deep: int = 1200) -> Path:
    """Fill a new directory; as root only.

    Args:
        root: the directory to make.
        roomy: the file system holds long xattrs, any 64-bit time and many hard links (tmpfs does, ext4 does not).
        deep: levels of the deepest directory.
    """
    root.mkdir()
    top = os.fsencode(root)
    for number, part in enumerate((_sizes, _tails, _names, _directories, _symlinks, _links, _special, _modes, _xattrs)):
        place = os.path.join(top, part.__name__.encode()[1:])
        os.mkdir(place)
        part(place)
        _stamp(place, number)
    for part in (_times, _sparse, _shared_content):
        place = os.path.join(top, part.__name__.encode()[1:])
        os.mkdir(place)
        part(place)
    place = top
    for _ in range(deep):
        place = os.path.join(place, b"d")
        os.mkdir(place)
    write(os.path.join(place, b"bottom"), b"deep down")
    if roomy:
        place = os.path.join(top, b"roomy")
        os.mkdir(place)
        _roomy(place)
    os.setxattr(top, "user.on-root", b"yes")
    os.setxattr(top, "trusted.on-root", b"\0\1\2")
    os.setxattr(top, "system.posix_acl_default", DEFAULT_ACL)
    os.chmod(top, 0o1751)
    os.chown(top, 70_000, 80_000)
    os.utime(top, ns=(0, -1), follow_symlinks=False)
    return root


def write(path: bytes, data: bytes = b"") -> bytes:
    """Make a file; gives its path."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
    return path


def _stamp(top: bytes, seed: int) -> None:
    """Whole seconds, nanoseconds and equal times, in turn."""
    paths = sorted(full for _, full in paths_below(top))
    for number, path in enumerate(reversed(paths), seed):  # children first: making them changes their directory
        ns = (_ROOT_TIME + number % 7) * 1_000_000_000 + (number * 7_919_333 % 1_000_000_000) * (number % 2)
        os.utime(path, ns=(ns, ns), follow_symlinks=False)


def _sizes(top: bytes) -> None:
    for size in SIZES:
        write(os.path.join(top, b"size-%d" % size), noise(size, size))


def _tails(top: bytes) -> None:
    """Inline tails behind xattr areas of all lengths: the ones that just fit, and those that just do not."""
    for tail in (1, 3990, 4020, 4032, 4064, 4092, 4095):
        for value in (0, 1, 2, 3, 4, 17, 60, 400, 1500):
            for whole in (0, BLOCK):
                path = write(os.path.join(top, b"%d+%d-xattr-%d" % (whole, tail, value)), noise(whole + tail, tail))
                os.setxattr(path, "user.v", noise(value, tail * 10_000 + value))


def _names(top: bytes) -> None:
    names = [b"!x", b"-x", b"-", b"!", b" ", b"...", b"..x", b".x", b".-", b".!", b"\\", b"a\\n", b"\xff\xfe", b"\x80"]
    names += [b"\n", b"new\nline", b"tab\t", b"\x01\x7f", b"*?[", b"x" * 255, b"\xc3" * 255, "ä".encode(), b"a\xcc\x88"]
    for name in names:
        write(os.path.join(top, name), name)
    for name in (b"-directory", b"\xfe\xff", b"d" * 255, b"!d"):
        os.mkdir(os.path.join(top, name))
        write(os.path.join(top, name, b"-"), name)


def _directories(top: bytes) -> None:
    for count in (0, 1, 100, 5000):
        place = os.path.join(top, b"with-%d" % count)
        os.mkdir(place)
        for number in range(count):
            write(os.path.join(place, b"entry-%d" % number))
    for spare in (-1, 0, 1, 2, 11, 12, 13):
        for blocks in (1, 2):
            _exact(os.path.join(top, b"exact-%d-%d" % (blocks, spare + 1)), blocks, spare)
            # Behind an odd xattr area, what nearly fills a block cannot be inlined.
            behind = os.path.join(top, b"behind-xattrs-%d-%d" % (blocks, spare + 1))
            _exact(behind, blocks, spare)
            os.setxattr(behind, "user.x", noise(spare + 2, spare + 1))
    for number in range(3000):
        os.makedirs(os.path.join(top, b"many", b"%d" % (number % 100), b"%d" % number))


def _exact(place: bytes, blocks: int, spare: int) -> None:
    """A directory whose entries leave `spare` bytes free in their last block (one more than fits for -1)."""
    os.mkdir(place)
    for block in range(blocks):
        left = BLOCK if block else BLOCK - 12 - 1 - 12 - 2  # "." and ".." come first
        last = block == blocks - 1
        left -= spare if last else 0
        number = 0
        while left:
            # Every name takes 12 bytes and its length; the last two share what is left.
            length = 255 if left > 2 * 267 else left - 12 if left <= 267 else left // 2 - 12
            write(os.path.join(place, b"%d-%03d-" % (block, number) + b"n" * (length - 6)))
            left -= length + 12
            number += 1


def _symlinks(top: bytes) -> None:
    for size in (1, 2, 59, 60, 61, 1000, 4031, 4032, 4033, 4095):
        os.symlink(b"t" * size if size < 256 else (b"dir/" * 1024)[:size], os.path.join(top, b"length-%d" % size))
    os.symlink(b"/nowhere/at/all", os.path.join(top, b"dangling"))
    os.symlink(b".", os.path.join(top, b"loop"))
    os.symlink(b"\xff\n\x01", os.path.join(top, b"strange"))
    for size, target in ((0, 8), (5, 8), (1000, 8), *((size, 4095) for size in range(8)), (1000, 4080), (1001, 4095)):
        path = os.path.join(top, b"trusted-%d-%d" % (size, target))
        os.symlink((b"target/" * 1000)[:target], path)
        os.setxattr(path, "trusted.on-link", noise(size, size), follow_symlinks=False)
    os.lchown(os.path.join(top, b"dangling"), 12_345, 4_000_000_000)


def _links(top: bytes) -> None:
    for name in (b"a", b"b", b"c"):
        os.mkdir(os.path.join(top, name))
    first = os.path.join(top, b"b", b"file")
    write(first, noise(10_000, 1))
    os.symlink(b"file", os.path.join(top, b"b", b"symlink"))
    os.mkfifo(os.path.join(top, b"b", b"fifo"))
    os.mknod(os.path.join(top, b"b", b"device"), stat.S_IFCHR | 0o620, os.makedev(5, 1))
    write(os.path.join(top, b"b", b"empty"))
    write(os.path.join(top, b"b", b"large"), noise(3 * MIB + 5, 2))
    os.setxattr(os.path.join(top, b"b", b"empty"), "user.x", b"1")
    for name in (b"file", b"symlink", b"fifo", b"device", b"empty", b"large"):
        for place in (b"a/0-", b"c/1-", b""):
            os.link(os.path.join(top, b"b", name), os.path.join(top, place + name), follow_symlinks=False)
    for number in range(300):
        os.link(first, os.path.join(top, b"c", b"many-%d" % number))


def _special(top: bytes) -> None:
    for major, minor in ((0, 0), (1, 3), (4095, 0), (0, (1 << 20) - 1), (4095, (1 << 20) - 1), (8, 256), (255, 255)):
        for kind, letter in ((stat.S_IFCHR, b"c"), (stat.S_IFBLK, b"b")):
            if kind == stat.S_IFBLK or (major, minor) != (0, 0):
                path = os.path.join(top, b"%s-%d-%d" % (letter, major, minor))
                os.mknod(path, kind | 0o640, os.makedev(major, minor))
    os.mknod(os.path.join(top, b"whiteout"), stat.S_IFCHR, 0)
    os.mkfifo(os.path.join(top, b"fifo"), 0o600)
    os.setxattr(os.path.join(top, b"fifo"), "trusted.on-fifo", b"f")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(top, os.O_PATH)
        try:
            server.bind(f"/proc/self/fd/{here}/socket")
        finally:
            os.close(here)


def _modes(top: bytes) -> None:
    for mode in (0, 0o400, 0o7777, 0o4755, 0o2755, 0o1644, 0o6711, 0o111):
        os.chmod(write(os.path.join(top, b"file-%o" % mode), b"%o" % mode), mode)
        path = os.path.join(top, b"dir-%o" % mode)
        os.mkdir(path)
        write(os.path.join(path, b"inside"), b"i")
        os.chmod(path, mode)
    for uid, gid in ((0, 65_535), (65_535, 0), (65_536, 1), (1, 65_536), (70_000, 80_000), (2**32 - 2, 2**32 - 2)):
        path = write(os.path.join(top, b"owner-%d-%d" % (uid, gid)), b"o")
        os.chown(path, uid, gid)
        os.chmod(path, 0o6755)


def _xattrs(top: bytes) -> None:
    def file(name: bytes, *pairs: tuple[str, bytes]) -> None:
        path = write(os.path.join(top, name), name)
        for key, value in pairs:
            os.setxattr(path, key, value)

    file(b"empty-value", ("user.empty", b""))
    file(b"every-kind", ("user.a", b"1"), ("trusted.b", b"2"), ("security.c", b"3"))
    file(b"capability", ("security.capability", capability()))
    file(b"long-name", ("user." + "n" * 250, b"v"), ("trusted." + "n" * 247, b"w"))
    file(b"strange-name", ("user.ä \n", b"v"), ("user.user.", b"w"), ("user..", b"\0"))
    file(b"many", *((f"user.n{number}", b"%d" % number) for number in range(60)))
    for number in range(20):  # shared among files
        file(b"shared-%d" % number, ("user.same", b"s" * 100), ("user.own", b"%d" % number), ("security.same", b"x"))
    file(b"acl", ("system.posix_acl_access", ACCESS_ACL))
    file(b"acl-and-more", ("system.posix_acl_access", ACCESS_ACL), ("user.z", b"z"), ("trusted.y", b""))
    os.chown(os.path.join(top, b"acl"), 5, 6)
    os.mkdir(os.path.join(top, b"acl-dir"))
    os.setxattr(os.path.join(top, b"acl-dir"), "system.posix_acl_access", ACCESS_ACL)
    write(os.path.join(top, b"acl-dir", b"before-default"))
    os.setxattr(os.path.join(top, b"acl-dir"), "system.posix_acl_default", DEFAULT_ACL)
    write(os.path.join(top, b"acl-dir", b"inherits"))
    os.mkdir(os.path.join(top, b"acl-dir", b"inherits-too"))
    os.mkdir(os.path.join(top, b"directory"))
    os.setxattr(os.path.join(top, b"directory"), "user.d", b"d" * 900)
    for number in range(100):  # entries behind a long area: the inline tail does not fit
        write(os.path.join(top, b"directory", b"file-number-%d-%s" % (number, b"x" * 15)))


def _times(top: bytes) -> None:
    """From 1901 to 2446, which is what ext4 holds, with and without nanoseconds; some exactly at the epoch."""
    for seconds in (-(1 << 31), -1, 0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 3 << 32):
        for nsec in (0, 1, 999_999_999):
            ns = seconds * 1_000_000_000 + nsec
            path = write(os.path.join(top, b"file%d.%09d" % (seconds, nsec)), b"t")
            os.utime(path, ns=(ns, ns))
            path = os.path.join(top, b"dir%d.%09d" % (seconds, nsec))
            os.mkdir(path)
            os.utime(path, ns=(ns, ns))
    path = os.path.join(top, b"symlink")
    os.symlink(b"x", path)
    os.utime(path, ns=(-5, -5), follow_symlinks=False)


def sparse_file(path: bytes, size: int, *pieces: tuple[int, bytes]) -> None:
    """A file of `size` bytes with data at some offsets and holes elsewhere."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.ftruncate(fd, size)
        for offset, data in pieces:
            os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def _sparse(top: bytes) -> None:
    def file(name: bytes, size: int, *pieces: tuple[int, bytes]) -> None:
        sparse_file(os.path.join(top, name), size, *pieces)

    piece = noise(64 * KIB, 77)
    for size in (1, 100, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 100, 2 * BLOCK, 64 * KIB, 64 * KIB + 1, 64 * KIB + BLOCK):
        file(b"all-hole-%d" % size, size)
    for size in (MIB - 1, MIB, MIB + 1, 300 * MIB, 300 * MIB + 7):
        file(b"all-hole-%d" % size, size)
    for size in (BLOCK + 100, 64 * KIB + 100, 2 * 64 * KIB + 100, 64 * KIB + 2 * BLOCK + 100):
        file(b"zeros-then-tail-%d" % size, size, (size - 100, piece[:100]))
        file(b"data-then-zero-tail-%d" % size, size, (0, piece[: size // 2]))
    file(b"middle", 256 * KIB, (0, piece), (192 * KIB, piece[::-1]))
    file(b"middle-with-tail", 256 * KIB + 50, (0, piece), (192 * KIB, piece[::-1]), (256 * KIB, b"t" * 50))
    file(b"start", 128 * KIB, (64 * KIB, piece))
    file(b"end", 128 * KIB + 1, (0, piece))
    file(b"large-start", 9 * MIB, (8 * MIB, piece))
    file(b"large-end", 9 * MIB + 123, (0, piece))
    file(b"large-middle", 30 * MIB, (0, piece), (30 * MIB - 64 * KIB, piece))
    file(b"large-comb", 12 * MIB, *((at * 128 * KIB, noise(BLOCK, at)) for at in range(96)))
    file(b"large-tail-only", 20 * MIB + 3, (20 * MIB, b"end"))
    write(os.path.join(top, b"written-zeros"), bytes(200 * KIB + 9))
    write(os.path.join(top, b"written-zeros-large"), bytes(3 * MIB + 9))


def _shared_content(top: bytes) -> None:
    """Equal files, equal pieces at other offsets, and files that differ in one byte."""
    one, two, three = (noise(64 * KIB, 100 + number) for number in range(3))
    small = noise(5000, 104)
    write(os.path.join(top, b"0-one"), one)
    write(os.path.join(top, b"1-one-again"), one)
    write(os.path.join(top, b"2-one-two"), one + two)
    write(os.path.join(top, b"3-two-one"), two + one)
    write(os.path.join(top, b"4-one-one-one"), one * 3)
    write(os.path.join(top, b"5-two-three-tail"), two + three + b"tail")
    write(os.path.join(top, b"6-three-tail"), three + b"tail")
    write(os.path.join(top, b"7-all-shifted"), b"x" + one + two + three)
    write(os.path.join(top, b"8-part"), one[: 32 * KIB])
    write(os.path.join(top, b"9-large"), (one + two + three) * 20 + b"end")
    write(os.path.join(top, b"a-large-again"), (one + two + three) * 20 + b"end")
    write(os.path.join(top, b"b-large-cut"), (one + two + three) * 20)
    write(os.path.join(top, b"c-small"), small)
    write(os.path.join(top, b"d-small-again"), small)
    write(os.path.join(top, b"e-small-differs"), small[:-1] + b"?")
    write(os.path.join(top, b"f-small-block-differs"), b"?" + small[1:])
    for number, order in enumerate(_orders()):
        write(os.path.join(top, b"g-%d" % number), b"".join((one, two, three)[part] for part in order) + b"t" * number)


def _orders() -> Iterator[tuple[int, ...]]:
    yield from ((0, 1, 2), (2, 1, 0), (1, 1), (0, 2), (2,), (0, 1, 0, 1), (1, 2))


def _roomy(top: bytes) -> None:
    """What ext4 cannot hold."""
    path = write(os.path.join(top, b"xattr-longest"), b"x")
    os.setxattr(path, "user.long", noise(65_535, 5))
    path = write(os.path.join(top, b"xattrs-60k"), noise(9000, 6))
    for number in range(15):
        os.setxattr(path, f"trusted.n{number}", noise(4099, number))
    path = os.path.join(top, b"directory-60k")
    os.mkdir(path)
    for number in range(4):
        os.setxattr(path, f"user.n{number}", noise(15_001, number))
    write(os.path.join(path, b"inside"), b"i")
    path = os.path.join(top, b"symlink-60k")
    os.symlink(b"y" * 200, path)
    os.setxattr(path, "trusted.long", noise(60_001, 7), follow_symlinks=False)
    for number in (-(1 << 40), -(1 << 34) - 1, 1 << 34, 1 << 40):
        os.utime(write(os.path.join(top, b"time%d" % number), b"t"), ns=(0, number * 1_000_000_000 + 1))
