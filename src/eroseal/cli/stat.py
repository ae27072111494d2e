"""`eroseal stat`: all about one path in an image."""

from __future__ import annotations

import os
from pathlib import Path

import click

from eroseal.cli import output
from eroseal.cli.open import open_trusted
from eroseal.cli.params import device_option, json_option, reference_argument, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.trust import Trust, trust_options
from eroseal.store.remote import RemoteOptions


@verb("stat", "Show all about one path in an image.")
@reference_argument
@click.argument("path", metavar="PATH")
@click.option("-L", "--dereference", is_flag=True, help="Follow a symbolic link at the end of PATH.")
@device_option
@json_option
@trust_options
@remote_options
def command(
    reference: str,
    path: str,
    dereference: bool,
    devices: tuple[Path, ...],
    as_json: bool,
    trust: Trust,
    remote: RemoteOptions,
) -> None:
    """Show type, mode, owner, size, time, links and attributes of PATH in the image REF."""
    from eroseal.report.listing import stat_document, stat_text

    name = os.fsencode(path)
    with open_trusted(reference, trust, devices=devices, remote=remote) as opened:
        reader = opened.reader()
        inode = reader.lookup(name, follow=dereference)
        target = reader.readlink(inode) if inode.is_symlink else None
        document = stat_document(name, inode, xattrs=reader.xattrs(inode), target=target)
    if as_json:
        output.document(document)
    else:
        output.result(stat_text(document))
