"""Inspection: counts that add up, claims that are called claims, and text that is safe to print."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.peer.certs import signer
from tests.unit.report_images import Images

from eroseal.crypto import ed25519
from eroseal.crypto.cms import sign_statement
from eroseal.format import record
from eroseal.format.digest import Digest, HashAlgorithm
from eroseal.format.record import RecordEntry
from eroseal.format.statement import ImageSignature, SignatureKind, Statement
from eroseal.image.reader import ImageReader
from eroseal.readat import FileAt
from eroseal.report.document import to_json
from eroseal.report.inspect import InspectDocument, inspect_image
from eroseal.report.inspect_text import inspect_text
from eroseal.trust.image import UnverifiedImage


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Images]:
    made = Images(tmp_path)
    yield made
    made.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Give a tree of which all sizes are known."""
    root = tmp_path / "tree"
    (root / "dir").mkdir(parents=True)
    content = os.urandom(8192)
    (root / "one").write_bytes(content + os.urandom(4096))
    (root / "two").write_bytes(content)  # two chunks that "one" has too
    (root / "three").write_bytes(content[:4096])
    (root / "small").write_bytes(b"x" * 100)
    os.link(root / "small", root / "dir" / "small")
    with open(root / "sparse", "wb") as file:
        file.seek(1 << 20)
        file.write(content[4096:])
    (root / "link").symlink_to("one")
    os.mkfifo(root / "fifo")
    os.setxattr(root / "one", "user.a", b"1")
    os.setxattr(root / "one", "user.b", b"2")
    return root


def test_counts(images: Images, tree: Path) -> None:
    result = images.build(tree, "image")
    document = inspect_image(images.verified(result))
    assert document.image == str(result.image)
    assert document.files.names == 10
    assert document.files.hard_links == 1
    assert document.files.by_type == {"file": 5, "directory": 2, "symlink": 1, "fifo": 1}
    assert document.files.xattrs == 2
    space = document.space
    assert space.logical_bytes == 12288 + 8192 + 4096 + 100 + (1 << 20) + 4096
    assert space.hole_bytes == 1 << 20
    assert space.inline_bytes == 100
    assert space.stored_bytes == 12288 + 100
    assert space.shared_bytes == 8192
    assert space.shared_runs == 1
    assert space.saved_bytes == 8192 + 4096 + 4096
    assert space.compressed_bytes == 0
    assert [device.role for device in document.devices] == ["meta", "data"]
    assert [device.digest for device in document.devices] == [str(blob.digest) for blob in result.blobs]
    assert [device.size for device in document.devices] == [blob.data_size for blob in result.blobs]
    assert [device.bytes_referenced for device in document.devices] == [100, 12288]
    assert document.superblock.block_size == 4096
    assert "device_table" in document.superblock.features
    assert document.seal is not None
    assert document.seal.algorithm == "sha256"
    assert document.seal.root_hash == result.blobs[0].root_hash.hex()
    assert [entry.name for entry in document.seal.entries] == ["fs-verity descriptor"]


def test_what_is_called_verified(images: Images, tree: Path) -> None:
    result = images.build(tree, "image")
    trusted = inspect_image(images.verified(result))
    assert (trusted.contents, trusted.trusted_by) == ("verified", "digest")
    consistent = inspect_image(images.consistent(result))
    assert (consistent.contents, consistent.trusted_by) == ("unverified", None)
    assert consistent.image == str(result.image)
    bare = inspect_image(images.bare(result))
    assert (bare.contents, bare.image, bare.seal) == ("unverified", None, None)
    assert {device.digest for device in bare.devices} == {None}
    assert bare.space == trusted.space
    assert "unverified" in inspect_text(bare)
    assert "verified (by digest)" in inspect_text(trusted)


def signature(statement: Statement, name: str = "creator", *, by: str = "cms") -> RecordEntry:
    content = statement.encode()
    if by == "ed25519":
        key = Ed25519PrivateKey.generate()
        made = ImageSignature(
            SignatureKind.ED25519, content, ed25519.sign(key, content), ed25519.key_id(key.public_key())
        )
    else:
        identity = signer(name=name)
        made = ImageSignature(SignatureKind.CMS, content, sign_statement(content, identity.key, identity.certificate))
    return RecordEntry(record.IMAGE_SIGNATURE, made.encode())


