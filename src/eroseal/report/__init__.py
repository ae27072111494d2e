"""Reports: what is in an image, how two images differ, and the documents that scripts rely on."""

from eroseal.report.diff import Change, Diff, DiffDocument, diff_document, diff_images, diff_lines
from eroseal.report.digest import (
    BadBlockEntry,
    BlobEntry,
    BlobVerdict,
    BuildDocument,
    DigestDocument,
    VerifyDocument,
    blob_entry,
    digest_document,
    digest_text,
)
from eroseal.report.document import Document, json_schema, path_text, shown, size_text, to_json
from eroseal.report.inspect import InspectDocument, inspect_image
from eroseal.report.inspect_text import inspect_text
from eroseal.report.listing import (
    LsDocument,
    LsEntry,
    StatDocument,
    ls_entry,
    ls_lines,
    stat_document,
    stat_text,
)

DOCUMENTS: tuple[type[Document], ...] = (
    BuildDocument,
    DiffDocument,
    DigestDocument,
    InspectDocument,
    LsDocument,
    StatDocument,
    VerifyDocument,
)
"""All documents that commands print with ``--json``; their schemas are in the manual."""

__all__ = [
    "DOCUMENTS",
    "BadBlockEntry",
    "BlobEntry",
    "BlobVerdict",
    "BuildDocument",
    "Change",
    "Diff",
    "DiffDocument",
    "DigestDocument",
    "Document",
    "InspectDocument",
    "LsDocument",
    "LsEntry",
    "StatDocument",
    "VerifyDocument",
    "blob_entry",
    "diff_document",
    "diff_images",
    "diff_lines",
    "digest_document",
    "digest_text",
    "inspect_image",
    "inspect_text",
    "json_schema",
    "ls_entry",
    "ls_lines",
    "path_text",
    "shown",
    "size_text",
    "stat_document",
    "stat_text",
    "to_json",
]
