"""What the user's environment says about TLS and proxies, in the variables that other programs read, too.

The environment comes in as a value; nothing here looks at the process's own.
"""

from __future__ import annotations

import functools
import ssl
from typing import TYPE_CHECKING, Final

from eroseal.errors import UsageError
from eroseal.store.http_rules import is_loopback, origin
from eroseal.store.remote import RemoteOptions

if TYPE_CHECKING:
    import httpx2

_CA_FILE: Final = "SSL_CERT_FILE"
_CA_DIRECTORY: Final = "SSL_CERT_DIR"


def tls_context(options: RemoteOptions) -> ssl.SSLContext:
    """How certificates are checked: against the system's authorities, or those that SSL_CERT_FILE and _DIR name.

    Raises:
        UsageError: what the variables name cannot be read.
    """
    environment = dict(options.environment)
    return _context(options.tls_verify, environment.get(_CA_FILE), environment.get(_CA_DIRECTORY))


# Reading a system's authorities takes a tenth of a second, and a push makes several clients.
@functools.lru_cache(maxsize=8)
def _context(verify: bool, ca_file: str | None, ca_directory: str | None) -> ssl.SSLContext:
    import httpx2  # noqa: PLC0415 - most commands speak to no server

    if not verify or not (ca_file or ca_directory):
        return httpx2.create_ssl_context(verify=verify, trust_env=False)
    try:
        return ssl.create_default_context(cafile=ca_file or None, capath=ca_directory or None)
    except OSError as error:
        name = f"{_CA_FILE}={ca_file}" if ca_file else f"{_CA_DIRECTORY}={ca_directory}"
        raise UsageError("does not name certificates of authorities", where=name) from error


def proxy_for(url: httpx2.URL, options: RemoteOptions) -> str | None:
    """The proxy for an address, by HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY; never one for this machine."""
    environment = dict(options.environment)

    def variable(name: str) -> str:
        return environment.get(name) or environment.get(name.upper(), "")

    # HTTP_PROXY in capitals may be a request's header in a CGI program (CVE-2016-5385).
    proxy = environment.get("http_proxy", "") if url.scheme == "http" else variable("https_proxy")
    proxy = proxy or variable("all_proxy")
    if not proxy or is_loopback(url.host):
        return None
    if any(_covers(entry.strip().lower(), url) for entry in variable("no_proxy").split(",")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _covers(entry: str, url: httpx2.URL) -> bool:
    """Whether an entry of NO_PROXY means an address: a host or a domain, with a port or without, or all."""
    host, colon, port = entry.rpartition(":")
    if colon and port.isdigit():
        return int(port) == origin(url)[2] and _covers(host, url)
    name = entry.lstrip(".")
    return entry == "*" or (name != "" and (url.host == name or url.host.endswith(f".{name}")))
