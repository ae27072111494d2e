"""Certificates from end to end: made and used by openssl, an image signed in its store or file, judged by open_image.

The policy's own rules are tested in tests/unit/test_policy.py and CMS in test_cms_openssl.py; here a certificate
either opens an image or it does not, in both kinds of places that images live in.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from eroseal.build.builder import build
from eroseal.build.options import BlobLayout, BuildOptions
from eroseal.crypto import ed25519
from eroseal.crypto.cms import sign_statement
from eroseal.crypto.keys import (
    check_signing_pair,
    load_certificates,
    load_ed25519_private_key,
    load_ed25519_public_key,
    load_private_key,
)
from eroseal.errors import AuthenticityError, KeyMaterialError
from eroseal.format.digest import Digest
from eroseal.format.record import IMAGE_SIGNATURE, RecordEntry
from eroseal.format.statement import ImageSignature, SignatureKind, Statement
from eroseal.image.check import check_image
from eroseal.image.reader import ImageReader
from eroseal.store.reference import parse_reference
from eroseal.store.resolve import resolve
from eroseal.trust.image import open_image
from eroseal.trust.policy import Policy
from eroseal.trust.policyfile import load_policy_file

# Certificates of these tests are valid from 2026-01-01 to 2028-01-01 unless a test says otherwise.
NOT_BEFORE, NOT_AFTER = "20260101000000Z", "20280101000000Z"
START, NOW, END = 1_767_225_600, 1_780_000_000, 1_830_297_600
YEAR = 365 * 86_400

CONFIG = """
[req]
distinguished_name = dn
[dn]
[ca]
database = {directory}/index.txt
new_certs_dir = {directory}
serial = {directory}/serial
policy = any
default_md = sha256
unique_subject = no
[any]
commonName = supplied
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[intermediate]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = codeSigning
subjectKeyIdentifier = hash
[encipherment]
basicConstraints = critical, CA:FALSE
keyUsage = critical, keyEncipherment
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
[pretender]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyCertSign
subjectKeyIdentifier = hash
"""
KEYS = {
    "rsa": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    "p256": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "p384": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
}


@dataclass(frozen=True, slots=True)
class Identity:
    """A key and a certificate, in files."""

    key: Path
    certificate: Path


class Authority:
    """Certificates made by `openssl req` and `openssl ca`, which sets any validity."""

    def __init__(self, program: str, directory: Path) -> None:
        self._program = program
        self._directory = directory
        self._config = directory / "openssl.cnf"
        self._config.write_text(CONFIG.format(directory=directory))
        (directory / "index.txt").touch()
        (directory / "serial").write_text("1000\n")

    def run(self, *arguments: str | Path) -> None:
        result = subprocess.run([self._program, *arguments], capture_output=True, check=False)
        assert result.returncode == 0, result.stderr.decode()

    def key(self, name: str, kind: str = "p256") -> Path:
        path = self._directory / f"{name}.key"
        self.run("genpkey", *KEYS[kind], "-out", path)
        return path

    def certificate(
        self,
        name: str,
        section: str,
        issuer: Identity | None = None,
        *,
        kind: str = "p256",
        valid: tuple[str, str] = (NOT_BEFORE, NOT_AFTER),
        subject: str | None = None,
    ) -> Identity:
        """A certificate with a new key, self-signed unless it has an issuer."""
        key, pem = self.key(name, kind), self._directory / f"{name}.pem"
        request = self._directory / f"{name}.csr"
        self.run(
            "req", "-new", "-key", key, "-subj", f"/CN={subject or name}", "-config", self._config, "-out", request
        )
        command = ["ca", "-batch", "-notext", "-config", self._config, "-name", "ca", "-in", request]
        command += ["-extensions", section, "-startdate", valid[0], "-enddate", valid[1], "-out", pem]
        if issuer is None:
            command += ["-selfsign", "-keyfile", key]
        else:
            command += ["-keyfile", issuer.key, "-cert", issuer.certificate]
        self.run(*command)
        return Identity(key, pem)


@pytest.fixture(scope="module")
def authority(require_peer: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(require_peer("openssl"), tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def root(authority: Authority) -> Identity:
    return authority.certificate("root", "root", kind="p384")


@pytest.fixture(scope="module")
def intermediate(authority: Authority, root: Identity) -> Identity:
    return authority.certificate("intermediate", "intermediate", root, kind="rsa")


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a store or in a single file."""

    reference: str
    digest: Digest

    def add(self, entry: RecordEntry) -> None:
        with resolve(self.reference, durable=False) as stored:
            stored.update_record(lambda entries: [*entries, entry])

    def sign(self, by: Identity, *chain: Identity, name: str = "web", version: int = 3) -> None:
        """As `sign --key --cert`: the certificate file holds the chain."""
        key = load_private_key(by.key)
        loaded = [load_certificates(item.certificate)[0] for item in (by, *chain)]
        text = Statement(self.digest, name, version, NOW).encode()
        der = sign_statement(text, key, loaded[0], chain=loaded[1:])  # type: ignore[arg-type]
        self.add(RecordEntry(IMAGE_SIGNATURE, ImageSignature(SignatureKind.CMS, text, der).encode()))

    def opens(self, policy: Policy) -> str:
        """Open and check the whole image; gives what it is trusted by."""
        with (
            resolve(self.reference) as stored,
            open_image(stored.meta, policy=policy, record=stored.record, open_data=stored.open_data) as verified,
        ):
            check_image(ImageReader(verified))
            assert verified.digest == self.digest
            if verified.statement is not None:
                assert verified.statement.digest == self.digest
            return verified.trusted_by

    def refused(self, policy: Policy) -> str:
        with pytest.raises(AuthenticityError) as caught:
            self.opens(policy)
        assert (caught.value.step, caught.value.exit_code) == (3, 3)
        return str(caught.value)


