"""Real container images: made by umoci from files of this Debian system, with all that layers can do to each other."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

TIME = 1_700_000_000
CONFIG = ("--config.entrypoint", "/bin/sh", "--config.env", "FLAVOUR=mild", "--config.label", "org.example=yes")


def umoci(*arguments: str | Path, cwd: Path) -> None:
    """Run umoci; what it complains about fails the test."""
    done = subprocess.run(
        ["umoci", *map(os.fspath, arguments)], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def make_layered_image(place: Path) -> Path:
    """An image layout with the image `app` of seven layers; root only.

    Whiteouts, opaque directories, replaced types, hard links inside a layer and across layers, extended attributes,
    set-uid files, devices and a config.
    """
    layout = place / "layout"
    umoci("init", "--layout", layout, cwd=place)
    umoci("new", "--image", f"{layout}:app", cwd=place)
    for change in (_base, _second, _third):
        _repack(place, layout, change)
    opaque = place / "opaque"
    opaque.mkdir()
    (opaque / "only").write_text("only this is left\n")
    umoci("insert", "--image", f"{layout}:app", "--opaque", opaque, "/srv/hidden", cwd=place)
    for number, layer in enumerate((_crafted(), _more(), _last())):
        path = place / f"{number}.tar"
        path.write_bytes(layer)
        umoci("raw", "add-layer", "--image", f"{layout}:app", path, cwd=place)
    umoci("config", "--image", f"{layout}:app", *CONFIG, cwd=place)
    return layout


def unpack_with_umoci(layout: Path, place: Path) -> Path:
    """The root file system as umoci unpacks it."""
    umoci("unpack", "--image", f"{layout}:app", place, cwd=place.parent)
    return place / "rootfs"


def _repack(place: Path, layout: Path, change: Callable[[Path], None]) -> None:
    bundle = place / "bundle"
    umoci("unpack", "--image", f"{layout}:app", bundle, cwd=place)
    change(bundle / "rootfs")
    umoci("repack", "--image", f"{layout}:app", bundle, cwd=place)
    shutil.rmtree(bundle)


def _base(root: Path) -> None:
    """Files of the Debian system that runs the tests."""
    for directory in ("bin", "srv/hidden/deep", "srv/kept", "dev", "var/mixed"):
        (root / directory).mkdir(parents=True)
    shutil.copytree("/etc/default", root / "etc/default", symlinks=True)
    shutil.copytree("/usr/share/doc/bash", root / "usr/share/doc/bash", symlinks=True)
    shutil.copy2("/bin/bash", root / "bin/sh")
    shutil.copy2("/bin/su", root / "bin/su")
    (root / "bin/su").chmod(0o4755)
    os.link(root / "bin/sh", root / "bin/sh.hard")
    os.symlink("sh", root / "bin/link")
    os.symlink("/etc/default", root / "etc/absolute")
    os.setxattr(root / "bin/sh", "user.note", b"\0binary\xff")
    os.setxattr(root / "bin/su", "security.capability", bytes.fromhex("0100000200000020000000000000000000000000"))
    (root / "srv/hidden/deep/file").write_text("gone later\n")
    for name in ("file", "other"):
        (root / "srv/kept" / name).write_text(f"{name}\n")
    os.mkfifo(root / "var/fifo")
    os.mknod(root / "dev/null", 0o20666, os.makedev(1, 3))
    (root / "var/big").write_bytes(os.urandom(3 << 20))
    (root / "var/file-then-directory").write_text("a file\n")
    (root / "var/directory-then-link/inside").mkdir(parents=True)
    os.chown(root / "srv/kept/file", 1234, 5678)
    os.utime(root / "srv/kept/other", ns=(TIME * 10**9 + 123_456_789,) * 2)


def _second(root: Path) -> None:
    (root / "srv/kept/file").write_text("changed\n")
    (root / "srv/kept/new").write_text("new\n")
    with (root / "var/big").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"changed in the middle")


def _third(root: Path) -> None:
    (root / "srv/kept/other").unlink()
    shutil.rmtree(root / "usr/share/doc/bash")
    (root / "var/file-then-directory").unlink()
    (root / "var/file-then-directory").mkdir()
    (root / "var/file-then-directory/now").write_text("inside\n")
    shutil.rmtree(root / "var/directory-then-link")
    os.symlink("mixed", root / "var/directory-then-link")


def _member(name: str, data: bytes | None = None, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.mtime, info.mode = TIME, 0o644
    info.size = len(data or b"")
    if data is None and "type" not in fields:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data or b""


def _archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _crafted() -> bytes:
    """Hard links to files of lower layers and of this one, and a whiteout."""
    return _archive(
        _member("srv"),
        _member("srv/across", type=tarfile.LNKTYPE, linkname="srv/kept/file"),
        _member("srv/first", b"linked\n", mode=0o640, uid=7, gid=8),
        _member("srv/second", type=tarfile.LNKTYPE, linkname="srv/first"),
        _member("srv/kept"),
        _member("srv/kept/.wh.new", b""),
    )


def _more() -> bytes:
    """An opaque directory whose mark comes after its new content, and new attributes of an old directory."""
    return _archive(
        _member("etc/default", mode=0o700, uid=3, gid=4),
        _member("etc/default/only", b"only\n"),
        _member("etc/default/.wh..wh..opq", b""),
        _member("var/mixed", mode=0o1777),
    )


def _last() -> bytes:
    """A replaced name of a hard link, extended attributes, and a file of zeros."""
    info, data = _member("srv/second", b"no longer linked\n")
    info.pax_headers = {"SCHILY.xattr.user.colour": "blue"}
    return _archive(_member("srv"), (info, data), _member("srv/zeros", bytes(1 << 20)))
