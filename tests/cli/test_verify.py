"""`eroseal verify`, and trust as all reading verbs take it: accepted and refused with the right exit code."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from tests.cli.conftest import People, Run, Samples, files_below

READERS = (
    ["verify", "{}"],
    ["ls", "{}"],
    ["cat", "{}", "big"],
    ["stat", "{}", "big"],
    ["unpack", "{}", "out"],
    ["inspect", "{}"],
    ["export", "{}", "out"],
)
WRONG = "fsverity-sha256-12:" + "0" * 64


def blobs(store: Path) -> list[Path]:
    """Give the files of a store's blobs, the smallest first: of `app`, the meta blob and the data blob."""
    found = [path for path in (store / "blobs").rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: path.stat().st_size)


def flip(path: Path, offset: int) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


@pytest.fixture
def signed(run: Run, people: People) -> People:
    """Sign the samples in `place` by all kinds of signers, as version 5 of `app`."""
    for target in ("dir:store:app", "app.erofs"):
        statement = ("--name", "app", "--version", "5")
        run("sign", target, *people.pair("good"), *statement, "--no-sync")
        run("sign", target, *people.pair("leaf"), *statement, "--no-sync")
        run("sign", target, "--ed25519", people.key("ed"), *statement, "--no-sync")
    return people


@pytest.mark.parametrize("target", ["dir:store:app", "app.erofs"])
def test_pinned_digest(samples: Samples, run: Run, target: str) -> None:
    digest = samples.digest if target.startswith("dir:") else samples.file_digest
    assert run("verify", target, "--digest", digest).text.startswith(f"ok: {digest}, trusted by digest; ")
    assert run("verify", target, "--digest", WRONG, "--digest", digest).out
    document = run("verify", target, "--digest", digest, "--json").document
    assert (document["schema"], document["ok"], document["trusted_by"]) == ("eroseal.verify/1", True, "digest")
    assert document["blobs"][0] == {"digest": digest, "ok": True, "bad_blocks": []}
    assert document["seconds"] > 0


@pytest.mark.parametrize("arguments", READERS, ids=lambda arguments: arguments[0])
def test_every_reader_refuses_another_digest(run: Run, place: Path, arguments: list[str]) -> None:
    before = files_below(place)
    for target in ("dir:store:app", "app.erofs"):
        outcome = run(*(argument.format(target) for argument in arguments), "--digest", WRONG, code=3)
        assert f"{WRONG} is pinned" in outcome.error
        assert outcome.out == b""
    assert files_below(place) == before


def test_refusals_are_documents_too(run: Run) -> None:
    outcome = run("verify", "app.erofs", "--digest", WRONG, "--json", code=3)
    document = outcome.document
    assert (document["ok"], document["trusted_by"], document["blobs"]) == (False, None, [])
    assert WRONG in outcome.error


def test_insecure_is_named(run: Run) -> None:
    outcome = run("verify", "dir:store:app", "--insecure")
    assert "unverified" in outcome.text
    assert outcome.err == "eroseal: warning: not verified: --insecure\n"
    assert run("verify", "dir:store:app", "--insecure", "--json").document["trusted_by"] is None


@pytest.mark.parametrize(
    "options",
    [
        ("--insecure", "--digest", WRONG),
        ("--insecure", "--name", "app"),
        ("--insecure", "--policy", "policy.toml"),
        ("--policy", "policy.toml", "--digest", WRONG),
        ("--name", "app"),
        ("--digest", WRONG, "--name", "app"),
        ("--digest", "sha256:00"),
        ("--digest", WRONG, "--accept", "dm-verity"),
    ],
)
def test_trust_options_that_make_no_sense(run: Run, options: tuple[str, ...]) -> None:
    assert run("verify", "dir:store:app", *options, code=2).error


def test_certificates(run: Run, signed: People) -> None:
    for target in ("dir:store:app", "app.erofs"):
        assert "trusted by cert CN=good" in run("verify", target, "--cert", signed.cert("good")).text
        assert "trusted by ca CN=leaf" in run("verify", target, "--ca", signed.cert("root")).text
        assert "trusted by ed25519" in run("verify", target, "--ed25519", signed.public).text
        assert "is not an accepted one" in run("verify", target, "--cert", signed.cert("other"), code=3).error
        run("verify", target, "--cert", signed.cert("other"), "--cert", signed.cert("leaf"))


