"""The store that a reference speaks of, whatever kind it is; clients are loaded only for the kind that needs them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from eroseal.errors import UnsupportedError
from eroseal.store.local import LocalStore
from eroseal.store.protocol import Store
from eroseal.store.reference import (
    LayoutReference,
    NamedReference,
    ObjectReference,
    RegistryReference,
    StoreReference,
    WebReference,
)
from eroseal.store.remote import RemoteOptions

if TYPE_CHECKING:
    from eroseal.store.oci.repository import Repository


def open_store(
    reference: NamedReference,
    options: RemoteOptions,
    *,
    create: bool = False,
    durable: bool = True,
    compress: bool = False,
) -> Store:
    """Open the store of an image.

    Args:
        reference: of an image in it; whether the image is there does not matter.
        options: for servers.
        create: make what is missing, to write to it.
        durable: sync what is written, where it is written to a disk of ours.
        compress: store new blobs compressed, where that has a form (OCI).

    Raises:
        NotFoundError: there is no such store.
        OutputError: it cannot be made.
        UnsupportedError: nothing can be written there.
        RemoteError, AccessError: of a server.
    """
    match reference:
        case StoreReference():
            opened = LocalStore.create if create else LocalStore.open
            return opened(reference.store, durable=durable)
        case LayoutReference():
            from eroseal.store.oci.layout import LayoutRepository  # noqa: PLC0415

            layout = LayoutRepository(reference.store, create=create, durable=durable)
            return _oci_store(layout, options, compress=compress)
        case RegistryReference():
            from eroseal.store.oci.registry import RegistryRepository  # noqa: PLC0415

            registry = RegistryRepository(reference.host, reference.repository, options)
            return _oci_store(registry, options, compress=compress)
        case ObjectReference():
            from eroseal.store.objects import open_object_store  # noqa: PLC0415

            return open_object_store(reference, options, create=create)
        case WebReference():
            if create:
                raise UnsupportedError("a web server can only be read from", where=str(reference))
            from eroseal.store.web import open_web_store  # noqa: PLC0415

            return open_web_store(reference, options)


def _oci_store(repository: Repository, options: RemoteOptions, *, compress: bool) -> Store:
    from eroseal.store.oci.platform import machine_target  # noqa: PLC0415
    from eroseal.store.oci.store import OciStore  # noqa: PLC0415

    architecture = machine_target(os.uname().machine).architecture
    return OciStore(repository, architecture=architecture, compress=compress, parallel=options.parallel)
