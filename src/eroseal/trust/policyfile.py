"""Policy files: what to accept for which reference, in TOML.

One table for each pattern, ``[image."GLOB"]``; the first pattern in the file that matches a reference decides
alone, so that a broad pattern further down never adds trust to a narrow one above it::

    [image."dir:/srv/images:web-*"]
    cert = ["release.pem"]
    name = "web"
    min-version = 12

    [image."*"]
    ca = "company-ca.pem"

Keys: ``digest``, ``cert``, ``ca``, ``ed25519``, ``accept`` (each a string or a list of strings), ``name``,
``min-version``, ``at`` (Unix seconds, in place of the current time). Paths are relative to the policy file.
Unknown keys are refused: a misspelt restriction must not become no restriction.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from eroseal.crypto.keys import load_certificates, load_ed25519_public_key
from eroseal.errors import UsageError
from eroseal.format.statement import parse_image_digest
from eroseal.limits import MAX_POLICY_FILE
from eroseal.trust.policy import Policy, RolelessForm

_LISTS: Final = frozenset({"digest", "cert", "ca", "ed25519", "accept"})
_KEYS: Final = _LISTS | {"name", "min-version", "at"}


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One table of a policy file.

    Args:
        pattern: shell pattern on the whole reference; ``*`` matches slashes and colons too.
        policy: what is accepted; its time is a placeholder unless `fixed_time` is set.
        fixed_time: whether the file sets the time.
    """

    pattern: str
    policy: Policy
    fixed_time: bool


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A policy file with its keys loaded.

    Args:
        where: its path, for messages.
        rules: in the file's order.
    """

    where: str
    rules: tuple[PolicyRule, ...]

    def policy_for(self, reference: str, *, time: int) -> Policy:
        """The policy of the first pattern that matches.

        Args:
            reference: as the user wrote it.
            time: Unix seconds at which certificates are judged, unless the file says ``at``.

        Raises:
            UsageError: no pattern matches.
        """
        for rule in self.rules:
            if fnmatchcase(reference, rule.pattern):
                return rule.policy if rule.fixed_time else replace(rule.policy, time=time)
        raise UsageError(f"no pattern matches {reference!r}", where=self.where, hint="add a table for it")


def load_policy_file(path: str | os.PathLike[str]) -> PolicyFile:
    """Read a policy file and every key and certificate that it names.

    Raises:
        UsageError: unreadable, not TOML, unknown or mistyped keys, a table without a source of trust.
        KeyMaterialError: a key or certificate file is broken.
    """
    where = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_POLICY_FILE + 1)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=where) from error
    if len(data) > MAX_POLICY_FILE:
        raise UsageError(f"more than {MAX_POLICY_FILE} bytes: not a policy file", where=where)
    return parse_policy_file(data, directory=Path(path).parent, where=where)


def parse_policy_file(data: bytes, *, directory: Path, where: str = "policy file") -> PolicyFile:
    """As `load_policy_file`, from bytes; relative paths in it start at `directory`."""
    try:
        document = tomllib.loads(data.decode())
    # RecursionError: deeply nested arrays; the parser has no bound of its own.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not a TOML document: {error}", where=where) from error
    tables = document.get("image")
    if set(document) != {"image"} or not isinstance(tables, dict):
        raise UsageError('a policy file holds tables [image."PATTERN"] and nothing else', where=where)
    return PolicyFile(where, tuple(_rule(pattern, table, directory, where) for pattern, table in tables.items()))


def _rule(pattern: str, table: object, directory: Path, where: str) -> PolicyRule:
    where = f'{where}: [image."{pattern}"]'
    if not isinstance(table, dict):
        raise UsageError("not a table", where=where)
    unknown = sorted(set(table) - _KEYS)
    if unknown:
        raise UsageError(f"unknown key {unknown[0]!r}", where=where, hint=f"known are {', '.join(sorted(_KEYS))}")
    at = _integer(table, "at", where)
    try:
        policy = Policy(
            time=0 if at is None else at,
            digests=tuple(parse_image_digest(text) for text in _strings(table, "digest", where)),
            certificates=tuple(load_certificates(directory / p)[0] for p in _strings(table, "cert", where)),
            ca_certificates=tuple(
                item for p in _strings(table, "ca", where) for item in load_certificates(directory / p)
            ),
            ed25519_keys=tuple(load_ed25519_public_key(directory / p) for p in _strings(table, "ed25519", where)),
            name=_string(table, "name", where),
            min_version=_integer(table, "min-version", where),
            accept=frozenset(RolelessForm.from_name(text) for text in _strings(table, "accept", where)),
        )
    except UsageError as error:
        if error.where is not None:
            raise
        raise UsageError(error.what, where=where, hint=error.hint) from error
    return PolicyRule(pattern, policy, at is not None)


def _strings(table: Mapping[str, object], key: str, where: str) -> list[str]:
    value = table.get(key, [])
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
        raise UsageError(f"{key} must be a string or a list of strings", where=where)
    return values


def _string(table: Mapping[str, object], key: str, where: str) -> str | None:
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{key} must be a string", where=where)
    return value


def _integer(table: Mapping[str, object], key: str, where: str) -> int | None:
    value = table.get(key)
    # bool is an int to isinstance, and `min-version = true` is a mistake.
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise UsageError(f"{key} must be a number, 0 or more", where=where)
    return value
