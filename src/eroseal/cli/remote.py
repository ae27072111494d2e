"""Options of verbs whose references may lie behind a network, and what of the environment they take.

This is the one place that looks at variables for servers: what is not named here never reaches a client or a
credential helper.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from eroseal.cli.params import FILE, gathered
from eroseal.errors import NotFoundError
from eroseal.store.remote import DEFAULT_RANGES, DEFAULT_TIMEOUT, RemoteOptions

_F = TypeVar("_F", bound=Callable[..., Any])

_MAX_PARALLEL: Final = 256
"""Requests in flight: what a server's operator would still call a client, not an attack."""
_STORE_PREFIXES: Final = ("AWS_", "GOOGLE_", "AZURE_")
_HELPER_VARIABLES: Final = frozenset(
    {"PATH", "HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "GNUPGHOME", "PASSWORD_STORE_DIR"}
)
"""What credential helpers need to find their programs, keyrings and agents."""
_NETWORK_VARIABLES: Final = frozenset(
    {"SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "https_proxy", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY",
     "no_proxy"}
)  # fmt: skip
"""Authorities and proxies, as other programs name them. HTTP_PROXY in capitals may be a request's header (CGI)."""


def remote_settings(
    environment: Mapping[str, str],
    *,
    authfile: Path | None = None,
    tls_verify: bool = True,
    parallel: int = DEFAULT_RANGES,
    timeout: float = DEFAULT_TIMEOUT,
    s3_endpoint: str | None = None,
) -> RemoteOptions:
    """Options of remote stores, from a command's options and its environment.

    Args:
        environment: variables; those that are of use to object stores and credential helpers are handed on.
        authfile, tls_verify, parallel, timeout, s3_endpoint: as given.

    Raises:
        NotFoundError: the file with credentials that was named is not there.
    """
    return RemoteOptions(
        auth_files=_auth_files(environment, authfile),
        tls_verify=tls_verify,
        parallel=parallel,
        timeout=timeout,
        state=_state(environment),
        s3_endpoint=s3_endpoint,
        environment=tuple(
            (name, value)
            for name, value in sorted(environment.items())
            if name.startswith(_STORE_PREFIXES) or name in _HELPER_VARIABLES | _NETWORK_VARIABLES
        ),
    )


def _auth_files(environment: Mapping[str, str], authfile: Path | None) -> tuple[Path, ...]:
    """As other container tools look for credentials: in the one file that is named, else in the usual places."""
    named = authfile or environment.get("REGISTRY_AUTH_FILE")
    if named:
        if not os.path.isfile(named):
            raise NotFoundError("no such file with credentials", where=os.fspath(named))
        return (Path(named),)
    files = []
    runtime = _directory(environment, "XDG_RUNTIME_DIR")
    if runtime is not None:
        files.append(runtime / "containers" / "auth.json")
    docker, home = environment.get("DOCKER_CONFIG"), _directory(environment, "HOME")
    if docker:
        files.append(Path(docker) / "config.json")
    elif home is not None:
        files.append(home / ".docker" / "config.json")
    return tuple(files)


def _state(environment: Mapping[str, str]) -> Path | None:
    state = _directory(environment, "XDG_STATE_HOME")
    home = _directory(environment, "HOME")
    if state is None and home is not None:
        state = home / ".local" / "state"
    return None if state is None else state / "eroseal"


def _directory(environment: Mapping[str, str], name: str) -> Path | None:
    """A variable's directory; relative ones are to be ignored (XDG base directory specification)."""
    value = environment.get(name, "")
    return Path(value) if os.path.isabs(value) else None


_OPTIONS: Final = (
    click.option(
        "--authfile", type=FILE, metavar="FILE", help="Credentials for registries.  [default: those of container tools]"
    ),
    click.option(
        "--tls-verify",
        type=click.BOOL,
        default=True,
        metavar="BOOLEAN",
        help="Whether servers need a valid certificate.  [default: true]",
    ),
    click.option(
        "--parallel",
        type=click.IntRange(1, _MAX_PARALLEL),
        default=DEFAULT_RANGES,
        show_default=True,
        metavar="N",
        help="Requests in flight at once.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0.1),
        default=DEFAULT_TIMEOUT,
        show_default=True,
        metavar="SECONDS",
        help="How long a server may stay silent.",
    ),
    click.option("--s3-endpoint", metavar="URL", help="S3 server to speak to.  [default: that of AWS]"),
)


def remote_options(function: _F) -> _F:
    """All options for servers; the verb gets them as one `RemoteOptions` in the argument `remote`."""

    def make(**given: Any) -> RemoteOptions:
        return remote_settings(os.environ, **given)

    fields = ("authfile", "tls_verify", "parallel", "timeout", "s3_endpoint")
    return gathered(function, _OPTIONS, argument="remote", fields=fields, make=make)
