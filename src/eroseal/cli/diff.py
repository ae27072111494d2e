"""`eroseal diff`: how two images differ."""

from __future__ import annotations

from pathlib import Path

import click

from eroseal.cli import output
from eroseal.cli.open import open_trusted
from eroseal.cli.params import REFERENCE, device_option, json_option, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.trust import Trust, trust_options
from eroseal.store.remote import RemoteOptions


@verb("diff", "Show how two images differ.")
@click.argument("first", metavar="REF", type=REFERENCE)
@click.argument("second", metavar="REF", type=REFERENCE)
@device_option
@json_option
@trust_options
@remote_options
def command(
    first: str, second: str, devices: tuple[Path, ...], as_json: bool, trust: Trust, remote: RemoteOptions
) -> None:
    """Show which paths differ between two images, and how much of the second one's data is new.

    A trust option that is given twice belongs to the first and the second image, in this order; one that is given once
    to both.
    """
    from eroseal.report.diff import diff_document, diff_images, diff_lines

    trust_first, trust_second = trust.for_two()
    with (
        open_trusted(first, trust_first, devices=_own(first, devices), remote=remote) as a,
        open_trusted(second, trust_second, devices=_own(second, devices), remote=remote) as b,
    ):
        found = diff_images(a.reader(), b.reader())
        if as_json:
            output.document(diff_document(found, first=a.image.digest, second=b.image.digest))
            return
    for line in diff_lines(found):
        output.result(line)


def _own(reference: str, devices: tuple[Path, ...]) -> tuple[Path, ...]:
    """The data files for one of the references: an image in a store has its own."""
    from eroseal.store.reference import FileReference, parse_reference

    return devices if isinstance(parse_reference(reference), FileReference) else ()
