"""Opening blobs and images: the I/O around the verifier's steps.

`open_blob` and `open_image` read what the steps need and hand it to `verifier`; what comes back is typed by
what was proven. Data blobs are opened when they are first read, under the digest that the verified device
table demands. Whoever opens a source closes it: an image closes the data blobs' sources, never the meta
blob's.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar

from eroseal.errors import FormatError, IntegrityError, NotFoundError, UsageError
from eroseal.format.digest import BLOCK, Digest, HashAlgorithm
from eroseal.format.erofs import SUPER_OFFSET
from eroseal.format.record import HEADER_SIZE, RecordEntry
from eroseal.format.statement import Statement
from eroseal.limits import MAX_OPEN_BLOBS
from eroseal.readat import ReadAt
from eroseal.trust import devices, verifier
from eroseal.trust.blob import SelfConsistentBlob, UnverifiedBlob, VerifiedBlob, fetch
from eroseal.trust.devices import DeviceInfo
from eroseal.trust.locate import find_seal
from eroseal.trust.verifier import SealBytes, SealLocation

if TYPE_CHECKING:
    from eroseal.trust.policy import Policy, TrustDecision

OpenData = Callable[[Digest], ReadAt]
"""Finds a data blob by its digest; the source may have `close()`."""

_TOKEN: Final = object()

_Blob = TypeVar("_Blob", bound=SelfConsistentBlob | UnverifiedBlob)


def read_seal(source: ReadAt, location: SealLocation, *, name: str) -> SealBytes:
    """All bytes that steps 1 to 4 look at; raises IntegrityError where they are missing."""
    offset = location.record_offset
    header = fetch(source, offset, HEADER_SIZE, step=1, name=name)
    length = verifier.step1_record_length(header, location, name=name)
    record = fetch(source, offset, length, step=1, name=name)
    dmverity = fetch(source, location.data_size, BLOCK, step=2, name=name)
    single = location.data_size == BLOCK
    top = fetch(source, 0 if single else location.data_size + BLOCK, BLOCK, step=4, name=name)
    return SealBytes(location, record, dmverity, top)


def _name_of(source: ReadAt, digest: Digest | None, name: str | None) -> str:
    found = name or getattr(source, "name", None)
    return str(found or digest or "blob")


def open_blob(
    source: ReadAt, expected: Digest, *, data_size: int | None = None, name: str | None = None
) -> VerifiedBlob:
    """Open a blob that must have a digest (steps 1 to 4).

    Args:
        source: the sealed blob; bytes after its records are ignored.
        expected: the digest that it must have.
        data_size: D in bytes where it is known; else hints in the source are followed.
        name: what errors call the blob; by default the source's own name.

    Raises:
        IntegrityError: a step refused; names blob, offset and level.
    """
    name = _name_of(source, expected, name)
    try:
        location = find_seal(source, data_size=data_size, algorithm=expected.algorithm)
    except IntegrityError as error:
        location = _another_seal(source, error)
    seal = verifier.verify_seal(read_seal(source, location, name=name), name=name, expected=expected)
    return VerifiedBlob(source, seal)


def _another_seal(source: ReadAt, error: IntegrityError) -> SealLocation:
    """Where the seal of a blob is that stands in another one's place, so that the refusal can say which it is."""
    try:
        return find_seal(source)
    except IntegrityError:
        raise error from None


def open_self_consistent(
    source: ReadAt, *, data_size: int | None = None, name: str | None = None
) -> SelfConsistentBlob:
    """Open a blob that agrees with itself, whatever its digest is: proves that it is whole, not whose it is.

    Args:
        source: the sealed blob; bytes after its records are ignored.
        data_size: D in bytes where it is known; else hints in the source are followed.
        name: what errors call the blob; by default the source's own name.

    Raises:
        IntegrityError: a step refused; names blob, offset and level.
    """
    name = _name_of(source, None, name)
    location = find_seal(source, data_size=data_size)
    seal = verifier.verify_seal(read_seal(source, location, name=name), name=name)
    return SelfConsistentBlob(source, seal)


class _Devices(Generic[_Blob]):
    """Data blobs opened on demand; the least recently used is let go, and closed once nobody reads it."""

    def __init__(self, open_one: Callable[[int], tuple[_Blob, ReadAt]]) -> None:
        self._open = open_one
        self._blobs: OrderedDict[int, _Blob] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, k: int) -> _Blob:
        with self._lock:
            blob = self._blobs.get(k)
            if blob is None:
                blob, source = self._open(k)
                close = getattr(source, "close", None)
                if close is not None:
                    # Another thread may hold the blob when it leaves the cache: its last reference closes it.
                    weakref.finalize(blob, close)
                self._blobs[k] = blob
            self._blobs.move_to_end(k)
            while len(self._blobs) > MAX_OPEN_BLOBS:
                self._blobs.popitem(last=False)
            return blob

    def clear(self) -> None:
        with self._lock:
            self._blobs.clear()


