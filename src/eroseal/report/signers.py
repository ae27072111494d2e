"""What an image record claims: its entries, and who signed what.

Nothing here is trust. A signature is *intact* when it matches its statement and the key or certificate that
came with it, which anyone can arrange; whether that signer is to be believed is the policy's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from eroseal.crypto.cms import parse_cms, verify_cms
from eroseal.crypto.x509 import subject_text
from eroseal.errors import AuthenticityError, FormatError
from eroseal.format import record
from eroseal.format.record import RecordEntry
from eroseal.format.statement import ImageDigest, ImageSignature, SignatureKind, Statement
from eroseal.report.document import Document

SignatureForm = Literal["cms", "ed25519", "fsverity", "dmverity", "bootloader", "unknown"]

ENTRY_NAMES: Final = {
    record.DESCRIPTOR: "fs-verity descriptor",
    record.CHUNK_MAP: "chunk map",
    record.IMAGE_SIGNATURE: "image signature",
    record.FSVERITY_SIGNATURE: "fs-verity signature",
    record.DMVERITY_SIGNATURE: "dm-verity signature",
    record.BOOTLOADER_SIGNATURE: "bootloader signature",
    record.KEY_ENVELOPE: "key envelope",
    record.ACCESS_TRACE: "access trace",
    record.DATA_BLOB_SIGNATURE: "data blob signature",
}
"""What entries of seal and image records are called."""

_ROLELESS: Final[dict[int, SignatureForm]] = {
    record.FSVERITY_SIGNATURE: "fsverity",
    record.DMVERITY_SIGNATURE: "dmverity",
    record.BOOTLOADER_SIGNATURE: "bootloader",
}


class RecordEntryInfo(Document, frozen=True, kw_only=True):
    """One entry of a seal or image record.

    Args:
        type: its number in the format.
        name: what it is, ``unknown`` for other versions' entries.
        size: bytes of its value.
    """

    type: int
    name: str
    size: int


class StatementInfo(Document, frozen=True, kw_only=True):
    """What a signer states about an image.

    Args:
        image: the digest that the statement is about.
        this_image: whether that is the image at hand.
        name: image name.
        version: version number.
        created: Unix seconds.
    """

    image: str
    this_image: bool
    name: str
    version: int
    created: int


class CertificateInfo(Document, frozen=True, kw_only=True):
    """A signer's certificate, as it travels with the signature.

    Args:
        subject: RFC 4514 text.
        issuer: RFC 4514 text.
        not_before: Unix seconds.
        not_after: Unix seconds.
    """

    subject: str
    issuer: str
    not_before: int
    not_after: int


class SignerInfo(Document, frozen=True, kw_only=True):
    """One signature of an image record.

    Args:
        form: how it is made, and for whom.
        statement: what is stated; null for the forms that carry no statement.
        certificate: the signer's, where one travels with the signature.
        key_id: of an Ed25519 key, in hex.
        intact: the signature matches statement and certificate; null where the key to check it is not at hand.
        problem: why it cannot be read or does not match.
        trust: always ``unverified``: nobody's policy was asked.
    """

    form: SignatureForm
    statement: StatementInfo | None = None
    certificate: CertificateInfo | None = None
    key_id: str | None = None
    intact: bool | None = None
    problem: str | None = None
    trust: Literal["unverified"] = "unverified"


def entry_info(entry: RecordEntry) -> RecordEntryInfo:
    """The description of one entry."""
    return RecordEntryInfo(type=entry.type, name=ENTRY_NAMES.get(entry.type, "unknown"), size=len(entry.value))


def describe_signers(entries: Sequence[RecordEntry], image: ImageDigest | None) -> list[SignerInfo]:
    """What the signatures of an image record say.

    Args:
        entries: of the image record; others than signatures are passed over.
        image: digest of the image or stack at hand, if it is sealed.
    """
    found = []
    for entry in entries:
        if entry.type == record.IMAGE_SIGNATURE:
            found.append(_image_signature(entry.value, image))
        elif entry.type in _ROLELESS:
            found.append(SignerInfo(form=_ROLELESS[entry.type]))
    return found


def _image_signature(value: bytes, image: ImageDigest | None) -> SignerInfo:
    try:
        signature = ImageSignature.parse(value)
        statement = Statement.parse(signature.statement)
    except FormatError as error:
        return SignerInfo(form="unknown", problem=error.what, intact=False)
    stated = StatementInfo(
        image=str(statement.digest),
        this_image=statement.digest == image,
        name=statement.name,
        version=statement.version,
        created=statement.created,
    )
    if signature.kind is SignatureKind.ED25519:
        return SignerInfo(form="ed25519", statement=stated, key_id=signature.key_id.hex())
    try:
        certificate = verify_cms(parse_cms(signature.signature), signature.statement).certificate
    except (AuthenticityError, FormatError) as error:
        return SignerInfo(form="cms", statement=stated, problem=error.what, intact=False)
    return SignerInfo(
        form="cms",
        statement=stated,
        certificate=CertificateInfo(
            subject=subject_text(certificate),
            issuer=certificate.issuer.rfc4514_string(),
            not_before=int(certificate.not_valid_before_utc.timestamp()),
            not_after=int(certificate.not_valid_after_utc.timestamp()),
        ),
        intact=True,
    )
