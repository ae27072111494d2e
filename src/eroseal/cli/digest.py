"""`eroseal digest`: what an image is called, and what must be signed to vouch for it."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eroseal.cli import output
from eroseal.cli.open import Layer, open_consistent
from eroseal.cli.params import FILE, device_option, json_option, reference_argument, verb
from eroseal.cli.remote import remote_options
from eroseal.cli.signing import Signing, statement_options
from eroseal.errors import UsageError

if TYPE_CHECKING:
    from eroseal.report.digest import BlobEntry
    from eroseal.store.remote import RemoteOptions


@verb("digest", "Print an image's digest.")
@reference_argument
@click.option("--to-sign", type=FILE, metavar="FILE", help="Write the statement to sign elsewhere; - is stdout.")
@statement_options
@device_option
@json_option
@remote_options
def command(
    reference: str,
    to_sign: Path | None,
    signing: Signing,
    devices: tuple[Path, ...],
    as_json: bool,
    remote: RemoteOptions,
) -> None:
    """Print the digest of the image or stack REF.

    Each blob is checked against its own seal, which does not say who made the image.

    --to-sign writes the statement that `eroseal sign --attach` takes back with a signature. With
    openssl: openssl cms -sign -binary -outform DER -in FILE -signer CERT.pem -inkey KEY.pem -out SIGNATURE
    """
    if to_sign is None and signing != Signing():
        raise UsageError("--name, --version and --created belong to --to-sign")
    if to_sign is not None and as_json and str(to_sign) == "-":
        raise UsageError("--json and --to-sign - both want standard output")
    signing.check()
    with open_consistent(reference, devices=devices, remote=remote) as opened:
        entries = [entry for layer in opened.layers for entry in _entries(layer)]
        digest = opened.image.digest
    assert digest is not None
    if to_sign is not None:
        _write(to_sign, signing.statement(digest).encode())
        if str(to_sign) == "-":
            return
    if as_json:
        from eroseal.format.statement import StackDigest
        from eroseal.report.digest import digest_document

        output.document(digest_document(entries, stack=digest if isinstance(digest, StackDigest) else None))
    else:
        output.result(str(digest))


def _entries(layer: Layer) -> list[BlobEntry]:
    """Every blob of an image, opened, so that each is what its name says."""
    from eroseal.report.digest import Role, blob_entry
    from eroseal.trust.blob import SelfConsistentBlob

    entries = []
    for number in range(len(layer.image.devices) + 1):
        blob = layer.image.device(number - 1) if number else layer.image.meta
        assert isinstance(blob, SelfConsistentBlob)
        role: Role = "data" if number else "meta"
        path = layer.stored.blob_path(blob.digest)
        entries.append(
            blob_entry(
                blob.descriptor,
                role=role,
                size=blob.seal.sealed_size,
                digest=blob.digest,
                path=None if path is None else str(path),
            )
        )
    return entries


def _write(path: Path, statement: bytes) -> None:
    from eroseal.store.atomic import write_atomic

    if str(path) == "-":
        output.binary(statement)
        with contextlib.suppress(ValueError):
            sys.stdout.flush()
    else:
        write_atomic(path, statement, replace=True)
