"""What is in an image: its superblock, devices, files, space, seals and signers, as a document.

One walk over all inodes, no file contents read. Nothing that this says is a proof: an image that no policy
accepted is described with ``unverified`` beside its contents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from eroseal.errors import UnsupportedError
from eroseal.format import erofs
from eroseal.format.record import CHUNK_MAP, DESCRIPTOR, KEY_ENVELOPE, RecordEntry
from eroseal.image.inode import Inode
from eroseal.image.reader import ImageReader
from eroseal.image.view import TreeView
from eroseal.report.document import Document
from eroseal.report.listing import TYPE_OF_IFMT, FileType
from eroseal.report.signers import RecordEntryInfo, SignerInfo, describe_signers, entry_info
from eroseal.report.usage import Ranges, Usage
from eroseal.trust.blob import SelfConsistentBlob
from eroseal.trust.image import UnverifiedImage, VerifiedImage

_COMPAT: Final = {
    erofs.COMPAT_SB_CHKSUM: "sb_chksum",
    erofs.COMPAT_MTIME: "mtime",
    erofs.COMPAT_XATTR_FILTER: "xattr_filter",
    erofs.COMPAT_SHARED_EA_IN_METABOX: "shared_ea_in_metabox",
    erofs.COMPAT_PLAIN_XATTR_PFX: "plain_xattr_pfx",
    erofs.COMPAT_ISHARE_XATTRS: "ishare_xattrs",
}
_INCOMPAT: Final = {
    erofs.INCOMPAT_LZ4_0PADDING: "lz4_0padding",
    erofs.INCOMPAT_COMPR_CFGS: "compr_cfgs",
    erofs.INCOMPAT_CHUNKED_FILE: "chunked_file",
    erofs.INCOMPAT_DEVICE_TABLE: "device_table",
    erofs.INCOMPAT_ZTAILPACKING: "ztailpacking",
    erofs.INCOMPAT_FRAGMENTS: "fragments",
    erofs.INCOMPAT_XATTR_PREFIXES: "xattr_prefixes",
    erofs.INCOMPAT_48BIT: "48bit",
    erofs.INCOMPAT_METABOX: "metabox",
}


class SuperblockInfo(Document, frozen=True, kw_only=True):
    """Facts of the superblock.

    Args:
        block_size: bytes.
        blocks: of the meta blob.
        inodes: as the superblock counts them.
        uuid: 32 hex digits.
        volume_name: label.
        epoch: Unix seconds that compact inodes count from; the image's own time.
        features: names of the feature bits that are set, ``compat_`` and ``incompat_`` with a number if unknown.
    """

    block_size: int
    blocks: int
    inodes: int
    uuid: str
    volume_name: str
    epoch: int
    features: list[str]


class DeviceEntry(Document, frozen=True, kw_only=True):
    """The meta blob or a data blob.

    Args:
        role: the meta blob comes first, data blobs in device order.
        digest: its name; null if nothing checked it.
        size: bytes of the data region.
        bytes_referenced: bytes of it that hold contents of files, each once.
    """

    role: Literal["meta", "data"]
    digest: str | None
    size: int
    bytes_referenced: int


class SpaceInfo(Document, frozen=True, kw_only=True):
    """Where the contents of regular files are.

    Args:
        logical_bytes: sum of file sizes, each inode once.
        stored_bytes: bytes of blobs that hold them, each once.
        hole_bytes: bytes that are zero and stored nowhere.
        inline_bytes: bytes that lie right behind their inodes.
        shared_bytes: stored bytes that more than one place in files uses.
        shared_runs: runs of such bytes: chunks, or several in a row.
        saved_bytes: what sharing saves.
        compressed_bytes: file bytes in compressed layouts, of which no more is known.
    """

    logical_bytes: int
    stored_bytes: int
    hole_bytes: int
    inline_bytes: int
    shared_bytes: int
    shared_runs: int
    saved_bytes: int
    compressed_bytes: int


class FilesInfo(Document, frozen=True, kw_only=True):
    """What kinds of files there are.

    Args:
        names: paths, the root included.
        by_type: inodes of each type.
        hard_links: names beyond the first of their inodes.
        xattrs: extended attributes, each inode's counted.
    """

    names: int
    by_type: dict[FileType, int]
    hard_links: int
    xattrs: int


class SealInfo(Document, frozen=True, kw_only=True):
    """The meta blob's seal.

    Args:
        algorithm: ``sha256`` or ``sha512``.
        salt: in hex.
        root_hash: in hex.
        entries: of the seal record.
    """

    algorithm: str
    salt: str
    root_hash: str
    entries: list[RecordEntryInfo]


class InspectDocument(Document, frozen=True, kw_only=True):
    """What `inspect --json` prints.

    Args:
        image: the image digest; null if the image is not sealed.
        contents: ``verified`` if a policy accepted the image, ``unverified`` if not, whether or not it is sealed.
        trusted_by: what the policy went by; null if unverified.
        encrypted: whether it has key envelopes.
        superblock: facts of the superblock.
        devices: the meta blob, then data blobs in device order.
        space: where file contents are.
        files: what kinds of files there are.
        seal: the meta blob's seal; null if the image is not sealed.
        image_record: entries of the image record.
        signers: who claims to vouch for it, none of them judged.
    """

    schema: Literal["eroseal.inspect/1"] = "eroseal.inspect/1"
    image: str | None
    contents: Literal["verified", "unverified"]
    trusted_by: str | None
    encrypted: bool
    superblock: SuperblockInfo
    devices: list[DeviceEntry]
    space: SpaceInfo
    files: FilesInfo
    seal: SealInfo | None
    image_record: list[RecordEntryInfo]
    signers: list[SignerInfo]


def inspect_image(reader: ImageReader, *, record: Sequence[RecordEntry] = ()) -> InspectDocument:
    """Describe an image.

    Args:
        reader: of the image, verified or not.
        record: entries of its image record.

    Raises:
        FormatError: the image is broken. IntegrityError comes from its source.
    """
    source = reader.source
    meta = source.meta
    sealed = meta if isinstance(meta, SelfConsistentBlob) else None
    digest = None if sealed is None else sealed.digest
    survey = Survey(reader)
    survey.run()
    verified = isinstance(source, VerifiedImage)
    return InspectDocument(
        image=None if digest is None else str(digest),
        contents="verified" if verified else "unverified",
        trusted_by=source.trusted_by if isinstance(source, VerifiedImage) else None,
        encrypted=any(entry.type == KEY_ENVELOPE for entry in record),
        superblock=_superblock_info(reader),
        devices=survey.devices(source),
        space=survey.space(),
        files=survey.files(),
        seal=None if sealed is None else _seal_info(sealed),
        image_record=[entry_info(entry) for entry in record],
        signers=describe_signers(record, digest),
    )


class Survey:
    """One walk over an image, or over a stack of images as it is seen when mounted, counting.

    Args:
        reader: of the tree.
    """

    def __init__(self, reader: TreeView) -> None:
        self._reader = reader
        self._usage = Usage(reader)
        self._names = self._hard_links = self._xattrs = self._compressed = self._inline = 0
        self._by_type: dict[FileType, int] = dict.fromkeys(TYPE_OF_IFMT.values(), 0)

    def run(self) -> None:
        """Walk and count; raises FormatError."""
        for _, inode in self._reader.walk():
            self._names += 1
            if not self._usage.first(inode):
                self._hard_links += 1
                continue
            self._by_type[TYPE_OF_IFMT[inode.mode & 0o170000]] += 1
            self._xattrs += len(self._reader.xattrs(inode))
            if inode.is_regular:
                self._add_file(inode)

    def _add_file(self, inode: Inode) -> None:
        try:
            for extent in self._reader.extents(inode):
                self._usage.add(extent)
        except UnsupportedError:
            self._compressed += inode.size
        self._inline += self._reader.inline_size(inode)

    def devices(self, source: VerifiedImage | UnverifiedImage) -> list[DeviceEntry]:
        """What an image consists of, and how much of it the files use."""
        sizes = [source.meta.size, *(device.size for device in source.devices)]
        # An unsealed image may have its data blobs in the same file, behind the meta blob.
        return [
            DeviceEntry(
                role="data" if number else "meta",
                digest=None if isinstance(key, tuple) else str(key),
                size=size,
                bytes_referenced=self._usage.blobs.get(key, Ranges()).size(),
            )
            for number, (key, size) in enumerate(zip(self._usage.keys, sizes, strict=False))
        ]

    def space(self) -> SpaceInfo:
        """Where file contents are."""
        usage = self._usage
        stored = usage.stored_bytes()
        shared_bytes, shared_runs = usage.shared_inside()
        return SpaceInfo(
            logical_bytes=usage.logical_bytes + self._compressed,
            stored_bytes=stored,
            hole_bytes=usage.hole_bytes,
            inline_bytes=self._inline,
            shared_bytes=shared_bytes,
            shared_runs=shared_runs,
            saved_bytes=usage.logical_bytes - usage.hole_bytes - stored,
            compressed_bytes=self._compressed,
        )

    def files(self) -> FilesInfo:
        """What kinds of files there are."""
        return FilesInfo(
            names=self._names,
            by_type={kind: count for kind, count in self._by_type.items() if count},
            hard_links=self._hard_links,
            xattrs=self._xattrs,
        )


def _superblock_info(reader: ImageReader) -> SuperblockInfo:
    superblock = reader.superblock
    return SuperblockInfo(
        block_size=superblock.block_size,
        blocks=superblock.blocks,
        inodes=superblock.inos,
        uuid=superblock.uuid.hex(),
        volume_name=superblock.volume_name.partition(b"\0")[0].decode("utf-8", "backslashreplace"),
        epoch=superblock.epoch,
        features=[
            *_feature_names(superblock.feature_compat, _COMPAT, "compat"),
            *_feature_names(superblock.feature_incompat, _INCOMPAT, "incompat"),
        ],
    )


def _feature_names(bits: int, names: dict[int, str], kind: str) -> Iterator[str]:
    for shift in range(bits.bit_length()):
        bit = 1 << shift
        if bits & bit:
            yield names.get(bit, f"{kind}_{bit:#x}")


def _seal_info(blob: SelfConsistentBlob) -> SealInfo:
    entries = [RecordEntry(DESCRIPTOR, blob.descriptor.encode(), critical=True)]
    if blob.chunk_map is not None:
        entries.append(RecordEntry(CHUNK_MAP, blob.chunk_map))
    return SealInfo(
        algorithm=blob.params.algorithm.name_text,
        salt=blob.params.salt.hex(),
        root_hash=blob.descriptor.root_hash.hex(),
        entries=[entry_info(entry) for entry in entries],
    )
