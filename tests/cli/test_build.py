"""`eroseal build`: targets, options, documents, and what must leave nothing behind."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.cli.conftest import CONTENT, People, Run, Samples, files_below
from tests.support.kernel import bound, tmpfs
from tests.support.program import NO_OVERRIDE, eroseal


def test_last_line_is_the_image_digest(samples: Samples, run: Run) -> None:
    outcome = run("build", samples.tree, "new.erofs")
    assert outcome.text == samples.file_digest + "\n"
    assert outcome.err.startswith("eroseal: 12 files, ")


def test_document_of_a_store(samples: Samples, run: Run, place: Path) -> None:
    document = run("build", samples.tree, "dir:new:app", "--json").document
    assert document["schema"] == "eroseal.build/1"
    assert document["image"] == samples.digest == document["blobs"][0]["digest"]
    assert [blob["role"] for blob in document["blobs"]] == ["meta", "data"]
    for blob in document["blobs"]:
        assert (place / blob["path"]).stat().st_size == blob["size"] > blob["data_size"]
    assert document["files"] == 12
    assert document["bytes_in"] >= 2 * len(CONTENT)
    assert document["bytes_shared"] >= len(CONTENT)
    assert document["seconds"] > 0


def test_document_of_a_file(samples: Samples, run: Run, place: Path) -> None:
    (blob,) = run("build", samples.tree, "new.erofs", "--json").document["blobs"]
    assert (blob["role"], blob["path"]) == ("meta", "new.erofs")
    assert (place / "new.erofs").stat().st_size == blob["size"]


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_same_bytes_whatever_the_jobs(samples: Samples, run: Run, place: Path, jobs: str) -> None:
    run("build", samples.tree, "new.erofs", "--jobs", jobs, "--no-sync")
    assert (place / "new.erofs").read_bytes() == samples.file.read_bytes()


def test_base_shares_everything(samples: Samples, run: Run) -> None:
    document = run("build", samples.tree, "dir:store:again", "--base", "dir:store:app", "--json").document
    assert document["bytes_new"] == 0
    assert document["image"] == samples.digest


@pytest.mark.parametrize(
    "target", ["dir:{}:app", "dir:{}/store:app", "oci:{}:app", "oci:{}/layout:app", "{}/app.erofs"]
)
def test_what_stands_in_the_way_stays(samples: Samples, run: Run, place: Path, target: str) -> None:
    """A file where a store should be is the user's, and so is what a link points to."""
    (place / "letter").write_text("dear reader")
    (place / "link").symlink_to("nowhere")
    for name in ("letter", "link"):
        run("build", samples.tree, target.format(name), code=1)
    assert (place / "letter").read_text() == "dear reader"
    assert os.readlink(place / "link") == "nowhere"


@pytest.mark.parametrize(
    ("source", "code", "words"),
    [
        ("nothing", 1, "nothing: no such file or directory"),
        ("secret.pem/below", 1, "secret.pem/below: no such file or directory"),
        ("dir:store:app", 2, "dir:store:app: is no source of builds (eroseal copy takes images elsewhere)"),
        ("s3://bucket/app:1", 2, "s3://bucket/app:1: is no source of builds (eroseal copy takes images elsewhere)"),
        ("oci-archive:store", 2, "store: is a directory, not an archive (a layout in one is oci:PATH:TAG)"),
        ("docker-archive:store", 2, "store: is a directory, not an archive (a layout in one is oci:PATH:TAG)"),
        ("oci:store:app", 1, "store: is not an OCI image layout (it has no file 'oci-layout')"),
        ("oci-archive:secret.pem", 3, "secret.pem: no tar archive, or a broken one: ends within a member"),
    ],
)
def test_what_is_no_source(samples: Samples, run: Run, place: Path, source: str, code: int, words: str) -> None:
    (place / "secret.pem").write_text("no archive")
    assert run("build", source, "dir:store:new", code=code).error == words


def test_a_platform_is_for_container_images(samples: Samples, run: Run) -> None:
    error = run("build", samples.tree, "new.erofs", "--platform", "linux/arm64", code=2).error
    assert error == f"{samples.tree}: --platform chooses among container images, and this is none"


def test_bases_of_another_kind_are_refused(samples: Samples, run: Run) -> None:
    outcome = run("build", samples.tree, "dir:store:new", "--base", "dir:store:app", "--hash", "sha512", code=2)
    assert "another hash or salt" in outcome.error
    assert run("build", samples.tree, "dir:store:new", "--base", "dir:store:none", code=1).out == b""


