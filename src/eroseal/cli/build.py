"""`eroseal build`: a directory, archive or container image becomes a sealed, and if wanted signed, image."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from eroseal.cli import output
from eroseal.cli.building import Building, building_options, check_apart, make_record
from eroseal.cli.params import REFERENCE, UUID, jobs_option, json_option, sync_option, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.signing import Signing, signing_options
from eroseal.errors import UsageError

if TYPE_CHECKING:
    from eroseal.build.options import BuildOptions, BuildResult
    from eroseal.format.digest import Digest
    from eroseal.store.reference import Reference
    from eroseal.store.remote import RemoteOptions


@verb("build", "Build a sealed image of files or a container image.")
@click.argument("source", metavar="SOURCE", type=click.Path(allow_dash=True))
@click.argument("target", metavar="TARGET", type=REFERENCE)
@click.option("--base", "bases", multiple=True, metavar="REF", help="Reuse this image's chunks; may repeat.")
@click.option("--base-auto", is_flag=True, help="Reuse the chunks of the newest image of the same name.")
@click.option("--uuid", type=UUID, metavar="UUID", help="UUID of the file system.  [default: from the content]")
@building_options
@sync_option
@jobs_option
@json_option
@remote_options
@signing_options
def command(
    *,
    source: str,
    target: str,
    bases: tuple[str, ...],
    base_auto: bool,
    uuid: bytes | None,
    building: Building,
    no_sync: bool,
    jobs: int | None,
    as_json: bool,
    remote: RemoteOptions,
    signing: Signing,
) -> None:
    """Build a sealed image of SOURCE.

    SOURCE is a directory, a tar archive (plain, gzip, zstd or xz; - reads standard input), or a container image:
    docker://HOST/REPO:TAG, oci:PATH:TAG, oci-archive:PATH or docker-archive:PATH.

    TARGET is dir:STORE:NAME, an image in a store (which is made if it is not there), a path, for one file with
    everything in it, or a place on a server: docker://HOST/REPO:TAG, s3://BUCKET/PREFIX:NAME; or oci:PATH:TAG. The last
    line on standard output is the image digest.

    With the environment variable SOURCE_DATE_EPOCH, later file times are set back to it, and it is the image's own
    time.
    """
    from eroseal.build.builder import build
    from eroseal.build.options import UNPACKING, UPLOADING, BlobLayout
    from eroseal.build.sources import ContainerImage, DirectoryTree, parse_source
    from eroseal.store.reference import FileReference, parse_reference
    from eroseal.tree.attributes import load_file_contexts, load_owners

    reference = parse_reference(target)
    single = isinstance(reference, FileReference)
    if single and building.blobs not in (None, "none"):
        raise UsageError(
            f"--blobs {building.blobs} needs a store: a single file holds everything", hint="dir:STORE:NAME"
        )
    options = replace(
        building.options(jobs=jobs, durable=not no_sync),
        uuid=uuid,
        owners=None if building.owners is None else load_owners(building.owners),
        file_contexts=None if building.file_contexts is None else load_file_contexts(building.file_contexts),
    )
    if single:
        options = replace(options, blobs=BlobLayout.NONE)
    record = make_record(signing)
    if source == "-":
        _check_input()
    parsed = parse_source(source, remote=remote, platform=building.platform)
    if building.platform is not None and not isinstance(parsed, ContainerImage):
        raise UsageError("--platform chooses among container images, and this is none", where=source)
    if isinstance(parsed, DirectoryTree) and not building.exclude:
        check_apart(source, reference)
    if base_auto:
        bases = (*bases, *_newest_base(reference, remote, options))
    warnings = output.Warnings()
    stages = {UNPACKING: "unpacking", UPLOADING: "uploading"}
    with output.Progress("reading", quiet=as_json) as progress:
        done = build(
            parsed,
            reference,
            options,
            bases=bases,
            warn=warnings,
            progress=lambda files, size: progress.set(size, stages.get(files) or f"{files} files"),
            record=record,
            remote=remote,
        )
    warnings.finish()
    _show(done, reference, as_json=as_json)


def _check_input() -> None:
    """Refuse a standard input that no archive can come from."""
    if sys.stdin is None or sys.stdin.isatty():
        state = "closed" if sys.stdin is None else "a terminal"
        raise UsageError(f"standard input is {state}, not an archive", hint="send one through a pipe, or name its file")


def _newest_base(target: Reference, remote: RemoteOptions, options: BuildOptions) -> tuple[str, ...]:
    """The newest image of the target's name, if there is any to build on."""
    from eroseal.build.auto import newest_base
    from eroseal.store.reference import FileReference

    if isinstance(target, FileReference):
        raise UsageError("a single file has no base", where=str(target), hint="build into a store: dir:PATH:NAME")
    found = newest_base(target, remote, params=options.params)
    output.note("no image of the same name to build on" if found is None else f"base: {found}")
    return () if found is None else (found,)


def _show(done: BuildResult, reference: Reference, *, as_json: bool) -> None:
    from msgspec import UNSET

    from eroseal.report.digest import BlobEntry, BuildDocument
    from eroseal.report.document import size_text

    if not as_json:
        output.note(
            f"{output.counted(done.files, 'file')}, {size_text(done.bytes_in)} read, "
            f"{size_text(done.bytes_new)} new and {size_text(done.bytes_shared)} shared chunks, "
            f"{output.counted(len(done.blobs) - len(done.layers), 'data blob')}, {done.seconds:.2f} seconds"
        )
        output.result(str(done.image))
        return
    entries = [
        BlobEntry(
            digest=str(blob.digest),
            role="meta" if blob.digest in done.layers else "data",
            data_size=blob.data_size,
            root_hash=blob.root_hash.hex(),
            size=blob.size,
            path=_path(reference, blob.digest) or UNSET,
        )
        for blob in done.blobs
    ]
    output.document(
        BuildDocument(
            image=str(done.image),
            blobs=entries,
            files=done.files,
            bytes_in=done.bytes_in,
            bytes_new=done.bytes_new,
            bytes_shared=done.bytes_shared,
            seconds=round(done.seconds, 6),
        )
    )


def _path(reference: Reference, digest: Digest) -> str | None:
    """Where a blob lies, if that is on this machine."""
    from eroseal.store.local import LocalStore
    from eroseal.store.reference import FileReference, StoreReference

    if isinstance(reference, StoreReference):
        return str(LocalStore(reference.store).blob_path(digest))
    return str(reference) if isinstance(reference, FileReference) else None
