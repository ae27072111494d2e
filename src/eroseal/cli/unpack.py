"""`eroseal unpack`: an image's files into a directory."""

from __future__ import annotations

import os
from pathlib import Path

import click

from eroseal.cli import output
from eroseal.cli.open import open_trusted
from eroseal.cli.params import device_option, jobs_option, reference_argument, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.trust import Trust, trust_options
from eroseal.store.remote import RemoteOptions


@verb("unpack", "Unpack an image into a directory.")
@reference_argument
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option(
    "--same-owner/--no-same-owner",
    default=None,
    help="Restore owners and groups, or leave all to the user.  [default: restore as root]",
)
@click.option("--no-xattrs", is_flag=True, help="Do not restore extended attributes and ACLs.")
@device_option
@jobs_option
@trust_options
@remote_options
def command(
    reference: str,
    directory: str,
    same_owner: bool | None,
    no_xattrs: bool,
    devices: tuple[Path, ...],
    jobs: int | None,
    trust: Trust,
    remote: RemoteOptions,
) -> None:
    """Unpack the image REF into DIR, which must be new or empty.

    Every block is verified before a byte of it is written. As root everything is restored, as an ordinary user what
    tar would restore. If it fails, what was written is removed.
    """
    from eroseal.image.unpack import unpack
    from eroseal.report.document import size_text

    with (
        open_trusted(reference, trust, devices=devices, remote=remote) as opened,
        output.Progress("unpacking") as progress,
    ):
        done = unpack(
            opened.reader(),
            os.fsencode(directory),
            keep_owners=same_owner,
            keep_xattrs=not no_xattrs,
            jobs=jobs,
            progress=lambda entries, size: progress.set(size, f"{entries} entries"),
        )
    warnings = output.Warnings()
    for warning in done.warnings:
        more = f" (and {warning.count - 1} more paths)" if warning.count > 1 else ""
        warnings(f"{os.fsdecode(warning.path) or '.'}: {warning.what}{more}")
    warnings.finish()
    entries = done.directories + done.files + done.symlinks + done.special + done.hard_links
    output.note(f"{entries} entries, {size_text(done.bytes_written)} written to {directory}")
