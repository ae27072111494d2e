"""Vectors of single structures: digests, trees, descriptors, chunk maps, records."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from tests.unit.small_images import (
    seal_of,
    sealed,
)
from tests.vectors.inputs import BLOCK, numbered, shrink
from tests.vectors.making import SHA256, SHA512, Vectors, raw_entry, raw_record, tool

from eroseal.format.chunkmap import encode_chunk_map
from eroseal.format.digest import Digest, TreeParams
from eroseal.format.dmverity import derived_uuid
from eroseal.format.fsverity import Descriptor
from eroseal.format.record import (
    IMAGE_MAGIC,
    IMAGE_SIGNATURE,
    SEAL_MAGIC,
    RecordEntry,
    encode_record,
)
from eroseal.format.sealed import TreeShape

# --- digests ---


def digests() -> Vectors:
    out = Vectors("digests.json")
    value = bytes(range(32))
    for name, digest in (("sha256", Digest(SHA256, value)), ("sha512", Digest(SHA512, value + value[::-1]))):
        fields = {"text": str(digest), "algorithm": name, "value": digest.hex, "tag": digest.tag().hex()}
        out.add(name, "a digest as text and as a device tag", fields)
    good = str(Digest(SHA256, value))
    bad = {
        "uppercase": good[:-2] + "1F",
        "too-short": good[:-1],
        "too-long": good + "0",
        "other-block-size": good.replace("-12:", "-16:"),
        "other-algorithm": good.replace("sha256", "sha1"),
        "sha512-with-a-sha256-value": good.replace("sha256", "sha512"),
        "no-prefix": value.hex(),
        "oci": f"sha256:{value.hex()}",
        "trailing-space": good + " ",
        "trailing-newline": good + "\n",
        "empty": "",
    }
    for name, text in bad.items():
        out.add(name, "text that is no digest", {"text": text}, layer="parse")
    return out


# --- trees and descriptors ---

SALTS = {"": b"", "-salt": b"\x00eroseal\xff", "-long-salt": bytes(range(1, 33))}


def trees(directory: Path) -> Vectors:
    out = Vectors("trees.json")
    path, tree, descriptor = directory / "data", directory / "tree", directory / "descriptor"
    sizes = [(SHA256, 1), (SHA256, 2), (SHA256, 128), (SHA256, 129), (SHA256, 16385)]
    sizes += [(SHA512, 1), (SHA512, 64), (SHA512, 65), (SHA512, 4097)]
    for algorithm, blocks in sizes:
        for label, salt in SALTS.items():
            if salt and blocks > 129:
                continue
            data = numbered(blocks)
            path.write_bytes(data)
            for leftover in (tree, descriptor):
                leftover.unlink(missing_ok=True)
            name = algorithm.name_text
            options = [f"--hash-alg={name}", *([f"--salt={salt.hex()}"] if salt else [])]
            outputs = [f"--out-merkle-tree={tree}", f"--out-descriptor={descriptor}"]
            digest = tool("fsverity", "digest", "--compact", *options, *outputs, path).strip()
            parsed = Descriptor.parse(descriptor.read_bytes())
            shape = TreeShape.of(len(data), parsed.params)
            uuid = derived_uuid(parsed).hex()
            command = ["veritysetup", "format", path, path, f"--hash={name}", f"--hash-offset={len(data)}"]
            command += [f"--salt={parsed.params.padded_salt.hex() or '-'}"]
            command += [f"--uuid={uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}"]
            printed = tool(*command)
            root = next(line.split()[-1] for line in printed.splitlines() if line.startswith("Root hash"))
            formatted = path.read_bytes()
            level = formatted[shape.offset : shape.record_offset]
            if tree.read_bytes() != level or not parsed.root_hash.hex() == root:
                raise SystemExit("veritysetup and fsverity disagree")
            blob = sealed(directory, data, parsed.params)
            if not blob.startswith(formatted[: shape.record_offset]) or seal_of(blob).descriptor.digest.hex != digest:
                raise SystemExit("the tools and eroseal disagree")
            fields = {
                "algorithm": name,
                "salt": salt.hex(),
                "data": {"numbered": blocks},
                "digest": f"fsverity-{name}-12:{digest}",
                "root_hash": root,
                "descriptor": shrink(descriptor.read_bytes()),
                "tree_sha256": hashlib.sha256(level).hexdigest(),
                "dmverity": shrink(formatted[len(data) :][:BLOCK]),
                "record_offset": shape.record_offset,
                "sealed_sha256": hashlib.sha256(blob).hexdigest(),
            }
            what = f"{blocks} blocks, {len(shape.levels)} tree levels, {len(salt)} bytes of salt"
            out.add(f"{name}-{blocks}{label}", what, fields, origin="fsverity digest, veritysetup format")
    return out


def descriptors() -> Vectors:
    out = Vectors("descriptors.json")
    good = Descriptor(TreeParams(SHA256, b"salt"), 5 * BLOCK, bytes(range(32)))
    for descriptor in (good, replace(good, params=TreeParams(SHA512, bytes(range(32))), root_hash=bytes(range(64)))):
        raw = descriptor.encode()
        fields = {
            "bytes": shrink(raw),
            "digest": str(descriptor.digest),
            "data_size": descriptor.data_size,
            "salt": descriptor.params.salt.hex(),
            "root_hash": descriptor.root_hash.hex(),
        }
        out.add(descriptor.params.algorithm.name_text, "a canonical descriptor", fields)
    raw = good.encode()

    def patched(offset: int, patch: bytes) -> bytes:
        return raw[:offset] + patch + raw[offset + len(patch) :]

    bad = {
        "version-0": patched(0, b"\0"),
        "version-2": patched(0, b"\2"),
        "unknown-algorithm": patched(1, b"\3"),
        "block-size-1024": patched(2, b"\x0a"),
        "salt-of-33-bytes": patched(3, b"\x21"),
        "salt-longer-than-said": patched(3, b"\3"),
        "with-a-signature": patched(4, b"\1"),
        "data-size-0": patched(8, bytes(8)),
        "data-size-not-whole-blocks": patched(8, b"\1"),
        "data-size-2-to-the-63": patched(8, bytes(7) + b"\x80"),
        "root-hash-longer-than-the-hash": patched(16 + 32, b"\1"),
        "reserved-byte": patched(255, b"\1"),
        "reserved-first-byte": patched(112, b"\1"),
        "short": raw[:-1],
        "long": raw + b"\0",
        "empty": b"",
    }
    for name, data in bad.items():
        out.add(name, "a descriptor that is not canonical", {"bytes": shrink(data)}, layer="parse")
    return out


# --- chunk maps and records ---


def chunkmaps() -> Vectors:
    out = Vectors("chunkmaps.json")
    good = {"one": [16], "runs": [16] * 300 + [3, 16, 16], "short": [1], "nothing": [], "large": [256] * 129}
    for name, blocks in good.items():
        data = encode_chunk_map(blocks)
        runs: list[list[int]] = []
        for item in blocks:
            if runs and runs[-1][0] == item:
                runs[-1][1] += 1
            else:
                runs.append([item, 1])
        total = max(sum(blocks), 5)
        out.add(name, "a chunk map", {"bytes": data.hex(), "total_blocks": total, "runs": runs})
    bad = {
        "more-blocks-than-there-are": (encode_chunk_map([3, 3]), 5),
        "run-of-no-chunks": (b"\1\1\0", 5),
        "chunk-of-no-blocks": (b"\1\0\1", 5),
        "split-run": (b"\2\1\1\1\1", 5),
        "padded-number": (b"\1\x81\0\1", 5),
        "endless-number": (b"\xff" * 12, 5),
        "overflow": (b"\1\xff\xff\xff\xff\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 5),
        "cut": (b"\1\1", 5),
        "trailing-byte": (b"\1\1\1\0", 5),
        "empty": (b"", 5),
    }
    for name, (data, total) in bad.items():
        out.add(name, "a chunk map that is not canonical", {"bytes": data.hex(), "total_blocks": total}, layer="parse")
    return out


def records() -> Vectors:
    out = Vectors("records.json")
    entries = [RecordEntry(IMAGE_SIGNATURE, b"first"), RecordEntry(IMAGE_SIGNATURE, b"second"), RecordEntry(21, b"")]
    future = [*entries, RecordEntry(99, b"passed over")]
    for name, items in {"empty": [], "three-entries": entries, "unknown-entry": future}.items():
        data = encode_record(IMAGE_MAGIC, items)
        shown = [[item.type, item.critical, item.value.hex()] for item in items]
        out.add(name, "a record", {"magic": "EROSIMG", "bytes": data.hex(), "entries": shown})
        padded = {"size": BLOCK, "parts": [[0, data.hex()]]}
        what = "the same with zeros after it"
        out.add(f"{name}-padded", what, {"magic": "EROSIMG", "bytes": padded, "entries": shown})
    good = raw_entry(16, b"first")
    body = good + raw_entry(21, b"x")
    whole = raw_record(IMAGE_MAGIC, body)
    bad = {
        "other-magic": raw_record(SEAL_MAGIC, body),
        "version-2": raw_record(IMAGE_MAGIC, body, version=2),
        "header-of-40-bytes": raw_record(IMAGE_MAGIC, body, header=40),
        "shorter-than-said": raw_record(IMAGE_MAGIC, body, total=40 + len(body)),
        "length-0": raw_record(IMAGE_MAGIC, body, total=0),
        "length-2-to-the-63": raw_record(IMAGE_MAGIC, body, total=1 << 63),
        "longer-than-16-mib": raw_record(IMAGE_MAGIC, body, total=(16 << 20) + 8),
        "header-checksum": whole[:28] + bytes([whole[28] ^ 1]) + whole[29:],
        "entries-checksum": whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
        "cut": whole[:-1],
        "cut-in-the-header": whole[:31],
        "order": raw_record(IMAGE_MAGIC, raw_entry(21, b"") + good),
        "trace-repeats": raw_record(IMAGE_MAGIC, good + raw_entry(21, b"1") + raw_entry(21, b"2")),
        "unknown-and-critical": raw_record(IMAGE_MAGIC, good + raw_entry(99, b"", flags=1)),
        "seal-entry-and-critical": raw_record(IMAGE_MAGIC, raw_entry(1, bytes(256), flags=1) + good),
        "unknown-flag": raw_record(IMAGE_MAGIC, raw_entry(16, b"first", flags=2)),
        "entry-past-the-end": raw_record(IMAGE_MAGIC, raw_entry(16, b"first", length=9)),
        "entry-of-4-gib": raw_record(IMAGE_MAGIC, raw_entry(16, b"first", length=0xFFFFFFFF)),
        "padding": raw_record(IMAGE_MAGIC, raw_entry(16, b"first", padding=b"\0\0\1")),
        "half-an-entry-header": raw_record(IMAGE_MAGIC, good + b"\x15\0\0\0"),
    }
    for name, data in bad.items():
        out.add(name, "a record that no writer writes", {"magic": "EROSIMG", "bytes": data.hex()}, layer="parse")
    return out
