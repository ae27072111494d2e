"""Keys and certificates for tests, good and bad, made by the cryptography package.

`NOW` is the tests' present; certificates are valid from `START` to `END` unless a test says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

START = datetime(2026, 1, 1, tzinfo=UTC)
END = datetime(2036, 1, 1, tzinfo=UTC)
NOW = int(datetime(2026, 7, 1, tzinfo=UTC).timestamp())
PAST = int(datetime(2025, 7, 1, tzinfo=UTC).timestamp())

CODE_SIGNING = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def ec_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


def usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in allowed for name in _USAGES})


@dataclass(frozen=True)
class Identity:
    """A certificate with its key, and the chain that its holder sends along."""

    key: Key
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...] = ()

    def write(self, directory: Path, stem: str) -> tuple[Path, Path]:
        """Write STEM.key and STEM.pem (the chain after the certificate); give their paths."""
        key, pem = directory / f"{stem}.key", directory / f"{stem}.pem"
        write_key(self.key, key)
        pem.write_bytes(b"".join(item.public_bytes(Encoding.PEM) for item in (self.certificate, *self.chain)))
        return key, pem


def write_key(key: Key | Ed25519PrivateKey, path: Path, *, passphrase: bytes | None = None) -> Path:
    how = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))
    return path


def make(
    name: str,
    *,
    key: Key | None = None,
    issuer: Identity | None = None,
    ca: bool | None = None,
    path_length: int | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
    start: datetime = START,
    end: datetime = END,
) -> Identity:
    """A certificate, self-signed or by `issuer`, whose chain it carries on unless the issuer is a root.

    Args:
        name: common name.
        key: P-256 unless given.
        issuer: signs; None for self-signed.
        ca: basicConstraints, or None to leave them out.
        path_length: of basicConstraints.
        extensions: further ones, each with its criticality.
        start: validity begins.
        end: validity ends.
    """
    key = key or ec_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    certificate = builder.sign(issuer.key if issuer else key, hashes.SHA256())
    root = issuer is None or issuer.certificate.subject == issuer.certificate.issuer
    chain = () if issuer is None or root else (issuer.certificate, *issuer.chain)
    return Identity(key, certificate, chain)


def root_ca(name: str = "root", **options: object) -> Identity:
    return make(name, ca=True, extensions=[(usage("key_cert_sign", "crl_sign"), True)], **options)  # type: ignore[arg-type]


def intermediate_ca(issuer: Identity, name: str = "intermediate", **options: object) -> Identity:
    options.setdefault("extensions", [(usage("key_cert_sign"), True)])
    options.setdefault("ca", True)
    return make(name, issuer=issuer, **options)  # type: ignore[arg-type]


def signer(issuer: Identity | None = None, name: str = "signer", **options: object) -> Identity:
    """A leaf as it should be: digitalSignature and codeSigning."""
    options.setdefault("extensions", [(usage("digital_signature"), True), (CODE_SIGNING, False)])
    return make(name, issuer=issuer, **options)  # type: ignore[arg-type]
