"""Vectors of whole blobs and images."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
from tests.unit.small_images import (
    MemoryImage,
    build_image,
    pin,
    region_of,
    seal_of,
    sealed,
    shape_of,
    verify_whole,
    with_checksum,
)
from tests.vectors.inputs import BLOCK, Spec, Vector, changed, expand, numbered, shrink
from tests.vectors.making import SHA256, SHA512, Vectors, raw_entry, raw_record

from eroseal.build.options import BlobLayout
from eroseal.format.chunkmap import encode_chunk_map
from eroseal.format.digest import Digest, TreeParams
from eroseal.format.dmverity import superblock as dmverity_superblock
from eroseal.format.erofs import CHUNK_INDEX, SUPER_OFFSET
from eroseal.format.record import (
    CHUNK_MAP,
    DESCRIPTOR,
    SEAL_MAGIC,
)
from eroseal.format.sealed import encode_seal, record_tail
from eroseal.image.reader import ImageReader

# --- blobs ---


def fitted(blob: bytes, record: int) -> bytes:
    """The blob with checksums that fit its seal record and footer."""
    out = bytearray(blob)
    length = int.from_bytes(out[record + 16 : record + 24], "little")
    out[record + 24 : record + 28] = google_crc32c.value(bytes(out[record + 32 : record + length])).to_bytes(
        4, "little"
    )
    out[record + 28 : record + 32] = google_crc32c.value(bytes(out[record : record + 28])).to_bytes(4, "little")
    out[-52:-48] = google_crc32c.value(bytes(out[-64:-52] + bytes(4) + out[-48:])).to_bytes(4, "little")
    return bytes(out)


def blobs(directory: Path) -> Vectors:
    out = Vectors("blobs.json")
    known: dict[str, Spec] = {}

    def add(
        key: str,
        what: str,
        spec: Spec,
        digest: Digest,
        *,
        layer: str | None = None,
        data_size: int | None = None,
    ) -> None:
        known[key] = spec
        fields: Vector = {"bytes": spec, "digest": str(digest)}
        if data_size is not None:
            fields["data_size"] = data_size
        if layer is None:
            data = expand(spec, known)
            shape = shape_of(base)
            fields["sealed_size"] = len(base)
            fields["data_sha256"] = hashlib.sha256(data[: shape.data_size]).hexdigest()
        out.add(key, what, fields, layer=layer)

    base = sealed(directory, numbered(1), TreeParams(SHA512, b"salt"))
    one = seal_of(base).descriptor.digest
    add("one-block", "no tree; SHA-512 with a salt", shrink(base), one)
    base = sealed(directory, numbered(130), TreeParams(), [64, 64, 2])
    two_levels, deep = seal_of(base).descriptor.digest, shape_of(base)
    add("two-levels", "130 blocks, SHA-256", shrink(base), two_levels)
    for name, offset, layer in (
        ("data-bit", 129 * BLOCK + 4095, "step 5"),
        ("level-1-bit", deep.level_offset(1) + 31, "step 5"),
        ("level-1-padding", deep.record_offset - 1, "step 5"),
        ("top-bit", deep.level_offset(2), "step 4"),
    ):
        altered = base[:offset] + bytes([base[offset] ^ 1]) + base[offset + 1 :]
        add(name, "a flipped bit", changed("two-levels", base, altered), two_levels, layer=layer)
    swapped = base[BLOCK : 2 * BLOCK] + base[:BLOCK] + base[2 * BLOCK :]
    add("swapped-blocks", "two data blocks in each other's place", changed("two-levels", base, swapped), two_levels,
        layer="step 5")  # fmt: skip

    base = sealed(directory, numbered(2), TreeParams(), [1, 1])
    digest, shape, descriptor = seal_of(base).descriptor.digest, shape_of(base), seal_of(base).descriptor
    name = "two-blocks"
    add(name, "SHA-256, a chunk map", shrink(base), digest)
    add("two-blocks-known-size", "the same, where D is known", {"from": name}, digest, data_size=2 * BLOCK)
    for label, tail in (("zeros", bytes(100)), ("noise", bytes(range(256))), ("a-footer-that-lies", _lying_footer())):
        spec = changed(name, base, base + tail)
        add(f"followed-by-{label}", "bytes after the seal record are ignored", spec, digest)
    record, head = shape.record_offset, base[: shape.record_offset]
    for label, chunks in (("none", None), ("another", [2]), ("partial", [1])):
        lie = head + encode_seal(descriptor, chunks)
        add(f"chunk-map-{label}", "the chunk map carries no authority", changed(name, base, lie), digest)

    def refused(
        key: str, what: str, data: bytes, layer: str, expected: Digest = digest, *, known_size: bool = False
    ) -> None:
        add(
            key,
            what,
            changed(name, base, data),
            expected,
            layer=layer,
            data_size=shape.data_size if known_size else None,
        )

    def patched(offset: int, patch: bytes) -> bytes:
        return base[:offset] + patch + base[offset + len(patch) :]

    fields = {"salt": 88, "uuid": 16, "data-blocks": 72, "algorithm": 37, "salt-size": 80, "padding": 4095}
    for label, at in fields.items():
        offset = shape.data_size + at
        altered = patched(offset, bytes([base[offset] ^ 1]))
        refused(f"dmverity-{label}", "another dm-verity superblock than follows", altered, "step 2")
    at = record + 40
    refused("descriptor-reserved", "descriptor not canonical", fitted(patched(at + 255, b"\1"), record), "step 1")
    refused("descriptor-size", "descriptor with another size", fitted(patched(at + 8, b"\0\x10"), record), "step 2")
    other = replace(descriptor, root_hash=bytes(32))
    forged = (
        base[: shape.data_size] + dmverity_superblock(other) + base[shape.offset : record] + encode_seal(other, [1, 1])
    )
    refused("descriptor-root", "descriptor with another root hash, all else to match", forged, "step 3")
    salted = replace(descriptor, params=TreeParams(SHA256, b"s"))
    forged = (
        base[: shape.data_size]
        + dmverity_superblock(salted)
        + base[shape.offset : record]
        + encode_seal(salted, [1, 1])
    )
    refused("descriptor-salt", "descriptor with a salt, all else to match", forged, "step 3")
    refused(
        "footer",
        "footer that is not what follows",
        fitted(patched(len(base) - 48, b"\0\x10"), record),
        "step 2",
        known_size=True,
    )
    refused("footer-missing", "zeros instead of it", patched(len(base) - 64, bytes(64)), "step 2", known_size=True)
    refused(
        "footer-lost", "the same where D is not known: nothing is found", patched(len(base) - 64, bytes(64)), "step 1"
    )
    refused("record-padding", "padding that is not zero", patched(len(base) - 65, b"\1"), "step 2")
    refused("tree-padding", "padding of the tree that is not zero", patched(record - 1, b"\1"), "step 4")
    forged_tree, padded = _padded_tree(base)
    refused("tree-padding-hashed", "the same under a root hash that covers it", forged_tree, "step 2", padded)
    refused("record-magic", "no seal record", patched(record, b"X"), "step 1")
    refused("truncated", "the last byte is missing", base[:-1], "step 1")
    refused("truncated-record", "cut in the record", base[: record + 100], "step 1")
    refused("truncated-tree", "cut in the tree", base[: shape.offset + 100], "step 1")
    refused("not-sealed", "a bare data region", base[: shape.data_size], "step 1")
    another = sealed(directory, numbered(3)[BLOCK:], TreeParams(), [1, 1])
    refused("another-blob", "a blob in the place of another", another, "step 3")
    top = sealed(directory, base[shape.offset : record], TreeParams())
    if seal_of(top).descriptor.root_hash != descriptor.root_hash:
        raise SystemExit("top tree block")
    refused("top-tree-block", "the top tree block as a blob of one block, under the same root hash", top, "step 3")
    good = raw_entry(DESCRIPTOR, descriptor.encode(), flags=1)
    chunk_map = raw_entry(CHUNK_MAP, encode_chunk_map([1, 1]))
    bodies = {
        "entries-reordered": chunk_map + good,
        "descriptor-twice": good + good,
        "chunk-map-twice": good + chunk_map + chunk_map,
        "unknown-entry": good + raw_entry(3, b""),
        "unknown-critical-entry": good + raw_entry(3, b"", flags=1),
        "image-signature-inside": good + raw_entry(16, b""),
        "descriptor-not-critical": raw_entry(DESCRIPTOR, descriptor.encode()),
        "chunk-map-critical": good + raw_entry(CHUNK_MAP, encode_chunk_map([1, 1]), flags=1),
        "no-descriptor": chunk_map,
        "longer-than-the-data-needs": good + raw_entry(CHUNK_MAP, bytes(40)),
    }
    for label, body in bodies.items():
        forged_record = raw_record(SEAL_MAGIC, body)
        data = head + forged_record + record_tail(descriptor, len(forged_record))
        refused(label, "a seal record with other entries than its own", data, "step 1")
    return out


def _lying_footer() -> bytes:
    from eroseal.format.record import Footer

    return bytes(BLOCK - 64) + Footer(BLOCK, 2 * BLOCK, BLOCK).encode()


def _padded_tree(base: bytes) -> tuple[bytes, Digest]:
    """A blob whose tree is padded with something else than zeros, hashed and sealed that way."""
    shape, descriptor = shape_of(base), seal_of(base).descriptor
    tree = base[shape.offset : shape.record_offset - 1] + b"\1"
    other = replace(descriptor, root_hash=hashlib.sha256(tree).digest())
    blob = base[: shape.data_size] + dmverity_superblock(other) + tree + encode_seal(other, [1, 1])
    return blob, other.digest


# --- images ---


def images(directory: Path) -> Vectors:
    out = Vectors("images.json")
    files = {"a": numbered(2), "b": numbered(3)[BLOCK:], "dir/small": b"inlined\n"}
    _, image = build_image(directory / "image", files, blobs=BlobLayout.FILE)
    specs: dict[str, Spec] = {}

    def part(key: str, data: bytes, base: str = "") -> str:
        spec = changed(base, expand(specs[base], specs), data) if base else shrink(data)
        specs[key] = spec
        out.part(key, {"bytes": spec})
        return key

    part("meta", image.meta)
    for number, blob in enumerate(image.data):
        part(f"data-{number + 1}", blob)
    names = [f"data-{number + 1}" for number in range(len(image.data))]

    def add(
        key: str,
        what: str,
        *,
        meta: str = "meta",
        data: Sequence[str] = names,
        digest: Digest = image.digest,
        layer: str | None = None,
    ) -> None:
        fields: Vector = {"meta": meta, "data": list(data), "digest": str(digest)}
        if layer is None:
            fields["files"] = list(_listing(image))
        out.add(key, what, fields, layer=layer)

    add("image", "a meta blob and two data blobs")
    add("swapped-data", "data blobs in each other's place", data=names[::-1], layer="step 3")
    add("data-as-meta", "a data blob in the place of the meta blob", meta="data-1", layer="policy")
    add("same-data-twice", "one data blob in both places", data=[names[0], names[0]], layer="step 3")

    def reseal(key: str, change: Callable[[bytearray], object]) -> dict[str, Any]:
        """A hostile meta blob, checksummed and sealed as it should be."""
        region = bytearray(region_of(image.meta))
        change(region)
        blob = sealed(directory, with_checksum(region))
        return {"meta": part(f"meta-{key}", blob, "meta"), "digest": seal_of(blob).descriptor.digest}

    with verify_whole(*image.sources(), image.pinned) as verified:
        reader = ImageReader(verified)
        table = reader.superblock.devt_slotoff * 128
        inode = reader.lookup(b"a")
        index = -(-inode.end // 8) * 8
    slots = [bytes(region_of(image.meta)[table + at : table + at + 64]) for at in (0, 128)]

    def tags(*values: bytes) -> Callable[[bytearray], None]:
        def change(region: bytearray) -> None:
            for number, value in enumerate(values):
                region[table + 128 * number : table + 128 * number + 64] = value

        return change

    swapped = reseal("swapped-tags", tags(*slots[::-1]))
    what = "device tags swapped, sealed again: another image"
    add("swapped-tags", what, meta=swapped["meta"], data=names[::-1], layer="policy")
    for block in (1, 2, 3, 4):
        hostile = reseal(
            f"extent-{block}", lambda region, block=block: CHUNK_INDEX.pack_into(region, index, 0, 1, block)
        )
        add(f"extent-{block}", "an extent that ends behind D of its device", **hostile, layer="step 6")
    hostile = reseal("no-device", lambda region: CHUNK_INDEX.pack_into(region, index, 0, 3, 0))
    add("no-device", "an extent on a device that is not there", **hostile, layer="step 6")
    hostile = reseal("blocks", lambda region: struct.pack_into("<I", region, SUPER_OFFSET + 36, 1 << 20))
    add("blocks", "a superblock that claims more blocks than D", **hostile, layer="step 6")
    hostile = reseal("table", lambda region: struct.pack_into("<H", region, SUPER_OFFSET + 88, 0xFFFF))
    add("table", "a device table outside D", **hostile, layer="step 6")
    hostile = reseal("slot-0", lambda region: struct.pack_into("<I", region, table + 64, 0))
    add("slot-0", "a device slot of no blocks", **hostile, layer="step 6")
    hostile = reseal("slot-3", lambda region: struct.pack_into("<I", region, table + 64, 3))
    add("slot-3", "a device slot of another size than its blob", **hostile, layer="step 7")
    hostile = reseal("tag-zero", tags(bytes(64)))
    add("tag-zero", "a device tag that is no digest", **hostile, layer="step 7")
    hostile = reseal("tag-upper", tags(slots[0].upper()))
    add("tag-upper", "a device tag in uppercase", **hostile, layer="step 7")
    salted = sealed(directory, region_of(image.data[0]), TreeParams(SHA256, b"s"), [2])
    data = [part("data-salted", salted, "data-1"), names[1]]
    hostile = reseal("salted", tags(seal_of(salted).descriptor.digest.tag()))
    add("salted", "a data blob with another salt, named by its true digest", **hostile, data=data, layer="step 7")
    root = bytearray(region_of(image.meta))
    struct.pack_into("<H", root, SUPER_OFFSET + 14, 0xFFFF)
    hostile = reseal("root", lambda region: region.__setitem__(slice(0, len(root)), root))
    add("root", "a root inode outside D", **hostile, layer="step 6")
    return out


def _listing(image: MemoryImage) -> Iterator[list[Any]]:
    with verify_whole(*image.sources(), pin(image.digest)) as verified:
        reader = ImageReader(verified)
        for path, inode in reader.walk():
            content = b"" if inode.is_dir else reader.read(inode, 0, inode.size)
            yield [path.decode(), inode.mode, 0 if inode.is_dir else inode.size, hashlib.sha256(content).hexdigest()]