def test_names_and_versions(run: Run, signed: People) -> None:
    trust = ("--cert", signed.cert("good"))
    run("verify", "app.erofs", *trust, "--name", "app", "--min-version", "5")
    assert "required is 'other'" in run("verify", "app.erofs", *trust, "--name", "other", code=3).error
    assert "required is at least 6" in run("verify", "app.erofs", *trust, "--min-version", "6", code=3).error
    assert "2 times" in run("verify", "app.erofs", *trust, "--name", "app", "--name", "b", code=2).error


def test_time_of_judgement(run: Run, signed: People) -> None:
    trust = ("--cert", signed.cert("good"))
    run("verify", "app.erofs", *trust, "--at", str(int(time.time())))
    assert "expired at" in run("verify", "app.erofs", *trust, "--at", "2100-01-01", code=3).error
    assert "not valid before" in run("verify", "app.erofs", *trust, "--at", "2001-01-01T00:00:00+02:00", code=3).error


@pytest.mark.parametrize(
    ("option", "name", "what"),
    [
        ("--cert", "missing.pem", "cannot be read"),
        ("--cert", "broken.pem", "no certificate"),
        ("--cert", "key.pem", "no certificate"),
        ("--ca", "broken.pem", "no certificate"),
        ("--ed25519", "broken.pem", "not a public key"),
        ("--ed25519", "key.pem", "a private key where a public key is wanted"),
    ],
)
def test_broken_certificates(run: Run, place: Path, people: People, option: str, name: str, what: str) -> None:
    (place / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    shutil.copy(people.key("ed"), place / "key.pem")
    secret = (place / "key.pem").read_text().splitlines()[1]
    outcome = run("verify", "app.erofs", option, name, code=1)
    assert name in outcome.error
    assert what in outcome.error
    assert secret not in outcome.err


def test_a_leaf_is_no_ca(run: Run, signed: People) -> None:
    assert "is not a CA" in run("verify", "app.erofs", "--ca", signed.cert("good"), code=2).error


def test_policy_file(run: Run, place: Path, signed: People, samples: Samples) -> None:
    policy = place / "policy.toml"
    policy.write_text(
        f'[image."dir:*:app"]\ncert = "{signed.cert("good")}"\nname = "app"\nmin-version = 5\n'
        f'[image."app.erofs"]\ndigest = "{samples.digest}"\n'
    )
    assert "trusted by cert" in run("verify", "dir:store:app", "--policy", policy).text
    assert "is pinned" in run("verify", "app.erofs", "--policy", policy, code=3).error
    shutil.copy(place / "app.erofs", place / "unknown.erofs")
    assert "no pattern matches" in run("verify", "unknown.erofs", "--policy", policy, code=2).error
    policy.write_text("nonsense = 1\n")
    assert "policy.toml" in run("verify", "app.erofs", "--policy", policy, code=2).error


def test_flipped_bit(samples: Samples, run: Run, place: Path) -> None:
    meta, data = blobs(place / "store")
    flip(data, 4096 * 5 + 17)
    outcome = run("verify", "dir:store:app", "--digest", samples.digest, code=3)
    assert str(data.relative_to(place)) in outcome.error
    assert "at byte 20480" in outcome.error
    document = run("verify", "dir:store:app", "--digest", samples.digest, "--json", code=3).document
    assert document["blobs"][0]["ok"]
    assert document["blobs"][1]["bad_blocks"] == [{"level": 0, "index": 5, "offset": 20480}]
    flip(meta, 2000)
    assert str(meta.relative_to(place)) in run("verify", "dir:store:app", "--digest", samples.digest, code=3).error


def test_keep_going_lists_all(samples: Samples, run: Run, place: Path) -> None:
    _, data = blobs(place / "store")
    for block in (1, 5, 9):
        flip(data, 4096 * block)
    options = ("--digest", samples.digest, "--keep-going")
    outcome = run("verify", "dir:store:app", *options, code=3)
    assert [line.split(":")[0] for line in outcome.text.splitlines()] == ["bad"] * 3
    assert "3 bad blocks" in outcome.error
    document = run("verify", "dir:store:app", *options, "--json", code=3).document
    assert [block["index"] for block in document["blobs"][1]["bad_blocks"]] == [1, 5, 9]
    assert not document["ok"]


def test_reading_around_the_damage(samples: Samples, run: Run, place: Path) -> None:
    """A reader looks at what it needs, so that damage elsewhere does not matter to it, and is refused where it does."""
    _, data = blobs(place / "store")
    for offset in range(0, 600 << 10, 4096):
        if offset < data.stat().st_size - 65536:
            flip(data, offset)
    trust = ("--digest", samples.digest)
    assert run("cat", "dir:store:app", "etc/motd", *trust).out == b"hello\n"
    assert run("cat", "dir:store:app", "big", *trust, code=3).out == b""
    before = files_below(place)
    outcome = run("unpack", "dir:store:app", "out", *trust, code=3)
    assert "data block" in outcome.error
    assert files_below(place) == before


def test_truncated_blob(samples: Samples, run: Run, place: Path) -> None:
    _, data = blobs(place / "store")
    data.chmod(0o600)
    os.truncate(data, data.stat().st_size // 2)
    outcome = run("verify", "dir:store:app", "--digest", samples.digest, code=3)
    assert str(data.relative_to(place)) in outcome.error
    os.truncate(place / "app.erofs", 100_000)
    assert "app.erofs" in run("verify", "app.erofs", "--digest", samples.file_digest, code=3).error


@pytest.mark.parametrize("keep_going", [(), ("--keep-going",)])
def test_missing_blob(samples: Samples, run: Run, place: Path, keep_going: tuple[str, ...]) -> None:
    meta, data = blobs(place / "store")
    data.unlink()
    options = ("--digest", samples.digest, *keep_going)
    outcome = run("verify", "dir:store:app", *options, code=1)
    assert "is not in the store" in outcome.error
    document = run("verify", "dir:store:app", *options, "--json", code=1).document
    assert [blob["ok"] for blob in document["blobs"]] == [True, False]
    before = files_below(place)
    run("unpack", "dir:store:app", "out", "--digest", samples.digest, code=1)
    assert files_below(place) == before
    meta.unlink()
    assert run("verify", "dir:store:app", *options, "--json", code=1).out == b""


def test_blob_of_another_image(samples: Samples, run: Run, place: Path) -> None:
    run("build", samples.tree / "etc", "dir:other:app", "--inline-max", "0")
    _, data = blobs(place / "store")
    other = blobs(place / "other")
    data.unlink()
    shutil.copy(other[0], data)
    assert "is expected" in run("verify", "dir:store:app", "--digest", samples.digest, code=3).error
    meta = place / "store/blobs" / samples.digest[-64:][:2] / samples.digest[-64:][2:]
    meta.unlink()
    shutil.copy(samples.file, meta)
    assert "is pinned" in run("ls", "dir:store:app", "--digest", samples.digest, code=3).error


def test_images_that_are_not_there(run: Run) -> None:
    for reference, where, code in (
        ("dir:store:none", "none", 1),
        ("dir:nowhere:app", "nowhere", 1),
        ("missing.erofs", "missing.erofs", 1),
        ("store", "store", 3),
    ):
        outcome = run("verify", reference, "--insecure", code=code)
        assert where in outcome.error
        assert outcome.out == b""


def test_files_that_are_not_sealed(run: Run, place: Path) -> None:
    (place / "noise").write_bytes(os.urandom(100_000))
    (place / "empty").touch()
    for name in ("noise", "empty"):
        for trust in (("--digest", WRONG), ("--insecure",)):
            assert name in run("verify", name, *trust, code=3).error


def test_lone_blobs(samples: Samples, run: Run, place: Path) -> None:
    meta, data = blobs(place / "store")
    digest = f"fsverity-sha256-12:{data.parent.name}{data.name}"
    assert run("verify", "--blob", data, "--digest", digest).text.startswith(f"ok: {digest}, trusted by digest; 1 blob")
    run("verify", "--blob", meta, "--digest", samples.digest)
    assert "is expected" in run("verify", "--blob", meta, "--digest", digest, code=3).error
    for options in ((), ("--insecure",), ("--digest", digest, "--digest", digest), ("--digest", digest, "--name", "x")):
        run("verify", "--blob", data, *options, code=2)
    run("verify", "dir:store:app", "--blob", data, "--digest", digest, code=2)
    flip(data, 4096)
    document = run("verify", "--blob", data, "--digest", digest, "--json", code=3).document
    assert document["blobs"] == [
        {"digest": digest, "ok": False, "bad_blocks": [{"level": 0, "index": 1, "offset": 4096}]}
    ]
