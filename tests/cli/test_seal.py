"""`eroseal seal`: images that other tools made."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import CONTENT, People, Run, Samples, files_below
from tests.support.kernel import tmpfs
from tests.support.program import eroseal


@pytest.fixture
def foreign(place: Path, samples: Samples, require_peer: Callable[[str], str]) -> Path:
    """Make bare.erofs, and multi.erofs with its data in multi.data."""
    mkfs = require_peer("mkfs.erofs")
    for options in (["bare.erofs"], ["--chunksize=4096", "--blobdev=multi.data", "multi.erofs"]):
        subprocess.run([mkfs, *options, samples.tree], cwd=place, check=True, capture_output=True)
    return place


def test_into_a_new_file(run: Run, foreign: Path) -> None:
    before = (foreign / "bare.erofs").read_bytes()
    digest = run("seal", "bare.erofs", "-o", "sealed.erofs").last
    assert (foreign / "bare.erofs").read_bytes() == before
    assert (foreign / "sealed.erofs").read_bytes().startswith(before)
    run("verify", "sealed.erofs", "--digest", digest)
    assert run("cat", "sealed.erofs", "big", "--digest", digest).out == CONTENT
    assert "exists already" in run("seal", "bare.erofs", "-o", "sealed.erofs", code=1).error


def test_in_place_and_only_once(run: Run, foreign: Path) -> None:
    digest = run("seal", "bare.erofs").last
    assert run("digest", "bare.erofs").last == digest
    assert "sealed already" in run("seal", "bare.erofs", code=2).error


def test_parameters(run: Run, foreign: Path) -> None:
    digest = run("seal", "bare.erofs", "--hash", "sha512", "--salt", "abcd", "--jobs", "1", "--no-sync").last
    assert digest.startswith("fsverity-sha512-12:")
    assert run("inspect", "bare.erofs", "--json").document["seal"]["salt"] == "abcd"


def test_signed_at_once(run: Run, foreign: Path, people: People) -> None:
    signing = (*people.pair("good"), "--name", "foreign", "--version", "1", "--for-kernel")
    for options in (("-o", "sealed.erofs"), ()):
        run("seal", "bare.erofs", *options, *signing)
        trust = ("--cert", people.cert("good"), "--name", "foreign")
        assert run("verify", options[-1] if options else "bare.erofs", *trust).text.startswith("ok: ")


def test_several_devices(run: Run, foreign: Path) -> None:
    before = files_below(foreign)
    outcome = run("seal", "multi.erofs", "--device", "multi.data", "-o", "out.erofs", code=1)
    assert "--rewrite-tags" in outcome.error
    assert files_below(foreign) == before
    outcome = run("seal", "multi.erofs", "--device", "multi.data", "-o", "out.erofs", "--rewrite-tags")
    assert "1 device slot rewritten" in outcome.err
    trust = ("--digest", outcome.last, "--device", "out.erofs.device1")
    run("verify", "out.erofs", *trust)
    assert run("cat", "out.erofs", "big", *trust).out == CONTENT


def test_what_is_not_sealed_stays_as_it_was(run: Run, foreign: Path, people: People) -> None:
    (foreign / "noise").write_bytes(os.urandom(100_000))
    shutil.copy(foreign / "bare.erofs", foreign / "cut.erofs")
    os.truncate(foreign / "cut.erofs", 20_000)
    before = {name: (foreign / name).read_bytes() for name in ("noise", "cut.erofs", "bare.erofs")}
    for name in ("noise", "cut.erofs"):
        assert name in run("seal", name, code=3).error
        assert name in run("seal", name, "-o", "out", code=3).error
    assert "missing" in run("seal", "missing", code=1).error
    for pair in (people.pair("expired"), ("--key", people.key("good"), "--cert", people.cert("other"))):
        run("seal", "bare.erofs", *pair, code=1)
    assert "are signed" in run("seal", "bare.erofs", "--name", "x", code=2).error
    assert {name: (foreign / name).read_bytes() for name in before} == before
    assert not (foreign / "out").exists()


def test_full_disk(need_root: None, foreign: Path, people: People) -> None:
    data = (foreign / "bare.erofs").read_bytes()
    small = foreign / "small"
    with tmpfs(small, f"size={len(data) + 4096}"):
        (small / "bare.erofs").write_bytes(data)
        for options in ((), ("-o", "out.erofs")):
            outcome = eroseal("seal", "bare.erofs", *options, cwd=small, code=1)
            assert "full" in outcome.error or "no space" in outcome.error.lower()
            assert files_below(small) == ["bare.erofs"]
            assert (small / "bare.erofs").read_bytes() == data
    # Room for a sealed file, but not for the copy that signing makes: none is left rather than an unsigned one.
    with tmpfs(small, f"size={2 * len(data) + 40960}"):
        (small / "bare.erofs").write_bytes(data)
        outcome = eroseal("seal", "bare.erofs", "-o", "out.erofs", *people.pair("good"), cwd=small, code=1)
        assert files_below(small) == ["bare.erofs"]
        assert outcome.out == b""


def test_compressed_images_are_sealed_but_not_read(
    run: Run, place: Path, samples: Samples, require_peer: Callable[[str], str]
) -> None:
    (place / "text").mkdir()
    (place / "text/long").write_text("all work and no play makes jack a dull boy\n" * 10_000)
    mkfs = require_peer("mkfs.erofs")
    subprocess.run([mkfs, "-zlz4", "packed.erofs", "text"], cwd=place, check=True, capture_output=True)
    outcome = run("seal", "packed.erofs")
    assert "warning: 1 compressed file: where the data lies was not checked" in outcome.err
    trust = ("--digest", outcome.last)
    assert "1 compressed file" in run("verify", "packed.erofs", *trust).err
    assert run("ls", "packed.erofs", *trust).text == "long\n"
    before = files_below(place)
    for arguments in (("cat", "packed.erofs", "long"), ("unpack", "packed.erofs", "out")):
        assert "compressed" in run(*arguments, *trust, code=1).error
    assert files_below(place) == before
