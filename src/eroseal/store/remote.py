"""How servers are spoken to: what holds for every registry, object store and web server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

DEFAULT_RANGES: Final = 16
"""Requests in flight at once: enough to hide 100 ms of latency at 1 Gbit/s with pieces of 1 MiB."""
DEFAULT_TIMEOUT: Final = 30.0
"""Seconds that a server may stay silent."""
DEFAULT_ATTEMPTS: Final = 6
"""Tries of one request: with exponential backoff about half a minute in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions:
    """Options of remote stores.

    Args:
        auth_files: files in the form of ~/.docker/config.json, the first that knows a host decides.
        tls_verify: False accepts any certificate, and plain HTTP from registries. Hosts on the loopback interface
            may always speak plain HTTP, as for other container tools.
        parallel: requests in flight at once.
        timeout: seconds that a server may stay silent.
        attempts: tries of one request, at least 1.
        state: directory that remembers unfinished uploads; None forgets them.
        s3_endpoint: URL of an S3 server other than AWS's; None for AWS.
        environment: variables that object stores' and credential helpers' settings are taken from.
    """

    auth_files: tuple[Path, ...] = ()
    tls_verify: bool = True
    parallel: int = DEFAULT_RANGES
    timeout: float = DEFAULT_TIMEOUT
    attempts: int = DEFAULT_ATTEMPTS
    state: Path | None = None
    s3_endpoint: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
