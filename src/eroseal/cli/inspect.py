"""`eroseal inspect`: what is in an image, and who claims to vouch for it."""

from __future__ import annotations

from pathlib import Path

from eroseal.cli import output
from eroseal.cli.open import open_trusted, open_unverified
from eroseal.cli.params import device_option, json_option, reference_argument, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.trust import Trust, trust_options
from eroseal.store.remote import RemoteOptions


@verb("inspect", "Show what is in an image, and its signatures.")
@reference_argument
@device_option
@json_option
@trust_options
@remote_options
def command(reference: str, devices: tuple[Path, ...], as_json: bool, trust: Trust, remote: RemoteOptions) -> None:
    """Show what is in the image REF: devices, files, space, the seal, and the signatures with what they state.

    Trust options are not required; without them everything is unverified, and shown as such.
    """
    from eroseal.report.inspect import inspect_image
    from eroseal.report.inspect_text import inspect_text

    opening = (
        open_trusted(reference, trust, devices=devices, remote=remote)
        if trust.given
        else open_unverified(reference, devices, remote=remote)
    )
    with opening as opened:
        record = () if opened.stored is None else opened.stored.record
        document = inspect_image(opened.reader(), record=record)
    if as_json:
        output.document(document)
    else:
        output.result(inspect_text(document))
