"""The document of `gc`: a contract with scripts, see docs/cli.md."""

from __future__ import annotations

from typing import Literal

import msgspec

from eroseal.report.document import Document
from eroseal.store.garbage import Collected, CollectOptions


class GarbageEntry(Document, frozen=True, kw_only=True):
    """A blob that nobody needs.

    Args:
        digest: as the store spells it: ``fsverity-sha256-12:HEX``, or ``sha256:HEX`` in an image layout.
        size: bytes.
    """

    digest: str
    size: int


class KeptEntry(Document, frozen=True, kw_only=True):
    """How many blobs stay, and why.

    Args:
        named: by an image's document, or reached from a layout's index.
        leased: to somebody who is at work.
        young: not older than the grace period.
    """

    named: int
    leased: int
    young: int


class GcDocument(Document, frozen=True, kw_only=True):
    """What `gc --json` prints.

    Args:
        store: that was collected.
        dry_run: nothing was removed.
        grace: the grace period in seconds.
        blobs: that were removed, or would be; by digest.
        bytes: of these together.
        kept: all other blobs.
        leftovers: paths or keys of whatever else was removed, or would be: unfinished files of writers that are gone,
            records and leases that nobody uses.
    """

    schema: Literal["eroseal.gc/1"] = "eroseal.gc/1"
    store: str
    dry_run: bool
    grace: float
    blobs: list[GarbageEntry]
    bytes: int
    kept: KeptEntry
    leftovers: list[str]


def gc_document(store: str, collected: Collected, options: CollectOptions) -> GcDocument:
    """The account of a collection.

    Args:
        store: as the user would write it.
        collected: what became of it.
        options: that it was made with.
    """
    return GcDocument(
        store=store,
        dry_run=options.dry_run,
        grace=options.grace,
        blobs=[GarbageEntry(digest=blob.digest, size=blob.size) for blob in collected.blobs],
        bytes=sum(blob.size for blob in collected.blobs),
        kept=msgspec.convert(collected.kept, KeptEntry),
        leftovers=list(collected.leftovers),
    )
