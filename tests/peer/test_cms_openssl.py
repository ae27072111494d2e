"""CMS against openssl and fsverity: each accepts what the other makes, and both refuse the same."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from tests.peer.certs import (
    NOW,
    PAST,
    SERVER,
    START,
    Identity,
    ec_key,
    intermediate_ca,
    root_ca,
    rsa_key,
    signer,
    usage,
)

from eroseal.crypto import ed25519
from eroseal.crypto.cms import parse_cms, sign_bare, sign_statement
from eroseal.crypto.keys import load_certificates, load_ed25519_private_key, load_ed25519_public_key
from eroseal.errors import AuthenticityError, ErosealError, FormatError
from eroseal.format import record
from eroseal.format.digest import Digest, HashAlgorithm
from eroseal.format.fsverity import formatted_digest
from eroseal.format.record import RecordEntry
from eroseal.format.statement import ImageSignature, SignatureKind, Statement
from eroseal.trust.policy import Policy, RolelessForm, TrustDecision, authenticate

DIGEST = Digest(HashAlgorithm.SHA256, b"i" * 32)
EARLY = datetime(2026, 2, 1, tzinfo=UTC)
ROOT = root_ca()
INTERMEDIATE = intermediate_ca(ROOT)
SIGNERS = {
    "rsa": signer(INTERMEDIATE, "rsa", key=rsa_key()),
    "p256": signer(INTERMEDIATE, "p256"),
}


@dataclass(frozen=True)
class OpenSsl:
    """`openssl` in a directory that holds the statement to sign."""

    program: str
    directory: Path
    content: bytes

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self.program, *map(str, arguments)], cwd=self.directory, capture_output=True, check=False
        )

    def done(self, *arguments: str | Path) -> None:
        result = self.run(*arguments)
        assert result.returncode == 0, result.stderr.decode()

    def sign(self, by: Identity, *options: str) -> bytes:
        """Sign the content detached, with the signer's chain inside unless an option says otherwise."""
        key, pem = by.write(self.directory, "signer")
        # openssl refuses a chain file that holds the signer's certificate again.
        file = self.directory / "chain.pem"
        file.write_bytes(b"".join(item.public_bytes(Encoding.PEM) for item in by.chain))
        chain = ["-certfile", file] if by.chain and "-nocerts" not in options else []
        command = ["cms", "-sign", "-binary", "-in", "content", "-inkey", key, "-signer", pem]
        self.done(*command, *chain, "-outform", "DER", "-out", "made.der", *options)
        return (self.directory / "made.der").read_bytes()

    def accepts(self, der: bytes, content: bytes, root: Identity, *options: str) -> bool:
        (self.directory / "made.der").write_bytes(der)
        (self.directory / "seen").write_bytes(content)
        _, pem = root.write(self.directory, "root")
        command = ["cms", "-verify", "-binary", "-inform", "DER", "-in", "made.der", "-content", "seen"]
        result = self.run(*command, "-CAfile", pem, "-purpose", "any", "-out", "/dev/null", *options)
        return result.returncode == 0


@pytest.fixture
def openssl(require_peer: Callable[[str], str], tmp_path: Path) -> OpenSsl:
    content = Statement(DIGEST, "web", 5, NOW).encode()
    (tmp_path / "content").write_bytes(content)
    return OpenSsl(require_peer("openssl"), tmp_path, content)


def judge(
    content: bytes,
    der: bytes,
    *,
    pinned: Sequence[Identity] = (),
    anchors: Sequence[Identity] = (),
    time: int = NOW,
) -> TrustDecision:
    value = ImageSignature(SignatureKind.CMS, content, der).encode()
    policy = Policy(
        time=time,
        certificates=tuple(item.certificate for item in pinned),
        ca_certificates=tuple(item.certificate for item in anchors),
    )
    return authenticate(policy, DIGEST, [RecordEntry(record.IMAGE_SIGNATURE, value)])


# What openssl signs, we accept

VARIANTS = [
    [],
    ["-noattr"],
    ["-nosmimecap"],
    ["-keyid"],
    ["-cades"],
    ["-md", "sha384"],
    ["-md", "sha512"],
    ["-md", "sha512", "-noattr"],
]
PSS = ["-keyopt", "rsa_padding_mode:pss"]


