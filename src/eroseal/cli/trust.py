"""Trust options: what the user accepts as proof, for each reference that a verb reads.

A verb with one reference takes all values as alternatives. `diff` has two: an option that is given twice belongs to
the first and the second in this order, and one that is given once to both; digests, which are never the same for both,
must be given twice. There is no way to read an image without saying on what grounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from eroseal.cli.params import FILE, TIME, gathered
from eroseal.errors import UsageError

if TYPE_CHECKING:
    from eroseal.trust.policy import Policy

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")

_HINT = "give --digest, --cert, --ca, --ed25519 or --policy, or --insecure to trust whatever is there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The trust options as they were given.

    Args:
        digest, cert, ca, ed25519, accept, name, min_version: values in order.
        at: Unix seconds at which certificates are judged; None for now.
        policy: a policy file.
        insecure: read without proof.
    """

    digest: tuple[str, ...] = ()
    cert: tuple[Path, ...] = ()
    ca: tuple[Path, ...] = ()
    ed25519: tuple[Path, ...] = ()
    accept: tuple[str, ...] = ()
    name: tuple[str, ...] = ()
    min_version: tuple[int, ...] = ()
    at: int | None = None
    policy: Path | None = None
    insecure: bool = False

    @property
    def given(self) -> bool:
        """Whether there is any source of trust, `--insecure` included."""
        return self.insecure or self.policy is not None or self._has_source

    @property
    def _has_source(self) -> bool:
        return bool(self.digest or self.cert or self.ca or self.ed25519)

    @property
    def _restricts(self) -> bool:
        return bool(self.accept or self.name or self.min_version)

    def policy_for(self, reference: str) -> Policy | None:
        """What is accepted for a verb's only reference; None with `--insecure`.

        Raises:
            UsageError: no source of trust, or options that do not go together.
            KeyMaterialError: a key or certificate that cannot be used.
        """
        self._check_combination()
        if self.insecure:
            return None
        if self.policy is not None:
            return self._from_file(self.policy, reference)
        return self._load()

    def for_two(self) -> tuple[Trust, Trust]:
        """What was given for the first and the second reference of a verb that has two.

        Raises:
            UsageError: an option is given more than twice, or a digest only once.
        """
        if len(self.digest) == 1:
            raise UsageError("one --digest for two references", hint="give it twice, in the references' order")
        first, second = (
            replace(
                self,
                digest=_half("--digest", self.digest, position),
                cert=_half("--cert", self.cert, position),
                ca=_half("--ca", self.ca, position),
                ed25519=_half("--ed25519", self.ed25519, position),
                name=_half("--name", self.name, position),
                min_version=_half("--min-version", self.min_version, position),
            )
            for position in (0, 1)
        )
        return first, second

    def _check_combination(self) -> None:
        if not self.given:
            raise UsageError("no source of trust", hint=_HINT)
        if self.insecure and (self._has_source or self._restricts or self.policy is not None):
            raise UsageError("--insecure cannot be combined with other trust options")
        if self.policy is not None and (self._has_source or self._restricts):
            raise UsageError("--policy cannot be combined with other trust options", hint="put them into the file")
        for option, values in (("--name", self.name), ("--min-version", self.min_version)):
            if len(values) > 1:
                raise UsageError(f"{option} is given {len(values)} times")

    def _from_file(self, path: Path, reference: str) -> Policy:
        from eroseal.trust.policyfile import load_policy_file

        return load_policy_file(path).policy_for(reference, time=self._time)

    def _load(self) -> Policy:
        from eroseal.crypto.keys import load_certificates, load_ed25519_public_key
        from eroseal.format.statement import parse_image_digest
        from eroseal.trust.policy import Policy, RolelessForm

        return Policy(
            time=self._time,
            digests=tuple(parse_image_digest(text) for text in self.digest),
            certificates=tuple(load_certificates(path)[0] for path in self.cert),
            ca_certificates=tuple(item for path in self.ca for item in load_certificates(path)),
            ed25519_keys=tuple(load_ed25519_public_key(path) for path in self.ed25519),
            name=self.name[0] if self.name else None,
            min_version=self.min_version[0] if self.min_version else None,
            accept=frozenset(RolelessForm.from_name(text) for text in self.accept),
        )

    @property
    def _time(self) -> int:
        return int(time.time()) if self.at is None else self.at


def _half(option: str, values: Sequence[_T], position: int) -> tuple[_T, ...]:
    if len(values) > 2:
        raise UsageError(f"{option} is given {len(values)} times for two references", hint="at most once for each")
    return (values[position],) if len(values) == 2 else tuple(values)


_OPTIONS = (
    click.option("--digest", multiple=True, metavar="DIGEST", help="Accept the image with this digest; may repeat."),
    click.option(
        "--cert", type=FILE, multiple=True, metavar="CERT.pem", help="Accept what this certificate signed; may repeat."
    ),
    click.option(
        "--ca", type=FILE, multiple=True, metavar="CA.pem", help="Accept signers that this CA vouches for; may repeat."
    ),
    click.option(
        "--ed25519", type=FILE, multiple=True, metavar="PUB.pem", help="Accept what this key signed; may repeat."
    ),
    click.option("--name", multiple=True, metavar="NAME", help="Require that the signer named the image so."),
    click.option(
        "--min-version",
        type=click.IntRange(min=0),
        multiple=True,
        metavar="N",
        help="Require that the signer gave it at least this version.",
    ),
    click.option("--at", type=TIME, metavar="TIME", help="Judge certificates at this time.  [default: now]"),
    click.option(
        "--accept",
        type=click.Choice(["fsverity", "bootloader"]),
        multiple=True,
        help="Accept this kind of signature too, which says nothing about name, version or role.",
    ),
    click.option("--policy", type=FILE, metavar="FILE.toml", help="Take all this from a policy file."),
    click.option("--insecure", is_flag=True, help="Read without any proof of who made the image."),
)


def trust_options(function: _F) -> _F:
    """All trust options; the verb gets them as one `Trust` in the argument `trust`."""
    return gathered(function, _OPTIONS, argument="trust", fields=tuple(Trust.__dataclass_fields__), make=Trust)
