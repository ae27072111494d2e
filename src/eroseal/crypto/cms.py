"""Detached CMS (PKCS#7) signatures: made by the library's builder, verified by a strict parser of our own.

The library cannot verify PKCS#7. What it offers is a declarative DER decoder, so the structures of RFC 5652
stand below as classes, and everything that they do not spell out does not parse: BER, indefinite lengths,
trailing bytes, attribute certificates. As a second line, the decoded value must encode to the very bytes that
came in.

Parsing and verifying say only *who* signed; whether to trust that certificate is for `eroseal.crypto.x509`.

RFC 5652's known ambiguity, a signature over signed attributes replayed as one over content that looks like
them, is harmless here: everything that is signed opens with a fixed prefix that no DER SET has.
Unsigned attributes and the signing time are ignored: the statement has its own time.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from eroseal.crypto.x509 import parse_certificate, signer_key
from eroseal.errors import AuthenticityError, FormatError, KeyMaterialError
from eroseal.limits import MAX_CERTIFICATES, MAX_RSA_BITS, MAX_SIGNATURE

CmsKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
HashName = Literal["sha256", "sha512"]
_Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512

_Oid = x509.ObjectIdentifier
_SIGNED_DATA: Final = _Oid("1.2.840.113549.1.7.2")
_DATA: Final = _Oid("1.2.840.113549.1.7.1")
_CONTENT_TYPE: Final = _Oid("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST: Final = _Oid("1.2.840.113549.1.9.4")
_RSA: Final = _Oid("1.2.840.113549.1.1.1")
_PSS: Final = _Oid("1.2.840.113549.1.1.10")
_MGF1: Final = _Oid("1.2.840.113549.1.1.8")

_HASHES: Final[dict[_Oid, _Hash]] = {
    _Oid("2.16.840.1.101.3.4.2.1"): hashes.SHA256(),
    _Oid("2.16.840.1.101.3.4.2.2"): hashes.SHA384(),
    _Oid("2.16.840.1.101.3.4.2.3"): hashes.SHA512(),
}
_WEAK: Final = {"1.3.14.3.2.26": "SHA-1", "1.2.840.113549.2.5": "MD5"}
# Signature algorithms that name their hash; rsaEncryption leaves it to the digest algorithm.
_RSA_WITH: Final = {
    _Oid("1.2.840.113549.1.1.11"): "sha256",
    _Oid("1.2.840.113549.1.1.12"): "sha384",
    _Oid("1.2.840.113549.1.1.13"): "sha512",
}
_ECDSA_WITH: Final = {
    _Oid("1.2.840.10045.4.3.2"): "sha256",
    _Oid("1.2.840.10045.4.3.3"): "sha384",
    _Oid("1.2.840.10045.4.3.4"): "sha512",
}


# --- RFC 5652, RFC 4055: the structures ---
@asn1.sequence
class _DigestAlgorithm:
    algorithm: _Oid
    parameters: asn1.Null | None


@asn1.sequence
class _MaskAlgorithm:
    algorithm: _Oid
    parameters: _DigestAlgorithm


@asn1.sequence
class _PssParameters:
    digest: Annotated[_DigestAlgorithm | None, asn1.Explicit(0)]
    mask: Annotated[_MaskAlgorithm | None, asn1.Explicit(1)]
    salt: Annotated[int | None, asn1.Explicit(2)]


@asn1.sequence
class _SignatureAlgorithm:
    algorithm: _Oid
    parameters: asn1.Null | _PssParameters | None


@asn1.sequence
class _Attribute:
    type: _Oid
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _IssuerAndSerial:
    issuer: asn1.TLV
    serial: int


@asn1.sequence
class _SignerInfo:
    version: int
    sid: _IssuerAndSerial | Annotated[bytes, asn1.Implicit(0)]
    digest_algorithm: _DigestAlgorithm
    signed: Annotated[asn1.SetOf[_Attribute] | None, asn1.Implicit(0)]
    signature_algorithm: _SignatureAlgorithm
    signature: bytes
    unsigned: Annotated[asn1.SetOf[_Attribute] | None, asn1.Implicit(1)]


@asn1.sequence
class _EncapsulatedContent:
    type: _Oid
    content: Annotated[bytes | None, asn1.Explicit(0)]


@asn1.sequence
class _SignedData:
    version: int
    digest_algorithms: asn1.SetOf[_DigestAlgorithm]
    content: _EncapsulatedContent
    # A list, not SET OF: OpenSSL's PKCS#7 encoder does not sort these, and nothing hangs on their order.
    certificates: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]
    crls: Annotated[list[asn1.TLV] | None, asn1.Implicit(1)]
    signers: asn1.SetOf[_SignerInfo]


@asn1.sequence
class _ContentInfo:
    type: _Oid
    content: Annotated[_SignedData, asn1.Explicit(0)]


@dataclass(frozen=True, slots=True)
class CmsSignature:
    """A well-formed detached signature by one signer; nothing in it is verified.

    Args:
        certificates: all that travelled with it, in its order.
        digest: hash over the content or the attributes.
        signature: the raw signature value.
        signed_attributes: DER of the SET that was signed, or None where the content itself was.
        message_digest: the hash of the content that the attributes state, or None without attributes.
    """

    certificates: tuple[x509.Certificate, ...]
    digest: _Hash
    signature: bytes
    signed_attributes: bytes | None
    message_digest: bytes | None
    _info: _SignerInfo

    def is_signer(self, certificate: x509.Certificate) -> bool:
        """Whether the signer's identifier names this certificate."""
        sid = self._info.sid
        if isinstance(sid, bytes):
            return sid == _subject_key_id(certificate)
        issuer = asn1.encode_der(sid.issuer)
        return sid.serial == certificate.serial_number and issuer == certificate.issuer.public_bytes()


