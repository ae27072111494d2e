"""Small sealed images, really built, then held in memory where tests can alter every bit of them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from eroseal.build.builder import build
from eroseal.build.options import BuildOptions
from eroseal.errors import NotFoundError
from eroseal.format.digest import BLOCK, Digest, TreeParams
from eroseal.format.erofs import SUPER_OFFSET, superblock_checksum
from eroseal.format.record import RecordEntry
from eroseal.format.sealed import SealRecord, TreeShape
from eroseal.image.check import check_image
from eroseal.image.reader import ImageReader
from eroseal.readat import check_range
from eroseal.seal.blob import seal_in_place
from eroseal.store.reference import parse_reference
from eroseal.store.resolve import resolve
from eroseal.trust.blob import VerifiedBlob
from eroseal.trust.image import VerifiedImage, open_image
from eroseal.trust.policy import Policy
from eroseal.trust.scan import scan_blob

Files = Mapping[str, bytes]


class Altered:
    """A source over a bytearray that a test changes under its reader."""

    __slots__ = ("data", "name")

    def __init__(self, data: bytes, name: str) -> None:
        self.data = bytearray(data)
        self.name = name

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(self.name, len(self.data), offset, length)
        return bytes(self.data[offset : offset + length])


@dataclass(frozen=True, slots=True)
class Content:
    """All that can be read from an image: its digest, and every path with type, mode, owner, times and bytes."""

    digest: Digest
    entries: tuple[tuple[object, ...], ...]


@dataclass(frozen=True, slots=True)
class MemoryImage:
    """A sealed image in memory.

    Args:
        digest: of the honest image.
        meta: bytes of the sealed meta blob.
        data: bytes of the sealed data blobs, in device order.
        digests: their digests.
    """

    digest: Digest
    meta: bytes
    data: tuple[bytes, ...]
    digests: tuple[Digest, ...]

    @property
    def pinned(self) -> Policy:
        return pin(self.digest)

    def sources(self) -> tuple[Altered, dict[Digest, Altered]]:
        """Fresh sources: the meta blob, and each data blob under its digest."""
        data = {
            digest: Altered(blob, f"data blob {number}")
            for number, (digest, blob) in enumerate(zip(self.digests, self.data, strict=True), 1)
        }
        return Altered(self.meta, "meta blob"), data

    def altered(
        self, meta: bytes | None = None, data: Mapping[int, bytes] | None = None
    ) -> tuple[Altered, dict[Digest, Altered]]:
        """Sources with other bytes in place of the meta blob or of data blobs, by number from 0."""
        blobs = [(data or {}).get(number, blob) for number, blob in enumerate(self.data)]
        return replace(self, meta=self.meta if meta is None else meta, data=tuple(blobs)).sources()


def pin(*digests: Digest) -> Policy:
    return Policy(digests=digests, time=0)


def finder(data: Mapping[Digest, Altered]) -> Callable[[Digest], Altered]:
    """Look up data blobs as a store does."""

    def find(digest: Digest) -> Altered:
        if digest not in data:
            raise NotFoundError(f"no blob {digest}")
        return data[digest]

    return find


def verify_whole(
    meta: Altered, data: Mapping[Digest, Altered], policy: Policy, record: Sequence[RecordEntry] = ()
) -> VerifiedImage:
    """All that a verifier does: open everything, scan every block of every blob, check the structure."""
    with open_image(meta, policy=policy, record=record, open_data=finder(data)) as image:
        blobs: list[tuple[Altered, VerifiedBlob]] = [(meta, image.meta)]
        for k, device in enumerate(image.devices):
            assert device.digest is not None
            blobs.append((data[device.digest], image.device(k)))
        for source, blob in reversed(blobs):
            assert scan_blob(source, blob, jobs=1) == []
        check_image(ImageReader(image))
        return image


def read_whole(image: VerifiedImage) -> Content:
    """Everything that a reader gets to see."""
    reader = ImageReader(image)
    entries: list[tuple[object, ...]] = []
    for path, inode in reader.walk():
        data = b"" if inode.is_dir else reader.read(inode, 0, inode.size)
        facts = (inode.mode, inode.uid, inode.gid, inode.mtime, inode.mtime_nsec, inode.nlink, inode.size)
        entries.append((path, *facts, data, tuple(reader.xattrs(inode))))
    return Content(image.digest, tuple(entries))


def write_tree(directory: Path, files: Files) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def build_image(directory: Path, files: Files, **options: object) -> tuple[str, MemoryImage]:
    """Build files into a store (`TARGET` option: into that reference); gives the reference and the image."""
    source = write_tree(directory / "source", files)
    reference = str(options.pop("target", f"dir:{directory}/store:image"))
    bases = options.pop("bases", ())
    options = {"jobs": 1, "durable": False, "timestamp": 1_700_000_000, "all_root": True} | options
    build(source, parse_reference(reference), BuildOptions(**options), bases=bases)  # type: ignore[arg-type]
    return reference, load_image(reference)


def load_image(reference: str) -> MemoryImage:
    """Bring a built image into memory."""
    with ExitStack() as stack:
        stored = stack.enter_context(resolve(reference))
        meta = stored.meta.read_at(0, stored.meta.size)
        source = Altered(meta, "meta blob")
        digest = seal_of(meta).descriptor.digest
        with open_image(source, policy=pin(digest), open_data=stored.open_data) as image:
            digests = tuple(device.digest for device in image.devices if device.digest is not None)
        blobs = []
        for item in digests:
            file = stored.open_data(item)
            stack.callback(file.close)
            blobs.append(file.read_at(0, file.size))
    return MemoryImage(digest, meta, tuple(blobs), digests)


def seal_of(blob: bytes) -> SealRecord:
    """The seal record of a blob that ends with it."""
    data_size, offset = struct.unpack_from("<QQ", blob, len(blob) - 64 + 16)
    assert data_size < offset
    return SealRecord.parse(blob[offset:])


def shape_of(blob: bytes) -> TreeShape:
    descriptor = seal_of(blob).descriptor
    return TreeShape.of(descriptor.data_size, descriptor.params)


def region_of(blob: bytes) -> bytes:
    """The data region of a sealed blob."""
    return blob[: seal_of(blob).descriptor.data_size]


def sealed(
    directory: Path, region: bytes, params: TreeParams | None = None, chunks: Sequence[int] | None = None
) -> bytes:
    """Seal any data region: what an attacker, or a careless signer, can do too."""
    params = params or TreeParams()
    path = directory / "being-sealed"
    path.write_bytes(region)
    with path.open("r+b") as file:
        seal_in_place(file.fileno(), len(region), params, jobs=1, chunk_blocks=chunks)
    blob = path.read_bytes()
    path.unlink()
    return blob


def with_checksum(region: bytes | bytearray) -> bytes:
    """The data region of a meta blob with a superblock checksum that fits."""
    fixed = bytearray(region)
    struct.pack_into("<I", fixed, SUPER_OFFSET + 4, superblock_checksum(bytes(fixed[:BLOCK]), 12))
    return bytes(fixed)


def resealed(
    directory: Path, image: MemoryImage, change: Callable[[bytearray], object], *, data: Sequence[bytes] | None = None
) -> MemoryImage:
    """The image with an altered meta blob, checksummed and sealed again: hostile, but its seal is in order."""
    region = bytearray(region_of(image.meta))
    change(region)
    params = seal_of(image.meta).descriptor.params
    meta = sealed(directory, with_checksum(region), params)
    blobs = image.data if data is None else tuple(data)
    digests = tuple(seal_of(blob).descriptor.digest for blob in blobs)
    return MemoryImage(seal_of(meta).descriptor.digest, meta, blobs, digests)
