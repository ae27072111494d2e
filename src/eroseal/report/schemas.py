"""All documents that commands print with ``--json``."""

from __future__ import annotations

from typing import Final

from eroseal.report.copy import CopyDocument
from eroseal.report.diff import DiffDocument
from eroseal.report.digest import BuildDocument, DigestDocument, VerifyDocument
from eroseal.report.document import Document
from eroseal.report.gc import GcDocument
from eroseal.report.inspect import InspectDocument
from eroseal.report.inspect_stack import InspectStackDocument
from eroseal.report.listing import LsDocument, StatDocument
from eroseal.report.many import ManyDocument

DOCUMENTS: Final[tuple[type[Document], ...]] = (
    BuildDocument,
    CopyDocument,
    DiffDocument,
    DigestDocument,
    GcDocument,
    InspectDocument,
    InspectStackDocument,
    LsDocument,
    ManyDocument,
    StatDocument,
    VerifyDocument,
)
"""One type a command, and one more for what `inspect` says of stacks; their schemas are in the manual."""
