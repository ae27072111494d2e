"""Key and certificate files: loading them, and whether a key fits a certificate.

Every error names the file and never what is in it. Files are read whole and once, so descriptors such as
``/dev/fd/3`` work too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from eroseal.crypto.x509 import CURVES, check_for_signing, parse_certificate
from eroseal.errors import AuthenticityError, KeyMaterialError
from eroseal.limits import MAX_CERTIFICATES, MAX_KEY_FILE, MAX_RSA_BITS, MIN_RSA_BITS

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | Ed25519PrivateKey
Passphrase = Callable[[str], bytes]
"""Asked for the passphrase of an encrypted key, with the file's name."""

_PRIVATE_MARK: Final = b"PRIVATE KEY-----"
_FOREIGN: Final = (ValueError, TypeError, UnsupportedAlgorithm)


def load_private_key(path: str | os.PathLike[str], *, passphrase: Passphrase | None = None) -> PrivateKey:
    """Load a PEM private key: RSA of 2048 to 16384 bits, ECDSA on P-256, P-384 or P-521, or Ed25519.

    Args:
        path: PKCS#8 or traditional PEM.
        passphrase: asked if the key is encrypted; without it encrypted keys are refused.

    Raises:
        KeyMaterialError: unreadable, broken, encrypted, or of another kind or strength.
    """
    where, data = _read(path)
    key: object
    try:
        key = load_pem_private_key(data, None)
    except TypeError:  # the library's way to say "encrypted"
        key = _decrypt(data, where, passphrase)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyMaterialError("not a private key in PEM form", where=where) from error
    if isinstance(key, rsa.RSAPrivateKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise KeyMaterialError(
                f"RSA key has {key.key_size} bits, outside {MIN_RSA_BITS} to {MAX_RSA_BITS}", where=where
            )
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey):
        if key.curve.name not in CURVES:
            raise KeyMaterialError(
                f"curve {key.curve.name} is not supported", where=where, hint="use P-256, P-384 or P-521"
            )
        return key
    if isinstance(key, Ed25519PrivateKey):
        return key
    raise KeyMaterialError("a key of an unsupported kind", where=where, hint="use RSA, ECDSA or Ed25519")


def load_ed25519_private_key(
    path: str | os.PathLike[str], *, passphrase: Passphrase | None = None
) -> Ed25519PrivateKey:
    """Load a PEM private key that must be Ed25519; raises KeyMaterialError."""
    key = load_private_key(path, passphrase=passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyMaterialError("not an Ed25519 key", where=os.fspath(path))
    return key


def load_certificates(path: str | os.PathLike[str]) -> tuple[x509.Certificate, ...]:
    """Load 1 to 16 PEM certificates in the file's order: for a chain, the signer's own first.

    Raises:
        KeyMaterialError: unreadable, no certificate, a broken one, or too many.
    """
    where, data = _read(path)
    try:
        loaded = x509.load_pem_x509_certificates(data)
    except _FOREIGN as error:
        raise KeyMaterialError("broken, or no certificate in PEM form", where=where) from error
    if len(loaded) > MAX_CERTIFICATES:
        raise KeyMaterialError(f"more than {MAX_CERTIFICATES} certificates", where=where)
    try:
        return tuple(parse_certificate(item.public_bytes(Encoding.DER)) for item in loaded)
    except AuthenticityError as error:
        raise KeyMaterialError(error.what, where=where) from error


def load_ed25519_public_key(path: str | os.PathLike[str]) -> Ed25519PublicKey:
    """Load an Ed25519 public key (PEM, ``BEGIN PUBLIC KEY``).

    Raises:
        KeyMaterialError: unreadable, broken, a private key, or of another kind.
    """
    where, data = _read(path)
    if _PRIVATE_MARK in data:
        hint = "extract the public key with: openssl pkey -in KEY -pubout"
        raise KeyMaterialError("a private key where a public key is wanted", where=where, hint=hint)
    try:
        key = load_pem_public_key(data)
    except _FOREIGN as error:
        raise KeyMaterialError("not a public key in PEM form", where=where) from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyMaterialError("not an Ed25519 public key", where=where)
    return key


def check_pair(key: PrivateKey, certificate: x509.Certificate, *, where: str) -> None:
    """Refuse a private key that does not belong to a certificate.

    Args:
        key: to sign with.
        certificate: to sign under.
        where: the certificate's file, for the message.

    Raises:
        KeyMaterialError: they do not match.
    """
    if _public_bytes(key) != certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        raise KeyMaterialError("the private key does not match this certificate", where=where)


def check_signing_pair(key: PrivateKey, certificate: x509.Certificate, *, time: int, where: str) -> None:
    """Refuse to sign with what verifiers would refuse: a mismatch, an expired or unfit certificate.

    Args:
        key: to sign with; RSA or ECDSA.
        certificate: to sign under.
        time: Unix seconds, the time of signing.
        where: the certificate's file, for the message.

    Raises:
        KeyMaterialError: with the reason.
    """
    check_pair(key, certificate, where=where)
    check_for_signing(certificate, time=time, where=where)


def _public_bytes(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _decrypt(data: bytes, where: str, passphrase: Passphrase | None) -> object:
    if passphrase is None:
        raise KeyMaterialError(
            "the private key is encrypted",
            where=where,
            hint="decrypt it first: openssl pkey -in KEY -out PLAIN",
        )
    try:
        return load_pem_private_key(data, passphrase(where))
    except _FOREIGN as error:
        raise KeyMaterialError("wrong passphrase, or a broken private key", where=where) from error


def _read(path: str | os.PathLike[str]) -> tuple[str, bytes]:
    where = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise KeyMaterialError(f"cannot be read: {error.strerror}", where=where) from error
    if len(data) > MAX_KEY_FILE:
        raise KeyMaterialError(f"more than {MAX_KEY_FILE} bytes: not a key or certificate", where=where)
    return where, data
