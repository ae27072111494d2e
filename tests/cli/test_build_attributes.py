"""`build --owners` and `--file-contexts`, seen through our reader and beside mkfs.erofs."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Run, files_below
from tests.support.trees import Tree, image_tree

from eroseal.image.check import check_image
from eroseal.image.reader import ImageReader
from eroseal.readat import FileAt
from eroseal.trust.image import UnverifiedImage

OWNERS = """\
# everything is root's, but for what follows
/**        0 0
/          0 0
/home/*    1000 1000 0750
/home/*/** 1000 1000
/bin/su    0 0 4755
/small*    4294967294 70000
"""
CONTEXTS = """\
/.*               system_u:object_r:default_t:s0
/                 -d  system_u:object_r:root_t:s0
/bin/.*           --  system_u:object_r:bin_t:s0
/bin/su               system_u:object_r:su_t:s0
/bin/s.               system_u:object_r:loses_t:s0
/home(/.*)?           <<none>>
/home/[^/]+       -d  system_u:object_r:home_dir_t:s0:c0.c1023
/.*               -l  system_u:object_r:link_t:s0
/.*               -p  system_u:object_r:pipe_t:s0
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give a tree with files of every way into an image, owned by somebody else where that can be had."""
    root = tmp_path / "source"
    for directory in ("bin", "home/ann/deep", "empty"):
        (root / directory).mkdir(parents=True)
    noise = random.Random(5)
    for name, size in {
        "bin/su": 20_000,
        "bin/sh": 0,
        "large": 3 << 20,
        "home/ann/deep/f": 5000,
        "home/ann/x": 9,
    }.items():
        (root / name).write_bytes(noise.randbytes(size))
    for number in range(600):
        (root / f"small-{number}").write_bytes(noise.randbytes(number * 7))
    (root / "odd\n").write_text("odd")
    os.link(root / "bin/su", root / "home/ann/su")
    (root / "link").symlink_to("bin/su")
    os.mkfifo(root / "home/ann/fifo")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "small-3", "user.kept", b"value")
    return root


@pytest.fixture
def lists(place: Path) -> Path:
    (place / "owners").write_text(OWNERS)
    (place / "contexts").write_text(CONTEXTS)
    return place


def tree_in(path: Path) -> Tree:
    with FileAt(path) as file:
        reader = ImageReader(UnverifiedImage(file))
        assert check_image(reader).warnings == ()
        return image_tree(reader)


def knows_contexts(mkfs: str) -> bool:
    usage = subprocess.run([mkfs, "--help"], capture_output=True, text=True, check=False)
    return "--file-contexts" in usage.stdout + usage.stderr


def contexts_in(tree: Tree) -> dict[bytes, bytes]:
    return {path: dict(entry.xattrs).get(b"security.selinux", b"") for path, entry in tree.items()}


@pytest.mark.parametrize("more", [(), ("--all-root",), ("--timestamp", "5")])
def test_owners_by_path(source: Path, run: Run, lists: Path, more: tuple[str, ...]) -> None:
    for path in ("home/ann/x", "small-5", "large", "empty"):
        os.chown(source / path, os.getuid(), os.getgid())
    (source / "small-5").chmod(0o600)
    run("build", source, "plain.erofs", "--no-sync", *more)
    digest = run("build", source, "owned.erofs", "--no-sync", "--owners", "owners", *more).last
    assert "ok" in run("verify", "owned.erofs", "--digest", digest).text
    plain, owned = tree_in(lists / "plain.erofs"), tree_in(lists / "owned.erofs")
    assert plain.keys() == owned.keys()
    for path, entry in owned.items():
        before = plain[path]
        assert (entry.content, entry.size, entry.xattrs) == (before.content, before.size, before.xattrs), path
        assert (entry.mtime_ns, entry.same_as, entry.nlink) == (before.mtime_ns, before.same_as, before.nlink), path
    who = {path: (entry.uid, entry.gid) for path, entry in owned.items()}
    assert {who[path] for path in who if path.startswith(b"small-")} == {(4_294_967_294, 70_000)}
    assert who[b""] == who[b"home"] == who[b"large"] == who[b"link"] == who[b"fifo"] == who[b"odd\n"] == (0, 0)
    assert who[b"home/ann"] == who[b"home/ann/deep/f"] == who[b"home/ann/fifo"] == (1000, 1000)
    assert who[b"bin/su"] == who[b"home/ann/su"] == (0, 0)
    assert owned[b"bin/su"].mode & 0o7777 == 0o4755
    assert owned[b"home/ann"].mode & 0o7777 == 0o750
    assert owned[b"small-5"].mode & 0o7777 == 0o600
    assert owned[b"link"].mode == plain[b"link"].mode


def test_lines_that_match_no_more_than_what_is_there_change_nothing(source: Path, run: Run, lists: Path) -> None:
    (lists / "none").write_text("/nothing/** 1 1\n")
    run("build", source, "plain.erofs", "--no-sync")
    run("build", source, "same.erofs", "--no-sync", "--owners", "none")
    assert tree_in(lists / "plain.erofs") == tree_in(lists / "same.erofs")


@pytest.mark.parametrize("blobs", ["build", "file", "none"])
def test_same_bytes_whatever_the_jobs(source: Path, run: Run, lists: Path, blobs: str) -> None:
    options = ("--owners", "owners", "--file-contexts", "contexts", "--blobs", blobs, "--no-sync")
    one = run("build", source, "dir:one:app", "--jobs", "1", *options).last
    four = run("build", source, "dir:four:app", "--jobs", "4", *options).last
    assert one == four
    assert "ok" in run("verify", "dir:four:app", "--digest", one).text


def test_contexts_by_path(source: Path, run: Run, lists: Path) -> None:
    run("build", source, "labelled.erofs", "--no-sync", "--file-contexts", "contexts")
    tree = tree_in(lists / "labelled.erofs")
    contexts = {path: value.removeprefix(b"system_u:object_r:") for path, value in contexts_in(tree).items()}
    assert contexts[b""] == b"root_t:s0"
    assert contexts[b"bin"] == contexts[b"large"] == contexts[b"odd\n"] == contexts[b"small-0"] == b"default_t:s0"
    assert contexts[b"bin/sh"] == b"loses_t:s0"
    # The hard link's first name decides, and a name wins over the expression behind it.
    assert contexts[b"bin/su"] == contexts[b"home/ann/su"] == b"su_t:s0"
    assert contexts[b"link"] == b"link_t:s0"
    assert contexts[b"fifo"] == contexts[b"home/ann/fifo"] == b"pipe_t:s0"
    assert contexts[b"home"] == contexts[b"home/ann/x"] == contexts[b"home/ann/deep"] == b""
    assert contexts[b"home/ann"] == b"home_dir_t:s0:c0.c1023"
    assert dict(tree[b"small-3"].xattrs)[b"user.kept"] == b"value"


def test_contexts_of_the_source_are_replaced(source: Path, run: Run, lists: Path, need_root: None) -> None:
    for name in ("small-1", "home/ann/x", "large"):
        os.setxattr(source / name, "security.selinux", b"u:r:of_source:s0\0")
    run("build", source, "plain.erofs", "--no-sync")
    assert contexts_in(tree_in(lists / "plain.erofs"))[b"small-1"] == b"u:r:of_source:s0\0"
    run("build", source, "labelled.erofs", "--no-sync", "--file-contexts", "contexts")
    contexts = contexts_in(tree_in(lists / "labelled.erofs"))
    assert contexts[b"small-1"] == contexts[b"large"] == b"system_u:object_r:default_t:s0"
    assert contexts[b"home/ann/x"] == b""


def test_mkfs_erofs_gives_the_same_contexts(
    source: Path, run: Run, lists: Path, require_peer: Callable[[str], str]
) -> None:
    # A build of one's own often lacks SELinux, the distribution's has it.
    programs = [require_peer("mkfs.erofs"), shutil.which("mkfs.erofs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    mkfs = next((program for program in programs if program and knows_contexts(program)), None)
    if mkfs is None:
        pytest.skip("optional peer missing: mkfs.erofs with SELinux")
    # Which of its names a hard link is labelled by is no agreement between programs.
    (source / "home/ann/su").unlink()
    command = [mkfs, "--quiet", "--file-contexts=contexts", "theirs.erofs", source]
    subprocess.run(command, cwd=lists, check=True, capture_output=True)
    run("build", source, "ours.erofs", "--no-sync", "--file-contexts", "contexts")
    theirs = contexts_in(tree_in(lists / "theirs.erofs"))
    assert theirs == contexts_in(tree_in(lists / "ours.erofs"))
    assert len(set(theirs.values())) == 8


@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        ("--owners", "/a 0 0\n/b root root\n", "list:2: not a line of PATTERN UID GID [MODE]"),
        ("--owners", "/\x1b[2J 0 0\n", "list:1: "),
        ("--file-contexts", "# policy\n\n/a -z u:r:t:s0\n", "list:3: -z is no file type"),
        ("--file-contexts", "/(?|a) u:r:t:s0\n", "list:1: the expression /(?|a) is not supported"),
        ("--file-contexts", None, "list: cannot be read"),
    ],
)
def test_broken_lists_are_wrong_usage(
    source: Path, run: Run, place: Path, option: str, text: str | None, says: str
) -> None:
    if text is not None:
        (place / "list").write_text(text)
    before = files_below(place)
    outcome = run("build", source, "dir:new:app", option, "list", code=2)
    assert says in outcome.error
    assert files_below(place) == before
