"""How a native store's files are called, and how they are looked at without trusting them.

Anything may lie in a store's directory: links, FIFOs, files of any size. What is read is a plain file
within a named bound.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from eroseal.errors import ErosealError, FormatError, NotFoundError
from eroseal.format.digest import Digest, HashAlgorithm
from eroseal.format.record import FOOTER_SIZE, IMAGE_MAGIC, Footer, RecordEntry, parse_record, record_length
from eroseal.format.statement import ImageDigest
from eroseal.limits import MAX_IMAGE_RECORD
from eroseal.readat import FileAt
from eroseal.store.reference import RECORD_SUFFIX

LOCK_NAME: Final = ".lock"
"""Taken while documents and records change, leases are made, and blobs are collected."""
LEASES_NAME: Final = "leases"
"""The directory of what keeps blobs that no document names yet (lease.py)."""
PARTIAL_PREFIX: Final = ".eroseal-part-"
"""How the directory of a blob begins that has not arrived as a whole; the digest's digits follow."""
BINDING_DIGITS: Final = 32
"""Digits of the image digest in a record's file name: they tell images apart, and the name fits 255 bytes."""
_HEX: Final = frozenset("0123456789abcdef")


def is_blob_prefix(name: str) -> bool:
    """Whether a directory below `blobs/` is called as ours are."""
    return len(name) == 2 and set(name) <= _HEX


def digest_of_path(prefix: str, rest: str) -> Digest | None:
    """The digest that `blobs/prefix/rest` stands for, or None if no blob is called so."""
    digits = prefix + rest
    if is_blob_prefix(prefix) and set(digits) <= _HEX:
        for algorithm in HashAlgorithm:
            if len(digits) == 2 * algorithm.digest_size:
                return Digest(algorithm, bytes.fromhex(digits))
    return None


def record_name(name: str, image: ImageDigest) -> str:
    """The file name of the record of this image under this name."""
    return f"{name}.{image.value.hex()[:BINDING_DIGITS]}{RECORD_SUFFIX}"


def record_owner(file_name: str) -> str | None:
    """The image name in the name of a record's file, or None for other files."""
    stem, dot, digits = file_name.removesuffix(RECORD_SUFFIX).rpartition(".")
    if not file_name.endswith(RECORD_SUFFIX) or not dot or len(digits) != BINDING_DIGITS or set(digits) - _HEX:
        return None
    return stem


def is_plain_file(path: Path) -> bool:
    """Whether a file of a store is there; raises FormatError for anything but a plain file.

    Links, FIFOs and devices have no place in a store: opening one could hang, or lead elsewhere.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise NotFoundError(f"cannot look at it: {error.strerror}", where=str(path)) from error
    if not stat.S_ISREG(mode):
        raise FormatError("not a plain file", where=str(path), hint="a store holds plain files only: remove it")
    return True


def read_small(path: Path, *, limit: int) -> bytes | None:
    """A whole file of at most `limit` bytes, or None for none; raises FormatError, NotFoundError."""
    if not is_plain_file(path):
        return None
    try:
        with FileAt(path) as file:
            if file.size > limit:
                raise FormatError(f"has {file.size} bytes, more than {limit}", where=str(path))
            return file.read_at(0, file.size)
    except NotFoundError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def parse_whole_record(data: bytes, *, where: str) -> list[RecordEntry]:
    """The entries of an image record's file, which holds nothing else; raises FormatError that says where."""
    try:
        if len(data) > record_length(IMAGE_MAGIC, data, limit=MAX_IMAGE_RECORD):
            raise FormatError("something follows the image record")
        return parse_record(IMAGE_MAGIC, data, limit=MAX_IMAGE_RECORD)
    except ErosealError as error:
        raise FormatError(error.what, where=where, hint="sign the image again, or copy it again") from error


def complete_size(path: Path) -> int | None:
    """Bytes of a blob whose footer says that it ends where the file does; None for missing and cut ones.

    A cheap look, not a verification: it lets a rebuild heal a blob that was cut short.
    """
    if not is_plain_file(path):
        return None
    with FileAt(path) as file:
        if file.size < FOOTER_SIZE:
            return None
        footer = Footer.parse(file.read_at(file.size - FOOTER_SIZE, FOOTER_SIZE))
        whole = footer is not None and footer.record_offset + footer.record_length == file.size
        return file.size if whole else None


def kept_size(path: Path) -> int | None:
    """As `complete_size`, for somebody who will count on the blob: renews its age, so that no collection takes it soon.

    Whoever may not do that (the file is another user's) has a lease instead.
    """
    size = complete_size(path)
    if size is not None:
        try:
            os.utime(path, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError:
            pass
    return size


def listing(directory: Path) -> list[str]:
    """The names in a directory, sorted; raises NotFoundError."""
    try:
        return sorted(os.listdir(directory))
    except OSError as error:
        raise NotFoundError(f"cannot list: {error.strerror}", where=str(directory)) from error
