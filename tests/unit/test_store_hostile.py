"""A store that somebody else filled: whatever lies there, only our own errors come out, and in bounded time."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.store_samples import add_image, data_region, meta_region, sealed_bytes, signature

from eroseal.errors import ErosealError, FormatError
from eroseal.format.digest import Digest, HashAlgorithm
from eroseal.format.record import IMAGE_MAGIC, encode_record
from eroseal.readat import BytesAt
from eroseal.store.atomic import is_temporary
from eroseal.store.document import BlobInfo, ImageDocument
from eroseal.store.fsck import check_store
from eroseal.store.layout import digest_of_path, record_owner
from eroseal.store.local import LocalStore
from eroseal.store.resolve import resolve
from eroseal.store.single import read_layout, update_record, write_single

META = BlobInfo(Digest(HashAlgorithm.SHA256, b"\1" * 32), 4096, 12288)
OTHER = BlobInfo(Digest(HashAlgorithm.SHA256, b"\2" * 32), 8192, 24576)
DOCUMENT = ImageDocument(META.digest, (META, OTHER)).encode()
BLOB = sealed_bytes(meta_region())[1]
RECORD = encode_record(IMAGE_MAGIC, [signature("a"), signature("b" * 100)])
EXPORTED = BLOB + RECORD.ljust(4096 - 64, b"\0") + BLOB[-64:]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few changed, removed, doubled or inserted bytes."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(result) + 1), chance.choice((1, 1, 2, 8, 100, 4096))
        kind = chance.randrange(5)
        if kind == 0 and at < len(result):
            result[at] = chance.randrange(256)
        elif kind == 1:
            del result[at : at + length]
        elif kind == 2:
            result[at:at] = result[at : at + length]
        elif kind == 3:
            result[at : at + length] = chance.randbytes(min(length, max(0, len(result) - at)))
        else:
            del result[at:]
        if not result:
            break
    return bytes(result)


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_documents_of_any_bytes(data: bytes) -> None:
    with pytest.raises(FormatError):
        ImageDocument.parse(data)


def test_mutated_documents_are_refused_or_say_what_they_say() -> None:
    chance = random.Random(1)
    for _ in range(3000):
        data = mutated(DOCUMENT, chance)
        try:
            document = ImageDocument.parse(data)
        except FormatError:
            continue
        assert document.encode() == data
        assert all(len(blob.digest.value) == 32 for blob in document.blobs)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(_JSON, _JSON, _JSON)
def test_documents_of_any_shape(image: object, blobs: object, extra: object) -> None:
    for value in (
        {"schema": "eroseal.image/1", "image": image, "blobs": blobs},
        {"schema": "eroseal.image/1", "image": str(META.digest), "blobs": [blobs, extra]},
        {"schema": extra, "image": str(META.digest), "blobs": []},
        {"schema": "eroseal.image/1", "image": str(META.digest), "blobs": [], "x": extra},
        [image, blobs],
        extra,
    ):
        with pytest.raises(FormatError):
            ImageDocument.parse(json.dumps(value).encode() + b"\n")


def test_mutated_single_files_raise_our_errors_only(tmp_path: Path) -> None:
    chance = random.Random(2)
    path = tmp_path / "x.erofs"
    opened = 0
    for _ in range(600):
        data = mutated(EXPORTED, chance)
        path.write_bytes(data)
        try:
            with resolve(str(path)):
                opened += 1
            update_record(path, lambda old: [*old, signature("new")], durable=False)
        except ErosealError:
            assert path.read_bytes() == data
            continue
        # Where it was accepted, nothing of the sealed blob got lost.
        layout = read_layout(BytesAt(data))
        assert path.read_bytes()[: layout.seal_end] == data[: layout.seal_end]
    assert opened > 10
    assert os.listdir(tmp_path) == ["x.erofs"]


def test_mutated_stores_are_checked_to_the_end(tmp_path: Path) -> None:
    chance = random.Random(3)
    store = LocalStore.create(tmp_path / "s", durable=False)
    add_image(store, "a", seeds=(1, 2), record=[signature("s")])
    files = [path for path in store.path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(files) == 5
    for _ in range(150):
        path = chance.choice(files)
        whole = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(mutated(whole, chance))
        changed = path.read_bytes() != whole
        report = check_store(store, jobs=1)
        # A footer is a hint: where it alone differs, the blob still proves itself.
        if report.ok and changed:
            assert path.parent.parent.name == "blobs"
            assert path.read_bytes()[:-64] == whole[:-64]
        path.write_bytes(whole)
    assert check_store(store).findings == ()


@given(st.text(max_size=80) | st.from_regex(r"[a-z.]{0,3}\.?[0-9a-f]{30,33}\.record"))
def test_file_names_have_one_meaning(name: str) -> None:
    owner = record_owner(name)
    meanings = [
        is_temporary(name),
        owner is not None,
        digest_of_path(name[:2], name[2:]) is not None,
    ]
    assert sum(meanings) <= 1
    if owner is not None:
        assert name.startswith(owner + ".")


def test_odd_file_names_are_reported_as_they_are(tmp_path: Path) -> None:
    store = LocalStore.create(tmp_path / "s", durable=False)
    for name in (b"\xff\xfe", b"a\nb", b"images/\x1b[31m", b"blobs/\xe4"):
        Path(os.fsdecode(os.fsencode(store.path) + b"/" + name)).touch()
    report = check_store(store)
    assert len(report.findings) == 4
    assert report.ok
    document = json.loads(json.dumps(msgspec.to_builtins(report)))
    paths = {os.fsencode(finding["path"]) for finding in document["findings"]}
    assert os.fsencode(store.path) + b"/\xff\xfe" in paths


def test_a_huge_sparse_file_is_not_read(tmp_path: Path) -> None:
    store = LocalStore.create(tmp_path / "s", durable=False)
    document = add_image(store, "x", record=[signature("s")])
    for path in (store.image_path("x"), store.record_path("x", document.image)):
        whole = path.read_bytes()
        os.truncate(path, 1 << 40)
        with pytest.raises(FormatError, match="more than"):
            store.image("x")
        path.write_bytes(whole)
    blob = store.blob_path(document.data[0].digest)
    blob.chmod(0o600)
    os.truncate(blob, 1 << 40)
    report = check_store(store)
    assert {finding.kind for finding in report.findings} == {"wrong-size"}
    path = tmp_path / "x.erofs"
    write_single(BytesAt(sealed_bytes(data_region(1))[1]), [], path, durable=False)
    os.truncate(path, 1 << 40)
    with pytest.raises(ErosealError):
        resolve(str(path))
