"""Credentials from where other container tools keep them: docker's config.json and containers' auth.json.

Both have the same form. Within a file the most specific entry wins: one for a repository or a part of its path, then
a credential helper for the host, then the helper for all, then the host's own entry. The first file that knows
anything decides.

Source: docker's ``config.json`` reference and credential helper protocol; containers-auth.json(5).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from eroseal.errors import KeyMaterialError
from eroseal.limits import MAX_CREDENTIALS_FILE
from eroseal.store.reference import DEFAULT_HOST
from eroseal.store.remote import RemoteOptions

_HUB_NAMES: Final = frozenset({DEFAULT_HOST, "index.docker.io", "registry-1.docker.io"})
_HUB_KEY: Final = "https://index.docker.io/v1/"
"""What docker calls its own registry in files and to helpers."""
_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_TOKEN_USER: Final = "<token>"  # noqa: S105 - a mark, not a secret
"""The user name by which a helper says that its secret is an identity token."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A user's name and password, or an identity token; its text form shows neither.

    Args:
        username: may be empty with an identity token.
        password: empty with an identity token.
        identity_token: that a token server takes in place of a password.
    """

    username: str
    password: str
    identity_token: str = ""

    def __repr__(self) -> str:
        return "Credential(...)"

    @property
    def basic(self) -> str:
        """The value of an Authorization header.

        Source: RFC 7617 section 2.
        """
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _File(msgspec.Struct, frozen=True):
    auths: dict[str, _Entry | None] = {}
    credHelpers: dict[str, str] = {}
    credsStore: str = ""


class _Answer(msgspec.Struct, frozen=True, rename="pascal"):
    username: str = ""
    secret: str = ""


def find_credential(options: RemoteOptions, host: str, repository: str) -> Credential | None:
    """What the user has for a repository, or None.

    Args:
        options: name the files, and the environment that helpers get.
        host: as in references, `docker.io` for Docker's own registry.
        repository: below the host.

    Raises:
        KeyMaterialError: a file or an entry is malformed, or a helper fails.
    """
    for path in options.auth_files:
        file = _load(path)
        found = None if file is None else _in_file(file, path, options, host, repository)
        if found is not None:
            return found
    return None


def _load(path: Path) -> _File | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CREDENTIALS_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KeyMaterialError(f"cannot read credentials: {error.strerror}", where=str(path)) from error
    if len(data) > MAX_CREDENTIALS_FILE:
        raise KeyMaterialError(f"has more than {MAX_CREDENTIALS_FILE} bytes of credentials", where=str(path))
    try:
        return msgspec.json.decode(data or b"{}", type=_File)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        # The decoder's words may quote a value, which may be a password.
        raise KeyMaterialError("is not a file of credentials in docker's form", where=str(path)) from None


def _in_file(file: _File, path: Path, options: RemoteOptions, host: str, repository: str) -> Credential | None:
    entries = {_place(key): entry for key, entry in file.auths.items() if entry is not None}
    for place in _parts(f"{_host(host)}/{repository}"):
        if place in entries:
            return _decode(entries[place], path)
    helpers = {_place(key): name for key, name in file.credHelpers.items()}
    for helper in (helpers.get(_host(host)), file.credsStore):
        found = _ask(helper, path, options, host) if helper else None
        if found is not None:
            return found
    entry = entries.get(_host(host))
    # Where a helper keeps the secret, docker leaves an empty entry behind.
    return _decode(entry, path) if entry is not None and entry != _Entry() else None


def _parts(place: str) -> Iterator[str]:
    """The place and what it lies in, the longest first, without the host alone."""
    while "/" in place:
        yield place
        place = place.rpartition("/")[0]


def _host(host: str) -> str:
    host = host.lower()
    return DEFAULT_HOST if host in _HUB_NAMES else host


def _place(key: str) -> str:
    """A file's key as `host` or `host/path`; old keys are addresses whose paths mean nothing."""
    address = re.sub(r"^https?://", "", key, flags=re.IGNORECASE)
    host, slash, path = address.partition("/")
    path = path.strip("/")
    if address != key or not slash or path in ("v1", "v2"):
        path = ""
    return f"{_host(host)}/{path}" if path else _host(host)


def _decode(entry: _Entry, path: Path) -> Credential:
    username, password = entry.username, entry.password
    if entry.auth:
        try:
            text = base64.b64decode(entry.auth, validate=True).decode()
        except (binascii.Error, ValueError):
            text = ""
        username, colon, password = text.partition(":")
        if not colon:
            raise KeyMaterialError("an entry's auth is not the base64 form of name:password", where=str(path)) from None
    return Credential(username, password.rstrip("\0"), entry.identitytoken)


def _ask(helper: str, path: Path, options: RemoteOptions, host: str) -> Credential | None:
    """What a credential helper has for a host; None if it says that it has nothing."""
    environment = dict(options.environment)
    program = f"docker-credential-{helper}"
    found = shutil.which(program, path=environment.get("PATH", os.defpath)) if _HELPER.fullmatch(helper) else None
    if found is None:
        raise KeyMaterialError(f"there is no program {program!r}", where=str(path), hint="install it, or log in anew")
    server = _HUB_KEY if _host(host) == DEFAULT_HOST else host
    try:
        status, said = _run([found, "get"], server.encode(), environment, options.timeout)
    except (OSError, subprocess.TimeoutExpired):
        raise KeyMaterialError(f"{program} does not run or does not end", where=str(path)) from None
    if len(said) > MAX_CREDENTIALS_FILE:
        raise KeyMaterialError(f"{program} gave more than {MAX_CREDENTIALS_FILE} bytes", where=str(path))
    if status != 0:
        # Helpers agree on these words, and on nothing else, for "not found".
        if b"credentials not found" in said:
            return None
        raise KeyMaterialError(f"{program} failed with status {status}", where=str(path))
    try:
        answer = msgspec.json.decode(said, type=_Answer)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise KeyMaterialError(f"{program} gave no credentials in docker's form", where=str(path)) from None
    if answer.username == _TOKEN_USER:
        return Credential("", "", answer.secret)
    return Credential(answer.username, answer.secret)


def _run(command: list[str], text: bytes, environment: dict[str, str], timeout: float) -> tuple[int, bytes]:
    """(status, output) of a program that gets a text; it is killed when it takes too long or says too much."""
    until = time.monotonic() + timeout
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, bufsize=0
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(text)
            process.stdin.close()
            said = _read(process.stdout.fileno(), until)
            if len(said) <= MAX_CREDENTIALS_FILE:
                process.wait(max(0.0, until - time.monotonic()))
        finally:
            process.kill()
        return process.wait(), said


def _read(fd: int, until: float) -> bytes:
    """All that comes through a pipe, or a little more than may; raises TimeoutExpired."""
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while len(said) <= MAX_CREDENTIALS_FILE:
            if not selector.select(max(0.0, until - time.monotonic())):
                raise subprocess.TimeoutExpired("", 0.0)
            piece = os.read(fd, 1 << 20)
            if not piece:
                break
            said += piece
    return said
