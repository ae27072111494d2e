"""Repositories in OCI form for tests: real image layouts, and repositories of a real registry."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.registry import Registry

from eroseal.store.oci.documents import OCI_MANIFEST
from eroseal.store.oci.layout import LayoutRepository
from eroseal.store.oci.registry import RegistryRepository
from eroseal.store.oci.repository import Repository
from eroseal.store.oci.store import OciStore
from eroseal.store.remote import RemoteOptions

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """A fresh repository.

    Args:
        make: opens it, as often as a test likes.
        file: the file in which content lies, for tests that damage it.
        opened: what the test opened, closed at its end.
        name: as skopeo spells it, without a tag.
    """

    make: Callable[[], Repository]
    file: Callable[[str], Path]
    opened: contextlib.ExitStack
    name: str

    def open(self) -> Repository:
        return self.opened.enter_context(self.make())

    def store(self, *, compress: bool = False) -> OciStore:
        return OciStore(self.open(), architecture="amd64", compress=compress)


def layout_place(path: Path, opened: contextlib.ExitStack) -> Place:
    """A layout, made when it is first opened."""

    def blob_file(digest: str) -> Path:
        return path / "blobs" / digest.replace(":", "/")

    def make() -> Repository:
        return LayoutRepository(path, create=True, durable=False)

    return Place(make, blob_file, opened, f"oci:{path}")


def registry_place(server: Registry, opened: contextlib.ExitStack) -> Place:
    """A repository of its own in a registry."""
    name = f"oci-{secrets.token_hex(6)}"

    def make() -> Repository:
        return RegistryRepository(server.host, name, RemoteOptions(attempts=2))

    return Place(make, server.blob_file, opened, f"docker://{server.host}/{name}")


def manifest_of(repository: Repository, name: str) -> Json:
    """A manifest, decoded."""
    found: Json = json.loads(repository.manifest(name)[0])
    return found


def put_changed(repository: Repository, name: str, new: str, change: Callable[[Json], object]) -> None:
    """Store a copy of a manifest in which something is different."""
    manifest = manifest_of(repository, name)
    change(manifest)
    repository.put_manifest(json.dumps(manifest).encode(), OCI_MANIFEST, tag=new)
