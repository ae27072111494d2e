"""Single sealed files: a meta blob by itself, with its image record appended.

::

    0               the sealed blob, unchanged (its seal record ends at E)
    E               image record, zero-padded to a multiple of 4096; its last 64 bytes are a footer that
                    points at the *seal* record, so that a look at the file's end finds everything

Without signatures nothing is appended: such a file is the blob, byte for byte.

The record changes by writing a new file and renaming it. Rewriting the end in place was rejected: a crash
in the middle would lose the signatures that were there, and a reader at that moment would see half a record.
The data is copied by copy_file_range, which shares extents on file systems that can, and keeps holes;
elsewhere it costs one copy of the file. Images that are signed often belong into a store, where only a small
record is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from eroseal.errors import ErosealError, FormatError, NotFoundError, OutputError, UnsupportedError
from eroseal.format.digest import Digest
from eroseal.format.fsverity import DESCRIPTOR_SIZE, Descriptor
from eroseal.format.record import (
    DESCRIPTOR,
    FOOTER_SIZE,
    HEADER_SIZE,
    IMAGE_MAGIC,
    SEAL_MAGIC,
    Footer,
    RecordEntry,
    parse_record,
    record_length,
)
from eroseal.format.sealed import TreeShape, padded_record_length
from eroseal.limits import MAX_IMAGE_RECORD, MAX_SEAL_RECORD
from eroseal.readat import FileAt, ReadAt
from eroseal.store.atomic import TemporaryFile, exists_error, output_error, remove_abandoned, write_fully
from eroseal.store.copying import copy_range, copy_source
from eroseal.store.protocol import RecordChange, encode_image_record, replaced_error
from eroseal.trust.locate import find_seal
from eroseal.trust.verifier import SealLocation

_NOT_SEALED: Final = "seal it first, or check that the whole file was copied"
# The first entry of every seal record: type 1, critical, 256 bytes.
_DESCRIPTOR_HEAD: Final = DESCRIPTOR.to_bytes(2, "little") + b"\1\0" + DESCRIPTOR_SIZE.to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class SingleLayout:
    """Where things are in a single sealed file; nothing of it is verified.

    Args:
        descriptor: that the seal record holds.
        footer: that points at the seal record.
        seal_end: byte offset at which the sealed blob ends.
        end: byte offset at which the image record ends; `seal_end` where there is none.
        entries: of the image record.
        size: bytes of the file.
    """

    descriptor: Descriptor
    footer: Footer
    seal_end: int
    end: int
    entries: tuple[RecordEntry, ...]
    size: int

    @property
    def digest(self) -> Digest:
        """The digest that the descriptor gives: what the file claims to be."""
        return self.descriptor.digest


def read_layout(source: ReadAt, *, name: str = "file") -> SingleLayout:
    """Find the seal and image records of a file; nothing of it is verified.

    Args:
        source: of the whole file.
        name: of it, for messages.

    Raises:
        IntegrityError: no seal is found.
        FormatError: cut short, or a broken record.
    """
    location = find_seal(source)
    try:
        return _read_layout(source, location)
    except FormatError as error:
        raise FormatError(error.what, where=name, hint=error.hint or _NOT_SEALED) from error


def image_tail(layout: SingleLayout, entries: Sequence[RecordEntry]) -> bytes:
    """What follows the sealed blob: the image record with padding and footer, or b"" without entries."""
    record = encode_image_record(entries)
    if not record:
        return b""
    length = padded_record_length(len(record))
    return record.ljust(length - FOOTER_SIZE, b"\0") + layout.footer.encode()


def update_record(
    path: Path, change: RecordChange, *, expect: Digest | None = None, durable: bool = True
) -> list[RecordEntry]:
    """Replace a single file's image record by what `change` makes of it, while other writers wait.

    Args:
        path: of the file; a symlink is followed, its target replaced.
        change: from the entries there are to those wanted.
        expect: the image that the change is about; another one in that file keeps its record.
        durable: sync to disk before the new file appears.

    Returns:
        The new entries.

    Raises:
        NotFoundError: no such file.
        FormatError: not a sealed file.
        UnsupportedError: other data follows the records.
        OutputError: it cannot be written, or it is another image by now; the file is as it was.
    """
    # Resolved only where it must be: the way to the working directory may be closed to us.
    real = Path(os.path.realpath(path)) if os.path.islink(path) else path
    with _lock_newest(real) as file:
        layout = read_layout(file, name=str(path))
        if layout.size != layout.end:
            raise UnsupportedError(
                f"{layout.size - layout.end} bytes of something else follow the records",
                where=str(path),
                hint="export the image to a new file, and sign that",
            )
        if expect is not None and layout.digest != expect:
            raise replaced_error(path, expect)
        entries = list(change(list(layout.entries)))
        if entries != list(layout.entries):
            _replace(file, real, layout, entries, durable=durable)
    return entries


def write_single(
    source: ReadAt,
    entries: Sequence[RecordEntry],
    target: Path,
    *,
    replace: bool = False,
    durable: bool = True,
) -> int:
    """Write a sealed blob with an image record as one file; a failure leaves nothing.

    Args:
        source: the sealed blob, or a single file whose own image record is left behind.
        entries: of the image record.
        target: the new file.
        replace: take the place of a file that is there.
        durable: sync to disk before the file appears.

    Returns:
        Bytes of the file.

    Raises:
        FormatError: `source` is not sealed.
        OutputError: `target` exists, or cannot be written.
    """
    layout = read_layout(source, name=str(getattr(source, "name", "blob")))
    with SingleWriter(target, replace=replace, durable=durable) as writer:
        try:
            copy_source(source, writer.fd, layout.seal_end)
        except OSError as error:
            raise output_error(error, target) from error
        return writer.commit(entries)


class SingleWriter:
    """A single sealed file in the making: seal into `fd`, then commit with the image record.

    Args:
        target: the final name.
        replace: take the place of a file that is there.
        durable: sync to disk before the file appears.

    Raises:
        OutputError: `target` exists, or no file can be made there.
    """

    __slots__ = ("_file", "_replace", "target")

    def __init__(self, target: Path, *, replace: bool = False, durable: bool = True) -> None:
        self.target = target
        self._replace = replace
        if os.path.lexists(target) and not replace:
            raise exists_error(target, replaceable=True)
        # A killed build may have left gigabytes here, under a name that nobody looks for.
        remove_abandoned(target.parent)
        self._file = TemporaryFile(target.parent, durable=durable)

    @property
    def fd(self) -> int:
        """The descriptor, open for reading and writing; -1 once committed or discarded."""
        return self._file.fd

    @property
    def path(self) -> Path:
        """The file's temporary name, for worker processes that open it themselves."""
        return self._file.path

    def commit(self, record: Sequence[RecordEntry] = ()) -> int:
        """Append the image record to the sealed blob in `fd` and give the file its name; gives its bytes.

        Raises:
            FormatError: `fd` does not hold a sealed blob and nothing else.
            OutputError: it cannot be written.
        """
        with FileAt(self._file.path) as sealed:
            layout = read_layout(sealed, name=str(self.target))
        if layout.size != layout.seal_end:
            raise FormatError("there is more than a sealed blob in it", where=str(self.target))
        tail = image_tail(layout, record)
        try:
            write_fully(self._file.fd, tail, layout.seal_end)
        except OSError as error:
            raise output_error(error, self.target) from error
        self._file.commit(self.target, replace=self._replace)
        return layout.seal_end + len(tail)

    def discard(self) -> None:
        """Drop it; never raises."""
        self._file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.discard()