@pytest.fixture(params=["store", "file"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Image:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"content" * 1000)
    single = request.param == "file"
    reference = str(tmp_path / "image.erofs") if single else f"dir:{tmp_path}/store:image"
    options = BuildOptions(blobs=BlobLayout.NONE if single else BlobLayout.BUILD, jobs=1, durable=False)
    return Image(reference, build(source, parse_reference(reference), options).image)


def cert(*identities: Identity, time: int = NOW, **options: object) -> Policy:
    """`--cert`"""
    loaded = tuple(load_certificates(item.certificate)[0] for item in identities)
    return Policy(certificates=loaded, time=time, **options)  # type: ignore[arg-type]


def ca(*identities: Identity, time: int = NOW, **options: object) -> Policy:
    """`--ca`"""
    loaded = tuple(load_certificates(item.certificate)[0] for item in identities)
    return Policy(ca_certificates=loaded, time=time, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KEYS)
def test_a_leaf_alone(authority: Authority, image: Image, kind: str) -> None:
    leaf = authority.certificate(f"alone-{kind}", "leaf", kind=kind)
    stranger = authority.certificate(f"stranger-{kind}", "leaf", kind=kind, subject=f"alone-{kind}")
    assert "no image signature" in image.refused(cert(leaf))
    image.sign(leaf)
    assert image.opens(cert(leaf)) == "cert"
    assert image.opens(cert(stranger, leaf)) == "cert"
    assert "not an accepted" in image.refused(cert(stranger))


@pytest.mark.parametrize("kind", KEYS)
def test_a_leaf_under_a_root(authority: Authority, root: Identity, image: Image, kind: str) -> None:
    leaf = authority.certificate(f"under-root-{kind}", "leaf", root, kind=kind)
    image.sign(leaf)
    assert image.opens(ca(root)) == "ca"
    assert image.opens(cert(leaf)) == "cert"


@pytest.mark.parametrize("kind", KEYS)
def test_a_leaf_with_an_intermediate(
    authority: Authority, root: Identity, intermediate: Identity, image: Image, kind: str
) -> None:
    leaf = authority.certificate(f"below-{kind}", "leaf", intermediate, kind=kind)
    image.sign(leaf)
    assert "issuer is neither" in image.refused(ca(root))  # the intermediate did not travel
    assert image.opens(ca(intermediate)) == "ca"
    image.sign(leaf, intermediate)
    assert image.opens(ca(root)) == "ca"
    assert image.opens(ca(root, name="web", min_version=3)) == "ca"
    image.refused(ca(root, name="web", min_version=4))
    image.refused(ca(root, name="db"))


def test_another_ca(authority: Authority, root: Identity, intermediate: Identity, image: Image) -> None:
    """Also one that calls itself the same."""
    leaf = authority.certificate("others-leaf", "leaf", intermediate)
    image.sign(leaf, intermediate)
    other = authority.certificate("other-root", "root", subject="root")
    assert "no valid path" in image.refused(ca(other))
    assert image.opens(ca(other, root)) == "ca"
    # A self-signed signer under nobody, and one whose issuer is no CA.
    image.refused(ca(authority.certificate("third-root", "root")))
    pretender = authority.certificate("pretender", "pretender", root)
    below = authority.certificate("below-pretender", "leaf", pretender)
    image.sign(below, pretender)
    assert image.opens(ca(root)) == "ca"  # by the first signature
    image.refused(ca(root, min_version=4))


def test_an_issuer_that_is_no_ca(authority: Authority, root: Identity, image: Image) -> None:
    pretender = authority.certificate("pretender2", "pretender", root)
    image.sign(authority.certificate("below-pretender2", "leaf", pretender), pretender)
    image.refused(ca(root))


def test_a_path_longer_than_it_may_be(
    authority: Authority, root: Identity, intermediate: Identity, image: Image
) -> None:
    """The intermediate has pathlen 0: it issues leaves, no further CA."""
    second = authority.certificate("second", "intermediate", intermediate)
    image.sign(authority.certificate("too-deep", "leaf", second), second, intermediate)
    image.refused(ca(root))
    assert image.opens(ca(second)) == "ca"


@pytest.mark.parametrize("section", ["encipherment", "server"])
def test_a_certificate_for_another_purpose(
    authority: Authority, root: Identity, intermediate: Identity, image: Image, section: str
) -> None:
    leaf = authority.certificate(f"purpose-{section}", section, intermediate)
    image.sign(leaf, intermediate)
    assert "usage" in image.refused(ca(root)).lower()
    assert "usage" in image.refused(cert(leaf)).lower()
    with pytest.raises(KeyMaterialError):
        check_signing_pair(
            load_private_key(leaf.key), load_certificates(leaf.certificate)[0], time=NOW, where="certificate"
        )


def test_an_expired_leaf(authority: Authority, root: Identity, image: Image) -> None:
    leaf = authority.certificate("expired", "leaf", root, valid=(NOT_BEFORE, "20260301000000Z"))
    image.sign(leaf)
    for policy in (ca, cert):
        who = root if policy is ca else leaf
        assert "expired" in image.refused(policy(who, time=NOW)).lower()
        assert image.opens(policy(who, time=START + 86_400)) in ("ca", "cert")  # --at in the past
        image.refused(policy(who, time=START - 1))
    with pytest.raises(KeyMaterialError, match="expired"):
        check_signing_pair(load_private_key(leaf.key), load_certificates(leaf.certificate)[0], time=NOW, where="leaf")


def test_an_expired_intermediate(authority: Authority, root: Identity, image: Image) -> None:
    middle = authority.certificate("expired-middle", "intermediate", root, valid=(NOT_BEFORE, "20260301000000Z"))
    leaf = authority.certificate("outlives-its-issuer", "leaf", middle)
    image.sign(leaf, middle)
    image.refused(ca(root))
    assert image.opens(ca(root, time=START + 86_400)) == "ca"
    assert image.opens(cert(leaf)) == "cert"  # pinned: its issuer is nobody's business


def test_at_decides_at_both_ends(authority: Authority, root: Identity, intermediate: Identity, image: Image) -> None:
    leaf = authority.certificate("at", "leaf", intermediate)
    image.sign(leaf, intermediate)
    for policy in (ca(root), cert(leaf)):
        assert policy.time == NOW
    for time, good in (
        (START - 1, False),
        (START, True),
        (NOW, True),
        (END, True),
        (END + 1, False),
        (END + YEAR, False),
    ):
        for policy in (ca(root, time=time), cert(leaf, time=time)):
            if good:
                image.opens(policy)
            else:
                image.refused(policy)


def test_one_of_several_signers_is_enough(authority: Authority, root: Identity, image: Image) -> None:
    """Signatures accumulate in the record; each stands by itself."""
    good = authority.certificate("good", "leaf", root)
    expired = authority.certificate("several-expired", "leaf", root, valid=(NOT_BEFORE, "20260301000000Z"))
    alone = authority.certificate("several-alone", "leaf")
    for signer in (expired, alone, good):
        image.sign(signer)
    assert image.opens(ca(root)) == "ca"
    assert image.opens(cert(alone)) == "cert"
    message = image.refused(cert(expired))
    assert "expired" in message.lower()


def test_a_key_that_does_not_match_and_a_broken_certificate(authority: Authority, image: Image, tmp_path: Path) -> None:
    first, second = authority.certificate("first", "leaf"), authority.certificate("second-leaf", "leaf")
    with pytest.raises(KeyMaterialError, match="does not match"):
        check_signing_pair(
            load_private_key(first.key), load_certificates(second.certificate)[0], time=NOW, where="second"
        )
    image.sign(Identity(first.key, second.certificate))
    image.refused(cert(first, second))
    broken = tmp_path / "broken.pem"
    pem = first.certificate.read_text().splitlines()
    broken.write_text("\n".join([pem[0], *pem[3:]]))
    with pytest.raises(KeyMaterialError, match="broken"):
        load_certificates(broken)


# --- Ed25519 ---


@pytest.fixture(scope="module")
def ed_keys(authority: Authority) -> Sequence[tuple[Path, Path]]:
    pairs = []
    for name in ("ed-one", "ed-two"):
        key, public = authority._directory / f"{name}.key", authority._directory / f"{name}.pub"
        authority.run("genpkey", "-algorithm", "ed25519", "-out", key)
        authority.run("pkey", "-in", key, "-pubout", "-out", public)
        pairs.append((key, public))
    return pairs


def test_ed25519_keys(ed_keys: Sequence[tuple[Path, Path]], image: Image) -> None:
    (key, public), (_, other) = ed_keys
    loaded = load_ed25519_private_key(key)
    text = Statement(image.digest, "web", 3, NOW).encode()
    value = ImageSignature(SignatureKind.ED25519, text, ed25519.sign(loaded, text), ed25519.key_id(loaded.public_key()))
    image.add(RecordEntry(IMAGE_SIGNATURE, value.encode()))
    accepted, stranger = load_ed25519_public_key(public), load_ed25519_public_key(other)
    assert image.opens(Policy(ed25519_keys=(accepted,), time=0)) == "ed25519"  # no validity: any time does
    assert image.opens(Policy(ed25519_keys=(stranger, accepted), time=NOW, name="web", min_version=3)) == "ed25519"
    assert "not an accepted" in image.refused(Policy(ed25519_keys=(stranger,), time=NOW))
    image.refused(Policy(ed25519_keys=(accepted,), time=NOW, min_version=4))


def test_a_policy_file_holds_them_all(
    authority: Authority, root: Identity, image: Image, ed_keys: Sequence[tuple[Path, Path]], tmp_path: Path
) -> None:
    leaf = authority.certificate("from-a-file", "leaf", root)
    image.sign(leaf)
    file = tmp_path / "policy.toml"
    file.write_text(
        f"""
[image."{image.reference}"]
ca = ["{root.certificate}"]
ed25519 = ["{ed_keys[0][1]}"]
name = "web"
min-version = 3
"""
    )
    assert image.opens(load_policy_file(file).policy_for(image.reference, time=NOW)) == "ca"
    file.write_text(file.read_text().replace("min-version = 3", "min-version = 4"))
    image.refused(load_policy_file(file).policy_for(image.reference, time=NOW))
