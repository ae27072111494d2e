"""The document of `copy`: a contract with scripts, see docs/cli.md."""

from __future__ import annotations

from typing import Literal

from eroseal.report.document import Document


class CopyDocument(Document, frozen=True, kw_only=True):
    """What `copy --json` prints.

    Args:
        image: digest of the image or stack.
        copied: blobs that were moved, or the rest of which was.
        skipped: blobs that the target had.
        adopted: blobs that the target's server took over from the source's.
        bytes_moved: of blobs, that arrived.
        bytes_skipped: of blobs and parts of blobs that did not have to be moved.
        seconds: wall time.
    """

    schema: Literal["eroseal.copy/1"] = "eroseal.copy/1"
    image: str
    copied: int
    skipped: int
    adopted: int
    bytes_moved: int
    bytes_skipped: int
    seconds: float
