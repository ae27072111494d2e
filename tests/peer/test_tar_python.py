"""Archives that Python's tarfile writes, and what it says of archives that we read."""

from __future__ import annotations

import io
import random
import stat
import tarfile
from pathlib import Path

import pytest
from tests.support.tars import END, Read, file, header, make_source, pax

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def made(form: int, *, narrow: bool) -> bytes:
    """An archive of random members, each name of its own."""
    chance = random.Random(form)
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        names: list[str] = []
        for number in range(300):
            stem = chance.choice(["plain", "ünï☃", "sp ace", "a" * 60, "new\nline"])
            depth = chance.randrange(3 if narrow else 8)
            info = tarfile.TarInfo("/".join([f"d{chance.randrange(5)}" * 5] * depth + [f"{stem}{number}"]))
            info.mode = chance.randrange(0o10000)
            info.uid = chance.choice([0, 7, 0o7777777] if narrow else [0, 7, (1 << 32) - 1])
            info.gid = chance.choice([0, 65534])
            info.mtime = chance.choice([0, 1_700_000_000, 0o77777777777] if narrow else [0, -1, 1 << 35])
            info.type = chance.choice([tarfile.REGTYPE] * 4 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
            data = b""
            if info.type == tarfile.REGTYPE:
                data = chance.randbytes(chance.choice([0, 1, 512, 5000]))
                info.size = len(data)
                names.append(info.name)
            elif info.type == tarfile.SYMTYPE:
                info.linkname = "t" * chance.randrange(1, 90 if narrow else 300)
            elif info.type == tarfile.LNKTYPE:
                if not names:
                    continue
                info.linkname = chance.choice([name for name in names if not narrow or len(name) < 80] or names[:1])
            else:
                info.devmajor, info.devminor = chance.randrange(4096), chance.randrange(1 << 20)
            if form == tarfile.PAX_FORMAT and chance.random() < 0.3:
                info.pax_headers = {"SCHILY.xattr.user.x": "välue\n", "comment": "nothing"}
                info.mtime = chance.choice([1.5, 1_700_000_000.25])  # type: ignore[assignment]
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


def compare(data: bytes) -> int:
    """Hold each member against what tarfile says of it; returns how many there are."""
    read = Read(data)
    count = 0
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        members = {member.name: member for member in archive}
        for member in members.values():
            node = read.node(member.name.encode("utf-8", "surrogateescape"))
            count += 1
            if member.islnk():
                assert node is read.node(member.linkname.encode("utf-8", "surrogateescape"))
                continue
            inode = node.inode
            assert (inode.uid, inode.gid) == (member.uid, member.gid)
            assert inode.mtime + inode.mtime_nsec / 1e9 == pytest.approx(member.mtime)
            if member.issym():
                assert inode.target == member.linkname.encode("utf-8", "surrogateescape")
                continue
            assert stat.S_IMODE(inode.mode) == stat.S_IMODE(member.mode)
            if member.isreg():
                content = archive.extractfile(member)
                assert content is not None
                assert stat.S_ISREG(inode.mode)
                assert read.content(member.name.encode("utf-8", "surrogateescape")) == content.read()
            elif member.ischr():
                assert inode.rdev == (member.devmajor, member.devminor)
            xattr = member.pax_headers.get("SCHILY.xattr.user.x")
            assert inode.xattrs == (((b"user.x", xattr.encode()),) if xattr is not None else ())
    return count


@pytest.mark.parametrize("form", FORMATS)
def test_what_python_writes(form: str) -> None:
    assert compare(made(FORMATS[form], narrow=form == "ustar")) > 250


def test_what_python_reads_of_our_own_members() -> None:
    archive = (
        file(b"a", b"x" * 600, mode=0o4755, uid=5, prefix=b"in/a/prefix")
        + pax((b"path", "ünï".encode()), (b"mtime", b"5.25"), (b"uid", b"70000"))
        + file(b"short", b"data")
        + header(b"c", kind=b"3", rdev=(7, 300))
        + file(b"v7", b"old", magic=bytes(8), kind=b"\0")
        + file(b"negative", mtime=-5, magic=b"ustar  \0")
        + END
    )
    assert compare(archive) == 5


def in_whole_seconds(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Python writes a nanosecond as 1e-09, which PAX does not allow."""
    info.mtime = int(info.mtime)
    return info


@pytest.mark.parametrize("form", FORMATS)
def test_python_packs_a_tree(tmp_path: Path, need_root: None, form: str) -> None:
    make_source(tmp_path / "source", longest=40, narrow=True)
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=FORMATS[form]) as archive:
        for path in sorted((tmp_path / "source").rglob("*")):
            name = str(path.relative_to(tmp_path / "source"))
            if len(name.encode("utf-8", "surrogateescape")) < 90:
                archive.add(path, name, recursive=False, filter=in_whole_seconds)
    assert compare(target.getvalue()) > 60