@dataclass(frozen=True, slots=True)
class VerifiedSigner:
    """Who made a signature that verified: a claim to judge, not yet trust.

    Args:
        certificate: the signer's.
        intermediates: the other certificates that travelled with the signature.
    """

    certificate: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]


def parse_cms(der: bytes) -> CmsSignature:
    """Read a detached SignedData of one signer, strictly as DER.

    Raises:
        FormatError: malformed, not detached, several signers, duplicate attributes.
        AuthenticityError: an algorithm that is not accepted (SHA-1, MD5), or a broken certificate.
    """
    if len(der) > MAX_SIGNATURE:
        raise FormatError(f"CMS signature has {len(der)} bytes, more than {MAX_SIGNATURE}")
    try:
        outer = asn1.decode_der(_ContentInfo, der)
        canonical = asn1.encode_der(outer) == der
    except Exception as error:  # the decoder promises ValueError; hostile input must not depend on that
        raise FormatError(f"not a DER CMS signature: {str(error)[:120]}") from error
    if not canonical:
        raise FormatError("CMS signature is not canonical DER")
    info = _check_shape(outer)
    digest = _hash_of(info.digest_algorithm.algorithm)
    return CmsSignature(
        certificates=tuple(parse_certificate(asn1.encode_der(item)) for item in outer.content.certificates or ()),
        digest=digest,
        signature=info.signature,
        signed_attributes=None if info.signed is None else asn1.encode_der(info.signed),
        message_digest=_stated_digest(info),
        _info=info,
    )


