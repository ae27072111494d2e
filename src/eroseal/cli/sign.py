"""`eroseal sign`: adds signatures to an image record, made here or elsewhere."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eroseal.cli import output
from eroseal.cli.open import Opened, open_consistent
from eroseal.cli.params import FILE, device_option, reference_argument, sync_option, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.signing import Signing, signing_options
from eroseal.errors import AuthenticityError, KeyMaterialError, NotFoundError, UsageError
from eroseal.limits import MAX_SIGNATURE

if TYPE_CHECKING:
    from eroseal.format.record import RecordEntry
    from eroseal.format.statement import ImageDigest, Statement
    from eroseal.store.remote import RemoteOptions


@verb("sign", "Add a signature to an image.")
@reference_argument
@signing_options
@click.option("--expect", metavar="DIGEST", help="Refuse to sign anything but the image with this digest.")
@click.option("--attach", type=FILE, metavar="FILE", help="Add a signature made elsewhere: CMS as DER, or raw Ed25519.")
@click.option("--statement", "statement_file", type=FILE, metavar="FILE", help="What was signed, with --attach.")
@device_option
@sync_option
@remote_options
def command(
    reference: str,
    signing: Signing,
    expect: str | None,
    attach: Path | None,
    statement_file: Path | None,
    devices: tuple[Path, ...],
    no_sync: bool,
    remote: RemoteOptions,
) -> None:
    """Sign the image or stack REF with a key and its certificate, with an Ed25519 key, or both.

    What is about to be signed is shown on standard error. The image is checked against its own seals, which does not
    say who made it: --expect DIGEST refuses any other image.

    For keys that are kept elsewhere: `eroseal digest --to-sign FILE` writes what must be signed, and --attach adds the
    signature. For an Ed25519 one, --ed25519 then names the public key.
    """
    if attach is not None:
        _check_attach(signing, statement_file)
    elif statement_file is not None:
        raise UsageError("--statement belongs to --attach")
    elif not signing.wanted:
        raise UsageError("nobody to sign as", hint="give --key and --cert, --ed25519, or --attach")
    signers = [] if attach is not None else signing.load()
    with open_consistent(reference, devices=devices, durable=not no_sync, remote=remote) as opened:
        digest = _expected(opened, expect)
        if opened.is_stack and (signing.for_kernel or signing.for_bootloader):
            raise UsageError(
                "kernels and bootloaders know no signature over a stack",
                where=reference,
                hint="eroseal export --layer N gives layers, which can be signed so",
            )
        for image in (layer.image for layer in opened.layers):
            for number in range(len(image.devices)):
                image.device(number)  # each data blob must be there, and be what the image says
        from eroseal.seal.sign import adding, sign_image

        if attach is not None and statement_file is not None:
            entries = [_attached(attach, statement_file, signing, digest)]
        else:
            statement = signing.statement(digest)
            for signer in signers:
                _announce(statement, opened, signer.label)
            entries = sign_image(
                statement,
                signers,
                root_hash=_root_hash(opened) if signing.for_kernel else None,
                for_bootloader=signing.for_bootloader,
            )
        assert opened.stored is not None
        opened.stored.update_record(adding(entries))
    output.result(str(digest))


def _expected(opened: Opened, expect: str | None) -> ImageDigest:
    from eroseal.format.statement import parse_image_digest

    digest = opened.image.digest
    assert digest is not None
    if expect is not None and parse_image_digest(expect) != digest:
        raise AuthenticityError(f"the image is {digest}, not {expect}: not signed", where=opened.reference)
    return digest


def _root_hash(opened: Opened) -> bytes:
    """Of the meta blob's tree."""
    from eroseal.trust.blob import SelfConsistentBlob

    meta = opened.layers[0].image.meta
    assert isinstance(meta, SelfConsistentBlob)
    return meta.descriptor.root_hash


def _announce(statement: Statement, opened: Opened, label: str) -> None:
    from eroseal.report.document import size_text

    created = datetime.datetime.fromtimestamp(min(statement.created, 253402300799), datetime.UTC)
    devices = [device for layer in opened.layers for device in layer.image.devices]
    if opened.is_stack:
        devices = list(dict.fromkeys(devices))  # layers share data blobs
    size = sum(layer.image.meta.size for layer in opened.layers) + sum(device.size for device in devices)
    blobs = output.counted(len(devices), "data blob")
    if opened.is_stack:
        blobs = f"{output.counted(len(opened.layers), 'layer')}, {blobs}"
    output.note(
        f"signing {statement.digest} (unverified, {blobs}, {size_text(size)}) as "
        f"{statement.name!r} version {statement.version}, created {created:%Y-%m-%d %H:%M:%SZ}, with {label}"
    )


def _check_attach(signing: Signing, statement_file: Path | None) -> None:
    if statement_file is None:
        raise UsageError("--attach needs --statement FILE", hint="eroseal digest --to-sign FILE writes it")
    extra = Signing(ed25519_key=signing.ed25519_key)
    if signing != extra:
        raise UsageError("--attach goes with --statement and, for Ed25519, with --ed25519 PUB.pem only")


def _attached(attach: Path, statement_file: Path, signing: Signing, digest: ImageDigest) -> RecordEntry:
    """The entry for a signature made elsewhere, if it is good and about this image."""
    from eroseal.crypto.signers import accept_cms, accept_ed25519
    from eroseal.seal.sign import attached_entry

    statement, data = _read(statement_file), _read(attach)
    if signing.ed25519_key is not None:
        signature = accept_ed25519(statement, data, signing.ed25519_key, where=str(attach))
    else:
        signature = accept_cms(statement, data, time=int(time.time()), where=str(attach))
    entry = attached_entry(signature, digest, where=str(statement_file))
    output.note(f"attaching a signature over {digest}")
    return entry


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIGNATURE + 1)
    except FileNotFoundError as error:
        raise NotFoundError("no such file", where=str(path)) from error
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if len(data) > MAX_SIGNATURE:
        raise KeyMaterialError(f"more than {MAX_SIGNATURE} bytes: neither a statement nor a signature", where=str(path))
    return data
