"""Every vector does what the index says it must: accepted with that result, or refused by that layer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tests.unit.small_images import sealed
from tests.vectors.inputs import DATA, Spec, Vector, expand, load

from eroseal.crypto.x509 import parse_certificate
from eroseal.errors import AuthenticityError, ErosealError, FormatError, UsageError, VerificationError
from eroseal.format.chunkmap import decode_chunk_map, encode_chunk_map
from eroseal.format.digest import Digest, HashAlgorithm, TreeParams
from eroseal.format.dmverity import superblock as dmverity_superblock
from eroseal.format.fsverity import Descriptor
from eroseal.format.record import IMAGE_MAGIC, RecordEntry, encode_record, parse_record
from eroseal.format.statement import Statement, parse_image_digest
from eroseal.image.check import check_image
from eroseal.image.reader import ImageReader
from eroseal.limits import MAX_IMAGE_RECORD
from eroseal.readat import BytesAt
from eroseal.trust.image import open_blob, open_image
from eroseal.trust.policy import Policy, RolelessForm, authenticate
from eroseal.trust.scan import scan_blob

INDEX = load("index.json")
BY_FILE = {file: {item["id"]: item for item in load(file)} for file in sorted({entry["file"] for entry in INDEX})}
LAYERS = {"parse", "policy", *(f"step {number}" for number in range(1, 8))}
Result = dict[str, object]


def others(vector: Vector, file: str) -> bytes:
    """The bytes of a vector, which may be described by those of another one in its file."""
    return expand(vector["bytes"], specs(file))


def specs(file: str) -> dict[str, Spec]:
    return {name: item["bytes"] for name, item in BY_FILE[file].items() if "bytes" in item}


# --- one reader for each kind: from a vector's inputs to what its results must be ---


def read_digest(vector: Vector) -> Result:
    digest = Digest.parse(vector["text"])
    assert str(digest) == vector["text"]
    assert Digest.from_tag(digest.algorithm, digest.tag()) == digest
    return {"algorithm": digest.algorithm.name_text, "value": digest.hex, "tag": digest.tag().hex()}


def read_tree(vector: Vector, directory: Path) -> Result:
    params = TreeParams(HashAlgorithm.from_name(vector["algorithm"]), bytes.fromhex(vector["salt"]))
    data = expand(vector["data"])
    blob = sealed(directory, data, params)
    descriptor = Descriptor.parse(expand(vector["descriptor"]))
    end = vector["record_offset"]
    verified = open_blob(BytesAt(blob), descriptor.digest, data_size=len(data))
    assert verified.read_at(0, verified.size) == data
    dmverity = dmverity_superblock(descriptor)
    assert blob[len(data) :].startswith(dmverity)
    assert dmverity == expand(vector["dmverity"])
    assert descriptor.params == params
    return {
        "digest": str(verified.digest),
        "root_hash": verified.descriptor.root_hash.hex(),
        "descriptor": vector["descriptor"],
        "tree_sha256": hashlib.sha256(blob[len(data) + len(dmverity) : end]).hexdigest(),
        "dmverity": vector["dmverity"],
        "record_offset": verified.seal.shape.record_offset,
        "sealed_sha256": hashlib.sha256(blob).hexdigest(),
    }


def read_descriptor(vector: Vector) -> Result:
    data = expand(vector["bytes"])
    descriptor = Descriptor.parse(data)
    assert descriptor.encode() == data
    return {
        "digest": str(descriptor.digest),
        "data_size": descriptor.data_size,
        "salt": descriptor.params.salt.hex(),
        "root_hash": descriptor.root_hash.hex(),
    }


def read_chunkmap(vector: Vector) -> Result:
    data = expand(vector["bytes"])
    runs = list(decode_chunk_map(data, total_blocks=vector["total_blocks"]))
    assert encode_chunk_map(blocks for blocks, count in runs for _ in range(count)) == data
    return {"runs": [list(run) for run in runs]}


def read_record(vector: Vector) -> Result:
    data = expand(vector["bytes"])
    entries = parse_record(IMAGE_MAGIC, data, limit=MAX_IMAGE_RECORD)
    assert data.startswith(encode_record(IMAGE_MAGIC, entries))
    return {"entries": [[entry.type, entry.critical, entry.value.hex()] for entry in entries]}


def read_statement(vector: Vector) -> Result:
    data = expand(vector["bytes"])
    statement = Statement.parse(data)
    assert statement.encode() == data
    return {
        "digest": str(statement.digest),
        "name": statement.name,
        "version": statement.version,
        "created": statement.created,
    }


def policy_of(fields: Vector) -> Policy:
    parts = BY_FILE["signatures.json"]

    def certificates(key: str) -> tuple[object, ...]:
        names = fields.get(key, ())
        return tuple(parse_certificate(bytes.fromhex(parts[name]["certificate"])) for name in names)

    assert set(fields) <= {"time", "digests", "certificates", "ca", "ed25519", "name", "min_version", "accept"}
    keys = tuple(Ed25519PublicKey.from_public_bytes(bytes.fromhex(raw)) for raw in fields.get("ed25519", ()))
    return Policy(
        time=fields["time"],
        digests=tuple(parse_image_digest(text) for text in fields.get("digests", ())),
        certificates=certificates("certificates"),  # type: ignore[arg-type]
        ca_certificates=certificates("ca"),  # type: ignore[arg-type]
        ed25519_keys=keys,
        name=fields.get("name"),
        min_version=fields.get("min_version"),
        accept=frozenset(RolelessForm.from_name(name) for name in fields.get("accept", ())),
    )


def read_signature(vector: Vector) -> Result:
    parts = [BY_FILE["signatures.json"][name] for name in vector["entries"]]
    entries = [RecordEntry(part["type"], bytes.fromhex(part["value"])) for part in parts]
    decision = authenticate(policy_of(vector["policy"]), Digest.parse(vector["digest"]), entries)
    return {"trusted_by": decision.trusted_by}


def read_blob(vector: Vector) -> Result:
    source = BytesAt(others(vector, "blobs.json"), vector["id"])
    blob = open_blob(source, Digest.parse(vector["digest"]), data_size=vector.get("data_size"))
    assert scan_blob(source, blob, jobs=1) == []
    data = blob.read_at(0, blob.size)
    return {"sealed_size": blob.seal.sealed_size, "data_sha256": hashlib.sha256(data).hexdigest()}


def read_image(vector: Vector) -> Result:
    parts = BY_FILE["images.json"]
    meta = BytesAt(others(parts[vector["meta"]], "images.json"), vector["meta"])
    data = [BytesAt(others(parts[name], "images.json"), name) for name in vector["data"]]
    wanted: list[Digest] = []

    def find(digest: Digest) -> BytesAt:
        return data[wanted.index(digest)]

    policy = Policy(digests=(Digest.parse(vector["digest"]),), time=0)
    with open_image(meta, policy=policy, open_data=find) as image:
        wanted += [device.digest for device in image.devices if device.digest is not None]
        for k, source in enumerate(data):
            scan_blob(source, image.device(k), jobs=1)
        reader = ImageReader(image)
        try:
            check_image(reader)
        except FormatError as error:  # the part of step 6 that knows inodes
            raise VerificationError(error.what, step=6) from error
        files = []
        for path, inode in reader.walk():
            content = b"" if inode.is_dir else reader.read(inode, 0, inode.size)
            size = 0 if inode.is_dir else inode.size
            files.append([path.decode(), inode.mode, size, hashlib.sha256(content).hexdigest()])
    return {"files": files}


READERS: dict[str, Callable[[Vector], Result]] = {
    "digests.json": read_digest,
    "descriptors.json": read_descriptor,
    "chunkmaps.json": read_chunkmap,
    "records.json": read_record,
    "statements.json": read_statement,
    "signatures.json": read_signature,
    "blobs.json": read_blob,
    "images.json": read_image,
}
INPUTS = {
    "digests.json": {"text"},
    "trees.json": {"algorithm", "salt", "data"},
    "descriptors.json": {"bytes"},
    "chunkmaps.json": {"bytes", "total_blocks"},
    "records.json": {"magic", "bytes"},
    "statements.json": {"bytes"},
    "signatures.json": {"digest", "entries", "policy"},
    "blobs.json": {"bytes", "digest", "data_size"},
    "images.json": {"meta", "data", "digest"},
}


def layer_of(error: ErosealError) -> str:
    if isinstance(error, AuthenticityError):
        return "policy"
    if isinstance(error, VerificationError):
        return f"step {error.step}"
    assert isinstance(error, FormatError | UsageError)
    return "parse"


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: f"{entry['file'].removesuffix('.json')}-{entry['id']}")
def test_vector(entry: Vector, tmp_path: Path) -> None:
    vector = BY_FILE[entry["file"]][entry["id"]]
    results = {key: value for key, value in vector.items() if key not in INPUTS[entry["file"]] | {"id", "origin"}}
    if entry["file"] == "trees.json":
        assert read_tree(vector, tmp_path) == results
    elif entry["expect"] == "accept":
        assert results
        assert READERS[entry["file"]](vector) == results
    else:
        assert not results
        with pytest.raises(ErosealError) as caught:
            READERS[entry["file"]](vector)
        assert layer_of(caught.value) == entry["layer"], caught.value


def test_the_index_is_complete() -> None:
    assert {file.name for file in DATA.iterdir()} == {"README.md", "index.json", *BY_FILE}
    listed = [(entry["file"], entry["id"]) for entry in INDEX]
    assert len(listed) == len(set(listed))
    parts = set()
    for file, vectors in BY_FILE.items():
        assert len(vectors) == len(load(file))
        for name, vector in vectors.items():
            if (file, name) in listed:
                assert vector["origin"]
            else:
                parts.add((file, name))
    assert {file for file, _ in parts} == {"signatures.json", "images.json"}
    for entry in INDEX:
        assert set(entry) == {"id", "file", "expect", "what"} | ({"layer"} if entry["expect"] == "refuse" else set())
        assert entry["expect"] in ("accept", "refuse")
        assert entry.get("layer", "parse") in LAYERS
    assert {entry.get("layer") for entry in INDEX} == LAYERS | {None}


def test_the_description_names_files_and_layers() -> None:
    text = (DATA / "README.md").read_text(encoding="utf-8")
    for file in BY_FILE:
        assert f"`{file}`" in text
    for vectors in BY_FILE.values():
        for vector in vectors.values():
            for key in vector:
                assert re.search(rf"`{key}`", text), key


def test_vectors_are_small_and_plain() -> None:
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 200 << 10
    for file in DATA.glob("*.json"):
        text = file.read_text(encoding="ascii")
        json.loads(text)
        assert "/" + "root" not in text
        assert "/" + "tmp" not in text
