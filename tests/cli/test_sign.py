"""`eroseal sign` and `eroseal digest`: what is signed, by whom, and signatures that are made elsewhere."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import People, Run, Samples, files_below
from tests.cli.test_verify import WRONG
from tests.support.kernel import tmpfs
from tests.support.program import eroseal

from eroseal.format.statement import Statement

TARGETS = ("dir:store:app", "app.erofs")


def record_types(run: Run, target: str) -> list[int]:
    return [entry["type"] for entry in run("inspect", target, "--json").document["image_record"]]


@pytest.mark.parametrize("target", TARGETS)
def test_signing_says_what_it_signs(samples: Samples, run: Run, people: People, target: str) -> None:
    digest = samples.digest if target.startswith("dir:") else samples.file_digest
    options = (*people.pair("good"), "--name", "app", "--version", "3", "--time", "2026-01-02T03:04:05Z")
    outcome = run("sign", target, *options, "--expect", digest)
    assert outcome.last == digest
    assert f"signing {digest} (unverified, " in outcome.err
    assert "as 'app' version 3, created 2026-01-02 03:04:05Z, with certificate CN=good" in outcome.err
    (signer,) = run("inspect", target, "--json").document["signers"]
    assert signer["statement"] == {
        "image": digest,
        "this_image": True,
        "name": "app",
        "version": 3,
        "created": 1_767_323_045,
    }
    assert signer["intact"]


@pytest.mark.parametrize("target", TARGETS)
def test_all_forms_at_once(run: Run, people: People, target: str) -> None:
    everything = (*people.pair("rsa"), "--ed25519", people.key("ed"), "--for-kernel", "--for-bootloader")
    run("sign", target, *everything, "--no-sync")
    assert record_types(run, target) == [16, 16, 17, 18, 19]
    assert "trusted by cert" in run("verify", target, "--cert", people.cert("rsa")).text
    run("sign", target, "--ed25519", people.key("ed"), "--time", "1", "--no-sync")
    run("sign", target, "--ed25519", people.key("ed"), "--time", "1", "--no-sync")
    assert record_types(run, target) == [16, 16, 16, 17, 18, 19]


def test_roleless_forms_count_only_by_name(run: Run, people: People, place: Path) -> None:
    """Without the image signature, the kernel's form is a policy that the user must name."""
    run("sign", "app.erofs", *people.pair("rsa"), "--for-kernel", "--no-sync")
    trust = ("--cert", people.cert("rsa"))
    run("verify", "app.erofs", *trust, "--accept", "fsverity")
    run("sign", "dir:store:app", "--ed25519", people.key("ed"), "--for-bootloader", "--no-sync")
    assert run("verify", "dir:store:app", "--ed25519", people.public, "--accept", "bootloader").out


def test_kernel_form_is_what_fsverity_signs(
    run: Run, people: People, place: Path, require_peer: Callable[[str], str]
) -> None:
    fsverity = require_peer("fsverity")
    run("sign", "app.erofs", *people.pair("rsa"), "--for-kernel", "--no-sync")
    run("export", "app.erofs", "data", "--data", "--insecure")
    options = [f"--key={people.key('rsa')}", f"--cert={people.cert('rsa')}"]
    subprocess.run([fsverity, "sign", "data", "signature", *options], cwd=place, check=True, capture_output=True)
    assert (place / "signature").read_bytes() in (place / "app.erofs").read_bytes()


def test_expectations(run: Run, people: People, place: Path) -> None:
    before = (place / "app.erofs").read_bytes()
    outcome = run("sign", "app.erofs", *people.pair("good"), "--expect", WRONG, code=3)
    assert f"not {WRONG}: not signed" in outcome.error
    assert "not an image digest" in run("sign", "app.erofs", *people.pair("good"), "--expect", "x", code=2).error
    assert (place / "app.erofs").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "code", "what"),
    [
        (("--key", "{good.key}", "--cert", "{other.pem}"), 1, "does not match"),
        (("--key", "{expired.key}", "--cert", "{expired.pem}"), 1, "expired at"),
        (("--key", "{usage.key}", "--cert", "{usage.pem}"), 1, "key usage"),
        (("--key", "{ed.key}", "--cert", "{good.pem}"), 1, "does not match"),
        (("--key", "{good.pem}", "--cert", "{good.pem}"), 1, "not a private key"),
        (("--key", "missing.key", "--cert", "{good.pem}"), 1, "missing.key"),
        (("--key", "{good.key}", "--cert", "{good.key}"), 1, "no certificate"),
        (("--key", "{good.key}"), 2, "belong together"),
        (("--cert", "{good.pem}"), 2, "belong together"),
        (("--ed25519", "{good.key}"), 1, "not an Ed25519 key"),
        (("--ed25519", "{ed.key}", "--for-kernel"), 2, "--for-kernel needs"),
        (("--key", "{good.key}", "--cert", "{good.pem}", "--for-bootloader"), 2, "--for-bootloader needs"),
        (("--ed25519", "{ed.key}", "--name", "x" * 256), 2, "256 bytes"),
        (("--ed25519", "{ed.key}", "--name", "a\nb"), 2, "control character"),
        (("--ed25519", "{ed.key}", "--version", str(1 << 64)), 2, "64 bits"),
        (("--ed25519", "{locked.key}"), 1, "encrypted"),
        (("--ed25519", "{locked.key}", "--passphrase-file", "wrong"), 1, "wrong passphrase"),
        (("--ed25519", "{locked.key}", "--passphrase-file", "none"), 1, "none"),
    ],
)
def test_signers_that_cannot_sign(
    run: Run, people: People, place: Path, options: tuple[str, ...], code: int, what: str
) -> None:
    (place / "wrong").write_text("guess what\n")
    paths = {f"{{{path.name}}}": str(path) for path in people.place.iterdir()}
    before = (place / "app.erofs").read_bytes()
    outcome = run("sign", "app.erofs", *(paths.get(option, option) for option in options), code=code)
    assert what in outcome.error
    assert (place / "app.erofs").read_bytes() == before
    for secret in (line for path in people.place.glob("*.key") for line in path.read_text().splitlines()[1:-1]):
        assert secret not in outcome.err
    assert "guess what" not in outcome.err


