"""Certificates: what a signer's certificate must look like, and the path from it to a CA.

Two ways to trust, judged at a time that the caller gives:

- *pinned*: the signer's certificate is, byte for byte, one that the user named. Its issuer and its own
  signature play no part; validity, key usage and key strength still do.
- *under a CA*: RFC 5280 path validation by `cryptography.x509.verification`, with extension policies of our
  own in place of the web's: no server name is wanted, and what we do not process is refused if critical.

Name constraints are refused altogether: our names are no DNS names, so one could only look protective.
Revocation is not checked: nothing here can fetch a list, and a list beside the signature could be withheld.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store
from cryptography.x509.verification import Policy as PathPolicy

from eroseal.errors import AuthenticityError, KeyMaterialError, UsageError
from eroseal.limits import MAX_CERTIFICATES, MAX_PATH_DEPTH, MAX_RSA_BITS, MIN_RSA_BITS

SignerKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
"""Accepted ECDSA curves: P-256, P-384 and P-521."""
_PURPOSES: Final = (ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
_TIME_END: Final = 253_402_300_800  # 10000-01-01, where datetime ends

_E = TypeVar("_E", bound=x509.ExtensionType)


class _Refused(Exception):
    """A certificate does not pass a check; carries the reason, never leaves this module."""


def moment(seconds: int) -> datetime:
    """Unix seconds as an aware UTC time; raises UsageError outside the years 1970 to 9999."""
    if not 0 <= seconds < _TIME_END:
        raise UsageError(f"time {seconds} is outside the years 1970 to 9999")
    return datetime.fromtimestamp(seconds, tz=UTC)


def parse_certificate(der: bytes) -> x509.Certificate:
    """Load one DER certificate of any origin, with its key and extensions well-formed.

    Raises:
        AuthenticityError: not a certificate, or one that later use would stumble over.
    """
    # The library parses lazily and by many kinds of exception; touch all that is used later, here.
    try:
        certificate = x509.load_der_x509_certificate(der)
        _ = (certificate.extensions, certificate.public_key(), certificate.issuer.public_bytes())
        _ = (subject_text(certificate), certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    except Exception as error:
        raise AuthenticityError(f"holds a broken certificate: {_one_line(error)}") from error
    return certificate


def subject_text(certificate: x509.Certificate) -> str:
    """The subject for messages, on one line and without control characters."""
    return _one_line(certificate.subject.rfc4514_string()) or "(empty subject)"


def signer_key(certificate: x509.Certificate) -> SignerKey:
    """The certificate's public key if it is of a kind and strength that we accept.

    Raises:
        AuthenticityError: other algorithms and curves, RSA below 2048 or above 16384 bits.
    """
    try:
        return _strong_key(certificate)
    except _Refused as error:
        raise AuthenticityError(str(error), where=subject_text(certificate)) from error


def check_signer(certificate: x509.Certificate, *, time: int) -> None:
    """Check that a certificate may vouch for an image at `time` (Unix seconds), whoever issued it.

    It is valid; KeyUsage, if there, permits digitalSignature; ExtendedKeyUsage, if there, holds codeSigning
    or anyExtendedKeyUsage; the key is strong.

    Raises:
        AuthenticityError: with the reason.
    """
    try:
        _check_signer(certificate, time)
    except _Refused as error:
        raise AuthenticityError(str(error), where=f"certificate {subject_text(certificate)}") from error


def check_for_signing(certificate: x509.Certificate, *, time: int, where: str) -> None:
    """As `check_signer`, for the side that signs: the certificate's file is to blame.

    Raises:
        KeyMaterialError: with the reason, naming `where`.
    """
    try:
        _check_signer(certificate, time)
    except _Refused as error:
        raise KeyMaterialError(
            f"signatures made with this certificate would be refused: {error}", where=where
        ) from error


def check_anchor(certificate: x509.Certificate) -> None:
    """Refuse a trust anchor that is no CA; raises UsageError.

    Without this, path validation would take a leaf in the list of CAs as trusted: a pin nobody asked for.
    """
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise UsageError(
            f"certificate {subject_text(certificate)} is not a CA",
            hint="pin signers' certificates with --cert",
        )


def validate_path(
    signer: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    time: int,
) -> tuple[x509.Certificate, ...]:
    """Find and validate a path from a signer's certificate to one of the CAs.

    Args:
        signer: must not be a CA itself.
        intermediates: untrusted certificates that travelled with the signature, at most 16.
        anchors: trusted CA certificates; roots, or intermediates trusted by themselves.
        time: Unix seconds at which every certificate of the path, the CA's included, must be valid.

    Returns:
        The path, signer first, CA last.

    Raises:
        AuthenticityError: no path, with the reason.
    """
    check_signer(signer, time=time)
    where = f"certificate {subject_text(signer)}"
    constraints = _extension(signer, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise AuthenticityError("is a CA certificate, which may not sign images under --ca", where=where)
    if len(intermediates) > MAX_CERTIFICATES:
        raise AuthenticityError(f"carries more than {MAX_CERTIFICATES} certificates", where=where)
    builder = PolicyBuilder().time(moment(time)).store(Store(list(anchors))).max_chain_depth(MAX_PATH_DEPTH)
    builder = builder.extension_policies(ca_policy=_CA_EXTENSIONS, ee_policy=_EE_EXTENSIONS)
    try:
        return tuple(builder.build_client_verifier().verify(signer, list(intermediates)).chain)
    except Exception as error:  # it promises VerificationError; hostile input must not depend on that
        raise AuthenticityError(f"no valid path to an accepted CA: {_path_reason(error)}", where=where) from error


def _check_signer(certificate: x509.Certificate, time: int) -> None:
    at = moment(time)
    if at < certificate.not_valid_before_utc:
        raise _Refused(f"not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%SZ}")
    if at > certificate.not_valid_after_utc:
        raise _Refused(f"expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%SZ}")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise _Refused("its key usage does not permit digital signatures")
    _check_purpose(_extension(certificate, x509.ExtendedKeyUsage))
    _strong_key(certificate)


def _check_purpose(purposes: x509.ExtendedKeyUsage | None) -> None:
    if purposes is not None and not any(purpose in purposes for purpose in _PURPOSES):
        raise _Refused("its extended key usage does not include code signing")


def _strong_key(certificate: x509.Certificate) -> SignerKey:
    try:
        key = certificate.public_key()
    except Exception as error:
        raise _Refused(f"its public key cannot be read: {_one_line(error)}") from error
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise _Refused(f"its RSA key has {key.key_size} bits, outside {MIN_RSA_BITS} to {MAX_RSA_BITS}")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in CURVES:
            raise _Refused(f"its curve {key.curve.name} is not accepted: use P-256, P-384 or P-521")
        return key
    raise _Refused("its key is neither RSA nor ECDSA")


def _extension(certificate: x509.Certificate, kind: type[_E]) -> _E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except Exception as error:
        raise AuthenticityError(f"certificate with broken extensions: {_one_line(error)}") from error


def _ca_constraints(_policy: PathPolicy, _issuer: x509.Certificate, value: x509.BasicConstraints) -> None:
    if not value.ca:
        raise ValueError("the issuer is not a CA")


def _ca_usage(_policy: PathPolicy, _issuer: x509.Certificate, value: x509.KeyUsage | None) -> None:
    # RFC 5280 6.1.4 (n): checked if present; OpenSSL's default CA has none.
    if value is not None and not value.key_cert_sign:
        raise ValueError("the issuer's key usage does not permit signing certificates")


def _ca_purpose(_policy: PathPolicy, _issuer: x509.Certificate, value: x509.ExtendedKeyUsage | None) -> None:
    # A CA limited to, say, servers must not vouch for code; RFC 5280 leaves it open, every verifier does it.
    try:
        _check_purpose(value)
    except _Refused as error:
        raise ValueError(f"the issuer: {error}") from error


_CA_EXTENSIONS: Final = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _ca_constraints)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _ca_usage)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _ca_purpose)
    .require_not_present(x509.NameConstraints)
)
_EE_EXTENSIONS: Final = ExtensionPolicy.permit_all()


def _path_reason(error: Exception) -> str:
    text = _one_line(error).removeprefix("validation failed: ").removeprefix("candidates exhausted: ")
    text = text.removeprefix("Python extension validator failed: ValueError: ")
    if text.startswith("all candidates exhausted"):
        return "its issuer is neither accepted nor carried by the signature"
    return text


def _one_line(value: object) -> str:
    """Foreign text made fit for a message: bounded, one line, printable."""
    return "".join(char if char.isprintable() else "?" for char in str(value)[:200])
