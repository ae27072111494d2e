"""Signing images: from a digest and signers to the entries of the image record.

Pure: keys come in loaded, times as numbers, and what comes out are record entries. `StoredImage.update_record` puts
them where the image lives, with `adding` as the change.

Three forms, for three readers (docs/format.md, "Image record"). The image signature is over a statement with a role
of its own. The kernel's and the bootloader's forms are over what these compute themselves, and carry no role: they are
made only when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eroseal.crypto.signers import CmsSigner, Ed25519Signer, Signer
from eroseal.errors import AuthenticityError, OutputError, UsageError
from eroseal.format.digest import Digest
from eroseal.format.fsverity import formatted_digest
from eroseal.format.record import (
    BOOTLOADER_SIGNATURE,
    DMVERITY_SIGNATURE,
    FSVERITY_SIGNATURE,
    IMAGE_SIGNATURE,
    RecordEntry,
)
from eroseal.format.statement import ImageDigest, ImageSignature, Statement
from eroseal.limits import MAX_IMAGE_SIGNATURES

_COUNTED = frozenset({IMAGE_SIGNATURE, FSVERITY_SIGNATURE, BOOTLOADER_SIGNATURE})
"""What verifiers may try, and refuse to try too many of."""


def sign_image(
    statement: Statement,
    signers: Sequence[Signer],
    *,
    root_hash: bytes | None = None,
    for_bootloader: bool = False,
) -> list[RecordEntry]:
    """Sign a statement about an image.

    Args:
        statement: what is vouched for.
        signers: each makes one image signature.
        root_hash: of the meta blob's tree; adds the two forms for the kernel (types 17 and 18), by each signer with
            a certificate.
        for_bootloader: add the form for bootloaders (type 19), by each Ed25519 signer.

    Raises:
        UsageError: no signer, or none that can make a form that is asked for.
        KeyMaterialError: a key that cannot sign.
    """
    if not signers:
        raise UsageError("nobody to sign as", hint="give --key and --cert, or --ed25519")
    encoded = statement.encode()
    entries = [RecordEntry(IMAGE_SIGNATURE, signer.sign(encoded).encode()) for signer in signers]
    if root_hash is not None:
        entries += kernel_entries(_meta_digest(statement), root_hash, signers)
    if for_bootloader:
        entries += bootloader_entries(_meta_digest(statement), signers)
    return entries


def kernel_entries(digest: Digest, root_hash: bytes, signers: Sequence[Signer]) -> list[RecordEntry]:
    """The forms for the kernel: over the fs-verity digest (type 17), and over the dm-verity root hash (type 18).

    Raises:
        UsageError: no signer has a certificate.
    """
    cms = [signer for signer in signers if isinstance(signer, CmsSigner)]
    if not cms:
        raise UsageError("the kernel's forms are CMS signatures", hint="give --key and --cert")
    forms = ((FSVERITY_SIGNATURE, formatted_digest(digest)), (DMVERITY_SIGNATURE, root_hash.hex().encode()))
    return [RecordEntry(kind, signer.sign_for_kernel(content)) for kind, content in forms for signer in cms]


def bootloader_entries(digest: Digest, signers: Sequence[Signer]) -> list[RecordEntry]:
    """The form for bootloaders: Ed25519 over the formatted fs-verity digest (type 19).

    Raises:
        UsageError: no signer has an Ed25519 key.
    """
    content = formatted_digest(digest)
    found = [signer for signer in signers if isinstance(signer, Ed25519Signer)]
    if not found:
        raise UsageError("the bootloader's form is an Ed25519 signature", hint="give --ed25519")
    return [RecordEntry(BOOTLOADER_SIGNATURE, signer.sign_raw(content)) for signer in found]


def attached_entry(signature: ImageSignature, digest: ImageDigest, *, where: str) -> RecordEntry:
    """The entry for a signature that was made elsewhere and found good.

    Args:
        signature: as `eroseal.crypto.signers` accepted it.
        digest: of the image that it is to be attached to.
        where: the statement's file, for messages.

    Raises:
        FormatError: it is not over an image statement.
        AuthenticityError: the statement is about another image.
    """
    statement = Statement.parse(signature.statement)
    if statement.digest != digest:
        raise AuthenticityError(f"the statement is about {statement.digest}, the image is {digest}", where=where)
    return RecordEntry(IMAGE_SIGNATURE, signature.encode())


def adding(new: Sequence[RecordEntry]) -> Callable[[list[RecordEntry]], list[RecordEntry]]:
    """The change of an image record that adds entries; one that is there already is not added twice.

    The change raises OutputError when there would be more image signatures than verifiers look at.
    """

    def change(entries: list[RecordEntry]) -> list[RecordEntry]:
        merged = [*entries, *(entry for entry in new if entry not in entries)]
        if sum(entry.type in _COUNTED for entry in merged) > MAX_IMAGE_SIGNATURES:
            raise OutputError(f"an image has at most {MAX_IMAGE_SIGNATURES} signatures")
        return sorted(merged, key=lambda entry: entry.type)

    return change


def _meta_digest(statement: Statement) -> Digest:
    if not isinstance(statement.digest, Digest):
        raise UsageError("a stack of layers has no form for kernels or bootloaders: sign its layers")
    return statement.digest