@pytest.mark.parametrize("kind", SIGNERS)
@pytest.mark.parametrize("options", VARIANTS, ids=" ".join)
def test_signed_by_openssl(openssl: OpenSsl, kind: str, options: list[str]) -> None:
    by = SIGNERS[kind]
    der = openssl.sign(by, *options)
    assert judge(openssl.content, der, pinned=[by]).trusted_by == "cert"
    assert judge(openssl.content, der, anchors=[ROOT]).trusted_by == "ca"
    with pytest.raises(AuthenticityError):
        judge(Statement(DIGEST, "db", 5, NOW).encode(), der, anchors=[ROOT])


@pytest.mark.parametrize(
    "options",
    [PSS, [*PSS, "-noattr"], [*PSS, "-md", "sha512"], [*PSS, "-keyopt", "rsa_pss_saltlen:32"]],
    ids=" ".join,
)
def test_rsa_pss_by_openssl(openssl: OpenSsl, options: list[str]) -> None:
    assert judge(openssl.content, openssl.sign(SIGNERS["rsa"], *options), anchors=[ROOT]).trusted_by == "ca"


def test_the_older_pkcs7_encoder(openssl: OpenSsl) -> None:
    key, pem = SIGNERS["rsa"].write(openssl.directory, "signer")
    command = ["smime", "-sign", "-binary", "-in", "content", "-inkey", key, "-signer", pem]
    openssl.done(*command, "-certfile", pem, "-outform", "DER", "-out", "made.der")
    der = (openssl.directory / "made.der").read_bytes()
    assert judge(openssl.content, der, anchors=[ROOT]).trusted_by == "ca"


