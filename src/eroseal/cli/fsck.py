"""`eroseal fsck`: a whole store, without changing anything."""

from __future__ import annotations

import click

from eroseal.cli import output
from eroseal.cli.params import jobs_option, json_option, verb
from eroseal.errors import UsageError


@verb("fsck", "Check a store.")
@click.argument("store", metavar="STORE", type=click.Path())
@click.option("--quick", is_flag=True, help="Do not read the blobs' data.")
@jobs_option
@json_option
def command(store: str, quick: bool, jobs: int | None, as_json: bool) -> int:
    """Check the store in the directory STORE: documents, records, every block of every blob, and what is left over.

    Nothing is changed, and the store may be in use. Exit code 1 means that something is missing or unreadable, 3 that
    something is damaged.
    """
    from eroseal.report.document import size_text
    from eroseal.store.fsck import check_store
    from eroseal.store.local import LocalStore
    from eroseal.store.reference import StoreReference, parse_store

    reference = parse_store(store).reference
    if not isinstance(reference, StoreReference):
        raise UsageError("only a store in a directory can be checked", where=store, hint="dir:PATH or PATH")
    opened = LocalStore.open(reference.store)
    with output.Progress("checking", quiet=as_json) as progress:
        report = check_store(opened, data=not quick, jobs=jobs, progress=progress.add)
    if as_json:
        output.document(report)
    else:
        for finding in report.findings:
            output.result(output.printable(f"{'leftover' if finding.is_litter else 'damage'}: {finding}"))
        output.result(
            f"{'ok' if report.ok else 'damaged'}: {output.counted(report.images, 'image')}, "
            f"{output.counted(report.blobs, 'blob')}, "
            f"{size_text(report.bytes)}; {output.counted(report.unreferenced, 'blob')} unreferenced, "
            f"{size_text(report.unreferenced_bytes)}"
        )
    if not report.ok:
        output.error(f"{report.store}: {output.counted(len(report.damage), 'finding')} of damage")
    return report.exit_code
