"""`eroseal build`: a directory, archive or container image becomes a sealed, and if wanted signed, image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from eroseal.cli import output
from eroseal.cli.params import FILE, HEX, REFERENCE, SIZE, TIME, UUID, jobs_option, json_option, sync_option, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.signing import Signing, signing_options
from eroseal.errors import UsageError

if TYPE_CHECKING:
    from eroseal.build.options import BuildResult
    from eroseal.build.publish import MakeRecord
    from eroseal.format.digest import Digest
    from eroseal.format.record import RecordEntry
    from eroseal.format.statement import ImageDigest
    from eroseal.store.reference import Reference
    from eroseal.store.remote import RemoteOptions


@verb("build", "Build a sealed image of a directory, an archive or a container image.")
@click.argument("source", metavar="SOURCE", type=click.Path(allow_dash=True))
@click.argument("target", metavar="TARGET", type=REFERENCE)
@click.option("--base", "bases", multiple=True, metavar="REF", help="Reuse this image's chunks; may repeat.")
@click.option("--base-auto", is_flag=True, help="Reuse the chunks of the newest image of the same name.")
@click.option(
    "--layers",
    type=click.Choice(["merge", "stack"]),
    default="merge",
    show_default=True,
    help="Make one image of a container image's layers, or a stack with an image for each.",
)
@click.option(
    "--platform", metavar="OS/ARCH", help="Platform of a container image.  [default: Linux on this processor]"
)
@click.option(
    "--blobs",
    type=click.Choice(["none", "build", "layer", "file"]),
    help="Where data goes: into the image itself, or into a blob for each build, layer or file.  "
    "[default: build; none for a single file]",
)
@click.option("--chunk-size", type=SIZE, default="64K", show_default=True, help="A power of two from 4K to 1M.")
@click.option(
    "--inline-max", type=SIZE, default="4095", show_default=True, help="Longest file or tail inside the meta blob."
)
@click.option(
    "--hash",
    "algorithm",
    type=click.Choice(["sha256", "sha512"]),
    default="sha256",
    show_default=True,
    help="Hash of all trees.",
)
@click.option("--salt", type=HEX, default="", metavar="HEX", help="Salt of all trees, at most 32 bytes.")
@click.option("--timestamp", type=TIME, metavar="TIME", help="Set all times and the image's own to this.")
@click.option("--uuid", type=UUID, metavar="UUID", help="UUID of the file system.  [default: from the content]")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out paths or names that match; may repeat.")
@click.option("--all-root", is_flag=True, help="Make root the owner of everything.")
@click.option("--owners", type=FILE, metavar="FILE", help="Owners and permissions by path; see docs/cli.md.")
@click.option("--file-contexts", type=FILE, metavar="FILE", help="SELinux contexts by path, see file_contexts(5).")
@click.option("--replace", is_flag=True, help="Take the place of an image that has this name.")
@click.option(
    "--work", type=FILE, metavar="DIR", help="Where an image is built before it goes to a server.  [default: $TMPDIR]"
)
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
    layers: str,
    platform: str | None,
    blobs: str | None,
    chunk_size: int,
    inline_max: int,
    algorithm: str,
    salt: bytes,
    timestamp: int | None,
    uuid: bytes | None,
    exclude: tuple[str, ...],
    all_root: bool,
    owners: Path | None,
    file_contexts: Path | None,
    replace: bool,
    work: Path | None,
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
    from eroseal.build.options import UNPACKING, UPLOADING, BlobLayout, BuildOptions, LayerMode
    from eroseal.build.sources import DirectoryTree, parse_source
    from eroseal.format.digest import HashAlgorithm, TreeParams
    from eroseal.store.reference import FileReference, parse_reference
    from eroseal.tree.attributes import load_file_contexts, load_owners

    reference = parse_reference(target)
    single = isinstance(reference, FileReference)
    if single and blobs not in (None, "none"):
        raise UsageError(f"--blobs {blobs} needs a store: a single file holds everything", hint="dir:STORE:NAME")
    parsed = parse_source(source, remote=remote, platform=platform)
    if isinstance(parsed, DirectoryTree) and not exclude:
        _check_apart(source, reference)
    if base_auto:
        bases = (*bases, *_newest_base(reference, remote))
    options = BuildOptions(
        blobs=BlobLayout(blobs or ("none" if single else "build")),
        layers=LayerMode(layers),
        params=TreeParams(HashAlgorithm.from_name(algorithm), salt),
        chunk_size=chunk_size,
        inline_max=inline_max,
        timestamp=timestamp,
        clamp=_source_date_epoch(),
        uuid=uuid,
        all_root=all_root,
        owners=None if owners is None else load_owners(owners),
        file_contexts=None if file_contexts is None else load_file_contexts(file_contexts),
        exclude=exclude,
        jobs=jobs,
        durable=not no_sync,
        replace=replace,
        work=work,
    )
    record = _record(signing)
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


def _newest_base(target: Reference, remote: RemoteOptions) -> tuple[str, ...]:
    """The newest image of the target's name, if there is any to build on."""
    from eroseal.build.auto import newest_base
    from eroseal.store.reference import FileReference

    if isinstance(target, FileReference):
        raise UsageError("a single file has no base", where=str(target), hint="build into a store: dir:PATH:NAME")
    found = newest_base(target, remote)
    output.note("no base found: all chunks are new" if found is None else f"base: {found}")
    return () if found is None else (found,)


def _record(signing: Signing) -> MakeRecord | None:
    """What makes the image record: keys are loaded before anything is built, and used when the digest is known."""
    signing.check_wanted()
    if not signing.wanted:
        return None
    from eroseal.seal.sign import sign_image

    signers = signing.load()

    def record(image: ImageDigest, root_hash: bytes | None) -> Sequence[RecordEntry]:
        if signing.for_kernel and root_hash is None:
            raise UsageError("a stack of layers has no form for kernels: sign its layers")
        return sign_image(
            signing.statement(image),
            signers,
            root_hash=root_hash if signing.for_kernel else None,
            for_bootloader=signing.for_bootloader,
        )

    return record


def _show(done: BuildResult, reference: Reference, *, as_json: bool) -> None:
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
            path=_path(reference, blob.digest),
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


def _path(reference: Reference, digest: Digest) -> str | msgspec.UnsetType:
    """Where a blob lies, if that is on this machine."""
    from eroseal.store.local import LocalStore
    from eroseal.store.reference import FileReference, StoreReference

    if isinstance(reference, StoreReference):
        return str(LocalStore(reference.store).blob_path(digest))
    return str(reference) if isinstance(reference, FileReference) else msgspec.UNSET


def _check_apart(source: str, target: Reference) -> None:
    """Refuse a target inside the source: the build would read what it writes."""
    from eroseal.store.reference import FileReference, LayoutReference, StoreReference

    if isinstance(target, FileReference):
        place = Path(os.path.dirname(target.path) or ".")
    elif isinstance(target, StoreReference | LayoutReference):
        place = target.store
    else:
        return
    root = os.path.realpath(source)
    if os.path.commonpath([root, os.path.realpath(place)]) == root and os.path.isdir(root):
        raise UsageError(
            f"the target {target} lies in the source {source}", hint="write it elsewhere, or --exclude its directory"
        )


def _source_date_epoch() -> int | None:
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) >= 1 << 63 or len(text) > 20:
        raise UsageError(f"SOURCE_DATE_EPOCH is not a number of seconds: {text!r}")
    return int(text)
