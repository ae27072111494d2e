"""Keys that are kept elsewhere: the program writes what must be signed, openssl signs, the program attaches it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from eroseal.format.digest import Digest
from eroseal.format.statement import Statement
from eroseal.store.resolve import resolve

PROGRAM = [sys.executable, "-m", "eroseal"]
KEYS = {
    "rsa": ["-newkey", "rsa:2048"],
    "p256": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "p521": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"],
}
LEAF = ["-addext", "basicConstraints=critical,CA:FALSE"]
LEAF += ["-addext", "keyUsage=critical,digitalSignature", "-addext", "extendedKeyUsage=codeSigning"]
CA = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]

Result = subprocess.CompletedProcess[bytes]


@dataclass(frozen=True, slots=True)
class Place:
    """A directory with an image, where two programs exchange files: ours, and openssl."""

    directory: Path
    openssl: str
    reference: str
    digest: str

    def ours(self, *arguments: str | Path) -> Result:
        return subprocess.run([*PROGRAM, *arguments], cwd=self.directory, capture_output=True, check=False)

    def ok(self, *arguments: str | Path) -> str:
        result = self.ours(*arguments)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout.decode()

    def fails(self, code: int, *arguments: str | Path) -> str:
        """The message of a command that must fail and must not add a signature."""
        before = self.record()
        result = self.ours(*arguments)
        message = result.stderr.decode()
        assert result.returncode == code, message
        assert message.startswith("eroseal:")
        assert "Traceback" not in message
        assert self.record() == before
        return message

    def theirs(self, *arguments: str | Path) -> None:
        result = subprocess.run([self.openssl, *arguments], cwd=self.directory, capture_output=True, check=False)
        assert result.returncode == 0, result.stderr.decode()

    def record(self) -> Sequence[object]:
        with resolve(self.reference) as stored:
            return stored.record

    def statement(self, *options: str) -> bytes:
        """Written by `digest --to-sign`."""
        self.ok("digest", self.reference, "--to-sign", "statement", *options)
        return (self.directory / "statement").read_bytes()

    def identity(self, name: str, options: Sequence[str], *, issuer: str = "", days: int = 2) -> None:
        """A key and a certificate, valid from now on, under an issuer or by itself."""
        command = ["req", "-x509", "-nodes", *options, "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        command += ["-subj", f"/CN={name}", "-days", str(days)]
        if issuer:
            command += ["-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key"]
        self.theirs(*command)

    def sign(self, name: str, *options: str) -> None:
        """Into `signature`, from `statement`, by a key that our program never sees."""
        command = ["cms", "-sign", "-binary", "-outform", "DER", "-in", "statement", "-out", "signature"]
        self.theirs(*command, "-signer", f"{name}.pem", "-inkey", f"{name}.key", *options)

    def attach(self, *options: str | Path) -> list[str | Path]:
        return ["sign", self.reference, "--attach", "signature", "--statement", "statement", *options]


ONE_PLACE = pytest.mark.parametrize("place", ["store"], indirect=True)


@pytest.fixture(params=["store", "file"])
def place(request: pytest.FixtureRequest, require_peer: Callable[[str], str], tmp_path: Path) -> Place:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(9000))
    single = request.param == "file"
    reference = str(tmp_path / "image.erofs") if single else f"dir:{tmp_path}/store:image"
    target = [reference, "--blobs", "none"] if single else [reference]
    result = subprocess.run([*PROGRAM, "build", source, *target], capture_output=True, check=True, text=True)
    return Place(tmp_path, require_peer("openssl"), reference, result.stdout.split()[-1])


def test_what_is_to_be_signed_is_the_statement(place: Place) -> None:
    written = place.statement("--name", "web", "--version", "7", "--created", "1700000000")
    assert written == Statement(Digest.parse(place.digest), "web", 7, 1_700_000_000).encode()
    shown = place.ours(
        "digest", place.reference, "--to-sign", "-", "--name", "web", "--version", "7", "--created", "1700000000"
    )
    assert (shown.returncode, shown.stdout) == (0, written)


@pytest.mark.parametrize(
    ("kind", "options"), [("rsa", []), ("p256", ["-noattr"]), ("p521", ["-md", "sha512"]), ("rsa", ["-cades"])]
)
def test_openssl_cms_signs(place: Place, kind: str, options: list[str]) -> None:
    place.identity("signer", [*KEYS[kind], *LEAF])
    place.statement("--name", "web", "--version", "7")
    place.sign("signer", *options)
    assert place.ok(*place.attach()).strip() == place.digest
    document = json.loads(
        place.ok("verify", place.reference, "--json", "--cert", "signer.pem", "--name", "web", "--min-version", "7")
    )
    assert (document["schema"], document["ok"], document["trusted_by"]) == ("eroseal.verify/1", True, "cert")
    place.fails(3, "verify", place.reference, "--cert", "signer.pem", "--min-version", "8")
    # Attached twice it is there once.
    before = place.record()
    place.ok(*place.attach())
    assert place.record() == before


def test_a_chain_travels_with_the_signature(place: Place) -> None:
    place.identity("root", [*KEYS["p256"], *CA])
    place.identity("middle", [*KEYS["rsa"], *CA], issuer="root")
    place.identity("signer", [*KEYS["p256"], *LEAF], issuer="middle")
    place.statement()
    place.sign("signer", "-certfile", "middle.pem")
    place.ok(*place.attach())
    place.ok("verify", place.reference, "--ca", "root.pem")
    place.ok("verify", place.reference, "--ca", "middle.pem")
    place.identity("other", [*KEYS["p256"], *CA])
    assert "no valid path" in place.fails(3, "verify", place.reference, "--ca", "other.pem")


def test_openssl_pkeyutl_signs_with_ed25519(place: Place) -> None:
    for name in ("one", "two"):
        place.theirs("genpkey", "-algorithm", "ed25519", "-out", f"{name}.key")
        place.theirs("pkey", "-in", f"{name}.key", "-pubout", "-out", f"{name}.pub")
    place.statement("--name", "web", "--version", "7")
    place.theirs("pkeyutl", "-sign", "-rawin", "-in", "statement", "-inkey", "one.key", "-out", "signature")
    assert "does not match" in place.fails(3, *place.attach("--ed25519", "two.pub"))
    place.ok(*place.attach("--ed25519", "one.pub"))
    place.ok("verify", place.reference, "--ed25519", "one.pub", "--name", "web", "--min-version", "7")
    place.fails(3, "verify", place.reference, "--ed25519", "two.pub")


@ONE_PLACE
def test_both_kinds_side_by_side(place: Place) -> None:
    place.identity("signer", [*KEYS["p256"], *LEAF])
    place.theirs("genpkey", "-algorithm", "ed25519", "-out", "ed.key")
    place.theirs("pkey", "-in", "ed.key", "-pubout", "-out", "ed.pub")
    place.statement("--version", "1")
    place.sign("signer")
    place.ok(*place.attach())
    place.theirs("pkeyutl", "-sign", "-rawin", "-in", "statement", "-inkey", "ed.key", "-out", "signature")
    place.ok(*place.attach("--ed25519", "ed.pub"))
    place.ok("verify", place.reference, "--cert", "signer.pem")
    place.ok("verify", place.reference, "--ed25519", "ed.pub")
    assert len(place.record()) == 2


@ONE_PLACE
def test_what_must_not_be_attached(place: Place) -> None:
    place.identity("signer", [*KEYS["p256"], *LEAF])
    honest = place.statement("--name", "web", "--version", "7")
    statement, signature = place.directory / "statement", place.directory / "signature"

    # A signature over other bytes than the statement.
    statement.write_bytes(honest + b"\0")
    place.sign("signer")
    statement.write_bytes(honest)
    place.fails(3, *place.attach())

    # A statement about another image, honestly signed.
    other = Statement(Digest.parse(place.digest[:-1] + ("0" if place.digest[-1] != "0" else "1")), "web", 7, 0)
    statement.write_bytes(other.encode())
    place.sign("signer")
    assert str(other.digest) in place.fails(3, *place.attach())

    # Something else than a statement, honestly signed: the fs-verity form, an empty file, a text.
    for content in (b"FSVerity\x01\x00\x20\x00" + bytes(32), b""):
        statement.write_bytes(content)
        place.sign("signer")
        place.fails(3, *place.attach())

    # Without its certificate; in PEM; with the content inside; cut short; no signature at all.
    statement.write_bytes(honest)
    place.sign("signer", "-nocerts")
    place.fails(3, *place.attach())
    place.sign("signer", "-outform", "PEM")
    assert "DER" in place.fails(3, *place.attach())
    place.sign("signer", "-nodetach")
    place.fails(3, *place.attach())
    place.sign("signer")
    good = signature.read_bytes()
    for broken in (good[:-1], good + b"\0", b"", good[:50] + b"\xff" + good[51:]):
        signature.write_bytes(broken)
        place.fails(3, *place.attach())

    # A raw Ed25519 signature for which nobody says whose it is, and one of the wrong length.
    signature.write_bytes(bytes(64))
    place.fails(3, *place.attach())
    place.theirs("genpkey", "-algorithm", "ed25519", "-out", "ed.key")
    place.theirs("pkey", "-in", "ed.key", "-pubout", "-out", "ed.pub")
    place.fails(3, *place.attach("--ed25519", "ed.pub"))
    signature.write_bytes(bytes(63))
    place.fails(3, *place.attach("--ed25519", "ed.pub"))

    # And the good one, at last.
    signature.write_bytes(good)
    place.ok(*place.attach())


@ONE_PLACE
def test_unfit_certificates_are_refused_when_attached(place: Place) -> None:
    """What no verifier would accept is not added either: expired, or not for signing."""
    place.identity("server", [*KEYS["p256"], "-addext", "extendedKeyUsage=serverAuth"])
    place.identity("encipherment", [*KEYS["rsa"], "-addext", "keyUsage=critical,keyEncipherment"])
    place.statement()
    for name in ("server", "encipherment"):
        place.sign(name)
        assert "usage" in place.fails(1, *place.attach()).lower()


@ONE_PLACE
def test_files_that_are_not_there(place: Place) -> None:
    assert "statement: no such file" in place.fails(1, *place.attach())
    place.statement()
    assert "signature: no such file" in place.fails(1, *place.attach())
    place.fails(2, "sign", place.reference, "--attach", "signature")
    place.fails(2, "sign", place.reference, "--statement", "statement")