def verify_cms(signature: CmsSignature, content: bytes, *, extra: Sequence[x509.Certificate] = ()) -> VerifiedSigner:
    """Check that a signature is over `content`, by the certificate that its signer identifier names.

    Args:
        signature: parsed.
        content: the signed bytes, which a detached signature does not hold.
        extra: certificates to look for the signer in, besides those in the signature.

    Raises:
        AuthenticityError: no certificate fits, a weak key, or the signature does not match.
    """
    signer = _find_signer(signature, extra)
    key = signer_key(signer)
    message = content
    if signature.signed_attributes is not None:
        stated = signature.message_digest or b""
        if not hmac.compare_digest(_digest(signature.digest, content), stated):
            raise AuthenticityError("CMS signature is over other content")
        message = signature.signed_attributes
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature.signature, message, _rsa_padding(signature), signature.digest)
        else:
            _require_algorithm(signature, _ECDSA_WITH)
            key.verify(signature.signature, message, ec.ECDSA(signature.digest))
    except (InvalidSignature, ValueError) as error:
        raise AuthenticityError("CMS signature does not match its content and certificate") from error
    return VerifiedSigner(signer, tuple(item for item in signature.certificates if item != signer))


def sign_statement(
    content: bytes,
    key: CmsKey,
    certificate: x509.Certificate,
    *,
    chain: Sequence[x509.Certificate] = (),
    hash_name: HashName = "sha256",
) -> bytes:
    """Sign with signed attributes and the certificate chain inside: the form of the image signature.

    Args:
        content: bytes to sign; they do not become part of the result.
        key: private key of `certificate` (check with `eroseal.crypto.keys.check_pair`).
        certificate: the signer's.
        chain: intermediates that a verifier needs to reach a CA; at most 15.
        hash_name: hash over content and attributes.

    Returns:
        DER, as `openssl cms -sign -binary -nosmimecap -outform DER` makes it.
    """
    if len(chain) >= MAX_CERTIFICATES:
        raise KeyMaterialError(f"a certificate chain holds at most {MAX_CERTIFICATES} certificates")
    builder = _builder(content, key, certificate, hash_name)
    for item in chain:
        builder = builder.add_certificate(item)
    options = pkcs7.PKCS7Options
    return _sign(builder, [options.DetachedSignature, options.Binary, options.NoCapabilities])


def sign_bare(content: bytes, key: CmsKey, certificate: x509.Certificate, *, hash_name: HashName = "sha256") -> bytes:
    """Sign without attributes and certificates: what the kernel's fs-verity and dm-verity checks take.

    Byte-identical to `fsverity sign` for an RSA key, whose signatures are deterministic.
    """
    builder = _builder(content, key, certificate, hash_name)
    options = pkcs7.PKCS7Options
    return _sign(builder, [options.DetachedSignature, options.Binary, options.NoAttributes, options.NoCerts])


def _sign(builder: pkcs7.PKCS7SignatureBuilder, options: list[pkcs7.PKCS7Options]) -> bytes:
    try:
        return builder.sign(Encoding.DER, options)
    except (ValueError, TypeError) as error:
        raise KeyMaterialError(f"this key and certificate cannot sign: {error}") from error


def _builder(
    content: bytes, key: CmsKey, certificate: x509.Certificate, hash_name: HashName
) -> pkcs7.PKCS7SignatureBuilder:
    digest = hashes.SHA512() if hash_name == "sha512" else hashes.SHA256()
    return pkcs7.PKCS7SignatureBuilder().set_data(content).add_signer(certificate, key, digest)


def _check_shape(outer: _ContentInfo) -> _SignerInfo:
    data = outer.content
    signers = data.signers.as_list()
    if outer.type != _SIGNED_DATA or data.content.type != _DATA:
        raise FormatError("CMS signature is not SignedData over plain data")
    if data.content.content is not None:
        raise FormatError("CMS signature holds its content", hint="sign detached")
    if data.crls is not None:
        raise FormatError("CMS signature holds revocation lists, which are not supported")
    if len(data.certificates or ()) > MAX_CERTIFICATES:
        raise FormatError(f"CMS signature holds more than {MAX_CERTIFICATES} certificates")
    if len(signers) != 1:
        raise FormatError(f"CMS signature has {len(signers)} signers, not 1", hint="make one for each signer")
    info = signers[0]
    by_key_id = isinstance(info.sid, bytes)
    if info.version != (3 if by_key_id else 1) or data.version != info.version:
        raise FormatError(f"CMS signature has versions {data.version} and {info.version}")
    if info.digest_algorithm.algorithm not in [item.algorithm for item in data.digest_algorithms.as_list()]:
        raise FormatError("CMS signature does not announce its signer's hash algorithm")
    return info