def test_passphrases_come_from_files_and_descriptors(run: Run, people: People, place: Path) -> None:
    (place / "passphrase").write_text("open sesame\n")
    locked = ("--ed25519", people.key("locked"), "--no-sync", "--passphrase-file")
    run("sign", "app.erofs", *locked, "passphrase")
    reading, writing = os.pipe()
    os.write(writing, b"open sesame")
    os.close(writing)
    run("sign", "dir:store:app", *locked, f"/dev/fd/{reading}", pass_fds=[reading])
    os.close(reading)
    assert run("verify", "dir:store:app", "--ed25519", people.public).text.startswith("ok: ")


def test_damaged_images_are_not_signed(run: Run, people: People, place: Path) -> None:
    os.truncate(place / "app.erofs", 100_000)
    assert run("sign", "app.erofs", *people.pair("good"), code=3).error
    for blob in (place / "store/blobs").rglob("*"):
        if blob.is_file() and blob.stat().st_size > 200_000:
            blob.unlink()
    assert "is not in the store" in run("sign", "dir:store:app", *people.pair("good"), code=1).error
    assert record_types(run, "dir:store:app") == []


def test_digest_is_one_line(samples: Samples, run: Run) -> None:
    assert run("digest", "dir:store:app").text == f"{samples.digest}\n"
    assert run("digest", "app.erofs").text == f"{samples.file_digest}\n"


@pytest.mark.parametrize("target", TARGETS)
def test_digest_document(run: Run, place: Path, target: str) -> None:
    document = run("digest", target, "--json").document
    assert document["schema"] == "eroseal.digest/1"
    assert document["encrypted"] is False
    assert document["image"] == document["blobs"][0]["digest"]
    assert [blob["role"] for blob in document["blobs"]] == ["meta", "data"][: len(document["blobs"])]
    for blob in document["blobs"]:
        assert (place / blob["path"]).stat().st_size == blob["size"]
        assert len(blob["root_hash"]) == 64
        assert blob["data_size"] % 4096 == 0


def test_digest_agrees_with_fsverity(run: Run, place: Path, require_peer: Callable[[str], str]) -> None:
    fsverity = require_peer("fsverity")
    for number, blob in enumerate(run("digest", "dir:store:app", "--json").document["blobs"]):
        name = f"data{number}"
        exported = run("export", "dir:store:app", name, "--data", "--blob", str(number), "--insecure")
        done = subprocess.run([fsverity, "digest", name], cwd=place, check=True, capture_output=True, text=True)
        digest = "fsverity-sha256-12:" + done.stdout.split()[0].removeprefix("sha256:")
        assert exported.last == digest == blob["digest"]


@pytest.mark.parametrize("who", ["good", "rsa", "leaf"])
def test_signing_elsewhere_with_openssl(
    samples: Samples, run: Run, people: People, place: Path, require_peer: Callable[[str], str], who: str
) -> None:
    openssl = require_peer("openssl")
    run("digest", "dir:store:app", "--to-sign", "statement", "--name", "app", "--version", "9", "--time", "77")
    stated = Statement.parse((place / "statement").read_bytes())
    assert (str(stated.digest), stated.name, stated.version, stated.created) == (samples.digest, "app", 9, 77)
    files = ["-in", "statement", "-signer", people.cert(who), "-inkey", people.key(who), "-out", "signature"]
    more = ["-certfile", people.cert("chain")] if who == "leaf" else []
    command = [openssl, "cms", "-sign", "-binary", "-outform", "DER", *files, *more]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    attach = ("--attach", "signature", "--statement", "statement")
    assert run("sign", "dir:store:app", *attach).last == samples.digest
    trust = ("--ca", people.cert("root")) if who == "leaf" else ("--cert", people.cert(who))
    run("verify", "dir:store:app", *trust, "--name", "app", "--min-version", "9")
    before = files_below(place)
    assert "the statement is about" in run("sign", "app.erofs", *attach, code=3).error
    assert files_below(place) == before


