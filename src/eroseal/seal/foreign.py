"""Sealing images that other tools made: in place, or to new files that appear whole or not at all.

What is sealed is vouched for later, so nothing is sealed whose extents leave a device: the kernel would serve
seal bytes as file content. The device table of a multi-device image must name the data blobs by digest; it is
rewritten only when the caller asks (docs/format.md, "Images of other tools").

In place, a failure restores the file: the bytes that were rewritten and its length. Only a crash of the
machine or a kill in mid-way can leave a longer file behind, whose image still mounts.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from eroseal.crypto.pieces import Progress, set_size
from eroseal.errors import FormatError, IntegrityError, UnsupportedError, UsageError
from eroseal.format.digest import BLOCK, Digest, TreeParams
from eroseal.format.erofs import (
    COMPAT_SB_CHKSUM,
    DEVICE_SLOT_SIZE,
    SUPER_OFFSET,
    DeviceSlot,
    Superblock,
    superblock_checksum,
)
from eroseal.image.check import check_image
from eroseal.image.check_volume import check_volume
from eroseal.image.reader import ImageReader
from eroseal.readat import FileAt, ReadAt
from eroseal.seal.blob import SealedBlob, seal_in_place
from eroseal.seal.target import PathLike, Target, copy_of, in_place
from eroseal.trust.blob import SelfConsistentBlob, UnverifiedBlob
from eroseal.trust.devices import device_table
from eroseal.trust.image import UnverifiedImage, open_self_consistent, open_self_consistent_image
from eroseal.trust.locate import find_seal
from eroseal.trust.scan import scan_blob

_CHECKSUM_OFFSET = SUPER_OFFSET + 4
_MAX_BLOCKS_NARROW = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SealedImage:
    """What sealing an image gave.

    Args:
        meta: the meta blob; its digest is the image digest.
        devices: the data blobs in device order.
        rewritten: number of device slots that were rewritten.
        compressed: files whose extents could not be checked because they are compressed.
        warnings: what the structure check found odd.
    """

    meta: SealedBlob
    devices: tuple[SealedBlob, ...]
    rewritten: int
    compressed: int
    warnings: tuple[str, ...]


def seal_image(
    path: PathLike,
    *,
    output: PathLike | None = None,
    devices: Sequence[PathLike] = (),
    rewrite_tags: bool = False,
    params: TreeParams | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    durable: bool = True,
) -> SealedImage:
    """Seal an EROFS image that any tool made.

    Args:
        path: the image (its primary device).
        output: where to write the sealed image; its data blobs are written beside it, as OUTPUT.device1 and
            so on. None seals all files in place.
        devices: data blobs in device order; those that are sealed already stay as they are.
        rewrite_tags: let device slots be rewritten to name the data blobs, and the superblock's checksum with
            them.
        params: hash algorithm and salt; by default SHA-256 without a salt.
        jobs: threads that hash; None means one for each processor.
        progress: told the bytes hashed.
        durable: sync to disk before success is reported.

    Raises:
        UsageError: the image is sealed already.
        UnsupportedError: device slots do not name the data blobs, and `rewrite_tags` was not given.
        FormatError, IntegrityError: the image is broken, or its extents leave a device.
        NotFoundError, OutputError, SourceError: a file is missing, there already, or cannot be read or
            written.
    """
    with ExitStack() as stack:
        targets = []
        for number, source in enumerate([path, *devices]):
            target = in_place(source) if output is None else copy_of(source, _output(output, number))
            targets.append(stack.enter_context(target))
        job = _Job(stack, targets, params or TreeParams(), jobs, progress)
        result = job.run(rewrite_tags=rewrite_tags)
        # The meta blob comes last: whoever sees it finds its data blobs.
        for target in reversed(targets):
            target.commit(durable=durable)
    return result


def _output(output: PathLike, number: int) -> str:
    return os.fsdecode(output) + (f".device{number}" if number else "")


class _Job:
    """One image being sealed: its files, opened for reading beside the targets."""

    def __init__(
        self,
        stack: ExitStack,
        targets: Sequence[Target],
        params: TreeParams,
        jobs: int | None,
        progress: Progress | None,
    ) -> None:
        self.target, *self.device_targets = targets
        self.params = params
        self.jobs = jobs
        self.progress = progress
        self.name = self.target.name
        self.stack = stack
        self.meta, *self.data = [stack.enter_context(FileAt(target.path)) for target in targets]
        for target, source in zip(targets, [self.meta, *self.data], strict=True):
            source.name = target.name  # errors name the file that the user gave, not the copy

    def run(self, *, rewrite_tags: bool) -> SealedImage:
        if _opened(self.meta) is not None:
            raise UsageError("is sealed already", where=self.name, hint="verify it, or sign it")
        sealed = [_opened(source) for source in self.data]
        reader = self._check_reader(sealed)
        check = check_image(reader)
        if not rewrite_tags:
            self._refuse_slots(reader, sealed)
        blobs = tuple(map(self._device, self.device_targets, self.data, sealed))
        rewritten = self._rewrite(reader.superblock, reader.devices, blobs, rewrite_tags=rewrite_tags)
        meta = self._seal(self.target)
        self._confirm(blobs)
        return SealedImage(meta, blobs, rewritten, check.compressed, check.warnings)

    def _check_reader(self, sealed: Sequence[SelfConsistentBlob | None]) -> ImageReader:
        """A reader that sees the files as long as they are, before any padding: no extent may use it."""
        parts: list[ReadAt] = []
        for number, (source, blob) in enumerate(zip(self.data, sealed, strict=True), 1):
            if blob is not None and blob.params != self.params:
                raise UnsupportedError(
                    "is sealed with another hash algorithm or salt than the image shall have",
                    where=source.name,
                    hint="all blobs of an image use the same",
                )
            if source.size == 0:
                raise FormatError(f"data blob {number} is empty", where=source.name)
            parts.append(source if blob is None else UnverifiedBlob(source, blob.size))
        return ImageReader(UnverifiedImage(UnverifiedBlob(self.meta), parts))

    def _refuse_slots(self, reader: ImageReader, sealed: Sequence[SelfConsistentBlob | None]) -> None:
        """Refuse, before anything is hashed, slots that cannot be right as they stand."""
        for number, (slot, source, blob) in enumerate(zip(reader.devices, self.data, sealed, strict=True), 1):
            size = _padded(source.size) if blob is None else blob.size
            if not _names_a_blob(slot, self.params) or slot.blocks * reader.superblock.block_size != size:
                raise self._wrong_slot(number)

    def _wrong_slot(self, number: int) -> UnsupportedError:
        return UnsupportedError(
            f"device slot {number} does not name its data blob by digest and size",
            where=self.name,
            hint="--rewrite-tags lets it be rewritten",
        )

    def _device(self, target: Target, source: FileAt, blob: SelfConsistentBlob | None) -> SealedBlob:
        if blob is None:
            return self._seal(target)
        scan_blob(source, blob, jobs=self.jobs, progress=self.progress)
        root = blob.descriptor.root_hash
        return SealedBlob(blob.digest, blob.descriptor, blob.seal.sealed_size, root)

    def _seal(self, target: Target) -> SealedBlob:
        size = _padded(target.size)
        set_size(target.fd, size)
        return seal_in_place(target.fd, size, self.params, jobs=self.jobs, progress=self.progress)

    def _rewrite(
        self,
        superblock: Superblock,
        slots: Sequence[DeviceSlot],
        blobs: Sequence[SealedBlob],
        *,
        rewrite_tags: bool,
    ) -> int:
        """Make the device slots name the data blobs; returns how many had to change."""
        start, _ = device_table(superblock)
        changed = 0
        for number, (slot, blob) in enumerate(zip(slots, blobs, strict=True)):
            blocks = blob.descriptor.data_size // superblock.block_size
            if (slot.tag, slot.blocks) == (blob.digest.tag(), blocks):
                continue
            if not rewrite_tags:
                raise self._wrong_slot(number + 1)
            if blocks > _MAX_BLOCKS_NARROW:
                raise UnsupportedError(f"data blob {number + 1} has too many blocks", where=self.name)
            offset = start + number * DEVICE_SLOT_SIZE
            self.target.patch(blob.digest.tag(), offset)
            self.target.patch(struct.pack("<I", blocks), offset + len(slot.tag))
            changed += 1
        if changed and superblock.feature_compat & COMPAT_SB_CHKSUM:
            self._rewrite_checksum(superblock)
        return changed

    def _rewrite_checksum(self, superblock: Superblock) -> None:
        covered = max(superblock.block_size, SUPER_OFFSET + superblock.block_size)
        first = self.meta.read_at(0, min(covered, self.target.size))
        checksum = superblock_checksum(first, superblock.blkszbits)
        self.target.patch(struct.pack("<I", checksum), _CHECKSUM_OFFSET)

    def _confirm(self, blobs: Sequence[SealedBlob]) -> None:
        """Open the result as a reader would: a table that was rewritten must pass steps 6 and 7."""
        paths = {blob.digest: target.path for blob, target in zip(blobs, self.device_targets, strict=True)}
        meta = self.stack.enter_context(FileAt(self.target.path))
        with open_self_consistent_image(meta, open_data=lambda digest: FileAt(paths[digest]), name=self.name) as image:
            check_volume(ImageReader(image))
            for k in range(len(image.devices)):
                image.device(k)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _opened(source: FileAt) -> SelfConsistentBlob | None:
    """The sealed blob in a file, or None where there is no seal; a broken seal is refused."""
    try:
        location = find_seal(source)
    except IntegrityError:
        return None
    return open_self_consistent(source, data_size=location.data_size)


def _names_a_blob(slot: DeviceSlot, params: TreeParams) -> bool:
    try:
        digest = Digest.from_tag(params.algorithm, slot.tag)
    except FormatError:
        return False
    return any(digest.value)
