"""`eroseal seal`: an image that any tool made gets a seal."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eroseal.cli import output
from eroseal.cli.params import FILE, HEX, jobs_option, sync_option, verb
from eroseal.cli.signing import Signing, signing_options
from eroseal.errors import ErosealError, OutputError

if TYPE_CHECKING:
    from eroseal.crypto.signers import Signer
    from eroseal.seal.foreign import SealedImage


@verb("seal", "Seal an image that any tool made.")
@click.argument("file", metavar="FILE", type=FILE)
@click.option("-o", "--output", "target", type=FILE, metavar="OUT", help="Write the sealed image here.")
@click.option(
    "--device",
    "devices",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="A data blob of the image; may repeat, in the order of the device table.",
)
@click.option("--rewrite-tags", is_flag=True, help="Let the image's device table be rewritten to name its data blobs.")
@click.option(
    "--hash",
    "algorithm",
    type=click.Choice(["sha256", "sha512"]),
    default="sha256",
    show_default=True,
    help="Hash of all trees.",
)
@click.option("--salt", type=HEX, default="", metavar="HEX", help="Salt of all trees, at most 32 bytes.")
@sync_option
@jobs_option
@signing_options
def command(
    *,
    file: Path,
    target: Path | None,
    devices: tuple[Path, ...],
    rewrite_tags: bool,
    algorithm: str,
    salt: bytes,
    no_sync: bool,
    jobs: int | None,
    signing: Signing,
) -> None:
    """Seal the EROFS image FILE, which any tool may have made, in place or into a new file.

    With -o, data blobs are written beside OUT, as OUT.device1 and so on. An image that is broken, or whose files reach
    out of their device, is refused. The last line on standard output is the image digest.
    """
    from eroseal.format.digest import HashAlgorithm, TreeParams
    from eroseal.seal.foreign import seal_image

    signing.check_wanted()
    signers = signing.load() if signing.wanted else []
    with output.Progress("sealing") as progress:
        done = seal_image(
            file,
            output=target,
            devices=devices,
            rewrite_tags=rewrite_tags,
            params=TreeParams(HashAlgorithm.from_name(algorithm), salt),
            jobs=jobs,
            progress=progress.add,
            durable=not no_sync,
        )
    warnings = output.Warnings()
    for text in done.warnings:
        warnings(text)
    warnings.finish()
    if done.compressed:
        output.warn(f"{output.counted(done.compressed, 'compressed file')}: where the data lies was not checked")
    if done.rewritten:
        output.note(f"{output.counted(done.rewritten, 'device slot')} rewritten")
    if signers:
        try:
            _sign(target or file, done, signing, signers, durable=not no_sync)
        except BaseException as error:
            raise _unsigned(error, file, target, len(devices)) from error
    output.result(str(done.meta.digest))


def _sign(path: Path, done: SealedImage, signing: Signing, signers: list[Signer], *, durable: bool) -> None:
    from eroseal.seal.sign import adding, sign_image
    from eroseal.store.single import update_record

    entries = sign_image(
        signing.statement(done.meta.digest),
        signers,
        root_hash=done.meta.root_hash if signing.for_kernel else None,
        for_bootloader=signing.for_bootloader,
    )
    update_record(path, adding(entries), expect=done.meta.digest, durable=durable)


def _unsigned(error: BaseException, file: Path, target: Path | None, devices: int) -> BaseException:
    """After a failure to sign: new files go, and for files in place the message says where things stand."""
    if target is not None:
        for path in (target, *(target.with_name(f"{target.name}.device{number + 1}") for number in range(devices))):
            with contextlib.suppress(OSError):
                path.unlink()
        return error
    if isinstance(error, ErosealError):
        return OutputError(f"sealed, but not signed: {error}", where=str(file), hint="sign it with eroseal sign")
    return error
