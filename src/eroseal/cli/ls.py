"""`eroseal ls`: the names in an image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eroseal.cli import output
from eroseal.cli.open import open_trusted
from eroseal.cli.params import device_option, json_option, reference_argument, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.trust import Trust, trust_options

if TYPE_CHECKING:
    from eroseal.image.inode import Inode
    from eroseal.image.view import TreeView
    from eroseal.report.listing import LsEntry
    from eroseal.store.remote import RemoteOptions


@verb("ls", "List the names in an image.")
@reference_argument
@click.argument("path", metavar="[PATH]", default="")
@click.option("-l", "--long", "long_lines", is_flag=True, help="Show mode, owner, size and time (UTC) too.")
@click.option("-R", "--recursive", is_flag=True, help="List what is below, too.")
@click.option("-d", "--directory", "itself", is_flag=True, help="Show a directory itself, not what is in it.")
@device_option
@json_option
@trust_options
@remote_options
def command(
    reference: str,
    path: str,
    *,
    long_lines: bool,
    recursive: bool,
    itself: bool,
    devices: tuple[Path, ...],
    as_json: bool,
    trust: Trust,
    remote: RemoteOptions,
) -> None:
    """List the directory PATH, by default the root, in the image REF.

    Names are relative to PATH; in JSON they are relative to the image's root. Times are UTC.
    """
    from eroseal.report.listing import LsDocument, ls_lines

    start = os.fsencode(path)
    with open_trusted(reference, trust, devices=devices, remote=remote) as opened:
        reader = opened.reader()
        inode = reader.lookup(start, follow=not itself)
        if itself or not inode.is_dir:
            entries = [_entry(reader, start.strip(b"/") if as_json else start or b"/", inode)]
        else:
            above = _relative(start) if as_json else b""
            below = reader.below(inode) if recursive else reader.children(inode)
            entries = [_entry(reader, above + name, child) for name, child in below]
    if as_json:
        output.document(LsDocument(entries=entries))
    else:
        for line in ls_lines(entries, long=long_lines):
            output.result(line)


def _relative(path: bytes) -> bytes:
    """A directory's path as a prefix for what is in it, without `.` and doubled slashes."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    return b"".join(name + b"/" for name in names)


def _entry(reader: TreeView, path: bytes, inode: Inode) -> LsEntry:
    from eroseal.report.listing import ls_entry

    return ls_entry(path, inode, target=reader.readlink(inode) if inode.is_symlink else None)