def _stated_digest(info: _SignerInfo) -> bytes | None:
    """Check the signed attributes and return the message digest that they state."""
    if info.signed is None:
        return None
    found: dict[_Oid, list[asn1.TLV]] = {}
    for attribute in info.signed.as_list():
        if attribute.type in found:
            raise FormatError(f"CMS signature repeats the signed attribute {attribute.type.dotted_string}")
        found[attribute.type] = attribute.values.as_list()
    content_type, digest = found.get(_CONTENT_TYPE, []), found.get(_MESSAGE_DIGEST, [])
    if len(content_type) != 1 or len(digest) != 1:
        raise FormatError("CMS signature lacks a signed content type or message digest")
    try:
        kind, value = content_type[0].parse(_Oid), digest[0].parse(bytes)
    except Exception as error:
        raise FormatError("CMS signature has malformed signed attributes") from error
    if kind != _DATA:
        raise FormatError("CMS signature's signed content type is not plain data")
    return bytes(value)


def _find_signer(signature: CmsSignature, extra: Sequence[x509.Certificate]) -> x509.Certificate:
    for certificate in (*signature.certificates, *extra):
        if signature.is_signer(certificate):
            return certificate
    raise AuthenticityError("no certificate fits the signer that the CMS signature names")


def _rsa_padding(signature: CmsSignature) -> padding.PKCS1v15 | padding.PSS:
    algorithm = signature._info.signature_algorithm
    parameters = algorithm.parameters
    if algorithm.algorithm != _PSS:
        if isinstance(parameters, _PssParameters):
            raise AuthenticityError("CMS signature has parameters of another algorithm")
        if algorithm.algorithm != _RSA:
            _require_algorithm(signature, _RSA_WITH)
        return padding.PKCS1v15()
    # Every field must be spelled out: the defaults that stand for absent ones are SHA-1.
    if not isinstance(parameters, _PssParameters):
        raise AuthenticityError("CMS signature uses RSA-PSS with SHA-1")
    digest, mask, salt = parameters.digest, parameters.mask, parameters.salt
    if digest is None or mask is None or salt is None:
        raise AuthenticityError("CMS signature uses RSA-PSS with SHA-1")
    named = {_hash_of(digest.algorithm).name, _hash_of(mask.parameters.algorithm).name}
    if mask.algorithm != _MGF1 or named != {signature.digest.name}:
        raise AuthenticityError("CMS signature uses RSA-PSS with mixed hash algorithms")
    if not 0 <= salt <= MAX_RSA_BITS // 8:
        raise AuthenticityError(f"CMS signature uses RSA-PSS with a salt of {salt} bytes")
    return padding.PSS(padding.MGF1(signature.digest), salt)


def _require_algorithm(signature: CmsSignature, accepted: dict[_Oid, str]) -> None:
    algorithm = signature._info.signature_algorithm
    matches = accepted.get(algorithm.algorithm) == signature.digest.name
    if isinstance(algorithm.parameters, _PssParameters) or not matches:
        name = algorithm.algorithm.dotted_string
        raise AuthenticityError(f"CMS signature algorithm {name} is not accepted with this key and hash")


def _hash_of(oid: _Oid) -> _Hash:
    if oid not in _HASHES:
        name = _WEAK.get(oid.dotted_string, f"hash algorithm {oid.dotted_string}")
        raise AuthenticityError(f"CMS signature uses {name}", hint="use SHA-256, SHA-384 or SHA-512")
    return _HASHES[oid]


def _digest(algorithm: _Hash, content: bytes) -> bytes:
    state = hashes.Hash(algorithm)
    state.update(content)
    return state.finalize()


def _subject_key_id(certificate: x509.Certificate) -> bytes | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None
