"""`eroseal gc`: a store drops what nobody needs."""

from __future__ import annotations

import re
from typing import Any, Final

import click

from eroseal.cli import output
from eroseal.cli.params import json_option, verb
from eroseal.cli.remote import remote_options
from eroseal.store.remote import RemoteOptions

_DURATION: Final = re.compile(r"(\d{1,9})([smhd]?)", re.ASCII)
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds, or a number with a unit: 90s, 30m, 24h, 7d."""
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(value)
        if match is None:
            self.fail(f"not a duration: {value!r}, write seconds or 30m, 24h, 7d", param, ctx)
        return float(int(match[1]) * _SECONDS[match[2]])


@verb("gc", "Remove what nobody needs from a store.")
@click.argument("store", metavar="STORE")
@click.option(
    "--grace",
    type=_Duration(),
    default="24h",
    show_default=True,
    metavar="DURATION",
    help="Keep blobs that were stored, or counted on, since then.",
)
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@remote_options
@json_option
def command(store: str, grace: float, dry_run: bool, remote: RemoteOptions, as_json: bool) -> int:
    """Remove the blobs that no image in STORE names, and what is left of writers that were killed.

    STORE is a directory, an image layout (oci:PATH), or a place in an object store (s3://BUCKET/PREFIX). Others may go
    on writing to it: what they stored lately stays, and so does what they have leased. Nothing is removed while a
    document cannot be read, for it may name any blob.
    """
    from eroseal.report.document import size_text
    from eroseal.report.gc import gc_document
    from eroseal.store.gc import CollectOptions, collect
    from eroseal.store.reference import parse_store

    place = parse_store(store)
    with output.Progress("collecting", unit="files", quiet=as_json) as progress:
        options = CollectOptions(grace=grace, dry_run=dry_run, progress=progress.add)
        collected = collect(place.reference, options, remote)
    document = gc_document(str(place), collected, options)
    if as_json:
        output.document(document)
        return 0
    if dry_run:
        for blob in document.blobs:
            output.result(f"blob: {blob.digest}, {size_text(blob.size)}")
        for path in document.leftovers:
            output.result(output.printable(f"leftover: {path}"))
    kept = document.kept
    output.result(
        f"{'would remove' if dry_run else 'removed'} {output.counted(len(document.blobs), 'blob')}, "
        f"{size_text(document.bytes)}, and {output.counted(len(document.leftovers), 'leftover')}; "
        f"kept {kept.named} in use, {kept.leased} leased, {kept.young} young"
    )
    return 0