def test_certificates_that_openssl_makes_by_default(openssl: OpenSsl) -> None:
    subject = ["-days", "30", "-nodes", "-newkey", "rsa:2048"]
    openssl.done("req", "-x509", *subject, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=openssl ca")
    openssl.done("req", *subject[2:], "-keyout", "s.key", "-out", "s.csr", "-subj", "/CN=openssl signer")
    (openssl.directory / "ext").write_text("keyUsage=digitalSignature\nextendedKeyUsage=codeSigning\n")
    issue = ["x509", "-req", "-in", "s.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "20"]
    openssl.done(*issue, "-extfile", "ext", "-out", "s.pem")
    sign = ["cms", "-sign", "-binary", "-in", "content", "-outform", "DER", "-out", "made.der"]
    (ca,), (leaf,) = (load_certificates(openssl.directory / name) for name in ("ca.pem", "s.pem"))
    now = int(leaf.not_valid_before_utc.timestamp()) + 3600
    for stem, policy in [
        ("s", Policy(time=now, ca_certificates=(ca,))),
        ("s", Policy(time=now, certificates=(leaf,))),
        ("ca", Policy(time=now, certificates=(ca,))),
    ]:
        openssl.done(*sign, "-inkey", f"{stem}.key", "-signer", f"{stem}.pem")
        der = (openssl.directory / "made.der").read_bytes()
        entry = ImageSignature(SignatureKind.CMS, openssl.content, der).encode()
        assert authenticate(policy, DIGEST, [RecordEntry(record.IMAGE_SIGNATURE, entry)]).signer


# What we sign, openssl and fsverity accept


@pytest.mark.parametrize("kind", SIGNERS)
@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
def test_our_image_signature(openssl: OpenSsl, kind: str, hash_name: str) -> None:
    by = SIGNERS[kind]
    der = sign_statement(openssl.content, by.key, by.certificate, chain=by.chain, hash_name=hash_name)  # type: ignore[arg-type]
    at = ["-attime", str(NOW)]
    assert openssl.accepts(der, openssl.content, ROOT, *at)
    assert not openssl.accepts(der, openssl.content + b"x", ROOT, *at)
    assert not openssl.accepts(der, openssl.content, root_ca(), *at)


@pytest.mark.parametrize("kind", SIGNERS)
@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
def test_our_bare_signature(openssl: OpenSsl, kind: str, hash_name: str) -> None:
    # Right under the root: openssl takes signers from -certfile, but not the chain.
    by = signer(ROOT, key=SIGNERS[kind].key)
    der = sign_bare(b"content", by.key, by.certificate, hash_name=hash_name)  # type: ignore[arg-type]
    _, pem = by.write(openssl.directory, "signer")
    options = ["-attime", str(NOW), "-certfile", str(pem)]
    assert openssl.accepts(der, b"content", ROOT, *options)
    assert not openssl.accepts(der, b"Content", ROOT, *options)
    assert parse_cms(der).certificates == ()
    assert parse_cms(der).signed_attributes is None


@pytest.mark.parametrize("algorithm", list(HashAlgorithm))
@pytest.mark.parametrize("kind", SIGNERS)
def test_fsverity_sign(require_peer: Callable[[str], str], tmp_path: Path, algorithm: HashAlgorithm, kind: str) -> None:
    fsverity = require_peer("fsverity")
    by = SIGNERS[kind]
    key, pem = by.write(tmp_path, "signer")
    file, signature = tmp_path / "file", tmp_path / "file.sig"
    file.write_bytes(b"some file content" * 1000)
    name = f"--hash-alg={algorithm.name_text}"
    command = [fsverity, "sign", file, signature, f"--key={key}", f"--cert={pem}", name]
    subprocess.run(command, check=True, capture_output=True)
    shown = subprocess.run([fsverity, "digest", "--compact", name, file], check=True, capture_output=True)
    digest = Digest(algorithm, bytes.fromhex(shown.stdout.decode().strip()))
    message = formatted_digest(digest)
    if kind == "rsa":  # deterministic
        hash_name = algorithm.name_text
        assert signature.read_bytes() == sign_bare(message, by.key, by.certificate, hash_name=hash_name)  # type: ignore[arg-type]
    policy = Policy(time=NOW, certificates=(by.certificate,), accept=frozenset({RolelessForm.FSVERITY}))
    entry = RecordEntry(record.FSVERITY_SIGNATURE, signature.read_bytes())
    assert authenticate(policy, digest, [entry]).trusted_by == "fsverity"
    with pytest.raises(AuthenticityError):
        authenticate(policy, DIGEST, [entry])


# Certificates: both programs agree


def verdict(openssl: OpenSsl, der: bytes, root: Identity, time: int) -> bool:
    """Our verdict under a CA, after checking that openssl's is the same."""
    try:
        judge(openssl.content, der, anchors=[root], time=time)
        ours = True
    except AuthenticityError:
        ours = False
    assert openssl.accepts(der, openssl.content, root, "-attime", str(time)) is ours
    return ours


def test_leaf_with_intermediate_under_a_ca(openssl: OpenSsl) -> None:
    by = SIGNERS["p256"]
    assert verdict(openssl, openssl.sign(by), ROOT, NOW)
    assert verdict(openssl, openssl.sign(signer(ROOT)), ROOT, NOW)
    alone = Identity(by.key, by.certificate)
    assert not verdict(openssl, openssl.sign(alone), ROOT, NOW)


def test_leaf_alone_is_pinned(openssl: OpenSsl) -> None:
    by = signer()
    der = openssl.sign(by)
    assert judge(openssl.content, der, pinned=[by]).trusted_by == "cert"
    twin = signer(key=by.key)
    with pytest.raises(AuthenticityError, match="not an accepted one"):
        judge(openssl.content, der, pinned=[twin])


def test_other_ca(openssl: OpenSsl) -> None:
    assert not verdict(openssl, openssl.sign(SIGNERS["p256"]), root_ca(), NOW)
    assert not verdict(openssl, openssl.sign(SIGNERS["p256"]), root_ca("someone else"), NOW)


@pytest.mark.parametrize(
    "make",
    [lambda: signer(INTERMEDIATE, end=EARLY), lambda: signer(intermediate_ca(ROOT, end=EARLY))],
    ids=["signer", "intermediate"],
)
def test_expired_and_at_a_time_in_the_past(openssl: OpenSsl, make: Callable[[], Identity]) -> None:
    der = openssl.sign(make())
    assert not verdict(openssl, der, ROOT, NOW)
    assert verdict(openssl, der, ROOT, int(START.timestamp()) + 86_400)
    assert not verdict(openssl, der, ROOT, PAST)


def test_expired_leaf_that_is_pinned(openssl: OpenSsl) -> None:
    by = signer(end=EARLY)
    der = openssl.sign(by)
    with pytest.raises(AuthenticityError, match="expired"):
        judge(openssl.content, der, pinned=[by])
    assert judge(openssl.content, der, pinned=[by], time=int(EARLY.timestamp()) - 1).trusted_by == "cert"


def test_path_length_and_not_a_ca(openssl: OpenSsl) -> None:
    limited = intermediate_ca(ROOT, "limited", path_length=0)
    assert verdict(openssl, openssl.sign(signer(limited)), ROOT, NOW)
    assert not verdict(openssl, openssl.sign(signer(intermediate_ca(limited))), ROOT, NOW)
    assert not verdict(openssl, openssl.sign(signer(SIGNERS["p256"])), ROOT, NOW)


@pytest.mark.parametrize(("extension", "message"), [(usage("key_encipherment"), "key usage"), (SERVER, "code signing")])
def test_wrong_key_usage(openssl: OpenSsl, extension: object, message: str) -> None:
    by = signer(INTERMEDIATE, extensions=[(extension, True)])
    der = openssl.sign(by)
    for trust in ({"pinned": [by]}, {"anchors": [ROOT]}):
        with pytest.raises(AuthenticityError, match=message):
            judge(openssl.content, der, **trust)  # type: ignore[arg-type]


# What openssl can make and we refuse


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["-md", "sha1"], AuthenticityError, "SHA-1"),
        (["-md", "md5"], AuthenticityError, "MD5"),
        (["-md", "sha224"], AuthenticityError, "hash algorithm"),
        (["-nodetach"], FormatError, "holds its content"),
        (["-nodetach", "-stream"], FormatError, "DER"),
        (["-econtent_type", "1.2.3.4"], FormatError, "plain data"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_forms_that_are_refused(openssl: OpenSsl, options: list[str], error: type[ErosealError], message: str) -> None:
    der = openssl.sign(SIGNERS["rsa"], *options)
    with pytest.raises(error, match=message):
        parse_cms(der)


def test_pss_with_sha1_is_refused(openssl: OpenSsl) -> None:
    der = openssl.sign(SIGNERS["rsa"], *PSS, "-keyopt", "rsa_mgf1_md:sha1")
    with pytest.raises(AuthenticityError, match="RSA-PSS with"):
        judge(openssl.content, der, anchors=[ROOT])


def test_without_certificates_there_is_no_image_signature(openssl: OpenSsl) -> None:
    by = SIGNERS["p256"]
    with pytest.raises(AuthenticityError, match="no certificate fits"):
        judge(openssl.content, openssl.sign(by, "-nocerts"), pinned=[by])


def test_two_signers_are_refused(openssl: OpenSsl) -> None:
    key, pem = signer(ROOT, "second").write(openssl.directory, "second")
    der = openssl.sign(SIGNERS["p256"], "-signer", str(pem), "-inkey", str(key))
    with pytest.raises(FormatError, match="2 signers"):
        parse_cms(der)


def test_a_broken_certificate_inside(openssl: OpenSsl) -> None:
    by = SIGNERS["p256"]
    der = bytearray(openssl.sign(by))
    at = der.index(by.certificate.tbs_certificate_bytes)
    for offset in range(at, at + len(by.certificate.tbs_certificate_bytes)):
        bad = bytearray(der)
        bad[offset] ^= 0xFF
        with pytest.raises(AuthenticityError):
            judge(openssl.content, bytes(bad), pinned=[by], anchors=[ROOT])


# Ed25519


def test_ed25519_both_ways(openssl: OpenSsl) -> None:
    openssl.done("genpkey", "-algorithm", "ed25519", "-out", "ed.key")
    openssl.done("pkey", "-in", "ed.key", "-pubout", "-out", "ed.pem")
    private = load_ed25519_private_key(openssl.directory / "ed.key")
    public = load_ed25519_public_key(openssl.directory / "ed.pem")
    files = ["-rawin", "-in", "content"]
    openssl.done("pkeyutl", "-sign", "-inkey", "ed.key", *files, "-out", "ed.sig")
    theirs = (openssl.directory / "ed.sig").read_bytes()
    ours = ed25519.sign(private, openssl.content)
    assert ours == theirs
    value = ImageSignature(SignatureKind.ED25519, openssl.content, theirs, ed25519.key_id(public)).encode()
    entry = RecordEntry(record.IMAGE_SIGNATURE, value)
    assert authenticate(Policy(time=NOW, ed25519_keys=(public,)), DIGEST, [entry]).trusted_by == "ed25519"
    verify = ["pkeyutl", "-verify", "-pubin", "-inkey", "ed.pem", *files]
    openssl.done(*verify, "-sigfile", "ed.sig")


def test_an_ecdsa_key_of_another_curve_signs_too(openssl: OpenSsl) -> None:
    for curve in (ec.SECP384R1(), ec.SECP521R1()):
        by = signer(INTERMEDIATE, key=ec_key(curve))
        assert judge(openssl.content, openssl.sign(by), anchors=[ROOT]).trusted_by == "ca"
