"""What a check of a native store reports: findings, each with what to do, and a document for scripts."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Kind = Literal[
    "broken-document",
    "broken-record",
    "missing-blob",
    "wrong-size",
    "wrong-devices",
    "truncated-blob",
    "corrupt-blob",
    "misnamed-blob",
    "unreadable",
    "stray-temporary",
    "stray-record",
    "stray-lease",
    "foreign-file",
]
"""What a finding is about."""

LITTER: Final[frozenset[Kind]] = frozenset({"stray-temporary", "stray-record", "stray-lease", "foreign-file"})
"""Kinds that cost space and nothing else."""


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Something that is not as it should be.

    Args:
        kind: of the finding.
        path: of the file, as text; bytes that are not UTF-8 are surrogate escapes.
        what: what is wrong with it.
        hint: what to do.
    """

    kind: Kind
    path: str
    what: str
    hint: str

    @property
    def is_litter(self) -> bool:
        """Whether it takes space and does no harm."""
        return self.kind in LITTER

    def __str__(self) -> str:
        return f"{self.path}: {self.what} ({self.hint})"


class StoreReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a check of a store found.

    Args:
        schema: of this document.
        store: path of the store.
        ok: there is no damage; there may be litter.
        images: images with a document.
        blobs: files that are called like blobs.
        bytes: of these files together.
        unreferenced: blobs that no image uses.
        unreferenced_bytes: of these blobs together.
        in_progress: temporary files of writers that are at work.
        findings: damage and litter, by path.
    """

    schema: Literal["eroseal.fsck/1"]
    store: str
    ok: bool
    images: int
    blobs: int
    bytes: int
    unreferenced: int
    unreferenced_bytes: int
    in_progress: int
    findings: tuple[Finding, ...]

    @property
    def damage(self) -> tuple[Finding, ...]:
        """The findings that matter."""
        return tuple(finding for finding in self.findings if not finding.is_litter)

    @property
    def exit_code(self) -> int:
        """A program's exit code: 0 no damage, 1 something is missing or unreadable, 3 not verified."""
        kinds = {finding.kind for finding in self.damage}
        return 3 if kinds - {"missing-blob", "unreadable"} else 1 if kinds else 0
