"""Archives that ask for much more than they bring: what they may cost, in memory and in time, is bounded."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest
from tests.support.tars import END, Read, directory, file, header, old_sparse, pax, raw_pax, record

from eroseal import limits
from eroseal.build import sources
from eroseal.build.builder import build
from eroseal.build.options import BuildOptions
from eroseal.build.sources import parse_source
from eroseal.errors import FormatError, UnsupportedError
from eroseal.store.reference import parse_reference
from eroseal.store.remote import RemoteOptions
from eroseal.tree import archive_members, archive_names
from eroseal.tree.walk import TreeSource


def long_path(path: bytes, member: bytes) -> bytes:
    return pax((b"path", path)) + member


def test_a_path_is_bounded() -> None:
    longest = b"/".join([b"d" * 255] * 65)[: limits.MAX_ARCHIVE_PATH]
    assert Read(long_path(longest, file(b"x")) + END).layer.entries == 1
    with pytest.raises(FormatError, match="a path of more than 16384 bytes") as caught:
        Read(long_path(longest + b"x", file(b"x")) + END)
    assert len(str(caught.value)) < 2000


def test_the_paths_of_all_entries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each directory's path is made when the tree is walked, so siblings deep down cost their whole paths."""
    monkeypatch.setattr(archive_names, "MAX_ARCHIVE_METADATA", 50_000)
    deep = b"/".join([b"d" * 100] * 20)
    few = b"".join(long_path(deep + b"/%d" % number, directory(b"x")) for number in range(10))
    assert Read(few + END).layer.entries == 10
    with pytest.raises(FormatError, match="bytes of paths and attributes"):
        Read(few * 2 + END)


def test_directories_that_nobody_sent_count_with_their_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_names, "MAX_ARCHIVE_METADATA", 1 << 20)
    chain = b"/".join([b"d"] * 1000)
    with pytest.raises(FormatError, match="bytes of paths and attributes"):
        Read(long_path(chain, file(b"x")) + long_path(b"e/" + chain, file(b"x")) + END)
    monkeypatch.setattr(archive_names, "MAX_ARCHIVE_IMPLICIT", 998)
    with pytest.raises(FormatError, match="more than 998 directories that no entry describes"):
        Read(long_path(chain, file(b"x")) + END)


def test_a_walk_keeps_no_paths_of_what_waits() -> None:
    deep = b"/".join([b"d"] * 30)
    read = Read(b"".join(long_path(deep + b"/%02d" % number, directory(b"x")) for number in range(20)) + END)
    paths = [scanned.path for scanned in TreeSource(read.layer.root).walk()]
    assert paths[0] == b"/"
    assert paths[30:] == [b"/" + deep, *(b"/" + deep + b"/%02d" % number for number in range(20))]


def test_attributes_count_with_what_python_needs_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_names, "MAX_ARCHIVE_METADATA", 100_000)
    flood = b"".join(record(b"SCHILY.xattr.user.%x" % number, b"") for number in range(1000))
    with pytest.raises(FormatError, match="bytes of paths and attributes"):
        Read(raw_pax(flood) + file(b"x") + END)


def test_warnings_and_messages_are_short() -> None:
    bad = b"SCHILY.xattr." + b"bad" * 100_000
    read = Read(b"".join(pax((bad + b"%d" % number, b"")) + file(b"%d" % number) for number in range(5)) + END)
    assert sum(len(warning.what) + len(warning.path) for warning in read.layer.warnings) < 2000
    assert sum(warning.count for warning in read.layer.warnings) == 5
    with pytest.raises(UnsupportedError) as caught:
        Read(pax((b"GNU.sparse.major", b"7" * 100_000)) + file(b"x") + END)
    assert len(str(caught.value)) < 200


def test_where_a_fault_lies_is_shown_shortly() -> None:
    name = b"/".join([b"n" * 200] * 70)
    with pytest.raises(FormatError) as caught:
        Read(long_path(name, header(b"x", kind=b"3", rdev=(1 << 20, 0))) + END)
    assert len(str(caught.value)) < archive_members._LONGEST_SHOWN + 200


def saved_image(place: Path, *layers: bytes) -> str:
    """A saved image of these layers."""
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    names = [f"l{number}" for number in range(len(layers))]
    manifest = json.dumps([{"Config": "c", "Layers": names}]).encode()
    members = file(b"c", config) + file(b"manifest.json", manifest)
    members += b"".join(file(name.encode(), layer) for name, layer in zip(names, layers, strict=True))
    path = place / "saved.tar"
    path.write_bytes(members + END)
    return f"docker-archive:{path}"


def build_from(source: str, place: Path) -> None:
    parsed = parse_source(source, remote=RemoteOptions())
    build(parsed, parse_reference(f"dir:{place / 'store'}:x"), BuildOptions(jobs=1, durable=False))


def test_holes_of_all_layers_are_bounded(tmp_path: Path) -> None:
    half = old_sparse(b"s", [(5, b"x")], limits.MAX_ARCHIVE_HOLES // 2 + 4096)
    assert Read(half + END).layer.hole_bytes == limits.MAX_ARCHIVE_HOLES // 2 + 4095
    with pytest.raises(FormatError, match="bytes of holes"):
        build_from(saved_image(tmp_path, half + END, half + END), tmp_path)
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(half + half + END))
    with pytest.raises(FormatError, match="bytes of holes"):
        build_from(str(archive), tmp_path)


def test_entries_of_all_layers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_ARCHIVE_ENTRIES", 5)
    text = saved_image(tmp_path, file(b"a") * 3 + END, file(b"a") * 3 + END)
    with pytest.raises(FormatError, match="the image's layers have more than 5 entries"):
        build_from(text, tmp_path)
    build_from(saved_image(tmp_path, file(b"a") * 3 + END, file(b"b") * 2 + END), tmp_path)
    assert (tmp_path / "store" / "images" / "x").exists()