def test_signers(images: Images, tree: Path) -> None:
    result = images.build(tree, "image")
    other = Digest(HashAlgorithm.SHA256, bytes(32))
    good = signature(Statement(result.image, "app", 7, 1_700_000_000))
    forged = ImageSignature.parse(good.value)
    entries = [
        good,
        signature(Statement(result.image, "app", 8, 0), by="ed25519"),
        signature(Statement(other, "", 1, 1 << 63)),
        RecordEntry(
            record.IMAGE_SIGNATURE,
            ImageSignature(
                SignatureKind.CMS, Statement(result.image, "evil", 9, 0).encode(), forged.signature
            ).encode(),
        ),
        RecordEntry(record.IMAGE_SIGNATURE, b"nonsense"),
        RecordEntry(record.FSVERITY_SIGNATURE, b"1234"),
        RecordEntry(record.DMVERITY_SIGNATURE, b""),
        RecordEntry(record.BOOTLOADER_SIGNATURE, bytes(64)),
        RecordEntry(record.ACCESS_TRACE, bytes(2000)),
        RecordEntry(99, b"later"),
    ]
    document = inspect_image(images.consistent(result), record=entries)
    forms = [(item.form, item.intact, item.trust) for item in document.signers]
    assert forms == [
        ("cms", True, "unverified"),
        ("ed25519", None, "unverified"),
        ("cms", True, "unverified"),
        ("cms", False, "unverified"),
        ("unknown", False, "unverified"),
        ("fsverity", None, "unverified"),
        ("dmverity", None, "unverified"),
        ("bootloader", None, "unverified"),
    ]
    first, second, third, fourth, fifth = document.signers[:5]
    assert first.certificate is not None
    assert first.certificate.subject == "CN=creator"
    assert first.statement is not None
    assert (first.statement.name, first.statement.version, first.statement.this_image) == ("app", 7, True)
    assert second.key_id is not None
    assert len(second.key_id) == 64
    assert third.statement is not None
    assert not third.statement.this_image
    assert fourth.certificate is None
    assert fourth.problem == "CMS signature is over other content"
    assert fifth.statement is None
    assert [(entry.type, entry.name, entry.size) for entry in document.image_record[-2:]] == [
        (record.ACCESS_TRACE, "access trace", 2000),
        (99, "unknown", 5),
    ]
    assert not document.encrypted
    text = inspect_text(document)
    assert text.count("unverified") == len(forms) + 1
    assert "(not this image)" in text


def test_an_encrypted_image_says_so(images: Images, tree: Path) -> None:
    result = images.build(tree, "image")
    envelope = RecordEntry(record.KEY_ENVELOPE, b"?")
    document = inspect_image(images.consistent(result), record=[envelope])
    assert document.encrypted
    assert "encrypted" in inspect_text(document)


def test_foreign_text_cannot_fool_a_terminal(images: Images, tree: Path) -> None:
    result = images.build(tree, "image")
    entry = signature(Statement(result.image, "app", 1, 0), name="evil\x1b[2J\nimage  trusted")
    text = inspect_text(inspect_image(images.consistent(result), record=[entry]))
    assert all(line.isprintable() for line in text.split("\n"))
    assert not any(line.startswith("image  trusted") for line in text.split("\n"))


@pytest.mark.parametrize("blobs", ["none", "file"])
def test_other_layouts(images: Images, tree: Path, blobs: str) -> None:
    result = images.build(tree, "image", blobs=blobs)
    document = inspect_image(images.verified(result))
    assert document.space.stored_bytes == 12288 + 100
    assert len(document.devices) == len(result.blobs)
    assert sum(device.bytes_referenced for device in document.devices) == 12288 + 100
    assert document.space.inline_bytes == 100


def test_the_document_is_json(images: Images, tree: Path) -> None:
    document = inspect_image(images.verified(images.build(tree, "image")))
    found = json.loads(to_json(document))
    assert found["schema"] == "eroseal.inspect/1"
    assert list(found) == list(InspectDocument.__struct_fields__)


def test_a_compressed_image(tmp_path: Path, tree: Path, require_peer: Callable[[str], str]) -> None:
    (tree / "compressible").write_bytes(b"abc" * 100_000)
    image = tmp_path / "image.erofs"
    subprocess.run([require_peer("mkfs.erofs"), "-zlz4", image, tree], check=True, capture_output=True)
    with FileAt(image) as file:
        document = inspect_image(ImageReader(UnverifiedImage(file)))
    assert document.space.compressed_bytes >= 300_000
    assert "lz4_0padding" in document.superblock.features
    assert document.files.names == 11
    assert "compressed" in inspect_text(document)