class VerifiedImage:
    """An image whose meta blob is vouched for, and whose data blobs must be the ones that it names.

    Made by `open_image` and `open_named_image` only. Safe for use by several threads; a context manager that
    lets go of the data blobs.

    Attributes:
        meta: the verified meta blob.
        devices: digest and size of each data blob, in device order.
        decision: why the image is trusted.
    """

    def __init__(self, meta: VerifiedBlob, decision: TrustDecision, open_data: OpenData, *, token: object) -> None:
        if token is not _TOKEN or not isinstance(meta, VerifiedBlob):
            raise UsageError("a verified image is made by its openers alone")
        self.meta = meta
        self.devices = _verified_devices(meta)
        self.decision = decision
        self._open_data = open_data
        self._cache = _Devices(self._open)

    @property
    def digest(self) -> Digest:
        """The image digest."""
        return self.meta.digest

    @property
    def trusted_by(self) -> str:
        """The option or form that decided."""
        return self.decision.trusted_by

    @property
    def statement(self) -> Statement | None:
        """What the signer stated, where a statement took part."""
        return self.decision.statement

    def device(self, k: int) -> VerifiedBlob:
        """Data blob `k`, counted from 0; opened when first asked for.

        Raises:
            NotFoundError: the image has no such device, or the blob is missing.
            IntegrityError: the blob is not the one that the device table names.
        """
        _check_device(k, len(self.devices))
        return self._cache.get(k)

    def close(self) -> None:
        """Let go of the data blobs; each is closed when nobody reads it any more."""
        self._cache.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _open(self, k: int) -> tuple[VerifiedBlob, ReadAt]:
        return _open_device(self.devices[k], self.meta, self._open_data)


class UnverifiedImage:
    """An image that nobody vouches for, read because the caller asked for that by name.

    Made from bare parts, or by `open_self_consistent_image`, which at least checks every block against the
    blobs' own seals.

    Args:
        meta: the primary device, a bare source or a self-consistent blob.
        data: the data blobs' sources in device order, or a function that finds them by digest.
    """

    def __init__(self, meta: ReadAt, data: Sequence[ReadAt] | OpenData = ()) -> None:
        self.meta = meta if isinstance(meta, SelfConsistentBlob | UnverifiedBlob) else UnverifiedBlob(meta)
        self._data = data
        self.devices = _unverified_devices(self.meta, None if callable(data) else data)
        self._cache: _Devices[SelfConsistentBlob | UnverifiedBlob] = _Devices(self._open)

    @property
    def digest(self) -> Digest | None:
        """The image digest that its own seal gives, unverified; None for a bare image."""
        return self.meta.digest if isinstance(self.meta, SelfConsistentBlob) else None

    def device(self, k: int) -> SelfConsistentBlob | UnverifiedBlob:
        """Data blob `k`, counted from 0; raises NotFoundError where there is none."""
        _check_device(k, len(self.devices))
        return self._cache.get(k)

    def close(self) -> None:
        """Let go of the data blobs; each is closed when nobody reads it any more."""
        self._cache.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _open(self, k: int) -> tuple[SelfConsistentBlob | UnverifiedBlob, ReadAt]:
        if not callable(self._data):
            source = self._data[k]
            blob = UnverifiedBlob(source, self.devices[k].size)
            return blob, blob  # the caller opened it, and closes it
        if isinstance(self.meta, SelfConsistentBlob):
            return _open_device(self.devices[k], self.meta, self._data)
        digest = self.devices[k].digest
        if digest is None:
            raise FormatError(f"device slot {k + 1} names no blob", where=self.meta.name)
        source = self._data(digest)
        return UnverifiedBlob(source, self.devices[k].size), source


def open_image(
    source: ReadAt,
    *,
    policy: Policy,
    record: Sequence[RecordEntry] = (),
    open_data: OpenData,
    data_size: int | None = None,
    name: str | None = None,
) -> VerifiedImage:
    """Open an image that a policy accepts (steps 1 to 4, 6 and 7 for the meta blob).

    Args:
        source: the sealed meta blob; stays open as long as the image is used, and is the caller's to close.
        policy: what the caller accepts.
        record: entries of the image record.
        open_data: finds a data blob by its digest; called when the blob is first read.
        data_size: D in bytes where it is known; else hints in the source are followed.
        name: what errors call the meta blob; by default the source's own name.

    Raises:
        IntegrityError: a step refused; names blob, offset and level.
        AuthenticityError: nothing that the policy accepts vouches for the image.
    """
    name = _name_of(source, None, name)
    location = find_seal(source, data_size=data_size)
    from eroseal.trust.policy import authenticate  # noqa: PLC0415 - loads cryptography, which builds never need

    decisions: list[TrustDecision] = []
    seal = verifier.verify_seal(
        read_seal(source, location, name=name),
        name=name,
        vouch=lambda digest: decisions.append(authenticate(policy, digest, record)),
    )
    meta = VerifiedBlob(source, seal)
    return VerifiedImage(meta, decisions[0], open_data, token=_TOKEN)


