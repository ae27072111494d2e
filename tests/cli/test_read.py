"""Verbs that read: ls, cat, stat, unpack, export, inspect, diff, fsck."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import CONTENT, People, Run, Samples, files_below
from tests.cli.test_verify import WRONG, blobs, flip
from tests.support.kernel import tmpfs
from tests.support.program import ORDINARY_USER, eroseal

TARGETS = ("dir:store:app", "app.erofs")


@pytest.fixture(params=TARGETS)
def trusted(request: pytest.FixtureRequest, samples: Samples) -> tuple[str, ...]:
    """Give a reference with the options that make it trusted."""
    digest = samples.digest if request.param.startswith("dir:") else samples.file_digest
    return request.param, "--digest", digest


# --- ls ---


def test_ls(run: Run, trusted: tuple[str, ...]) -> None:
    root = ["big", "byte\\xff", "etc", "fifo", "hard", "link", "odd\\x1b[31m", "twice"]
    assert run("ls", *trusted).text.splitlines() == root
    assert run("ls", trusted[0], "/etc", *trusted[1:]).text.splitlines() == ["deep", "motd"]
    assert run("ls", trusted[0], "etc/deep/", *trusted[1:]).text.splitlines() == ["empty"]
    assert run("ls", trusted[0], "etc", "-R", *trusted[1:]).text.splitlines() == ["deep", "deep/empty", "motd"]
    assert run("ls", trusted[0], "etc/motd", *trusted[1:]).text == "etc/motd\n"
    assert run("ls", trusted[0], "etc", "-d", *trusted[1:]).text == "etc\n"


def test_long_ls(run: Run, trusted: tuple[str, ...]) -> None:
    lines = {line.split()[7]: line for line in run("ls", "-l", *trusted).text.splitlines()}
    assert lines["link"].endswith("link -> etc/motd")
    assert lines["link"].startswith("lrwxrwxrwx")
    assert " 2 " in lines["hard"]
    assert f" {len(CONTENT)} 2023-11-14 22:13 big" in lines["big"]


def test_ls_document(run: Run, trusted: tuple[str, ...], samples: Samples) -> None:
    document = run("ls", *trusted, "-R", "--json").document
    assert document["schema"] == "eroseal.ls/1"
    found = {os.fsencode(entry["path"]) for entry in document["entries"]}
    tree = os.fsencode(samples.tree)
    walked = {os.path.join(root, name) for root, *kinds in os.walk(tree) for names in kinds for name in names}
    assert found == {os.path.relpath(path, tree) for path in walked}
    (entry,) = run("ls", trusted[0], "./etc//deep", "--json", *trusted[1:]).document["entries"]
    assert entry["path"] == "etc/deep/empty"


def test_paths_that_are_not_there(run: Run, trusted: tuple[str, ...]) -> None:
    for verb in ("ls", "cat", "stat"):
        for path in ("no/such", "big/below", "etc/motd/"):
            outcome = run(verb, trusted[0], path, *trusted[1:], code=1)
            assert path in outcome.error
            assert outcome.out == b""


# --- cat, stat ---


def test_cat(run: Run, trusted: tuple[str, ...]) -> None:
    assert run("cat", trusted[0], "big", "link", "twice", *trusted[1:]).out == CONTENT + b"hello\n" + CONTENT
    assert run("cat", trusted[0], os.fsdecode(b"byte\xff"), *trusted[1:]).out == b"byte"
    assert run("cat", trusted[0], "big", "none", *trusted[1:], code=1).out == b""
    assert "special file" in run("cat", trusted[0], "fifo", *trusted[1:], code=2).error


def test_stat(run: Run, trusted: tuple[str, ...], samples: Samples) -> None:
    document = run("stat", trusted[0], "link", "--json", *trusted[1:]).document
    assert document["schema"] == "eroseal.stat/1"
    assert (document["entry"]["type"], document["entry"]["target"]) == ("symlink", "etc/motd")
    followed = run("stat", trusted[0], "link", "-L", "--json", *trusted[1:]).document
    assert (followed["entry"]["type"], followed["entry"]["size"]) == ("file", 6)
    status = os.stat(samples.tree / "hard")
    text = run("stat", trusted[0], "hard", *trusted[1:]).text
    assert f"owner     {status.st_uid}:{status.st_gid}" in text
    assert "modified  2023-11-14 22:13:20.000000000 UTC" in text
    assert "links     2" in text


# --- unpack ---


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        target = os.readlink(path) if path.is_symlink() else None
        facts = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
        nlink = None if path.is_dir() else status.st_nlink
        found[str(path.relative_to(root))] = (*facts, nlink, content, target)
    return found


def test_unpack_gives_back_the_source(run: Run, trusted: tuple[str, ...], samples: Samples, place: Path) -> None:
    outcome = run("unpack", trusted[0], "out", *trusted[1:])
    assert outcome.out == b""
    assert "12 entries" in outcome.err
    assert snapshot(place / "out") == snapshot(samples.tree)
    assert (place / "out/big").samefile(place / "out/hard")


def test_unpack_as_an_ordinary_user(run: Run, samples: Samples, place: Path) -> None:
    run("unpack", "app.erofs", "out", "--digest", samples.file_digest, wrapper=ORDINARY_USER)
    assert (place / "out/twice").read_bytes() == CONTENT


def test_unpack_without_owners(need_root: None, run: Run, place: Path) -> None:
    (place / "tree").mkdir()
    (place / "tree/file").touch()
    os.chown(place / "tree/file", 4711, 4712)
    digest = run("build", "tree", "new.erofs").last
    run("unpack", "new.erofs", "with", "--digest", digest)
    run("unpack", "new.erofs", "without", "--digest", digest, "--no-same-owner")
    assert (place / "with/file").stat().st_uid == 4711
    assert (place / "without/file").stat().st_uid == 0


def test_unpack_where_something_is(run: Run, trusted: tuple[str, ...], place: Path) -> None:
    (place / "full").mkdir()
    (place / "full/thing").touch()
    for target in ("full", "app.erofs", "no/such/place"):
        outcome = run("unpack", trusted[0], target, *trusted[1:], code=1)
        assert target.partition("/")[0] in outcome.error
    assert files_below(place / "full") == ["thing"]
    (place / "empty").mkdir()
    run("unpack", trusted[0], "empty", *trusted[1:])


def test_unpack_onto_a_full_disk(need_root: None, run: Run, trusted: tuple[str, ...], place: Path) -> None:
    with tmpfs(place / "small", "size=300k"):
        outcome = run("unpack", trusted[0], "small/out", *trusted[1:], code=1)
        assert "full" in outcome.error or "no space" in outcome.error.lower()
        assert files_below(place / "small") == []


# --- export ---


def test_export_and_read_back(run: Run, people: People, place: Path, samples: Samples) -> None:
    run("sign", "dir:store:app", *people.pair("good"), "--name", "app")
    trust = ("--cert", people.cert("good"), "--name", "app")
    outcome = run("export", "dir:store:app", "meta.erofs", *trust)
    assert outcome.last == samples.digest
    assert "not in it: 1 data blob," in outcome.err
    run("export", "dir:store:app", "data.blob", "--blob", "1", *trust)
    assert "is not there" in run("verify", "meta.erofs", *trust, code=1).error
    run("verify", "meta.erofs", *trust, "--device", "data.blob")
    assert run("cat", "meta.erofs", "big", *trust, "--device", "data.blob").out == CONTENT
    assert run("digest", "meta.erofs", "--device", "data.blob").last == samples.digest
    run("diff", "meta.erofs", "dir:store:app", *trust, "--device", "data.blob")
    assert (place / "data.blob").read_bytes() == blobs(place / "store")[1].read_bytes()


def test_export_refuses_what_is_there_or_damaged(run: Run, place: Path, samples: Samples) -> None:
    trust = ("--digest", samples.digest)
    before = files_below(place)
    for options in ((), ("--data",), ("--blob", "1")):
        assert "exists already" in run("export", "dir:store:app", "app.erofs", *options, *trust, code=1).error
    assert "the image has 1 data blob" in run("export", "dir:store:app", "out", "--blob", "2", *trust, code=1).error
    run("export", "dir:store:app", "no/such/out", *trust, code=1)
    flip(blobs(place / "store")[1], 8192)
    for options in (("--blob", "1"), ("--blob", "1", "--data")):
        assert "at byte 8192" in run("export", "dir:store:app", "out", *options, *trust, code=3).error
    assert files_below(place) == before
    run("export", "dir:store:app", "app.erofs", "--replace", *trust)
    assert "is not there" in run("digest", "app.erofs", code=1).error


# --- inspect, diff, fsck ---


def test_inspect(run: Run, people: People, samples: Samples) -> None:
    run("sign", "dir:store:app", *people.pair("good"), "--name", "app", "--version", "2")
    text = run("inspect", "dir:store:app").text
    assert f"{samples.digest}\ncontents " in text
    assert " unverified\n" in text
    assert "CN=good" in text
    document = run("inspect", "dir:store:app", "--json").document
    assert document["schema"] == "eroseal.inspect/1"
    assert document["contents"] == "unverified"
    assert document["files"]["hard_links"] == 1
    trusted = run("inspect", "dir:store:app", "--json", "--cert", people.cert("good")).document
    assert (trusted["contents"], trusted["trusted_by"]) == ("verified", "cert")


def test_bare_images_are_read_by_name_only(
    run: Run, place: Path, samples: Samples, require_peer: Callable[[str], str]
) -> None:
    mkfs = require_peer("mkfs.erofs")
    subprocess.run([mkfs, "bare.erofs", samples.tree], cwd=place, check=True, capture_output=True)
    outcome = run("cat", "bare.erofs", "big", "--insecure")
    assert outcome.out == CONTENT
    assert "not sealed, so nothing is checked" in outcome.err
    assert run("inspect", "bare.erofs", "--json").document["image"] is None
    assert run("cat", "bare.erofs", "big", "--digest", WRONG, code=3).error
    assert "not sealed" in run("verify", "bare.erofs", "--insecure", code=3).error
    assert "not sealed" in run("export", "bare.erofs", "out", "--insecure", code=3).error


def test_diff(run: Run, place: Path, samples: Samples) -> None:
    tree = place / "tree"
    shutil.copytree(samples.tree, tree, symlinks=True, ignore=shutil.ignore_patterns("fifo"))
    (tree / "etc/motd").write_text("other\n")
    (tree / "new").write_bytes(os.urandom(70_000))
    digest = run("build", "tree", "dir:store:two", "--base", "dir:store:app").last
    digests = ("--digest", samples.digest, "--digest", digest)
    lines = run("diff", "dir:store:app", "dir:store:two", *digests).text.splitlines()
    assert "- fifo" in lines
    assert "+ new" in lines
    assert any(line.startswith("~ etc/motd (content") for line in lines)
    document = run("diff", "dir:store:app", "dir:store:two", *digests, "--json").document
    assert document["schema"] == "eroseal.diff/1"
    assert (document["first"], document["second"]) == (samples.digest, digest)
    assert {change["path"]: change["change"] for change in document["changes"]}["new"] == "added"
    assert document["new_bytes"] >= 70_000


def test_trust_of_both_images(run: Run, people: People, samples: Samples) -> None:
    both = ("dir:store:app", "app.erofs")
    run("diff", *both, "--insecure")
    right = ("--digest", samples.digest, "--digest", samples.file_digest)
    assert run("diff", *both, *right).out
    assert "is pinned" in run("diff", *reversed(both), *right, code=3).error
    assert "one --digest for two" in run("diff", *both, *right[:2], code=2).error
    assert "3 times" in run("diff", *both, *right, "--digest", WRONG, code=2).error
    run("sign", "dir:store:app", *people.pair("good"))
    run("sign", "app.erofs", *people.pair("other"))
    certs = ("--cert", people.cert("good"), "--cert", people.cert("other"))
    run("diff", *both, *certs)
    assert "app.erofs" in run("diff", *both, *certs[:2], code=3).error
    run("diff", *reversed(both), *certs, code=3)


def test_fsck(run: Run, place: Path) -> None:
    assert run("fsck", "store").text.startswith("ok: 1 image, 2 blobs, ")
    document = run("fsck", "dir:store", "--json").document
    assert (document["schema"], document["ok"], document["findings"]) == ("eroseal.fsck/1", True, [])
    flip(blobs(place / "store")[1], 12_288)
    outcome = run("fsck", "store", code=3)
    assert "damage: " in outcome.text
    assert "at byte 12288" in outcome.text
    assert "store: 1 finding of damage" in outcome.error
    assert run("fsck", "store", "--quick").text.startswith("ok: ")
    assert not run("fsck", "store", "--json", code=3).document["ok"]
    blobs(place / "store")[1].unlink()
    assert run("fsck", "store", "--json", code=1).document["findings"][0]["kind"] == "missing-blob"
    assert "no store here" in run("fsck", "nowhere", code=1).error


def test_documents_keep_to_their_schemas(run: Run, samples: Samples) -> None:
    """Every document has exactly the fields that its schema names as required or optional."""
    schemas = Path(__file__).resolve().parents[2] / "docs/schemas"
    trust = ("--digest", samples.digest)
    for verb, arguments in (
        ("verify", trust),
        ("digest", ()),
        ("ls", trust),
        ("inspect", ()),
        ("stat", ("big", *trust)),
    ):
        document = run(verb, "dir:store:app", *arguments, "--json").document
        schema = json.loads((schemas / f"{verb}.json").read_text())
        definition = schema["$defs"][schema["$ref"].rpartition("/")[2]]
        assert set(definition["required"]) | {"schema"} <= set(document) <= set(definition["properties"]), verb
        assert definition["properties"]["schema"]["enum"] == [document["schema"]]


def test_the_program_needs_no_root(samples: Samples, tmp_path: Path) -> None:
    for arguments in (
        ("build", str(samples.tree), "dir:store:app"),
        ("verify", "dir:store:app", "--insecure"),
        ("fsck", "store"),
    ):
        assert eroseal(*arguments, cwd=tmp_path, wrapper=ORDINARY_USER).out