def test_signing_elsewhere_with_ed25519(
    run: Run, people: People, place: Path, require_peer: Callable[[str], str]
) -> None:
    openssl = require_peer("openssl")
    (place / "statement").write_bytes(run("digest", "app.erofs", "--to-sign", "-", "--name", "app").out)
    files = ["-inkey", people.key("ed"), "-in", "statement", "-out", "signature"]
    subprocess.run([openssl, "pkeyutl", "-sign", "-rawin", *files], cwd=place, check=True, capture_output=True)
    run("sign", "app.erofs", "--attach", "signature", "--statement", "statement", "--ed25519", people.public)
    assert run("verify", "app.erofs", "--ed25519", people.public, "--name", "app").text.startswith("ok: ")


def openssl_sign(openssl: str, people: People, place: Path, who: str, *options: str) -> None:
    files = ["-in", "statement", "-signer", people.cert(who), "-inkey", people.key(who), "-out", "signature"]
    subprocess.run([openssl, "cms", "-sign", "-binary", *files, *options], cwd=place, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("who", "options", "code", "what"),
    [
        ("good", ("-outform", "PEM"), 3, "PEM form"),
        ("good", ("-outform", "DER", "-nocerts"), 3, "carries no certificate"),
        ("good", ("-outform", "DER", "-nodetach"), 3, "holds its content"),
        ("expired", ("-outform", "DER"), 1, "expired at"),
        ("usage", ("-outform", "DER"), 1, "key usage"),
    ],
)
def test_signatures_that_no_verifier_would_accept_are_not_attached(
    run: Run,
    people: People,
    place: Path,
    require_peer: Callable[[str], str],
    who: str,
    options: tuple[str, ...],
    code: int,
    what: str,
) -> None:
    run("digest", "app.erofs", "--to-sign", "statement")
    openssl_sign(require_peer("openssl"), people, place, who, *options)
    before = (place / "app.erofs").read_bytes()
    outcome = run("sign", "app.erofs", "--attach", "signature", "--statement", "statement", code=code)
    assert what in outcome.error
    assert "signature" in outcome.error
    assert (place / "app.erofs").read_bytes() == before


def test_signatures_over_something_else_are_not_attached(
    run: Run, people: People, place: Path, require_peer: Callable[[str], str]
) -> None:
    attach = ("--attach", "signature", "--statement", "statement")
    run("digest", "app.erofs", "--to-sign", "statement", "--version", "1")
    openssl_sign(require_peer("openssl"), people, place, "good", "-outform", "DER")
    run("digest", "app.erofs", "--to-sign", "statement", "--version", "2")
    assert "other content" in run("sign", "app.erofs", *attach, code=3).error
    (place / "statement").write_bytes(b"pay me a million")
    openssl_sign(require_peer("openssl"), people, place, "good", "-outform", "DER")
    assert "not an image statement" in run("sign", "app.erofs", *attach, code=3).error
    (place / "signature").write_bytes(bytes(64))
    assert "does not match" in run("sign", "app.erofs", *attach, "--ed25519", people.public, code=3).error
    assert "no such file" in run("sign", "app.erofs", "--attach", "no", "--statement", "no", code=1).error
    assert "only" in run("sign", "app.erofs", *attach, "--name", "x", code=2).error
    assert "belongs to --attach" in run("sign", "app.erofs", "--statement", "statement", code=2).error


def test_a_full_disk_leaves_the_image_as_it_was(
    need_root: None, samples: Samples, people: People, tmp_path: Path
) -> None:

    small = tmp_path / "small"
    size = samples.file.stat().st_size
    with tmpfs(small, f"size={size + 65536}"):
        (small / "app.erofs").write_bytes(samples.file.read_bytes())
        outcome = eroseal("sign", "app.erofs", *people.pair("good"), cwd=small, code=1)
        assert "disk is full" in outcome.error
        assert files_below(small) == ["app.erofs"]
        assert (small / "app.erofs").read_bytes() == samples.file.read_bytes()


def test_created_is_now(run: Run, people: People) -> None:
    before = int(time.time())
    run("sign", "app.erofs", *people.pair("good"))
    (signer,) = run("inspect", "app.erofs", "--json").document["signers"]
    assert before <= signer["statement"]["created"] <= int(time.time())