@pytest.mark.parametrize("layout", ["none", "build", "layer", "file"])
def test_blob_layouts_verify(samples: Samples, run: Run, layout: str) -> None:
    digest = run("build", samples.tree, "dir:new:app", "--blobs", layout).last
    blobs = run("verify", "dir:new:app", "--digest", digest, "--json").document["blobs"]
    assert len(blobs) == {"none": 1, "build": 2, "layer": 2, "file": 2}[layout]


def test_options_reach_the_image(samples: Samples, run: Run) -> None:
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    options = ("--hash", "sha512", "--salt", "00ff", "--chunk-size", "4K", "--inline-max", "0", "--uuid", uuid)
    more = ("--timestamp", "2020-01-02T03:04:05Z", "--all-root", "--exclude", "twice", "--exclude", "etc/deep")
    digest = run("build", samples.tree, "new.erofs", *options, *more).last
    assert digest.startswith("fsverity-sha512-12:")
    document = run("inspect", "new.erofs", "--json").document
    assert document["superblock"]["uuid"] == uuid.replace("-", "")
    assert document["superblock"]["epoch"] == 1_577_934_245
    assert document["seal"]["salt"] == "00ff"
    entries = run("ls", "new.erofs", "-R", "--json", "--digest", digest).document["entries"]
    assert {entry["mtime"] for entry in entries} == {1_577_934_245}
    assert {(entry["uid"], entry["gid"]) for entry in entries} == {(0, 0)}
    names = {entry["path"] for entry in entries}
    assert "big" in names
    assert not {"twice", "etc/deep", "etc/deep/empty"} & names


def test_source_date_epoch_is_the_latest_time(samples: Samples, run: Run) -> None:
    tree = samples.tree
    digest = run("build", tree, "a.erofs", environment={"SOURCE_DATE_EPOCH": "1600000000"}).last
    entries = run("ls", "a.erofs", "--json", "--digest", digest).document["entries"]
    assert {entry["mtime"] for entry in entries} == {1_600_000_000}
    assert run("inspect", "a.erofs", "--json").document["superblock"]["epoch"] == 1_600_000_000
    outcome = run("build", tree, "b.erofs", environment={"SOURCE_DATE_EPOCH": "soon"}, code=2)
    assert "SOURCE_DATE_EPOCH" in outcome.error


def test_signed_at_once(samples: Samples, run: Run, people: People) -> None:
    signing = (*people.pair("good"), "--ed25519", people.key("ed"), "--name", "app", "--version", "7")
    for target in ("dir:store:signed", "signed.erofs"):
        run("build", samples.tree, target, *signing, "--for-kernel", "--for-bootloader")
        trust = ("--name", "app", "--min-version", "7")
        assert (
            "trusted by cert CN=good as 'app' version 7"
            in run("verify", target, "--cert", people.cert("good"), *trust).text
        )
        assert "trusted by ed25519" in run("verify", target, "--ed25519", people.public, *trust).text
        types = [entry["type"] for entry in run("inspect", target, "--json").document["image_record"]]
        assert types == [16, 16, 17, 18, 19]


def test_nothing_is_built_when_the_key_cannot_sign(samples: Samples, run: Run, people: People, place: Path) -> None:
    before = files_below(place)
    for pair in (
        ("--key", people.key("good"), "--cert", people.cert("other")),
        people.pair("expired"),
        people.pair("usage"),
        ("--key", people.key("good"), "--cert", str(place / "missing.pem")),
    ):
        for target in ("dir:new:app", "new.erofs"):
            run("build", samples.tree, target, *pair, "--name", "app", code=1)
    assert files_below(place) == before


@pytest.mark.parametrize("target", ["dir:store:app", "app.erofs"])
def test_existing_target(samples: Samples, run: Run, place: Path, target: str) -> None:
    before = files_below(place)
    outcome = run("build", samples.tree, target, code=1)
    assert "exists already (choose another name or --replace it; nothing was changed)" in outcome.error
    assert files_below(place) == before
    run("build", samples.tree / "etc", target, "--replace")
    assert run("ls", target, "--insecure").text == "deep\nmotd\n"


def test_target_inside_the_source(run: Run, place: Path) -> None:
    for target in ("dir:store:new", "dir:new:new", "new.erofs"):
        assert "lies in the source" in run("build", ".", target, code=2).error
    run("build", ".", "dir:store:new", "--exclude", "store", "--no-sync")


@pytest.mark.parametrize(
    ("source", "what", "code"),
    [
        ("missing", "no such file", 1),
        ("app.erofs", "something follows the archive's end", 3),
        ("empty", "is empty", 3),
        ("text", "", 3),
    ],
)
def test_source_that_is_none(run: Run, place: Path, source: str, what: str, code: int) -> None:
    (place / "empty").touch()
    (place / "text").write_text("no archive\n" * 100)
    before = files_below(place)
    for target in ("dir:new:app", "dir:store:new", "new.erofs"):
        outcome = run("build", source, target, code=code)
        assert source in outcome.error
        assert what in outcome.error.lower()
    assert files_below(place) == before


