"""Stores: where sealed blobs and images live, and how references name them.

`resolve` opens what a reference names; `LocalStore` is the native store; `single` has the files that hold one
image each; `fsck` checks a store.
"""

from eroseal.store.document import BlobInfo, ImageDocument
from eroseal.store.fsck import Finding, StoreReport, check_store
from eroseal.store.local import LocalStore
from eroseal.store.protocol import BlobStore, BlobWriter, ImageStore, OpenBlob, RecordChange, StoredImage
from eroseal.store.reference import (
    FileReference,
    Reference,
    StoreReference,
    check_name,
    parse_reference,
    parse_store,
)
from eroseal.store.resolve import resolve
from eroseal.store.single import SingleWriter, write_single

__all__ = [
    "BlobInfo",
    "BlobStore",
    "BlobWriter",
    "FileReference",
    "Finding",
    "ImageDocument",
    "ImageStore",
    "LocalStore",
    "OpenBlob",
    "RecordChange",
    "Reference",
    "SingleWriter",
    "StoreReference",
    "StoreReport",
    "StoredImage",
    "check_name",
    "check_store",
    "parse_reference",
    "parse_store",
    "resolve",
    "write_single",
]
