"""`eroseal export`: an image, or one of its blobs, as a file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eroseal.cli import output
from eroseal.cli.open import Opened, open_trusted
from eroseal.cli.params import FILE, device_option, jobs_option, reference_argument, sync_option, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.trust import Trust, trust_options
from eroseal.errors import FormatError, NotFoundError
from eroseal.limits import IO_CHUNK

if TYPE_CHECKING:
    from eroseal.store.remote import RemoteOptions
    from eroseal.trust.blob import SelfConsistentBlob


@verb("export", "Write an image, or one of its blobs, to a file.")
@reference_argument
@click.argument("file", metavar="FILE", type=FILE)
@click.option("--data", is_flag=True, help="Write the bare data region, without the seal: for kernel fs-verity.")
@click.option(
    "--blob",
    "number",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Export data blob N, counted from 1.  [default: the image's meta blob]",
)
@click.option("--replace", is_flag=True, help="Take the place of a file that is there.")
@device_option
@sync_option
@jobs_option
@trust_options
@remote_options
def command(
    *,
    reference: str,
    file: Path,
    data: bool,
    number: int,
    replace: bool,
    devices: tuple[Path, ...],
    no_sync: bool,
    jobs: int | None,
    trust: Trust,
    remote: RemoteOptions,
) -> None:
    """Write the image REF to one FILE: its meta blob with the image record, that is all signatures, appended.

    An image with data blobs needs these too: export each with --blob, and name them with --device when the image is
    read. Every block is verified before it is written.
    """
    with open_trusted(reference, trust, devices=devices, remote=remote) as opened:
        if opened.stored is None:
            raise FormatError("not sealed: there is nothing to export", where=reference)
        blob = _blob(opened, number)
        if data:
            _write_data(blob, file, replace=replace, durable=not no_sync)
        else:
            _write_sealed(opened, blob, number, file, replace=replace, durable=not no_sync, jobs=jobs)
        left = len(opened.image.devices)
    if number == 0 and left:
        output.note(f"not in it: {output.counted(left, 'data blob')}, which --blob 1 and so on export")
    output.result(str(blob.digest))


def _blob(opened: Opened, number: int) -> SelfConsistentBlob:
    from eroseal.trust.blob import SelfConsistentBlob

    if number > len(opened.image.devices):
        raise NotFoundError(
            f"the image has {output.counted(len(opened.image.devices), 'data blob')}", where=opened.reference
        )
    blob = opened.image.device(number - 1) if number else opened.image.meta
    assert isinstance(blob, SelfConsistentBlob)
    return blob


def _write_data(blob: SelfConsistentBlob, file: Path, *, replace: bool, durable: bool) -> None:
    from eroseal.crypto.pieces import write_at
    from eroseal.store.atomic import TemporaryFile

    with (
        TemporaryFile(file.parent, durable=durable) as temporary,
        output.Progress("exporting", total=blob.size) as progress,
    ):
        for offset in range(0, blob.size, IO_CHUNK):
            piece = blob.read_at(offset, min(IO_CHUNK, blob.size - offset))
            write_at(temporary.fd, piece, offset)
            progress.add(len(piece))
        temporary.commit(file, replace=replace)


def _write_sealed(
    opened: Opened,
    blob: SelfConsistentBlob,
    number: int,
    file: Path,
    *,
    replace: bool,
    durable: bool,
    jobs: int | None,
) -> None:
    from eroseal.store.single import write_single
    from eroseal.trust.scan import scan_blob

    stored = opened.stored
    assert stored is not None
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(stored.open_data(blob.digest))) if number else stored.meta
        with output.Progress("verifying", total=blob.size) as progress:
            scan_blob(source, blob, jobs=jobs, progress=progress.add)
        record = () if number else stored.record
        write_single(source, record, file, replace=replace, durable=durable)