def open_named_image(
    source: ReadAt, expected: Digest, *, decision: TrustDecision, open_data: OpenData, data_size: int | None = None
) -> VerifiedImage:
    """Open an image that must have a digest, because something that is trusted names it (steps 1 to 4, 6 and 7).

    Args:
        source: the sealed meta blob; the caller's to close.
        expected: the image digest.
        decision: why what names the image is trusted.
        open_data: finds a data blob by its digest; called when the blob is first read.
        data_size: D in bytes where it is known; else hints in the source are followed.

    Raises:
        IntegrityError: a step refused; names blob, offset and level.
    """
    return VerifiedImage(open_blob(source, expected, data_size=data_size), decision, open_data, token=_TOKEN)


def open_self_consistent_image(
    source: ReadAt, *, open_data: OpenData, data_size: int | None = None, name: str | None = None
) -> UnverifiedImage:
    """Open an image that agrees with itself: every block is checked, but nobody vouches for the whole.

    Args:
        source: the sealed meta blob; the caller's to close.
        open_data: finds a data blob by its digest.
        data_size: D in bytes where it is known; else hints in the source are followed.
        name: what errors call the meta blob.

    Raises:
        IntegrityError: a step refused; names blob, offset and level.
    """
    meta = open_self_consistent(source, data_size=data_size, name=name)
    return UnverifiedImage(meta, open_data)


def _verified_devices(meta: SelfConsistentBlob) -> tuple[DeviceInfo, ...]:
    first = meta.read_at(SUPER_OFFSET, BLOCK - SUPER_OFFSET)
    superblock = devices.step6_superblock(first, meta.size, name=meta.name)
    start, length = devices.device_table(superblock)
    slots = devices.step6_devices(superblock, meta.read_at(start, length), name=meta.name)
    return devices.step7_devices(superblock, slots, meta.descriptor, name=meta.name)


def _open_device(device: DeviceInfo, meta: SelfConsistentBlob, open_data: OpenData) -> tuple[VerifiedBlob, ReadAt]:
    """A data blob under the digest that the meta blob demands (step 7); closed again when it is refused."""
    if device.digest is None:
        raise FormatError("a device slot of a sealed image names no blob", where=meta.name)
    source = open_data(device.digest)
    try:
        blob = open_blob(source, device.digest, data_size=device.size)
        devices.step7_data_blob(blob.seal, device, meta.descriptor)
    except BaseException:
        close = getattr(source, "close", None)
        if close is not None:
            close()
        raise
    return blob, source


def _unverified_devices(
    meta: SelfConsistentBlob | UnverifiedBlob, given: Sequence[ReadAt] | None
) -> tuple[DeviceInfo, ...]:
    if isinstance(meta, SelfConsistentBlob) and given is None:
        return _verified_devices(meta)
    if meta.size < BLOCK // 2:
        raise FormatError("image is too short for an EROFS superblock", where=meta.name)
    first = meta.read_at(SUPER_OFFSET, min(BLOCK, meta.size) - SUPER_OFFSET)
    superblock = devices.step6_superblock(first, meta.size, name=meta.name)
    start, length = devices.device_table(superblock)
    slots = devices.device_slots(superblock, meta.read_at(start, length))
    if given is None:
        sizes = [slot.blocks * superblock.block_size for slot in slots]
    elif len(given) != len(slots):
        raise NotFoundError(f"image has {len(slots)} data blobs, {len(given)} are given", where=meta.name)
    else:
        # mkfs.erofs 1.5 does not say how long a data blob is: then it is all that is given.
        sizes = [slot.blocks * superblock.block_size or part.size for slot, part in zip(slots, given, strict=True)]
        for part, size in zip(given, sizes, strict=True):
            UnverifiedBlob(part, size)  # refuses what is too short, before anything is read
    return tuple(DeviceInfo(_lenient_tag(slot.tag), size) for slot, size in zip(slots, sizes, strict=True))


def _lenient_tag(tag: bytes) -> Digest | None:
    """The digest in a tag that looks like a SHA-256 one; other tools put other things there."""
    try:
        return Digest.from_tag(HashAlgorithm.SHA256, tag)
    except FormatError:
        return None


def _check_device(k: int, count: int) -> None:
    if not 0 <= k < count:
        raise NotFoundError(f"image has {count} data blobs, not one of number {k + 1}")
