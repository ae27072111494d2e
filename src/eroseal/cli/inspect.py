"""`eroseal inspect`: what is in an image, and who claims to vouch for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eroseal.cli import output
from eroseal.cli.open import Opened, open_trusted, open_unverified
from eroseal.cli.params import device_option, json_option, reference_argument, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.trust import Trust, trust_options
from eroseal.store.remote import RemoteOptions

if TYPE_CHECKING:
    from eroseal.report.document import Document


@verb("inspect", "Show what is in an image, and its signatures.")
@reference_argument
@device_option
@json_option
@trust_options
@remote_options
def command(reference: str, devices: tuple[Path, ...], as_json: bool, trust: Trust, remote: RemoteOptions) -> None:
    """Show what is in the image REF: devices, files, space, the seal, and the signatures with what they state.

    Of a stack, what its layers show when mounted on each other, and then each layer.

    Trust options are not required; without them everything is unverified, and shown as such.
    """
    opening = (
        open_trusted(reference, trust, devices=devices, remote=remote)
        if trust.given
        else open_unverified(reference, devices, remote=remote)
    )
    with opening as opened:
        document, text = _described(opened)
    if as_json:
        output.document(document)
    else:
        output.result(text)


def _described(opened: Opened) -> tuple[Document, str]:
    from eroseal.image.reader import ImageReader
    from eroseal.report.inspect import inspect_image
    from eroseal.report.inspect_stack import inspect_stack
    from eroseal.report.inspect_text import inspect_stack_text, inspect_text
    from eroseal.trust.image import UnverifiedImage, VerifiedImage

    image = opened.image
    if isinstance(image, VerifiedImage | UnverifiedImage):
        document = inspect_image(ImageReader(image), record=opened.record)
        return document, inspect_text(document)
    stack = inspect_stack(image, record=opened.record)
    return stack, inspect_stack_text(stack)
