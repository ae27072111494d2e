"""`eroseal export`: an image, or one of its blobs, as a file."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eroseal.cli import output
from eroseal.cli.open import Layer, Opened, open_trusted
from eroseal.cli.params import FILE, device_option, jobs_option, reference_argument, sync_option, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.trust import Trust, trust_options
from eroseal.errors import FormatError, NotFoundError, UsageError
from eroseal.limits import IO_CHUNK

if TYPE_CHECKING:
    from eroseal.store.protocol import StoredImage
    from eroseal.store.remote import RemoteOptions
    from eroseal.trust.blob import SelfConsistentBlob
    from eroseal.trust.image import UnverifiedImage, VerifiedImage


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
@click.option(
    "--layer",
    "layer_number",
    type=click.IntRange(min=1),
    metavar="N",
    help="Export layer N of a stack, counted from 1 for the lowest.",
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
    layer_number: int | None,
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

    A stack does not fit one file: its layers are exported one by one, with --layer, and without the signatures, which
    are over the whole.
    """
    with open_trusted(reference, trust, devices=devices, remote=remote) as opened:
        if opened.stored is None:
            raise FormatError("not sealed: there is nothing to export", where=reference)
        layer = _layer(opened, layer_number)
        blob = _blob(layer.image, number, reference)
        if data:
            _write_data(blob, file, replace=replace, durable=not no_sync)
        else:
            _write_sealed(layer.stored, blob, number, file, replace=replace, durable=not no_sync, jobs=jobs)
        left = len(layer.image.devices)
    if number == 0 and left:
        output.note(f"not in it: {output.counted(left, 'data blob')}, which --blob 1 and so on export")
    output.result(str(blob.digest))


def _layer(opened: Opened, number: int | None) -> Layer:
    """The image to export: the only one, or one layer of a stack."""
    layers = opened.layers
    if opened.is_stack and number is None:
        raise UsageError(
            f"a stack of {output.counted(len(layers), 'layer')} does not fit one file",
            where=opened.reference,
            hint="--layer N exports one of them; eroseal copy takes all to another store",
        )
    if number is not None and not opened.is_stack:
        raise UsageError("not a stack: it has no --layer", where=opened.reference)
    if number is not None and number > len(layers):
        raise NotFoundError(f"the stack has {output.counted(len(layers), 'layer')}", where=opened.reference)
    return layers[(number or 1) - 1]


def _blob(image: VerifiedImage | UnverifiedImage, number: int, reference: str) -> SelfConsistentBlob:
    from eroseal.trust.blob import SelfConsistentBlob

    if number > len(image.devices):
        raise NotFoundError(f"the image has {output.counted(len(image.devices), 'data blob')}", where=reference)
    blob = image.device(number - 1) if number else image.meta
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
    stored: StoredImage,
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

    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(stored.open_data(blob.digest))) if number else stored.meta
        with output.Progress("verifying", total=blob.size) as progress:
            scan_blob(source, blob, jobs=jobs, progress=progress.add)
        record = () if number else stored.record
        write_single(source, record, file, replace=replace, durable=durable)
