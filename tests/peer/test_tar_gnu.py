"""Archives of GNU tar and bsdtar in all their formats: what we read is what was packed, and what they unpack."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.tars import Read, make_source, split
from tests.support.trees import Tree, assert_same, tree_of

_XATTRS = ["--xattrs", "--xattrs-include=*"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a tree with all that the newer formats can hold."""
    path = tmp_path_factory.mktemp("tar") / "source"
    make_source(path)
    return path


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a tree with short names, and nothing that is not an octal number."""
    path = tmp_path_factory.mktemp("tar") / "narrow"
    make_source(path, longest=40, narrow=True)
    return path


def pack(program: str, source: Path, target: Path, *options: str) -> bytes:
    subprocess.run([program, "-c", "-f", target, *options, "-C", source, "."], check=True, capture_output=True)
    return target.read_bytes()


def in_whole_seconds(tree: Tree) -> Tree:
    return {
        path: replace(entry, mtime_ns=entry.mtime_ns // 1_000_000_000 * 1_000_000_000) for path, entry in tree.items()
    }


def without_xattrs(tree: Tree) -> Tree:
    return {path: replace(entry, xattrs=()) for path, entry in tree.items()}


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", None])
def test_pax_keeps_everything(
    source: Path,
    tmp_path: Path,
    need_root: None,
    require_peer: Callable[[str], str],
    version: str | None,
) -> None:
    options = ["--sparse", f"--sparse-version={version}"] if version else []
    data = pack(require_peer("tar"), source, tmp_path / "a.tar", "--format=pax", *_XATTRS, *options)
    read = Read(data)
    assert_same(read.tree(), tree_of(source))
    assert read.layer.warnings == ()


@pytest.mark.parametrize("form", ["v7", "ustar", "oldgnu", "gnu"])
def test_older_formats_keep_what_they_can(
    source: Path, narrow: Path, tmp_path: Path, need_root: None, require_peer: Callable[[str], str], form: str
) -> None:
    tree, options = (source, ["--sparse"]) if "gnu" in form else (narrow, [])
    tar, archive = require_peer("tar"), tmp_path / "a.tar"
    # What a format cannot hold (devices in v7, long paths in ustar) is left out with an error.
    command = [tar, "-c", "-f", archive, f"--format={form}", *options, "-C", tree, "."]
    subprocess.run(command, check="gnu" in form, capture_output=True)
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run([tar, "-x", "-p", "--same-owner", "-f", archive, "-C", target], check=True, capture_output=True)
    found = Read(archive.read_bytes()).tree()
    assert_same(found, tree_of(target))
    assert len(found) > 100
    if "gnu" in form:
        assert_same(found, in_whole_seconds(without_xattrs(tree_of(tree))))


@pytest.mark.parametrize("size", [1, 511, 10240])
def test_pieces_of_any_size_give_the_same(
    source: Path, tmp_path: Path, need_root: None, require_peer: Callable[[str], str], size: int
) -> None:
    whole = pack(require_peer("tar"), source, tmp_path / "a.tar", "--format=pax", "--sparse", *_XATTRS)
    small = tmp_path / "small"
    small.mkdir()
    for number in range(30):
        (small / f"{number}").write_bytes(b"x" * number * 100)
    data = whole if size > 1 else pack(require_peer("tar"), small, tmp_path / "b.tar", "--format=pax")
    assert_same(Read(split(data, size)).tree(), Read(data).tree())


def test_compressed_archives(source: Path, tmp_path: Path, need_root: None, require_peer: Callable[[str], str]) -> None:
    data = pack(require_peer("tar"), source, tmp_path / "a.tar", "--format=pax", "--sparse", *_XATTRS)
    wanted = tree_of(source)
    for packed in (
        gzip.compress(data[:70000]) + gzip.compress(data[70000:]) + bytes(512),
        lzma.compress(data, preset=0),
        subprocess.run([require_peer("zstd"), "-c"], input=data, capture_output=True, check=True).stdout,
        subprocess.run([require_peer("xz"), "-0", "-T2", "-c"], input=data, capture_output=True, check=True).stdout,
    ):
        seen: list[bytes] = []
        assert_same(Read(split(packed, 5000), tap=seen.append).tree(), wanted)
        assert b"".join(seen) == data


def test_archives_in_a_volume_and_with_other_options(
    source: Path, tmp_path: Path, need_root: None, require_peer: Callable[[str], str]
) -> None:
    tar = require_peer("tar")
    wanted = tree_of(source)
    labelled = pack(tar, source, tmp_path / "a.tar", "--format=gnu", "--label=name of it", "--sparse")
    assert_same(Read(labelled).tree(), in_whole_seconds(without_xattrs(wanted)))
    # With --format=pax the label is in a global header.
    labelled = pack(tar, source, tmp_path / "b.tar", "--format=pax", "--label=name", "-b", "1000", *_XATTRS)
    assert_same(Read(labelled).tree(), wanted)
    numeric = pack(tar, source, tmp_path / "c.tar", "--format=pax", "--numeric-owner", "--mtime=@7", *_XATTRS)
    assert {entry.mtime_ns for entry in Read(numeric).tree().values()} == {7_000_000_000}


@pytest.mark.parametrize("form", ["pax", "gnutar", "paxr", "ustar"])
def test_bsdtar(narrow: Path, tmp_path: Path, need_root: None, require_peer: Callable[[str], str], form: str) -> None:
    bsdtar, archive, target = require_peer("bsdtar"), tmp_path / "a.tar", tmp_path / "target"
    options = ["--xattrs", "--read-sparse"] if form == "pax" else ["--no-read-sparse"]
    command = [bsdtar, "-c", "-f", archive, "--format", form, *options, "-C", narrow, "."]
    subprocess.run(command, check=form != "ustar", capture_output=True)  # paths too long for ustar are left out
    found = Read(archive.read_bytes()).tree()
    if form == "pax":
        assert_same(found, tree_of(narrow))
        return
    target.mkdir()
    subprocess.run([bsdtar, "-x", "-p", "--no-xattrs", "-f", archive, "-C", target], check=True, capture_output=True)
    wanted = tree_of(target)
    wanted[b""] = found[b""]  # it gives a directory that was there no times
    assert_same(without_xattrs(found), without_xattrs(wanted))
