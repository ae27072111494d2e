"""Sealed images in OCI form, in real image layouts and a real registry."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.oci_places import Json, Place, layout_place, manifest_of, put_changed, registry_place
from tests.support.registry import Registry
from tests.support.stores import Sample, fill, publish, publish_stack, sample_blob, sample_image
from tests.unit.store_samples import meta_region, sealed_bytes, signature

from eroseal.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    OutputError,
    UnsupportedError,
    UsageError,
)
from eroseal.format.annex import encode_annex
from eroseal.format.digest import Digest
from eroseal.readat import BytesAt
from eroseal.store.document import BlobInfo, ImageDocument
from eroseal.store.oci.documents import OCI_INDEX, Descriptor
from eroseal.store.oci.layout import LayoutRepository
from eroseal.store.oci.registry import RegistryRepository
from eroseal.store.oci.store import OciStore
from eroseal.trust.image import open_blob
from eroseal.trust.scan import scan_blob

# Started before the first test, or that test would be told that it left it behind.
pytestmark = pytest.mark.usefixtures("registry")


@pytest.fixture(params=["layout", "registry"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with contextlib.ExitStack() as opened:
        if request.param == "layout":
            yield layout_place(tmp_path / "layout", opened)
        else:
            yield registry_place(request.getfixturevalue("registry"), opened)


@pytest.fixture
def two_repositories(registry: Registry) -> Iterator[tuple[Place, Place]]:
    with contextlib.ExitStack() as opened:
        yield registry_place(registry, opened), registry_place(registry, opened)


@pytest.fixture(params=[False, True], ids=["raw", "zstd"])
def store(request: pytest.FixtureRequest, place: Place) -> OciStore:
    return place.store(compress=request.param)


def read_whole(store: OciStore, digest: Digest) -> bytes:
    with contextlib.closing(store.open_blob(digest)) as source:
        assert scan_blob(source, open_blob(source, digest), jobs=1) == []
        return source.read_at(0, source.size)


def oci_digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


# There and back


def test_an_image_comes_back_block_by_block(place: Place, store: OciStore) -> None:
    sample = sample_image((1, 2, 1))
    publish(store, "app", sample, [signature("x")])
    with place.store() as again:
        assert again.image("app") == (sample.document, [signature("x")])
        for digest, blob in sample.blobs.items():
            assert again.has_blob(digest)
            assert read_whole(again, digest) == blob
        assert list(again.list_blobs()) == sorted(sample.blobs, key=lambda digest: digest.hex)


def test_a_stack_comes_back(place: Place, store: OciStore) -> None:
    document = publish_stack(store, "app", [sample_image((1,)), sample_image((2, 1), 1), sample_image((1,))])
    with place.store() as again:
        assert again.image("app") == (document, [])


def test_an_image_can_be_read_by_its_manifest_digest(place: Place, store: OciStore) -> None:
    document = publish(store, "app", sample_image())
    digest = store.repository.manifest("app")[1].digest
    assert place.store().image(digest) == (document, [])
    assert place.store().has_image(digest)
    assert not place.store().has_image(f"sha256:{'0' * 64}")
    with pytest.raises(NotFoundError, match="no image has this name"):
        store.image(f"sha256:{'0' * 64}")
    for name in ("sha256:0", digest):
        with pytest.raises(UsageError):
            store.put_image(name, document)


def test_blobs_that_no_image_was_asked_for_are_found_through_the_tags(place: Place) -> None:
    first, second = sample_image((1,)), sample_image((2,), 1)
    publish(place.store(), "first", first)
    publish(place.store(), "second", second)
    again = place.store()
    assert again.has_blob(second.document.image)
    assert read_whole(again, first.document.data[0].digest) == first.blobs[first.document.data[0].digest]
    assert not again.has_blob(sample_blob(77)[0])
    with pytest.raises(NotFoundError, match="is not in the store"):
        again.open_blob(sample_blob(77)[0])


def test_the_same_image_has_the_same_manifest_wherever_it_is(place: Place, tmp_path: Path, registry: object) -> None:
    sample = sample_image((1, 2))
    publish(place.store(), "app", sample)
    publish(OciStore(LayoutRepository(tmp_path / "other", create=True), architecture="amd64"), "x", sample)
    # This one takes what the repository has, and looks at it from outside.
    publish(place.store(), "again", sample)
    other = LayoutRepository(tmp_path / "other").manifest("x")[0]
    assert place.open().manifest("app")[0] == place.open().manifest("again")[0] == other


def test_what_is_there_is_not_sent_again(place: Place, store: OciStore) -> None:
    sample = sample_image((1, 2))
    publish(store, "app", sample)
    sent: list[int] = []
    with place.store() as again:
        for digest, blob in sample.blobs.items():
            # Nothing is read from the source: it has nothing.
            assert again.put_blob(digest, BytesAt(b""), progress=sent.append) == len(blob)
    assert sent == []


def test_the_config_of_the_source_goes_with_the_image(place: Place, store: OciStore) -> None:
    source = {
        "architecture": "riscv64",
        "os": "linux",
        "config": {"Entrypoint": ["/init"], "Labels": {"a": "b"}},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:old"]},
        "history": [{"created_by": "x"}],
    }
    region = meta_region() + encode_annex(config=json.dumps(source).encode())
    digest, blob = sealed_bytes(region)
    document = ImageDocument(digest, (BlobInfo(digest, len(region), len(blob)),))
    publish(store, "app", Sample(document, {digest: blob}))
    descriptor = manifest_of(store.repository, "app")["config"]
    config = json.loads(place.file(descriptor["digest"]).read_bytes())
    assert config == {
        "architecture": "riscv64",
        "os": "linux",
        "os.features": ["erofs"],
        "config": source["config"],
        "rootfs": {"type": "layers", "diff_ids": [oci_digest(blob)]},
    }


# Blobs on their way


class Afar:
    """A source that is no file, and that gives other bytes the second time."""

    def __init__(self, data: bytes, second: bytes) -> None:
        self._data, self._second = data, second
        self._seen: set[int] = set()
        self.size = len(data)
        self.name = "afar"

    def read_at(self, offset: int, length: int) -> bytes:
        data = self._second if offset in self._seen else self._data
        self._seen.add(offset)
        return BytesAt(data).read_at(offset, length)


def test_what_is_sent_is_what_was_verified(place: Place, store: OciStore) -> None:
    digest, blob = sample_blob(2, blocks=40)
    wrong = bytes(byte ^ 1 for byte in blob)
    with contextlib.suppress(IntegrityError):
        store.put_blob(digest, Afar(blob, wrong), jobs=1)
    # Whether the first or the second reading was kept: only the blob itself can have arrived.
    assert not store.has_blob(digest) or read_whole(store, digest) == blob
    assert not store.repository.has_blob(Descriptor(media_type="x", digest=oci_digest(wrong), size=len(wrong)))


def test_a_damaged_blob_is_not_sent(place: Place, store: OciStore) -> None:
    digest, blob = sample_blob(2, blocks=40)
    for at in (0, 39 * 4096, 41 * 4096 + 3):
        damaged = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
        with pytest.raises(IntegrityError):
            store.put_blob(digest, BytesAt(damaged), jobs=1)
        assert not store.has_blob(digest)
        assert not store.repository.has_blob(Descriptor(media_type="x", digest=oci_digest(damaged), size=len(blob)))


def test_a_missing_blob_keeps_an_image_from_appearing(store: OciStore) -> None:
    sample = sample_image((1, 2))
    with pytest.raises(NotFoundError, match="is not in the store"):
        store.put_image("app", sample.document)
    fill(store, Sample(sample.document, {sample.document.image: sample.blobs[sample.document.image]}))
    with pytest.raises(NotFoundError, match="is not in the store"):
        store.put_image("app", sample.document)
    assert store.list_images() == []


def test_a_repository_mounts_what_another_one_of_its_registry_has(two_repositories: tuple[Place, Place]) -> None:
    sample = sample_image((1,))
    first, second = (place.store() for place in two_repositories)
    publish(first, "app", sample)
    for digest in sample.blobs:
        assert second.adopt_blob(digest, first)
        assert second.adopt_blob(digest, first)
    second.put_image("app", sample.document)
    assert first.repository.manifest("app") == second.repository.manifest("app")
    assert not second.adopt_blob(sample_blob(77)[0], first)


def test_nothing_is_mounted_that_is_not_the_blob(two_repositories: tuple[Place, Place]) -> None:
    sample, other = sample_image((1,)), sample_blob(2)
    first, second = (place.store() for place in two_repositories)
    publish(first, "app", sample)
    lie = str(other[0])
    put_changed(
        first.repository, "app", "lie", lambda it: it["layers"][0]["annotations"].update({"dev.eroseal.digest": lie})
    )
    with pytest.raises(IntegrityError):
        second.adopt_blob(other[0], two_repositories[0].store())
    assert not second.has_blob(other[0])


def test_layouts_and_other_stores_are_not_mounted_from(place: Place, tmp_path: Path) -> None:
    publish(place.store(), "app", sample_image((1,)))
    elsewhere = OciStore(LayoutRepository(tmp_path / "elsewhere", create=True), architecture="amd64")
    assert not elsewhere.adopt_blob(sample_blob(1)[0], place.store())
    publish(elsewhere, "app", sample_image((2,)))
    assert not place.store().adopt_blob(sample_blob(2)[0], elsewhere)


def test_blobs_are_deleted_from_layouts_alone(place: Place) -> None:
    sample = sample_image((1,))
    store = place.store()
    publish(store, "app", sample)
    digest = sample.document.data[0].digest
    if isinstance(store.repository, RegistryRepository):
        with pytest.raises(UnsupportedError, match="collects blobs itself"):
            store.delete_blob(digest)
        assert store.has_blob(digest)
    else:
        store.delete_blob(digest)
        assert not store.has_blob(digest)
        for opened in (store, place.store()):
            with pytest.raises(NotFoundError):
                opened.put_image("other", sample.document)
        fill(store, sample)
        assert read_whole(store, digest) == sample.blobs[digest]
    with pytest.raises(NotFoundError):
        store.delete_blob(sample_blob(77)[0])


# Names


def test_images_of_others_are_passed_over(place: Place) -> None:
    store = place.store()
    document = publish(store, "app", sample_image(), [signature("x")])
    repository = store.repository
    layer = Descriptor(media_type="application/vnd.oci.image.layer.v1.tar", digest=oci_digest(b"tar"), size=3)
    repository.put_blob(layer, BytesAt(b"tar"))
    put_changed(
        repository,
        "app",
        "tar",
        lambda it: it.update(layers=[{"mediaType": layer.media_type, "digest": layer.digest, "size": 3}]),
    )
    put_changed(
        repository,
        "app",
        "bare",
        lambda it: [it.pop("annotations"), [each.pop("annotations") for each in it["layers"]]],
    )
    put_changed(repository, "app", f"sha256-{'0' * 64}.sig", lambda it: None)
    assert store.list_images() == ["app"]
    assert store.has_image("tar")
    with pytest.raises(UnsupportedError, match=r"not EROFS.*build a sealed image"):
        store.image("tar")
    with pytest.raises(OutputError, match="exists already"):
        store.put_image("tar", document)
    store.put_image("tar", document, replace=True)
    assert store.list_images() == ["app", "tar"]


def test_an_index_gives_the_image_for_the_architecture(place: Place) -> None:
    store = place.store()
    document = publish(store, "app", sample_image())
    own = store.repository.manifest("app")[1]

    def entry(**platform: object) -> Json:
        return {"mediaType": own.media_type, "digest": own.digest, "size": own.size, "platform": platform}

    def index(*entries: Json) -> bytes:
        return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()

    erofs = entry(architecture="amd64", os="linux", **{"os.features": ["erofs"]})
    plain = {**entry(architecture="amd64", os="linux"), "digest": own.digest}
    other = entry(architecture="arm64", os="linux", **{"os.features": ["erofs"]})
    windows = entry(architecture="amd64", os="windows", **{"os.features": ["erofs"]})
    store.repository.put_manifest(index(plain, other, windows, erofs), OCI_INDEX, tag="many")
    store.repository.put_manifest(index(plain, other, windows), OCI_INDEX, tag="none")
    assert store.image("many") == (document, [])
    assert store.list_images() == ["app", "many"]
    with pytest.raises(UnsupportedError, match="an index without an EROFS image for linux/amd64"):
        store.image("none")


def test_a_tag_is_deleted_and_blobs_stay(place: Place) -> None:
    store = place.store()
    document = publish(store, "app", sample_image((1,)))
    publish(store, "other", sample_image((1, 2), 1))
    store.delete_image("app")
    assert store.list_images() == ["other"]
    assert store.has_blob(document.data[0].digest)
    with pytest.raises(NotFoundError):
        store.image("app")
    with pytest.raises(NotFoundError):
        store.delete_image("app")


# Manifests of other tools, and of nobody's friends


def strip(manifest: Json) -> None:
    """Leave what another tool might: layers, roles, and nothing else."""
    manifest.pop("annotations")
    for layer in manifest["layers"]:
        layer["annotations"] = {
            key: value
            for key, value in layer["annotations"].items()
            if key in ("org.erofs.role", "org.erofs.chunk-index.range")
        }


def test_without_annotations_the_seals_tell(place: Place, store: OciStore) -> None:
    sample = sample_image((2, 1, 2))
    publish(store, "app", sample)
    stack = publish_stack(store, "stack", [sample_image((1,)), sample_image((2,), 1)])
    for name in ("app", "stack"):
        put_changed(store.repository, name, f"{name}-bare", strip)
    with place.store() as again:
        assert again.image("app-bare")[0] == sample.document
        assert again.image("stack-bare")[0] == stack
        assert read_whole(again, sample.document.data[1].digest) == sample.blobs[sample.document.data[1].digest]
        # What comes of it is a manifest like all others (but for what only the compressing side knew).
        again.put_image("healed", sample.document)
        healed, first = (manifest_of(again.repository, name) for name in ("healed", "app"))
        assert again.image("healed")[0] == sample.document
        assert [layer["digest"] for layer in healed["layers"]] == [layer["digest"] for layer in first["layers"]]
        assert healed["config"] == first["config"]


def test_without_annotations_a_wrong_number_of_devices_is_noticed(place: Place) -> None:
    store = place.store()
    publish(store, "app", sample_image((1, 2)))
    put_changed(store.repository, "app", "less", lambda it: [strip(it), it["layers"].pop(0)])
    put_changed(store.repository, "app", "more", lambda it: [strip(it), it["layers"].insert(0, it["layers"][0])])
    for name in ("less", "more"):
        with pytest.raises(FormatError, match="image has 2 devices, its manifest gives it"):
            place.store().image(name)


def test_a_contradiction_between_device_table_and_annotation_is_noticed(place: Place) -> None:
    store = place.store()
    publish(store, "app", sample_image((1, 2)))

    def swap(manifest: Json) -> None:
        first, second = (layer["annotations"] for layer in manifest["layers"][:2])
        manifest.pop("annotations")
        manifest["layers"][0]["annotations"] = {**first, "dev.eroseal.digest": second["dev.eroseal.digest"]}
        manifest["layers"][1]["annotations"] = {"org.erofs.role": "device"}

    put_changed(store.repository, "app", "swapped", swap)
    with pytest.raises(FormatError, match="as its manifest says"):
        place.store().image("swapped")


def test_an_image_that_is_not_sealed_is_refused(place: Place) -> None:
    store = place.store()
    publish(store, "app", sample_image())
    layer = Descriptor(media_type="application/vnd.erofs", digest=oci_digest(bytes(8192)), size=8192)
    store.repository.put_blob(layer, BytesAt(bytes(8192)))
    bare = {"mediaType": layer.media_type, "digest": layer.digest, "size": 8192}
    put_changed(store.repository, "app", "plain", lambda it: it.update(layers=[bare], annotations={}))
    with pytest.raises(IntegrityError, match="no seal found"):
        place.store().image("plain")
    # It does not keep anybody from finding the others.
    assert place.store().has_blob(sample_blob(1)[0])
    assert place.store().list_images() == ["app"]


def test_a_manifest_that_claims_other_blobs_deceives_nobody(place: Place) -> None:
    store = place.store()
    sample, wanted = sample_image((1,)), sample_image((2,), 1)
    publish(store, "app", sample)
    names = {
        str(old.digest): str(new.digest) for old, new in zip(sample.document.blobs, wanted.document.blobs, strict=True)
    }

    def lie(manifest: Json) -> None:
        manifest["annotations"] = {"dev.eroseal.image": str(wanted.document.image)}
        for layer in manifest["layers"]:
            layer["annotations"]["dev.eroseal.digest"] = names[layer["annotations"]["dev.eroseal.digest"]]

    put_changed(store.repository, "app", "lie", lie)
    again = place.store()
    assert again.image("lie")[0].image == wanted.document.image
    for blob in wanted.document.blobs:
        with contextlib.closing(again.open_blob(blob.digest)) as source, pytest.raises(IntegrityError):
            open_blob(source, blob.digest)
    with pytest.raises(IntegrityError):
        again.put_image("new", wanted.document)
    with pytest.raises(IntegrityError):
        again.put_blob(wanted.document.image, BytesAt(wanted.blobs[wanted.document.image]))
    assert not again.has_image("new")


def test_layers_that_are_missing_or_of_another_size_are_noticed(place: Place) -> None:
    store = place.store()
    sample = sample_image((901,), 901)  # nobody else's: a registry keeps content once for all its repositories
    publish(store, "app", sample)
    layer = manifest_of(store.repository, "app")["layers"][0]
    file = place.file(layer["digest"])
    blob = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(blob[:-4096])
    again = place.store()
    assert again.image("app")[0] == sample.document
    assert not again.has_blob(sample.document.data[0].digest)
    with pytest.raises((NotFoundError, IntegrityError, FormatError)):
        again.put_image("new", sample.document)
    file.unlink()
    again = place.store()
    with pytest.raises(NotFoundError):
        again.put_image("new", sample.document)
    with pytest.raises(NotFoundError), contextlib.closing(again.open_blob(sample.document.data[0].digest)) as source:
        source.read_at(0, 1)
    assert not again.has_image("new")


def test_a_damaged_layer_is_found_by_whoever_reads_it(place: Place, store: OciStore) -> None:
    digest, blob = sample_blob(902, blocks=40)  # nobody else's, as above
    store.put_blob(digest, BytesAt(blob), jobs=1)
    found = store.prove(digest)
    assert found is not None
    file = place.file(found.digest)
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.chmod(0o644)
    file.write_bytes(data)
    with contextlib.closing(store.open_blob(digest)) as source, pytest.raises((IntegrityError, FormatError)):
        scan_blob(source, open_blob(source, digest), jobs=1)
