"""Ed25519 signatures: the short form for people without certificates, and for bootloaders.

A key is named by its key id, the SHA-256 of its 32 raw bytes; only the caller's own list of keys is trusted.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from eroseal.errors import AuthenticityError


def key_id(key: Ed25519PublicKey) -> bytes:
    """SHA-256 of the raw public key, 32 bytes."""
    return hashlib.sha256(key.public_bytes_raw()).digest()


def sign(key: Ed25519PrivateKey, message: bytes) -> bytes:
    """The 64-byte signature over `message` (RFC 8032, pure Ed25519)."""
    return key.sign(message)


def verify(key: Ed25519PublicKey, message: bytes, signature: bytes) -> None:
    """Check a 64-byte signature over `message`; raises AuthenticityError."""
    try:
        key.verify(signature, message)
    except InvalidSignature as error:
        raise AuthenticityError("Ed25519 signature does not match") from error
