"""Signing options, and the signers that they load."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from eroseal.cli.params import FILE, TIME, gathered
from eroseal.errors import KeyMaterialError, UsageError

if TYPE_CHECKING:
    from eroseal.crypto.signers import Signer
    from eroseal.format.statement import ImageDigest, Statement

_F = TypeVar("_F", bound=Callable[..., Any])
_MAX_PASSPHRASE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """The signing options as they were given.

    Args:
        key, cert: of a CMS signer.
        ed25519_key: of an Ed25519 signer.
        passphrase_file: holds the passphrase of an encrypted key.
        name, version: for the statement.
        created: Unix seconds; None for now.
        for_kernel, for_bootloader: further forms.
    """

    key: Path | None = None
    cert: Path | None = None
    ed25519_key: Path | None = None
    passphrase_file: Path | None = None
    name: str | None = None
    version: int | None = None
    created: int | None = None
    for_kernel: bool = False
    for_bootloader: bool = False

    @property
    def wanted(self) -> bool:
        """Whether there is anybody to sign as."""
        return self.key is not None or self.cert is not None or self.ed25519_key is not None

    def statement(self, digest: ImageDigest) -> Statement:
        """What is to be signed; raises UsageError."""
        from eroseal.format.statement import Statement

        created = int(time.time()) if self.created is None else self.created
        return Statement(digest, self.name or "", self.version or 0, created)

    def check(self) -> None:
        """Refuse options that make no sense together, and values that cannot be signed; raises UsageError."""
        from eroseal.format.digest import Digest, HashAlgorithm

        if (self.key is None) != (self.cert is None):
            raise UsageError("--key and --cert belong together")
        if self.for_kernel and self.key is None:
            raise UsageError("--for-kernel needs --key and --cert")
        if self.for_bootloader and self.ed25519_key is None:
            raise UsageError("--for-bootloader needs --ed25519")
        self.statement(Digest(HashAlgorithm.SHA256, bytes(32)))  # whether it can be made, before anything is done

    def check_wanted(self) -> None:
        """Refuse what is to be signed where nobody is to sign; raises UsageError."""
        self.check()
        if not self.wanted and self != Signing(passphrase_file=self.passphrase_file):
            raise UsageError("--name, --version and --created are signed", hint="give --key and --cert, or --ed25519")

    def load(self, *, ask: bool = True) -> list[Signer]:
        """The signers, checked so that nothing but a full disk can keep them from signing.

        Args:
            ask: for passphrases on the terminal, where there is no file.

        Raises:
            UsageError: options that make no sense together.
            KeyMaterialError: a key or certificate that cannot be used.
        """
        from eroseal.crypto.signers import load_cms_signer, load_ed25519_signer

        self.check()
        passphrase = functools.partial(self._passphrase, ask=ask)
        signers: list[Signer] = []
        if self.key is not None and self.cert is not None:
            now = int(time.time())
            signers.append(load_cms_signer(self.key, self.cert, time=now, passphrase=passphrase))
        if self.ed25519_key is not None:
            signers.append(load_ed25519_signer(self.ed25519_key, passphrase=passphrase))
        return signers

    def _passphrase(self, where: str, *, ask: bool) -> bytes:
        """The passphrase of an encrypted key: from a file or descriptor, or asked on the terminal; never from argv."""
        if self.passphrase_file is not None:
            try:
                with self.passphrase_file.open("rb") as file:
                    return file.read(_MAX_PASSPHRASE).rstrip(b"\r\n")
            except OSError as error:
                raise KeyMaterialError(f"cannot be read: {error.strerror}", where=str(self.passphrase_file)) from error
        if not ask or sys.stdin is None or not sys.stdin.isatty():
            raise KeyMaterialError("the private key is encrypted", where=where, hint="give --passphrase-file FILE")
        text: str = click.prompt(f"passphrase of {where}", hide_input=True, err=True)
        return text.encode()


_OPTIONS = (
    click.option("--key", type=FILE, metavar="KEY.pem", help="Sign with this RSA or ECDSA key."),
    click.option("--cert", type=FILE, metavar="CERT.pem", help="Its certificate, followed by its intermediates."),
    click.option("--ed25519", "ed25519_key", type=FILE, metavar="KEY.pem", help="Sign with this Ed25519 key."),
    click.option("--passphrase-file", type=FILE, metavar="FILE", help="Where an encrypted key's passphrase is."),
)
_STATEMENT_OPTIONS = (
    click.option("--name", metavar="NAME", help="Name of the image, for the signed statement."),
    click.option(
        "--version", type=click.IntRange(min=0), metavar="N", help="Version of the image, for the signed statement."
    ),
    click.option("--created", "--time", type=TIME, metavar="TIME", help="Time of creation in it.  [default: now]"),
)
_FORM_OPTIONS = (
    click.option("--for-kernel", is_flag=True, help="Also sign for the kernel's own checks (fs-verity, dm-verity)."),
    click.option("--for-bootloader", is_flag=True, help="Also sign for bootloaders (with --ed25519)."),
)


def signing_options(function: _F) -> _F:
    """All signing options; the verb gets them as one `Signing` in the argument `signing`."""
    return _gather(function, (*_OPTIONS, *_STATEMENT_OPTIONS, *_FORM_OPTIONS))


def statement_options(function: _F) -> _F:
    """The options of a statement that is signed elsewhere; also as a `Signing`."""
    return _gather(function, _STATEMENT_OPTIONS)


def _gather(function: _F, options: tuple[Callable[[Any], Any], ...]) -> _F:
    return gathered(function, options, argument="signing", fields=tuple(Signing.__dataclass_fields__), make=Signing)