def test_place_that_is_none(samples: Samples, run: Run) -> None:
    for target in ("dir:no/such:app", "no/such/app.erofs", "dir:app.erofs:x"):
        assert (
            target.split(":")[1 if target.startswith("dir:") else 0].partition("/")[0]
            in run("build", samples.tree, target, code=1).error
        )


def test_unreadable_file(need_root: None, run: Run, place: Path) -> None:
    source = place / "source"
    source.mkdir()
    (source / "fine").write_text("fine")
    secret = source / "secret"
    secret.write_text("secret")
    os.chown(secret, 1, 1)
    secret.chmod(0o600)
    before = files_below(place)
    for target in ("dir:new:app", "dir:store:new", "new.erofs"):
        outcome = run("build", "source", target, code=1, wrapper=NO_OVERRIDE)
        assert "source/secret: " in outcome.error
        assert "permission denied" in outcome.error.lower()
    assert files_below(place) == before


@contextmanager
def restless(path: Path) -> Iterator[None]:
    """A file whose length never stays the same for long."""
    stop = threading.Event()

    def change() -> None:
        for extra in itertools.cycle((4096, 0)):
            os.truncate(path, (48 << 20) + extra)
            if stop.wait(0.001):
                return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_file_that_changes_while_it_is_read(run: Run, place: Path, jobs: str) -> None:
    source = place / "source"
    source.mkdir()
    (source / "log").write_bytes(os.urandom(48 << 20))
    before = files_below(place)
    with restless(source / "log"):
        for target in ("dir:new:app", "new.erofs"):
            outcome = run("build", "source", target, "--jobs", jobs, code=1)
            assert "source/log: " in outcome.error
            assert "changed" in outcome.error
    assert files_below(place) == before


def test_file_that_is_shorter_than_it_says(need_root: None, run: Run, place: Path) -> None:
    source = place / "source"
    source.mkdir()
    (source / "short").write_bytes(bytes(100))
    before = files_below(place)
    # sysfs says 4096 bytes of every attribute, and gives what there is.
    with bound(Path("/sys/kernel/uevent_seqnum"), source / "short"):
        outcome = run("build", "source", "new.erofs", code=1)
    assert "source/short: " in outcome.error
    assert files_below(place) == before


def test_full_disk(need_root: None, run: Run, place: Path) -> None:
    source = place / "source"
    source.mkdir()
    (source / "noise").write_bytes(os.urandom(4 << 20))
    small = place / "small"
    with tmpfs(small, "size=2m"):
        for target in ("dir:small/store:app", "small/app.erofs"):
            outcome = run("build", "source", target, code=1)
            assert "disk is full" in outcome.error or "no space left" in outcome.error.lower()
            assert files_below(small) == []
        shutil.copytree(place / "store", small / "store")
        before = files_below(small)
        run("build", "source", "dir:small/store:noise", code=1)
        assert files_below(small) == before


def test_full_disk_for_what_an_archive_holds(need_root: None, run: Run, place: Path) -> None:
    source = place / "source"
    source.mkdir()
    (source / "noise").write_bytes(os.urandom(4 << 20))
    shutil.make_archive(os.fspath(place / "source"), "tar", source)
    small = place / "small"
    with tmpfs(small, "size=2m"):
        for target, options in (
            ("dir:small/store:app", ()),
            ("small/app.erofs", ()),
            ("oci:new:app", ("--work", small)),
        ):
            error = run("build", "source.tar", target, *options, code=1).error
            assert "source.tar: cannot write to the temporary file" in error
            assert "--work or $TMPDIR" in error
            assert files_below(small) == []


def test_ordinary_things_that_have_no_place_in_an_image(run: Run, place: Path) -> None:
    """What cannot be kept is said, what is kept is right."""
    source = place / "source"
    source.mkdir()
    (source / "file").write_text("content")
    os.setxattr(source / "file", b"user.note", b"kept")
    digest = run("build", "source", "new.erofs").last
    xattrs = run("stat", "new.erofs", "file", "--json", "--digest", digest).document["xattrs"]
    assert [entry["name"] for entry in xattrs] == ["user.note"]


def test_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in ("dir:store:empty", "empty.erofs"):
        digest = eroseal("build", "empty", target, cwd=tmp_path).last
        assert "ok: " in eroseal("verify", target, "--digest", digest, cwd=tmp_path).text
        assert eroseal("ls", target, "--digest", digest, cwd=tmp_path).out == b""
