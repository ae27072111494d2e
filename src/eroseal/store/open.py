"""The store that a reference speaks of, whatever kind it is; clients are loaded only for the kind that needs them."""

from __future__ import annotations

from eroseal.errors import UnsupportedError
from eroseal.store.local import LocalStore
from eroseal.store.protocol import Store
from eroseal.store.reference import NamedReference, StoreReference
from eroseal.store.remote import RemoteOptions


def open_store(
    reference: NamedReference, options: RemoteOptions, *, create: bool = False, durable: bool = True
) -> Store:
    """Open the store of an image.

    Args:
        reference: of an image in it; whether the image is there does not matter.
        options: for servers.
        create: make what is missing, to write to it.
        durable: sync what is written, where it is written to a disk of ours.

    Raises:
        NotFoundError: there is no such store.
        OutputError: it cannot be made.
        UnsupportedError: nothing can be written there.
        RemoteError, AccessError: of a server.
    """
    if isinstance(reference, StoreReference):
        opened = LocalStore.create if create else LocalStore.open
        return opened(reference.store, durable=durable)
    raise UnsupportedError("this kind of reference cannot be opened yet", where=str(reference))
