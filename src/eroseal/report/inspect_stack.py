"""What is in a stack of images: each layer as `inspect` describes an image, and what all of them show when mounted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from eroseal.format.record import KEY_ENVELOPE, RecordEntry
from eroseal.image.stack import StackReader
from eroseal.report.document import Document
from eroseal.report.inspect import FilesInfo, InspectDocument, SpaceInfo, Survey, inspect_image
from eroseal.report.signers import RecordEntryInfo, SignerInfo, describe_signers, entry_info
from eroseal.trust.stack import UnverifiedStack, VerifiedStack


class InspectStackDocument(Document, frozen=True, kw_only=True):
    """What `inspect --json` prints of a stack.

    Args:
        image: the stack digest.
        contents: ``verified`` if a policy accepted the stack, else ``unverified``.
        trusted_by: what the policy went by; null if unverified.
        encrypted: whether it has key envelopes.
        space: where the contents of the files are that the mounted stack shows.
        files: what kinds of files it shows.
        layers: the images, the lowest first, each as `inspect` describes it.
        image_record: entries of the stack's image record.
        signers: who claims to vouch for it, none of them judged.
    """

    schema: Literal["eroseal.inspect-stack/1"] = "eroseal.inspect-stack/1"
    image: str
    contents: Literal["verified", "unverified"]
    trusted_by: str | None
    encrypted: bool
    space: SpaceInfo
    files: FilesInfo
    layers: list[InspectDocument]
    image_record: list[RecordEntryInfo]
    signers: list[SignerInfo]


def inspect_stack(
    stack: VerifiedStack | UnverifiedStack, *, record: Sequence[RecordEntry] = ()
) -> InspectStackDocument:
    """Describe a stack.

    Args:
        stack: verified or not.
        record: entries of its image record.

    Raises:
        FormatError: a layer is broken, or the layers do not go together. IntegrityError comes from their sources.
    """
    reader = StackReader(stack.layers)
    survey = Survey(reader)
    survey.run()
    verified = isinstance(stack, VerifiedStack)
    return InspectStackDocument(
        image=str(stack.digest),
        contents="verified" if verified else "unverified",
        trusted_by=stack.trusted_by if isinstance(stack, VerifiedStack) else None,
        encrypted=any(entry.type == KEY_ENVELOPE for entry in record),
        space=survey.space(),
        files=survey.files(),
        layers=[inspect_image(layer) for layer in reader.layers],
        image_record=[entry_info(entry) for entry in record],
        signers=describe_signers(record, stack.digest),
    )
