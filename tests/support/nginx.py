"""nginx on a free loopback port, serving a directory as it is."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

START_SECONDS = 20.0
_TRIES = 5

_CONFIG = """\
{user}
daemon off;
master_process off;
pid {place}/pid;
error_log {place}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  default_type application/octet-stream;
  sendfile on;
  client_body_temp_path {place}/body;
  proxy_temp_path {place}/proxy;
  fastcgi_temp_path {place}/fastcgi;
  uwsgi_temp_path {place}/uwsgi;
  scgi_temp_path {place}/scgi;
  server {{ listen 127.0.0.1:{port}; root {site}; }}
}}
"""


class Nginx:
    """A running server; what lies below `site` is at `url`."""

    def __init__(self, program: str, place: Path) -> None:
        self.site = place / "site"
        self.site.mkdir(parents=True)
        config = place / "nginx.conf"
        user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
        for last in reversed(range(_TRIES)):
            port = _free_port()
            config.write_text(_CONFIG.format(user=user, place=place, port=port, site=self.site))
            self.url = f"http://127.0.0.1:{port}"
            with (place / "log").open("wb") as log:
                self._process = subprocess.Popen([program, "-c", str(config), "-p", str(place)], stdout=log, stderr=log)
            if self._answers():
                return
            self.stop()
            # Somebody else may have taken the port between our look and its start.
            assert last, (place / "error.log").read_text()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
            except urllib.error.HTTPError as error:
                error.close()
                return True
            except OSError:
                time.sleep(0.02)
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
