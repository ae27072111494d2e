"""`eroseal copy`: an image from one place to another."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eroseal.cli import output
from eroseal.cli.params import REFERENCE, device_option, jobs_option, json_option, sync_option, verb
from eroseal.cli.remote import remote_options

if TYPE_CHECKING:
    from eroseal.store.remote import RemoteOptions
    from eroseal.store.transfer import CopyResult


@verb("copy", "Copy an image to another place.")
@click.argument("source", metavar="SOURCE", type=REFERENCE)
@click.argument("target", metavar="TARGET", type=REFERENCE)
@click.option("--replace", is_flag=True, help="Take the place of an image that has this name.")
@click.option(
    "--compress", type=click.Choice(["zstd"]), help="Store blobs compressed; oci: and docker:// targets only."
)
@device_option
@sync_option
@jobs_option
@json_option
@remote_options
def command(
    *,
    source: str,
    target: str,
    replace: bool,
    compress: str | None,
    devices: tuple[Path, ...],
    no_sync: bool,
    jobs: int | None,
    as_json: bool,
    remote: RemoteOptions,
) -> None:
    """Copy the image or stack SOURCE, with its image record, to TARGET, a reference of any kind that can be written to.

    Blobs that the target has are skipped. Each blob is checked against its own name before the target has it, which
    does not say who made the image. A copy that was interrupted goes on where it ended when it is run again. The last
    line on standard output is the image digest.
    """
    from eroseal.store.reference import parse_reference
    from eroseal.store.transfer import CopyOptions, copy

    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        shown: list[output.Progress] = []

        def begin(total: int) -> None:
            shown.append(stack.enter_context(output.Progress("copying", total=total, quiet=as_json)))

        def progress(amount: int) -> None:
            shown[0].add(amount)

        done = copy(
            parse_reference(source),
            parse_reference(target),
            CopyOptions(
                replace=replace,
                durable=not no_sync,
                jobs=jobs,
                parallel=remote.parallel,
                compress=compress is not None,
                begin=begin,
                progress=progress,
            ),
            data_files=devices,
            remote=remote,
        )
    _show(done, time.monotonic() - started, as_json=as_json)


def _show(done: CopyResult, seconds: float, *, as_json: bool) -> None:
    from eroseal.report.copy import CopyDocument
    from eroseal.report.document import size_text

    if as_json:
        output.document(
            CopyDocument(
                image=str(done.image),
                copied=done.copied,
                skipped=done.skipped,
                adopted=done.adopted,
                bytes_moved=done.bytes_moved,
                bytes_skipped=done.bytes_skipped,
                seconds=round(seconds, 6),
            )
        )
        return
    there = f", {done.adopted} taken over there" if done.adopted else ""
    output.note(
        f"{output.counted(done.copied, 'blob')} copied, {done.skipped} there already{there}; "
        f"{size_text(done.bytes_moved)} moved, {size_text(done.bytes_skipped)} not, {seconds:.2f} seconds"
    )
    output.result(str(done.image))