def _read_layout(source: ReadAt, location: SealLocation) -> SingleLayout:
    head_size = HEADER_SIZE + len(_DESCRIPTOR_HEAD) + DESCRIPTOR_SIZE
    head = source.read_at(location.record_offset, head_size)
    seal_length = padded_record_length(record_length(SEAL_MAGIC, head, limit=MAX_SEAL_RECORD))
    if head[HEADER_SIZE : HEADER_SIZE + len(_DESCRIPTOR_HEAD)] != _DESCRIPTOR_HEAD:
        raise FormatError("seal record does not begin with its descriptor")
    descriptor = Descriptor.parse(head[-DESCRIPTOR_SIZE:])
    # Whoever writes a record cuts the file at this offset: hints alone must not decide it.
    offset = TreeShape.of(descriptor.data_size, descriptor.params).record_offset
    if location != SealLocation(descriptor.data_size, offset):
        raise FormatError("seal record and file disagree about where things are")
    seal_end = offset + seal_length
    if seal_end > source.size:
        raise FormatError(f"truncated: the seal reaches to byte {seal_end}, the file ends at byte {source.size}")
    entries, end = _image_record(source, seal_end)
    footer = Footer(descriptor.data_size, offset, seal_length)
    return SingleLayout(descriptor, footer, seal_end, end, tuple(entries), source.size)


