"""Who may vouch for an image: the policy, and the one function that applies it (step 3 of verification).

Pure: bytes, loaded keys and a time come in; a decision comes out, or AuthenticityError with the reason why
each candidate was refused. Rules that are easy to get wrong, decided here once:

- Pinned digests, where there are any, decide alone. A signature never rescues an image with another digest:
  who pins today's image must not be given last year's, however well signed.
- A required name and a lowest version always hold. With a pinned digest they too need a statement whose
  signature the policy accepts.
- Signatures without a role (the kernel's and bootloaders' forms) count only where the policy names them, and
  never where a name or version is required, which they do not carry. The dm-verity form never counts: its
  root hash binds neither length nor salt nor algorithm.
- Signatures that are malformed or unknown are refused one by one; they do not spoil a good one beside them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from eroseal.crypto import ed25519
from eroseal.crypto.cms import VerifiedSigner, parse_cms, verify_cms
from eroseal.crypto.x509 import check_anchor, check_signer, moment, subject_text, validate_path
from eroseal.errors import AuthenticityError, FormatError, UsageError
from eroseal.format import record
from eroseal.format.digest import Digest
from eroseal.format.fsverity import formatted_digest
from eroseal.format.record import RecordEntry
from eroseal.format.statement import ImageDigest, ImageSignature, SignatureKind, Statement, check_name
from eroseal.limits import MAX_IMAGE_SIGNATURES, MAX_REFUSALS

TrustedBy = Literal["digest", "cert", "ca", "ed25519", "fsverity", "bootloader"]


class RolelessForm(enum.Enum):
    """Signatures that carry no role, which a policy may accept by name."""

    FSVERITY = "fsverity"
    BOOTLOADER = "bootloader"

    @classmethod
    def from_name(cls, name: str) -> RolelessForm:
        """The form called `name`; raises UsageError for others, and says why `dm-verity` is none."""
        if name == "dm-verity":
            raise UsageError(
                "a signature over a dm-verity root hash cannot vouch for an image: "
                "it binds neither length nor salt nor algorithm"
            )
        for form in cls:
            if form.value == name:
                return form
        raise UsageError(f"unknown signature form {name!r}", hint="fsverity and bootloader can be accepted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a user accepts as proof for one image.

    Args:
        digests: pinned image digests; where there are any, the image's digest must be one of them.
        certificates: signers' own certificates, pinned byte for byte.
        ca_certificates: CAs whose signers are accepted.
        ed25519_keys: public keys.
        name: required name in the statement, or None.
        min_version: lowest version in the statement, or None.
        time: Unix seconds at which certificates are judged.
        accept: roleless forms (types 17 and 19) that count.

    Raises:
        UsageError: no source of trust, a "CA" that is none, a bad name or time.
    """

    time: int
    digests: tuple[ImageDigest, ...] = ()
    certificates: tuple[x509.Certificate, ...] = ()
    ca_certificates: tuple[x509.Certificate, ...] = ()
    ed25519_keys: tuple[Ed25519PublicKey, ...] = ()
    name: str | None = None
    min_version: int | None = None
    accept: frozenset[RolelessForm] = frozenset()

    def __post_init__(self) -> None:
        moment(self.time)
        if not self.digests and not self._accepts_signers:
            raise UsageError("no source of trust", hint="give a digest, a certificate, a CA or an Ed25519 key")
        if self.wants_statement and not self._accepts_signers:
            raise UsageError(
                "a required name or version needs a signer", hint="give a certificate, a CA or an Ed25519 key"
            )
        if self.name is not None:
            check_name(self.name)
        for certificate in self.ca_certificates:
            check_anchor(certificate)

    @property
    def wants_statement(self) -> bool:
        """Whether only a signed statement can satisfy this policy."""
        return self.name is not None or self.min_version is not None

    @property
    def _accepts_signers(self) -> bool:
        return bool(self.certificates or self.ca_certificates or self.ed25519_keys)


@dataclass(frozen=True, slots=True)
class TrustDecision:
    """Why an image is trusted.

    Args:
        trusted_by: the option or form that decided.
        signer: the certificate's subject or the Ed25519 key id, where a signature took part.
        statement: what the signer stated, where there is a statement.
    """

    trusted_by: TrustedBy
    signer: str | None = None
    statement: Statement | None = None


@dataclass(slots=True)
class _Refusals:
    """Collects why candidates failed, for one message of bounded length."""

    reasons: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, label: str, error: AuthenticityError | FormatError) -> None:
        self.count += 1
        if self.count <= MAX_REFUSALS:
            self.reasons.append(f"{label}: {error}")

    def text(self) -> str:
        more = self.count - len(self.reasons)
        return "; ".join([*self.reasons, *([f"and {more} more"] if more else [])])


