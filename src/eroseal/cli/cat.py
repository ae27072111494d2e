"""`eroseal cat`: the contents of files in an image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eroseal.cli import output
from eroseal.cli.open import open_trusted
from eroseal.cli.params import device_option, reference_argument, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.trust import Trust, trust_options
from eroseal.errors import UsageError
from eroseal.limits import IO_CHUNK

if TYPE_CHECKING:
    from eroseal.image.inode import Inode
    from eroseal.store.remote import RemoteOptions


@verb("cat", "Write files of an image to standard output.")
@reference_argument
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@device_option
@trust_options
@remote_options
def command(
    reference: str, paths: tuple[str, ...], devices: tuple[Path, ...], trust: Trust, remote: RemoteOptions
) -> None:
    """Write the contents of the files PATH in the image REF to standard output.

    Only what is needed is read, and every block of it is verified before it is written.
    """
    with open_trusted(reference, trust, devices=devices, remote=remote) as opened:
        reader = opened.reader()
        found: list[Inode] = []
        for path in paths:  # all of them before the first byte is written
            inode = reader.lookup(os.fsencode(path))
            if not inode.is_regular:
                kind = "a directory" if inode.is_dir else "a special file"
                raise UsageError(f"is {kind}, not a regular file", where=path)
            found.append(inode)
        for inode in found:
            for offset in range(0, inode.size, IO_CHUNK):
                output.binary(reader.read(inode, offset, IO_CHUNK))