def _image_record(source: ReadAt, offset: int) -> tuple[list[RecordEntry], int]:
    if source.size - offset < HEADER_SIZE:
        return [], offset
    head = source.read_at(offset, HEADER_SIZE)
    if head[: len(IMAGE_MAGIC)] != IMAGE_MAGIC:
        return [], offset
    total = record_length(IMAGE_MAGIC, head, limit=MAX_IMAGE_RECORD)
    end = offset + padded_record_length(total)
    if end > source.size:
        raise FormatError("image record is truncated")
    return parse_record(IMAGE_MAGIC, source.read_at(offset, total), limit=MAX_IMAGE_RECORD), end


def _lock_newest(path: Path) -> FileAt:
    """The file of this name, locked; its descriptor holds the lock until it is closed."""
    while True:
        file = open_sealed(path)
        try:
            with contextlib.suppress(OSError):  # no locks on this file system: the rename is atomic still
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            # The writer before us has put another file in its place, and holds what it read.
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError as error:
            file.close()
            raise NotFoundError("no such file", where=str(path)) from error
        except BaseException:
            file.close()
            raise
        file.close()


def open_sealed(path: Path) -> FileAt:
    """Open a file or block device for reading; raises NotFoundError, FormatError for anything else."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        hint = "an image in a store is written dir:PATH:NAME" if ":" in str(path) else None
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NotFoundError(f"cannot open: {reason}".lower(), where=str(path), hint=hint) from error
    if stat.S_ISDIR(mode):
        raise FormatError(
            "is a directory, not a sealed file", where=str(path), hint="an image in a store is dir:PATH:NAME"
        )
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise FormatError("is not a file", where=str(path))
    return FileAt(path)


def _replace(file: FileAt, real: Path, layout: SingleLayout, entries: Sequence[RecordEntry], *, durable: bool) -> None:
    before = os.fstat(file.fileno())
    if not stat.S_ISREG(before.st_mode):
        raise OutputError("only regular files can be signed in place", where=str(real), hint="export it to a file")
    tail = image_tail(layout, entries)
    with TemporaryFile(real.parent, durable=durable) as temporary:
        try:
            copy_range(file.fileno(), temporary.fd, layout.seal_end)
            write_fully(temporary.fd, tail, layout.seal_end)
            with contextlib.suppress(PermissionError):
                os.fchown(temporary.fd, before.st_uid, before.st_gid)
        except OSError as error:
            raise output_error(error, real, "cannot write a new file beside it") from error
        except ErosealError as error:
            raise FormatError(error.what, where=str(real)) from error
        temporary.commit(real, replace=True, mode=stat.S_IMODE(before.st_mode))
