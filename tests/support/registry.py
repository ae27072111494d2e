"""Debian's docker-registry on a free loopback port, open, behind a password, or behind tokens."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

USER = "carol"
PASSWORD = "correct horse"
# bcrypt of PASSWORD: the only hash that the registry takes, and nothing here makes one without a further package.
_HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n"

START_SECONDS = 20.0
_TRIES = 5

_CONFIG = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: {delete}}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http:
  addr: 127.0.0.1:{port}
  secret: for tests only
{auth}"""


@dataclass(frozen=True, slots=True)
class TokenAuth:
    """Where a registry sends those without a token, and whose tokens it takes."""

    realm: str
    service: str
    issuer: str
    certificates: Path


class Registry:
    """A running registry; `host` is its name in references, `root` its files."""

    def __init__(self, program: str, place: Path, *, auth: TokenAuth | str | None = None, delete: bool = True) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.root = place / "data"
        self._log = place / "log"
        for last in reversed(range(_TRIES)):
            self.port = _free_port()
            config = place / "config.yml"
            config.write_text(
                _CONFIG.format(
                    root=self.root, port=self.port, delete="true" if delete else "false", auth=_auth(place, auth)
                )
            )
            with self._log.open("wb") as log:
                self._process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
            if self._answers():
                return
            self.stop()
            # Somebody else may have taken the port between our look and its start.
            assert last, self._log.read_text()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def blob_file(self, digest: str) -> Path:
        """The file that a blob's bytes are in."""
        algorithm, _, hexdigits = digest.partition(":")
        return self.root / "docker/registry/v2/blobs" / algorithm / hexdigits[:2] / hexdigits / "data"

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/v2/", timeout=5):
                    return True
            except urllib.error.HTTPError as error:
                error.close()
                return error.code == 401
            except OSError:
                time.sleep(0.02)
        return False


def _auth(place: Path, auth: TokenAuth | str | None) -> str:
    if auth is None:
        return ""
    if isinstance(auth, TokenAuth):
        return (
            f"auth:\n  token:\n    realm: {auth.realm}\n    service: {auth.service}\n"
            f"    issuer: {auth.issuer}\n    rootcertbundle: {auth.certificates}\n"
        )
    passwords = place / "htpasswd"
    passwords.write_text(_HTPASSWD)
    return f"auth:\n  htpasswd:\n    realm: {auth}\n    path: {passwords}\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
