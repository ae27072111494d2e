"""An S3 server (moto) in a process of its own, and buckets in it."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from eroseal.store.keyed import KeyedStore
from eroseal.store.objects import open_object_store
from eroseal.store.reference import ObjectReference
from eroseal.store.remote import RemoteOptions

START_SECONDS = 30.0
SECRET = "the-very-secret-key"
_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class S3Server:
    """A running server; `url` is its endpoint."""

    def __init__(self, place: Path) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self._log = place / "log"
        with self._log.open("wb") as log:
            # Port 0: the system chooses, and the server says which.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stdout=log, stderr=log
            )
        self.url = self._address()

    def new_bucket(self) -> str:
        """Make a bucket that nobody else uses."""
        bucket = f"bucket-{secrets.token_hex(6)}"
        self.call("PUT", bucket)
        return bucket

    def call(self, method: str, path: str, data: bytes | None = None) -> bytes:
        """Send a plain request: the server looks whether it is signed, but not how."""
        request = urllib.request.Request(f"{self.url}/{path}", method=method, data=data)
        request.add_header("Content-Type", "application/octet-stream")
        request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/s3/aws4_request")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bytes(answer.read())

    def keys(self, bucket: str) -> list[str]:
        """All keys of a bucket."""
        listing = ElementTree.fromstring(self.call("GET", f"{bucket}?list-type=2"))
        return [element.text or "" for element in listing.iter(f"{_NAMESPACE}Key")]

    def uploads(self, bucket: str) -> list[str]:
        """Keys of uploads that were begun, and neither ended nor taken back."""
        listing = ElementTree.fromstring(self.call("GET", f"{bucket}?uploads"))
        return [element.text or "" for element in listing.iter() if element.tag.rpartition("}")[2] == "Key"]

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Let nobody in for as long as the context lasts, for the server knows no users."""
        self.call("POST", "moto-api/reset-auth", b"0")
        try:
            yield
        finally:
            self.call("POST", "moto-api/reset-auth", b"inf")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _address(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            for line in self._log.read_text(errors="replace").splitlines():
                _, found, address = line.partition("Running on http://")
                if found:
                    return f"http://{address.strip()}"
            time.sleep(0.02)
        self.stop()
        raise AssertionError(self._log.read_text(errors="replace"))


def s3_options(url: str, **changes: object) -> RemoteOptions:
    """Options for a server on loopback that takes any key."""
    credentials = (("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", SECRET))
    return RemoteOptions(**{"s3_endpoint": url, "environment": credentials, "attempts": 2} | changes)  # type: ignore[arg-type]


def s3_store(url: str, bucket: str, prefix: str = "", *, create: bool = True, **changes: object) -> KeyedStore:
    """Give a store in a bucket."""
    return open_object_store(ObjectReference("s3", bucket, prefix, "x"), s3_options(url, **changes), create=create)
