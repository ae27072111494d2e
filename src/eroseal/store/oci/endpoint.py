"""Where a registry's repository is spoken to, and with which credentials.

A registry is reached by TLS. One on the loopback interface, or any where certificates do not matter to the user, may
speak plain HTTP: it is asked once which of the two it speaks.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Final

from eroseal.store.http import HttpClient
from eroseal.store.http_rules import NoTlsError, TransientError, is_loopback, origin_of
from eroseal.store.oci.auth import RegistryLogin
from eroseal.store.oci.credentials import find_credential
from eroseal.store.reference import DEFAULT_HOST
from eroseal.store.remote import RemoteOptions

_HUB_SERVER: Final = "registry-1.docker.io"
"""Who answers for docker.io."""
_ANY_STATUS: Final = range(200, 600)


class Endpoint:
    """The address of a repository, and a client that may speak to it; safe for use by several threads.

    Args:
        host: as in references.
        name: of the repository.
        options: how servers are spoken to.
    """

    def __init__(self, host: str, name: str, options: RemoteOptions) -> None:
        self._host = host
        self._name = name
        self._options = options
        self._lock = threading.Lock()
        self._ready: tuple[str, HttpClient, RegistryLogin] | None = None

    @property
    def base(self) -> str:
        """Address of the repository, without a slash at its end."""
        return self._get()[0]

    @property
    def client(self) -> HttpClient:
        """Speaks with the user's credentials for this registry."""
        return self._get()[1]

    def url(self, path: str) -> str:
        """The address of something below the repository; absolute addresses stay as they are."""
        return path if path.startswith(("https://", "http://")) else f"{self.base}/{path}"

    def close(self) -> None:
        """Give connections back; closing twice does no harm."""
        with self._lock:
            ready, self._ready = self._ready, None
        if ready is not None:
            ready[1].close()
            ready[2].close()

    def _get(self) -> tuple[str, HttpClient, RegistryLogin]:
        with self._lock:
            if self._ready is None:
                self._ready = self._connect()
            return self._ready

    def _connect(self) -> tuple[str, HttpClient, RegistryLogin]:
        server = _HUB_SERVER if self._host == DEFAULT_HOST else self._host
        root = f"{self._scheme(server)}://{server}"
        login = RegistryLogin(
            origin_of(root), self._options, lambda: find_credential(self._options, self._host, self._name)
        )
        return f"{root}/v2/{self._name}", HttpClient(self._options, authenticator=login), login

    def _scheme(self, server: str) -> str:
        host = server if server.endswith("]") else server.rpartition(":")[0] or server
        if self._options.tls_verify and not is_loopback(host):
            return "https"
        with HttpClient(replace(self._options, attempts=1)) as probe:
            try:
                probe.request("GET", f"https://{server}/v2/", expect=_ANY_STATUS)
            except (NoTlsError, TransientError):
                return "http"
        return "https"
