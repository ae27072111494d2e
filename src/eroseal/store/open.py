"""The store that a reference speaks of, whatever kind it is; clients are loaded only for the kind that needs them."""

from __future__ import annotations

from eroseal.errors import UnsupportedError
from eroseal.store.local import LocalStore
from eroseal.store.protocol import Store
from eroseal.store.reference import NamedReference, ObjectReference, StoreReference, WebReference
from eroseal.store.remote import RemoteOptions


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
    if isinstance(reference, StoreReference):
        opened = LocalStore.create if create else LocalStore.open
        return opened(reference.store, durable=durable)
    if isinstance(reference, ObjectReference):
        from eroseal.store.objects import open_object_store  # noqa: PLC0415

        return open_object_store(reference, options, create=create)
    if isinstance(reference, WebReference):
        if create:
            raise UnsupportedError("a web server can only be read from", where=str(reference))
        from eroseal.store.web import open_web_store  # noqa: PLC0415

        return open_web_store(reference, options)
    raise UnsupportedError("this kind of reference cannot be opened yet", where=str(reference))
