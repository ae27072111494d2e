"""Garbage collection: a store drops the blobs that no image names, while others go on writing.

What is garbage is told in garbage.py, how writers are protected in lease.py, and what holds for each kind of store
where it is collected: gc_local.py, gc_keyed.py, oci/collect.py.
"""

from __future__ import annotations

from eroseal.errors import UnsupportedError
from eroseal.store.garbage import DEFAULT_GRACE, Collected, CollectOptions, Garbage
from eroseal.store.local import LocalStore
from eroseal.store.reference import LayoutReference, NamedReference, ObjectReference, RegistryReference, StoreReference
from eroseal.store.remote import RemoteOptions

__all__ = ["DEFAULT_GRACE", "CollectOptions", "Collected", "Garbage", "collect"]


def collect(reference: NamedReference, options: CollectOptions, remote: RemoteOptions) -> Collected:
    """Remove what nobody needs from a store.

    Args:
        reference: of any image in it; whether the image is there does not matter.
        options: of the collection.
        remote: how servers are spoken to.

    Raises:
        NotFoundError: there is no such store, or a part of it cannot be looked at.
        FormatError: a document, manifest or lease that cannot be read, and may name any blob.
        UnsupportedError: a kind of store that is not collected, or a layout with documents of an unknown kind.
        OutputError: something cannot be removed.
        RemoteError, AccessError: of a server.
    """
    match reference:
        case StoreReference():
            from eroseal.store.gc_local import collect_local  # noqa: PLC0415 - one kind is enough

            return collect_local(LocalStore.open(reference.store), options)
        case LayoutReference():
            from eroseal.store.oci.collect import collect_layout  # noqa: PLC0415
            from eroseal.store.oci.layout import LayoutRepository  # noqa: PLC0415

            return collect_layout(LayoutRepository(reference.store), options)
        case ObjectReference():
            from eroseal.store.gc_keyed import collect_keyed  # noqa: PLC0415
            from eroseal.store.objects import open_object_store  # noqa: PLC0415

            with open_object_store(reference, remote, create=False) as store:
                return collect_keyed(store, options, parallel=remote.parallel)
        case RegistryReference():
            raise UnsupportedError(
                "a registry collects blobs itself",
                where=f"docker://{reference.host}/{reference.repository}",
                hint="delete images there, and run its own collection, such as `registry garbage-collect`",
            )
        case _:
            raise UnsupportedError(
                "a web server can only be read from", where=reference.url, hint="collect the directory that it serves"
            )
