"""References: how a user names an image.

``dir:PATH:NAME`` is an image of a native store, anything without a known prefix is the path of a single
sealed file. The last colon splits, because paths may hold colons and names cannot. A path that looks like a
prefix is written with ``./``.

Parsing does no I/O: whether the thing exists is for `resolve` to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eroseal.errors import UsageError

# No slash, no leading dot or dash; with a record's suffix a name fits into 255 bytes.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,127}", re.ASCII)
RECORD_SUFFIX: Final = ".record"
"""Reserved ending: an image called so could take the place of another image's record."""

_LATER: Final = re.compile(r"(oci:|docker://|s3://|https?://)")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class StoreReference:
    """An image in a native store.

    Args:
        store: path of the store's directory.
        name: of the image, as `check_name` accepts it.
    """

    store: Path
    name: str

    def __str__(self) -> str:
        return f"dir:{self.store}:{self.name}"


@dataclass(frozen=True, slots=True)
class FileReference:
    """A single sealed file.

    Args:
        path: of the file.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Reference = StoreReference | FileReference
"""What a reference can name in this version."""


def parse_reference(text: str) -> Reference:
    """Read a reference as the user typed it.

    Raises:
        UsageError: empty, malformed, or of a kind that this version does not support.
    """
    _refuse_unusable(text)
    if text.startswith("dir:"):
        path, colon, name = text[4:].rpartition(":")
        if not colon or not path:
            raise UsageError(f"not a store reference: {text!r}", hint="write dir:PATH:NAME")
        return StoreReference(Path(path), check_name(name))
    return FileReference(Path(text))


def parse_store(text: str) -> Path:
    """The directory in ``dir:PATH`` or plain ``PATH``, for commands that work on a whole store.

    Raises:
        UsageError: empty, or of a kind that this version does not support.
    """
    _refuse_unusable(text)
    path = text.removeprefix("dir:")
    if not path:
        raise UsageError(f"not a store: {text!r}", hint="write dir:PATH or PATH")
    return Path(path)


def check_name(name: str) -> str:
    """The name itself, if an image may be called so.

    Raises:
        UsageError: characters that are not allowed, too long, or a reserved ending.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"not an image name: {name!r}",
            hint="1 to 128 letters, digits and . _ + @ -, beginning with a letter or digit",
        )
    if name.endswith(RECORD_SUFFIX):
        raise UsageError(
            f"not an image name: {name!r}",
            hint=f"names that end in {RECORD_SUFFIX} are kept for image records",
        )
    return name


def is_image_name(name: str) -> bool:
    """Whether an image may be called so."""
    return _NAME.fullmatch(name) is not None and not name.endswith(RECORD_SUFFIX)


def _refuse_unusable(text: str) -> None:
    if not text or "\0" in text:
        raise UsageError("a reference is empty or holds a NUL byte", hint="write dir:PATH:NAME or a file's path")
    later = _LATER.match(text)
    if later:
        raise UsageError(
            f"references of the form {later[0]}… are not supported by this version: {text!r}",
            hint="use dir:PATH:NAME, or the path of a sealed file (with ./ if it begins like that)",
        )
    if _SCHEME.match(text):
        raise UsageError(f"unknown kind of reference: {text!r}", hint="use dir:PATH:NAME or a file's path")
