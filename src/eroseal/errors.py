"""The one exception family of eroseal.

Everything that a caller can meet derives from `ErosealError`; foreign exceptions are wrapped where they arise::

    ErosealError                 exit code 1
    ├── UsageError               2   wrong arguments, references that do not parse
    ├── SourceError              1   the input tree: unreadable, changed while read, of an unsupported kind
    ├── OutputError              1   the target exists, the disk is full, a path cannot be written
    ├── NotFoundError            1   an image, a blob, or a path in an image does not exist
    ├── UnsupportedError         1   valid, but not something this version handles
    ├── KeyMaterialError         1   a key or certificate is broken, expired or does not match
    ├── RemoteError              1   a server cannot be reached, fails, or breaks its protocol
    ├── AccessError              4   a server does not let us: no credentials, or not the right ones
    ├── FormatError              3   bytes that break a format: malformed records, hostile images
    └── VerificationError        3   a numbered step of the verifier refused
        ├── IntegrityError       3   bytes differ from what the digest says (blob, offset, level)
        └── AuthenticityError    3   nothing that the policy accepts vouches for the image

Verification refuses with exit code 3, so that scripts can tell "not verified" from "could not try".
"""

from __future__ import annotations

from typing import ClassVar


class ErosealError(Exception):
    """Base of all errors.

    Args:
        what: one clause, lower case, no full stop: what went wrong and why.
        where: the path, blob or offset that it happened at, if any.
        hint: what the user can do, if anything.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        return text if self.hint is None else f"{text} ({self.hint})"


class UsageError(ErosealError):
    """Arguments or references that make no sense."""

    exit_code = 2


class SourceError(ErosealError):
    """The input of a build cannot be read as it stands."""


class OutputError(ErosealError):
    """A result cannot be written."""


class NotFoundError(ErosealError):
    """An image, a blob, or a path inside an image does not exist."""


class UnsupportedError(ErosealError):
    """Valid input that this version does not handle."""


class KeyMaterialError(ErosealError):
    """A key or certificate that cannot be used."""


class RemoteError(ErosealError):
    """A server cannot be reached, fails again and again, or breaks its protocol."""


class AccessError(ErosealError):
    """A server does not let us."""

    exit_code = 4


class FormatError(ErosealError):
    """Bytes that break a format."""

    exit_code = 3


class VerificationError(ErosealError):
    """A step of the verifier refused.

    Args:
        step: number of the step, as docs/verification.md counts them (1 to 7).
    """

    exit_code = 3

    def __init__(self, what: str, *, step: int, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, where=where, hint=hint)
        self.step = step


class IntegrityError(VerificationError):
    """Bytes that differ from what their digest says.

    Args:
        blob: the blob's digest or path, as text.
        offset: byte offset in the blob of the refused block, if one block is to blame.
        level: level of the refused block (0 data, 1 the hashes of data, and so on), if one block is to blame.
    """

    def __init__(
        self,
        what: str,
        *,
        step: int,
        blob: str | None = None,
        offset: int | None = None,
        level: int | None = None,
        hint: str | None = None,
    ) -> None:
        where = blob
        if offset is not None:
            where = f"{blob or 'blob'} at byte {offset}"
        super().__init__(what, step=step, where=where, hint=hint)
        self.blob = blob
        self.offset = offset
        self.level = level


class AuthenticityError(VerificationError):
    """Nothing that the policy accepts vouches for the image (always step 3)."""

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, step=3, where=where, hint=hint)
