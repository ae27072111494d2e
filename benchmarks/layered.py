"""A container image of ten layers, made of real files of this machine: an OCI image layout, written directly.

Seven layers are runs of real directories, about equal in bytes. The next replaces files of theirs, the ninth takes
files and a directory away, and the last adds a directory with hard links. Layers are gzip archives of level 6, as
engines write them: directories first, whole seconds, and whiteouts. A second image has one layer more, which changes
one file in a hundred.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SOURCES = (Path("/usr/share"), Path("/usr/lib"))
LOWER = 7
TAG, NEXT = "app", "next"
LARGEST = 64 << 20
"""Bytes of the largest file taken: one huge file would say nothing about images."""
_SHARED = 1 / len(SOURCES)
_REPLACED, _REMOVED, _ADDED, _CHANGED = 20, 30, 40, 100
_PIECE = 1 << 20
_KIND = "application/vnd.oci.image"


@dataclass(frozen=True, slots=True)
class LayeredImage:
    """What was made.

    Args:
        layout: directory of the OCI image layout; the image's tag in it is `TAG`, that of the next version `NEXT`.
        layers, files: how many; replaced and removed files count, directories do not.
        compressed, uncompressed: bytes of all layers.
    """

    layout: Path
    layers: int
    files: int
    compressed: int
    uncompressed: int


class _Writer:
    """A blob that is being written: compressed, and both digests taken on the way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("wb")
        self._engine = zlib.compressobj(6, wbits=31)
        self._plain, self._packed = hashlib.sha256(), hashlib.sha256()
        self.uncompressed = self.compressed = 0

    def write(self, data: bytes) -> int:
        self._plain.update(data)
        self.uncompressed += len(data)
        self._put(self._engine.compress(data))
        return len(data)

    def finish(self) -> tuple[str, str]:
        """(digest of the blob, digest of what is in it); the blob gets its name."""
        self._put(self._engine.flush())
        self._file.close()
        digest = self._packed.hexdigest()
        self._path.rename(self._path.with_name(digest))
        return f"sha256:{digest}", f"sha256:{self._plain.hexdigest()}"

    def _put(self, data: bytes) -> None:
        self._packed.update(data)
        self.compressed += len(data)
        self._file.write(data)


Member = tuple[tarfile.TarInfo, Path | bytes | None]


def make_layered_image(layout: Path, size: int, *, sources: Iterable[Path] = SOURCES) -> LayeredImage:
    """Write an image of about `size` bytes, uncompressed.

    Args:
        layout: directory to make.
        size: bytes; fewer come out where the sources have fewer.
        sources: directories whose files are taken, each for an equal share.
    """
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    runs = _runs([run for source in sources for run in _found(source, int(size * _SHARED))], size / LOWER)
    lower = [path for run in runs for path in run if not path.is_dir() or path.is_symlink()]
    layers = [_real(run) for run in runs]
    layers += [_replaced(lower[::_REPLACED]), _removed(lower[1::_REMOVED]), _added(lower[2::_ADDED])]
    layers.append(_replaced(lower[3::_CHANGED]))
    with ThreadPoolExecutor(2) as executor:  # zlib lets go of the interpreter's lock
        writers = list(executor.map(lambda item: _layer(blobs / f"layer-{item[0]}", item[1]), enumerate(layers)))
    _index(layout, {TAG: _manifest(layout, writers[:-1]), NEXT: _manifest(layout, writers)})
    writers.pop()
    files = len(lower) + sum(map(len, (lower[::_REPLACED], lower[1::_REMOVED], lower[2::_ADDED])))
    packed, plain = (sum(getattr(item[0], name) for item in writers) for name in ("compressed", "uncompressed"))
    return LayeredImage(layout, len(writers), files, packed, plain)


# --- which files ---


def _found(source: Path, size: int) -> Iterator[tuple[Path, int]]:
    """Paths of a tree in order, directories before what is in them, until there are `size` bytes of them."""
    total = 0
    for directory, names, files in os.walk(source):
        names.sort()
        links = [name for name in names if os.path.islink(os.path.join(directory, name))]
        for path in (Path(directory), *(Path(directory, name) for name in sorted(files + links))):
            status = path.lstat()
            if not _is_plain(status) or status.st_size > LARGEST:
                continue
            if total > size:
                return
            length = status.st_size if stat.S_ISREG(status.st_mode) else 0
            total += length + tarfile.BLOCKSIZE
            yield path, length


