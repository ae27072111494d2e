"""What the generators share: tools, the vectors of one file, and records with anything in them."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import google_crc32c
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.vectors.inputs import Vector

from eroseal.format.digest import HashAlgorithm

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
TIME = 1_800_000_000
SHA256, SHA512 = HashAlgorithm.SHA256, HashAlgorithm.SHA512
# RFC 8032, 7.1, tests 1 and 2.
SECRETS = (
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
)
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)) for secret in SECRETS]


def tool(*command: str | Path) -> str:
    result = subprocess.run(command, env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{command}: {result.stderr}")
    return result.stdout


class Vectors:
    """The vectors of one file, in the making."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.vectors: list[Vector] = []
        self.index: list[Vector] = []

    def add(self, key: str, what: str, fields: Vector, *, layer: str | None = None, origin: str = "eroseal") -> None:
        self.vectors.append({"id": key, "origin": origin} | fields)
        entry = {"id": key, "file": self.name, "expect": "refuse" if layer else "accept"}
        self.index.append(entry | ({"layer": layer} if layer else {}) | {"what": what})

    def part(self, key: str, fields: Vector) -> None:
        """Something that vectors refer to and that nobody verifies by itself."""
        self.vectors.append({"id": key} | fields)


def raw_record(magic: bytes, body: bytes, *, version: int = 1, header: int = 32, total: int | None = None) -> bytes:
    """A record with checksums that fit, whatever is in it."""
    length = 32 + len(body) if total is None else total
    head = struct.pack("<8sIIQI", magic, version, header, length, google_crc32c.value(body))
    return head + struct.pack("<I", google_crc32c.value(head)) + body


def raw_entry(
    kind: int, value: bytes, flags: int = 0, length: int | None = None, padding: bytes | None = None
) -> bytes:
    size = len(value) if length is None else length
    fill = bytes(-len(value) % 8) if padding is None else padding
    return struct.pack("<HHI", kind, flags, size) + value + fill
