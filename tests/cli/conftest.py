"""What the tests of the program share: a small tree, images of it, and people who sign."""

from __future__ import annotations

import functools
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.peer import certs
from tests.support.program import Outcome, eroseal

Run = Callable[..., Outcome]
CONTENT = random.Random(1).randbytes(256 << 10)
NOW = datetime.fromtimestamp(int(time.time()), UTC)
VALID = {"start": NOW - timedelta(days=1), "end": NOW + timedelta(days=30)}
EXPIRED = {"start": NOW - timedelta(days=30), "end": NOW - timedelta(days=1)}


def make_tree(root: Path) -> Path:
    """Write a tree of a few files of all sizes that matter."""
    (root / "etc/deep").mkdir(parents=True)
    (root / "etc/motd").write_text("hello\n")
    (root / "etc/deep/empty").touch()
    (root / "big").write_bytes(CONTENT)
    (root / "twice").write_bytes(CONTENT)
    os.link(root / "big", root / "hard")
    os.symlink("etc/motd", root / "link")
    os.mkfifo(root / "fifo")
    (root / "odd\x1b[31m").write_text("odd")
    Path(os.fsdecode(os.fsencode(root) + b"/byte\xff")).write_text("byte")
    for path in (*root.rglob("*"), root):
        os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)
    return root


@dataclass(frozen=True, slots=True)
class Samples:
    """Things made once for the whole run, to be copied from.

    Args:
        tree: a source.
        store: holds the image `app` of it.
        file: a single sealed file of it.
        digest: of the image in the store.
        file_digest: of the single file.
    """

    tree: Path
    store: Path
    file: Path
    digest: str
    file_digest: str


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    place = tmp_path_factory.mktemp("samples")
    tree = make_tree(place / "tree")
    digest = eroseal("build", tree, "dir:store:app", "--no-sync", cwd=place).last
    file_digest = eroseal("build", tree, "app.erofs", "--no-sync", cwd=place).last
    return Samples(tree, place / "store", place / "app.erofs", digest, file_digest)


@pytest.fixture
def place(tmp_path: Path, samples: Samples) -> Path:
    """Give a directory with copies of the samples' store and file that a test may change."""
    shutil.copytree(samples.store, tmp_path / "store")
    shutil.copy(samples.file, tmp_path / "app.erofs")
    return tmp_path


@pytest.fixture
def run(place: Path) -> Run:
    """Give the program, run in `place`."""
    return functools.partial(eroseal, cwd=place)


@dataclass(frozen=True, slots=True)
class People:
    """Files of keys and certificates.

    Args:
        place: where NAME.key and NAME.pem are, for `good`, `rsa`, `other`, `expired`, `leaf` (with its intermediate,
            which is alone in `chain.pem`) and `usage` (may not sign); `root.pem` is the leaf's CA; `ed.key`,
            `locked.key` (its passphrase is "open sesame") and `ed.pub` are Ed25519.
    """

    place: Path

    def key(self, name: str) -> str:
        return str(self.place / f"{name}.key")

    def cert(self, name: str) -> str:
        return str(self.place / f"{name}.pem")

    def pair(self, name: str) -> tuple[str, ...]:
        return "--key", self.key(name), "--cert", self.cert(name)

    @property
    def public(self) -> str:
        return str(self.place / "ed.pub")


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> People:
    place = tmp_path_factory.mktemp("people")
    certs.signer(name="good", **VALID).write(place, "good")
    certs.signer(name="rsa", key=certs.rsa_key(), **VALID).write(place, "rsa")
    certs.signer(name="other", **VALID).write(place, "other")
    certs.signer(name="expired", **EXPIRED).write(place, "expired")
    certs.make("usage", extensions=[(certs.usage("key_agreement"), True)], **VALID).write(place, "usage")
    root = certs.root_ca(**VALID)
    root.write(place, "root")
    leaf = certs.signer(certs.intermediate_ca(root, **VALID), name="leaf", **VALID)
    leaf.write(place, "leaf")
    (place / "chain.pem").write_bytes(b"".join(item.public_bytes(Encoding.PEM) for item in leaf.chain))
    key = Ed25519PrivateKey.generate()
    certs.write_key(key, place / "ed.key")
    certs.write_key(key, place / "locked.key", passphrase=b"open sesame")
    (place / "ed.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return People(place)


def files_below(place: Path) -> list[str]:
    """Give every path below a directory, sorted."""
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))