def _is_plain(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)


def _runs(found: list[tuple[Path, int]], size: float) -> list[list[Path]]:
    """Cut a list into runs of about equal bytes."""
    runs: list[list[Path]] = [[] for _ in range(LOWER)]
    total = 0
    for path, length in found:
        runs[min(int(total / size), LOWER - 1)].append(path)
        total += length + tarfile.BLOCKSIZE
    return runs


# --- members ---


def _real(paths: list[Path]) -> Iterator[Member]:
    first: dict[tuple[int, int], str] = {}
    for path in paths:
        info = _info(path)
        status = path.lstat()
        if info.isreg() and status.st_nlink > 1:
            known = first.setdefault((status.st_dev, status.st_ino), info.name)
            if known != info.name:
                info.type, info.linkname, info.size = tarfile.LNKTYPE, known, 0
        yield info, path if info.isreg() else None


def _replaced(paths: list[Path]) -> Iterator[Member]:
    """The same files with a line more."""
    for path in paths:
        info = _info(path)
        if info.isreg():
            data = path.read_bytes() + b"changed\n"
            info.size = len(data)
            yield info, data


def _removed(paths: list[Path]) -> Iterator[Member]:
    for path in paths:
        yield _made(str(path.parent / f".wh.{path.name}"), b"")
    yield _made("usr/share/doc/.wh..wh..opq", b"")


def _added(paths: list[Path]) -> Iterator[Member]:
    """Copies of files below a new directory, each with a second name."""
    for number, path in enumerate(paths):
        if not path.is_file() or path.is_symlink():
            continue
        info = _info(path)
        info.name = f"opt/added/{number}"
        yield info, path
        link = _made(f"opt/linked/{number}", None)[0]
        link.type, link.linkname = tarfile.LNKTYPE, info.name
        yield link, None


def _info(path: Path) -> tarfile.TarInfo:
    """The member of a file, without the index of hard links that tarfile keeps."""
    status = path.lstat()
    info = tarfile.TarInfo(str(path).lstrip("/"))
    info.mode, info.uid, info.gid, info.mtime = (
        status.st_mode & 0o7777,
        status.st_uid,
        status.st_gid,
        int(status.st_mtime),
    )
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
    else:
        info.size = status.st_size
    return info


def _made(name: str, data: bytes | None) -> Member:
    info = tarfile.TarInfo(name.lstrip("/"))
    info.mtime, info.size = 1_700_000_000, len(data or b"")
    return info, data


# --- output ---


def _layer(path: Path, members: Iterable[Member]) -> tuple[_Writer, str, str]:
    writer = _Writer(path)
    with tarfile.open(mode="w|", fileobj=writer, format=tarfile.PAX_FORMAT, bufsize=_PIECE) as archive:
        for info, content in members:
            if isinstance(content, Path):
                with content.open("rb") as file:
                    archive.addfile(info, file)
            else:
                archive.addfile(info, None if content is None else io.BytesIO(content))
    return writer, *writer.finish()


def _manifest(layout: Path, layers: list[tuple[_Writer, str, str]]) -> dict[str, object]:
    """Config and manifest; gives the manifest's digest and size."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, _, diff_id in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_KIND}.manifest.v1+json",
        "config": {"mediaType": f"{_KIND}.config.v1+json", **_blob(layout, config)},
        "layers": [
            {"mediaType": f"{_KIND}.layer.v1.tar+gzip", "digest": digest, "size": writer.compressed}
            for writer, digest, _ in layers
        ],
    }
    return _blob(layout, manifest)


def _index(layout: Path, manifests: dict[str, dict[str, object]]) -> None:
    """What makes a directory of blobs a layout."""
    entries = [
        {
            "mediaType": f"{_KIND}.manifest.v1+json",
            **blob,
            "annotations": {"org.opencontainers.image.ref.name": tag},
        }
        for tag, blob in manifests.items()
    ]
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))


def _blob(layout: Path, document: object) -> dict[str, object]:
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}