def authenticate(policy: Policy, digest: ImageDigest, entries: Sequence[RecordEntry]) -> TrustDecision:
    """Decide whether a policy accepts an image.

    Args:
        policy: what the user accepts.
        digest: the image's digest, computed from a canonical descriptor; never one that was merely claimed.
        entries: of the image record; other types than 16, 17 and 19 are passed over.

    Raises:
        AuthenticityError: with the reason why each candidate was refused.
    """
    if policy.digests:
        if digest not in policy.digests:
            pinned = " or ".join(str(item) for item in policy.digests[:MAX_REFUSALS])
            raise AuthenticityError(f"the image digest is {digest}, but {pinned} is pinned")
        if not policy.wants_statement:
            return TrustDecision("digest")
    refusals = _Refusals()
    for entry in _candidates(policy, entries):
        try:
            decision = _try_entry(policy, digest, entry)
        except (AuthenticityError, FormatError) as error:
            refusals.add(_LABELS[entry.type], error)
            continue
        return TrustDecision("digest", decision.signer, decision.statement) if policy.digests else decision
    raise AuthenticityError(
        f"no accepted signature vouches for {digest}: {refusals.text() or 'it has no image signature'}"
    )


_LABELS = {
    record.IMAGE_SIGNATURE: "image signature",
    record.FSVERITY_SIGNATURE: "fs-verity signature",
    record.BOOTLOADER_SIGNATURE: "bootloader signature",
}
_FORMS = {
    record.FSVERITY_SIGNATURE: RolelessForm.FSVERITY,
    record.BOOTLOADER_SIGNATURE: RolelessForm.BOOTLOADER,
}


def _candidates(policy: Policy, entries: Sequence[RecordEntry]) -> Iterator[RecordEntry]:
    wanted = {record.IMAGE_SIGNATURE}
    if not policy.wants_statement:
        wanted |= {kind for kind, form in _FORMS.items() if form in policy.accept}
    count = 0
    for entry in entries:
        if entry.type in wanted:
            count += 1
            if count > MAX_IMAGE_SIGNATURES:
                raise AuthenticityError(f"the image record holds more than {MAX_IMAGE_SIGNATURES} signatures")
            yield entry


def _try_entry(policy: Policy, digest: ImageDigest, entry: RecordEntry) -> TrustDecision:
    if entry.type == record.IMAGE_SIGNATURE:
        return _try_statement(policy, digest, ImageSignature.parse(entry.value))
    if not isinstance(digest, Digest):
        raise AuthenticityError("this form cannot sign a stack of layers")
    message = formatted_digest(digest)
    if entry.type == record.FSVERITY_SIGNATURE:
        return _try_fsverity(policy, message, entry.value)
    return _try_bootloader(policy, message, entry.value)


def _try_statement(policy: Policy, digest: ImageDigest, signature: ImageSignature) -> TrustDecision:
    statement = Statement.parse(signature.statement)
    if statement.digest != digest:
        raise AuthenticityError(f"it is about another image, {statement.digest}")
    trusted_by: TrustedBy = "ed25519"
    if signature.kind is SignatureKind.ED25519:
        signer = _ed25519_signer(policy, signature)
    else:
        verified = verify_cms(parse_cms(signature.signature), signature.statement)
        trusted_by, signer = _trust_signer(policy, verified), subject_text(verified.certificate)
    # Only now is it the signer's word, and a refusal for its sake names the signer rightly.
    if policy.name is not None and statement.name != policy.name:
        raise AuthenticityError(f"{signer} signed the name {statement.name!r}, required is {policy.name!r}")
    if policy.min_version is not None and statement.version < policy.min_version:
        raise AuthenticityError(
            f"{signer} signed version {statement.version}, required is at least {policy.min_version}"
        )
    return TrustDecision(trusted_by, signer, statement)


def _trust_signer(policy: Policy, verified: VerifiedSigner) -> TrustedBy:
    certificate = verified.certificate
    if certificate in policy.certificates:
        check_signer(certificate, time=policy.time)
        return "cert"
    if not policy.ca_certificates:
        raise AuthenticityError("is not an accepted one", where=f"certificate {subject_text(certificate)}")
    validate_path(certificate, verified.intermediates, policy.ca_certificates, time=policy.time)
    return "ca"


def _ed25519_signer(policy: Policy, signature: ImageSignature) -> str:
    name = f"ed25519:{signature.key_id.hex()}"
    for key in policy.ed25519_keys:
        if ed25519.key_id(key) == signature.key_id:
            ed25519.verify(key, signature.statement, signature.signature)
            return name
    raise AuthenticityError("is not an accepted key", where=name)


def _try_fsverity(policy: Policy, message: bytes, value: bytes) -> TrustDecision:
    signature = parse_cms(value)
    if signature.certificates or signature.signed_attributes is not None:
        raise FormatError("this form holds neither certificates nor signed attributes")
    # Without certificates inside there is no path to a CA: the signer must be pinned.
    certificate = verify_cms(signature, message, extra=policy.certificates).certificate
    check_signer(certificate, time=policy.time)
    return TrustDecision("fsverity", subject_text(certificate))


def _try_bootloader(policy: Policy, message: bytes, value: bytes) -> TrustDecision:
    for key in policy.ed25519_keys:
        try:
            ed25519.verify(key, message, value)
        except AuthenticityError:
            continue
        return TrustDecision("bootloader", f"ed25519:{ed25519.key_id(key).hex()}")
    raise AuthenticityError("no accepted Ed25519 key made it")
