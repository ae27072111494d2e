"""Signers: a key with what belongs to it, loaded and checked, ready to sign.

Two kinds, as there are two kinds of image signature: `CmsSigner` with a certificate and its chain, `Ed25519Signer`
with a bare key. Everything that could make a verifier refuse the signature is checked when a signer is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from eroseal.crypto import ed25519
from eroseal.crypto.cms import CmsKey, parse_cms, sign_bare, sign_statement, verify_cms
from eroseal.crypto.keys import (
    Passphrase,
    check_signing_pair,
    load_certificates,
    load_ed25519_private_key,
    load_ed25519_public_key,
    load_private_key,
)
from eroseal.crypto.x509 import check_for_signing, subject_text
from eroseal.errors import AuthenticityError, FormatError, KeyMaterialError
from eroseal.format.statement import ImageSignature, SignatureKind

_PEM: Final = b"-----BEGIN"
_CERTIFICATES_INSIDE: Final = "let the certificates travel with the signature: without -nocerts"


@dataclass(frozen=True, slots=True)
class CmsSigner:
    """A private key with its certificate.

    Args:
        key: RSA or ECDSA.
        certificate: of the key.
        chain: intermediates that a verifier needs to reach a CA.
    """

    key: CmsKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def label(self) -> str:
        """Who this is, for messages."""
        return f"certificate {subject_text(self.certificate)}"

    def sign(self, statement: bytes) -> ImageSignature:
        """Sign an encoded statement: the value of a type 16 entry."""
        signature = sign_statement(statement, self.key, self.certificate, chain=self.chain)
        return ImageSignature(SignatureKind.CMS, statement, signature)

    def sign_for_kernel(self, content: bytes) -> bytes:
        """A bare PKCS#7 signature over `content`, as the kernel takes it."""
        return sign_bare(content, self.key, self.certificate)


@dataclass(frozen=True, slots=True)
class Ed25519Signer:
    """An Ed25519 key.

    Args:
        key: the private key.
    """

    key: Ed25519PrivateKey

    @property
    def label(self) -> str:
        """Who this is, for messages."""
        return f"ed25519:{ed25519.key_id(self.key.public_key()).hex()}"

    def sign(self, statement: bytes) -> ImageSignature:
        """Sign an encoded statement: the value of a type 16 entry."""
        key_id = ed25519.key_id(self.key.public_key())
        return ImageSignature(SignatureKind.ED25519, statement, ed25519.sign(self.key, statement), key_id)

    def sign_raw(self, content: bytes) -> bytes:
        """64 bytes over `content`, as bootloaders take them."""
        return ed25519.sign(self.key, content)


Signer = CmsSigner | Ed25519Signer
"""Whoever can sign an image."""


def load_cms_signer(
    key_path: str | os.PathLike[str],
    certificate_path: str | os.PathLike[str],
    *,
    time: int,
    passphrase: Passphrase | None = None,
) -> CmsSigner:
    """Load a private key and its certificate.

    Args:
        key_path: PEM, RSA or ECDSA.
        certificate_path: PEM, the signer's certificate first, then its intermediates.
        time: Unix seconds, the time of signing.
        passphrase: asked if the key is encrypted.

    Raises:
        KeyMaterialError: broken, mismatched or expired, or a certificate that may not sign.
    """
    certificates = load_certificates(certificate_path)
    key = load_private_key(key_path, passphrase=passphrase)
    check_signing_pair(key, certificates[0], time=time, where=os.fspath(certificate_path))
    if isinstance(key, Ed25519PrivateKey):
        raise KeyMaterialError(
            "an Ed25519 key cannot make a CMS signature", where=os.fspath(key_path), hint="give it with --ed25519"
        )
    return CmsSigner(key, certificates[0], certificates[1:])


def load_ed25519_signer(path: str | os.PathLike[str], *, passphrase: Passphrase | None = None) -> Ed25519Signer:
    """Load an Ed25519 private key; raises KeyMaterialError."""
    return Ed25519Signer(load_ed25519_private_key(path, passphrase=passphrase))


def accept_cms(statement: bytes, signature: bytes, *, time: int, where: str) -> ImageSignature:
    """A CMS signature that was made elsewhere, if it is one over `statement` that verifiers can accept.

    Args:
        statement: the encoded statement.
        signature: DER.
        time: Unix seconds, now.
        where: the signature's file, for messages.

    Raises:
        FormatError: not a detached DER CMS signature.
        AuthenticityError: it is not over the statement, or carries no certificate.
        KeyMaterialError: its certificate has expired or may not sign.
    """
    if signature.lstrip().startswith(_PEM):
        raise FormatError("a CMS signature in PEM form, DER is wanted", where=where, hint="-outform DER")
    try:
        parsed = parse_cms(signature)
        if not parsed.certificates:
            raise AuthenticityError("the signature carries no certificate", where=where, hint=_CERTIFICATES_INSIDE)
        signer = verify_cms(parsed, statement)
    except FormatError as error:
        raise FormatError(error.what, where=where, hint=error.hint) from error
    except AuthenticityError as error:
        raise AuthenticityError(error.what, where=where, hint=error.hint) from error
    check_for_signing(signer.certificate, time=time, where=where)
    return ImageSignature(SignatureKind.CMS, statement, signature)


def accept_ed25519(
    statement: bytes, signature: bytes, public_key_path: str | os.PathLike[str], *, where: str
) -> ImageSignature:
    """A raw Ed25519 signature that was made elsewhere, if it is one over `statement` by the given key.

    Args:
        statement: the encoded statement.
        signature: 64 bytes.
        public_key_path: PEM.
        where: the signature's file, for messages.

    Raises:
        FormatError: not 64 bytes.
        AuthenticityError: the signature does not match.
        KeyMaterialError: the public key cannot be used.
    """
    key = load_ed25519_public_key(public_key_path)
    if len(signature) != 64:
        raise FormatError(f"an Ed25519 signature has 64 bytes, not {len(signature)}", where=where)
    try:
        ed25519.verify(key, statement, signature)
    except AuthenticityError as error:
        raise AuthenticityError(error.what, where=where) from error
    return ImageSignature(SignatureKind.ED25519, statement, signature, ed25519.key_id(key))


def make_throwaway_identity(directory: Path, name: str, *, time: int) -> tuple[Path, Path]:
    """Make a key and a self-signed certificate that is valid for a day: to try things, not to rely on.

    Args:
        directory: where `key.pem` (mode 0600) and `cert.pem` are written.
        name: common name.
        time: Unix seconds from which on it is valid.

    Returns:
        The paths of key and certificate.

    Raises:
        KeyMaterialError: they cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime.fromtimestamp(time, UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(start).not_valid_after(start + timedelta(days=1))
    for extension in _leaf_extensions():
        builder = builder.add_extension(extension, critical=not isinstance(extension, x509.ExtendedKeyUsage))
    certificate = builder.sign(key, hashes.SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    paths = directory / "key.pem", directory / "cert.pem"
    try:
        with open(os.open(paths[0], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private)
        paths[1].write_bytes(certificate.public_bytes(Encoding.PEM))
    except OSError as error:
        raise KeyMaterialError(f"cannot be written: {error.strerror}", where=str(directory)) from error
    return paths


def _leaf_extensions() -> Sequence[x509.ExtensionType]:
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return (
        x509.BasicConstraints(False, None),
        x509.KeyUsage(digital_signature=True, **usage),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]),
    )
