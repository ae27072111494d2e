"""Sealed images as OCI manifests: round trips, the bytes, and every rule that a manifest can break."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eroseal.errors import ErosealError, FormatError, NotFoundError, OutputError, UnsupportedError
from eroseal.format.digest import BLOCK, Digest, HashAlgorithm, TreeParams
from eroseal.format.fsverity import Descriptor as SealDescriptor
from eroseal.format.sealed import TreeShape
from eroseal.limits import MAX_MANIFEST
from eroseal.store.document import BlobInfo, Document, ImageDocument, StackDocument
from eroseal.store.oci.config import config_for
from eroseal.store.oci.documents import OCI_CONFIG, Descriptor
from eroseal.store.oci.form import encode_form, form_layers, layer_document, parse_form
from eroseal.store.oci.layers import blob_info, diff_id, raw_layer

CONFIG = Descriptor(media_type=OCI_CONFIG, digest=f"sha256:{'c' * 64}", size=100)
Layers = dict[Digest, Descriptor]
Json = dict[str, Any]


def blob(label: str, blocks: int = 3, params: TreeParams | None = None) -> tuple[BlobInfo, Descriptor]:
    """What is known of a sealed blob, and its layer."""
    params = params or TreeParams()
    root = hashlib.new(params.algorithm.name_text, label.encode()).digest()
    seal = SealDescriptor(params, blocks * BLOCK, root)
    size = TreeShape.of(seal.data_size, params).record_offset + BLOCK
    digest = f"sha256:{hashlib.sha256(label.encode() + b'!').hexdigest()}"
    return BlobInfo(seal.digest, seal.data_size, size), raw_layer(seal, size=size, oci_digest=digest)


def image(*labels: str, params: TreeParams | None = None) -> tuple[ImageDocument, Layers]:
    """An image whose meta blob has the first label."""
    made = [blob(label, params=params) for label in labels]
    return ImageDocument(made[0][0].digest, tuple(info for info, _ in made)), {
        info.digest: layer for info, layer in made
    }


def stack(*images: tuple[ImageDocument, Layers]) -> tuple[StackDocument, Layers]:
    layers: Layers = {}
    for _, some in images:
        layers |= some
    return StackDocument(tuple(document for document, _ in images)), layers


def encoded(document: Document, layers: Layers) -> bytes:
    return encode_form(document, CONFIG, form_layers(document, layers))


def decoded(data: bytes) -> Document:
    form = parse_form(data, where="test")
    found = [layer_document(layer, where="test") for layer in form.layers]
    return form.document([document for document in found if document is not None], where="test")


SAMPLES: dict[str, tuple[Document, Layers]] = {
    "meta alone": image("m"),
    "two data blobs": image("m", "a", "b"),
    "one blob as two devices": image("m", "a", "b", "a"),
    "sha512": image("m", "a", params=TreeParams(HashAlgorithm.SHA512, b"salt")),
    "stack": stack(image("m1", "a"), image("m2", "a", "b"), image("m3")),
    "stack with a layer twice": stack(image("m1"), image("m2", "a"), image("m1")),
    "stack of one": stack(image("m", "a")),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_document_comes_back(name: str) -> None:
    document, layers = SAMPLES[name]
    data = encoded(document, layers)
    assert decoded(data) == document
    assert encoded(document, dict(reversed(layers.items()))) == data


def test_the_manifest_is_spelled_as_the_specification_says() -> None:
    document, layers = image("m", "a")
    manifest = json.loads(encoded(document, layers))
    assert list(manifest) == ["schemaVersion", "mediaType", "config", "layers", "annotations"]
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["annotations"] == {"dev.eroseal.image": str(document.image)}
    data, meta = manifest["layers"]
    assert (data["mediaType"], meta["mediaType"]) == ("application/octet-stream", "application/vnd.erofs")
    assert list(data["annotations"].items()) == [
        ("dev.eroseal.digest", str(document.blobs[1].digest)),
        ("org.erofs.dmverity.block_size", "4096"),
        ("org.erofs.dmverity.hash_offset", str(3 * BLOCK)),
        ("org.erofs.dmverity.root_digest", f"sha256:{hashlib.sha256(b'a').hexdigest()}"),
        ("org.erofs.role", "device"),
    ]
    assert "org.erofs.role" not in meta["annotations"]
    assert (meta["digest"], meta["size"]) == (layers[document.image].digest, document.meta.size)


def test_the_layers_of_a_stack_stand_in_order_with_their_devices() -> None:
    document, layers = SAMPLES["stack"]
    manifest = json.loads(encoded(document, layers))
    order = [
        (layer["annotations"]["dev.eroseal.digest"], layer["annotations"].get("org.erofs.role"))
        for layer in manifest["layers"]
    ]
    digest = {label: str(blob(label)[0].digest) for label in ("m1", "m2", "m3", "a", "b")}
    assert order == [
        (digest["a"], "device"),
        (digest["m1"], "overlay-lower"),
        (digest["a"], "device"),
        (digest["b"], "device"),
        (digest["m2"], "overlay-lower"),
        (digest["m3"], None),
    ]
    assert manifest["annotations"]["dev.eroseal.image"].startswith("stack-sha256:")


def test_a_blob_without_a_layer_is_missed() -> None:
    document, layers = image("m", "a")
    del layers[document.blobs[1].digest]
    with pytest.raises(NotFoundError, match="is not in the store"):
        form_layers(document, layers)


def test_a_manifest_too_large_for_registries_is_not_made() -> None:
    document, layers = image("m", "a")
    many = replace(document, blobs=(document.meta, *[document.blobs[1]] * 10_000))
    with pytest.raises(OutputError, match="registries take 4194304") as caught:
        encoded(many, layers)
    assert "--blobs build" in str(caught.value)
    fits = replace(document, blobs=(document.meta, *[document.blobs[1]] * 8_000))
    assert len(encoded(fits, layers)) < MAX_MANIFEST


# What other tools do to manifests


def changed(change: Callable[[Json], None], name: str = "two data blobs") -> bytes:
    manifest = json.loads(encoded(*SAMPLES[name]))
    change(manifest)
    return json.dumps(manifest).encode()


def annotate(number: int, **values: str | None) -> Callable[[Json], None]:
    """Set (or drop) annotations of a layer; `__` stands for a dot, two more for a hyphen."""

    def change(manifest: Json) -> None:
        annotations = manifest["layers"][number]["annotations"]
        for key, value in values.items():
            spelled = key.replace("____", "-").replace("__", ".")
            annotations.pop(spelled, None)
            if value is not None:
                annotations[spelled] = value

    return change


def set_type(number: int, media_type: str) -> Callable[[Json], None]:
    return lambda manifest: manifest["layers"][number].update(mediaType=media_type)


def index_layer(target: str | None) -> Json:
    annotations = {"org.erofs.chunk-index.target": target} if target else {}
    return {
        "mediaType": "application/vnd.erofs.chunk-index.v1",
        "digest": f"sha256:{'1' * 64}",
        "size": 80,
        "annotations": annotations,
    }


def insert_index(place: int, target: Callable[[Json], str | None] = lambda manifest: None) -> Callable[[Json], None]:
    return lambda manifest: manifest["layers"].insert(place, index_layer(target(manifest)))


ACCEPTED: dict[str, Callable[[Json], None]] = {
    "unknown annotations of the specification": annotate(0, org__erofs__novelty="yes"),
    "devices called EROFS": set_type(0, "application/vnd.erofs"),
    "no block size": annotate(1, org__erofs__dmverity__block_size=None),
    "no root digest": annotate(1, org__erofs__dmverity__root_digest=None),
    "no image annotation": lambda manifest: manifest.pop("annotations"),
    "no media type": lambda manifest: manifest.pop("mediaType"),
    "a top layer that is an overlay's, as 3.8 allows": annotate(2, org__erofs__role="overlay-lower"),
    "a chunk index between device and image": insert_index(2, lambda manifest: manifest["layers"][1]["digest"]),
    "a chunk index without target": insert_index(1),
    "unknown fields": lambda manifest: manifest.update(novelty={"a": 1}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_makes_no_difference_is_accepted(name: str) -> None:
    assert decoded(changed(ACCEPTED[name])) == SAMPLES["two data blobs"][0]


def test_roles_may_be_missing_below_the_top() -> None:
    assert decoded(changed(annotate(1, org__erofs__role=None), "stack")) == SAMPLES["stack"][0]


def test_without_its_annotation_a_stack_of_one_is_its_only_image() -> None:
    document, _ = SAMPLES["stack of one"]
    assert decoded(changed(lambda manifest: manifest.pop("annotations"), "stack of one")) == document.layers[0]


@pytest.mark.parametrize("key", ["dev__eroseal__digest", "org__erofs__dmverity__hash_offset"])
def test_dropped_annotations_are_noticed(key: str) -> None:
    form = parse_form(changed(annotate(1, **{key: None})), where="test")
    assert layer_document(form.layers[0], where="test") is None
    assert len(form.layers[0].devices) == 2


def test_an_embedded_chunk_index_is_no_part_of_the_blob() -> None:
    def change(manifest: Json) -> None:
        layer = manifest["layers"][0]
        layer["annotations"]["org.erofs.chunk-index.range"] = f"{layer['size']}"
        layer["size"] += 80

    assert decoded(changed(change)) == SAMPLES["two data blobs"][0]


def swap(first: int, second: int) -> Callable[[Json], None]:
    def change(manifest: Json) -> None:
        layers = manifest["layers"]
        layers[first], layers[second] = layers[second], layers[first]

    return change


def repeat_with(**values: str | None) -> Callable[[Json], None]:
    """The first layer once more, with other annotations."""

    def change(manifest: Json) -> None:
        manifest["layers"].insert(1, json.loads(json.dumps(manifest["layers"][0])))
        annotate(1, **values)(manifest)

    return change


OTHER = str(blob("other")[0].digest)
BROKEN: dict[str, tuple[Callable[[Json], None], type[ErosealError], str]] = {
    "no layers": (lambda manifest: manifest["layers"].clear(), FormatError, "no layers"),
    "only devices": (lambda manifest: manifest["layers"].pop(), FormatError, "after the last EROFS layer"),
    "device last": (swap(1, 2), FormatError, "after the last EROFS layer"),
    "chunk index first": (insert_index(0), FormatError, "does not follow the layer"),
    "chunk index last": (insert_index(3), FormatError, "last layer is a chunk index"),
    "chunk index of a chunk index": (
        lambda manifest: [insert_index(1)(manifest) for _ in range(2)].clear(),
        FormatError,
        "does not follow the layer",
    ),
    "chunk index of another layer": (
        insert_index(1, lambda manifest: manifest["layers"][1]["digest"]),
        FormatError,
        "for another layer",
    ),
    "tar layer": (set_type(2, "application/vnd.oci.image.layer.v1.tar+gzip"), UnsupportedError, "not EROFS"),
    "tar device": (set_type(0, "application/vnd.oci.image.layer.v1.tar"), UnsupportedError, "not EROFS"),
    "unknown layer": (set_type(0, "application/vnd.novelty"), UnsupportedError, "not EROFS"),
    "octets that are mounted": (set_type(2, "application/octet-stream"), FormatError, "not a device"),
    "overlay-data": (annotate(0, org__erofs__role="overlay-data"), UnsupportedError, "has the role 'overlay-data'"),
    "unknown role": (annotate(2, org__erofs__role="Device"), UnsupportedError, "has the role 'Device'"),
    "octets as overlay": (annotate(0, org__erofs__role="overlay-lower"), FormatError, "not a device"),
    "an artifact": (
        lambda manifest: manifest["config"].update(mediaType="application/vnd.oci.empty.v1+json"),
        UnsupportedError,
        "an artifact",
    ),
    "an index": (
        lambda manifest: manifest.update(mediaType="application/vnd.oci.image.index.v1+json"),
        FormatError,
        "not an image manifest",
    ),
    "schema version": (lambda manifest: manifest.update(schemaVersion=1), FormatError, "not an image manifest"),
    "no config": (lambda manifest: manifest.pop("config"), FormatError, "not a valid manifest"),
    "negative size": (lambda manifest: manifest["layers"][0].update(size=-1), FormatError, "not a valid manifest"),
    "size of 2^63": (lambda manifest: manifest["layers"][0].update(size=1 << 63), FormatError, "not a valid manifest"),
    "no digest": (
        lambda manifest: manifest["layers"][0].update(digest="sha256:0"),
        FormatError,
        "not a valid manifest",
    ),
    "another image": (
        lambda manifest: manifest["annotations"].update({"dev.eroseal.image": OTHER}),
        FormatError,
        "manifest says that the image is",
    ),
    "no image digest": (
        lambda manifest: manifest["annotations"].update({"dev.eroseal.image": "sha256:" + "0" * 64}),
        FormatError,
        "not an image digest",
    ),
    "blob digest": (annotate(0, dev__eroseal__digest="sha256:" + "0" * 64), FormatError, "dev.eroseal.digest"),
    "D is no number": (annotate(0, org__erofs__dmverity__hash_offset="0x1000"), FormatError, "not a number"),
    "D with a sign": (annotate(0, org__erofs__dmverity__hash_offset="+4096"), FormatError, "not a number"),
    "D is 0": (annotate(0, org__erofs__dmverity__hash_offset="0"), FormatError, "not a positive multiple"),
    "D is odd": (annotate(0, org__erofs__dmverity__hash_offset="4097"), FormatError, "not a positive multiple"),
    "D of 2^62": (annotate(0, org__erofs__dmverity__hash_offset=str(1 << 62)), FormatError, "not a positive multiple"),
    "D beyond the layer": (
        annotate(0, org__erofs__dmverity__hash_offset=str(1 << 30)),
        FormatError,
        "leaves the layer",
    ),
    "D without room for a seal": (
        annotate(0, org__erofs__dmverity__hash_offset=str(5 * BLOCK)),
        FormatError,
        "cannot have",
    ),
    "blocks of 512": (annotate(0, org__erofs__dmverity__block_size="512"), FormatError, "a sealed blob's is 4096"),
    "root without algorithm": (annotate(0, org__erofs__dmverity__root_digest="0" * 64), FormatError, "not a digest"),
    "root in capitals": (
        annotate(0, org__erofs__dmverity__root_digest="sha256:" + "A" * 64),
        FormatError,
        "not a digest",
    ),
    "root of another algorithm": (
        annotate(0, org__erofs__dmverity__root_digest="sha512:" + "0" * 128),
        FormatError,
        "another algorithm",
    ),
    "chunk index range beyond the layer": (
        annotate(0, org__erofs__chunk____index__range="4096:99999999"),
        FormatError,
        "no range",
    ),
    "chunk index range backwards": (
        annotate(0, org__erofs__chunk____index__range="8192:4096"),
        FormatError,
        "no range",
    ),
    "two layers for one blob": (
        lambda manifest: annotate(0, dev__eroseal__digest=manifest["layers"][1]["annotations"]["dev.eroseal.digest"])(
            manifest
        ),
        FormatError,
        "two layers are said to hold",
    ),
    "two blobs in one layer": (repeat_with(dev__eroseal__digest=OTHER), FormatError, "described in two ways"),
    "two sizes of D for one layer": (
        repeat_with(org__erofs__dmverity__hash_offset=str(2 * BLOCK)),
        FormatError,
        "described in two ways",
    ),
    "the meta blob as a device": (
        lambda manifest: manifest["layers"].insert(
            0,
            manifest["layers"][-1]
            | {"annotations": manifest["layers"][-1]["annotations"] | {"org.erofs.role": "device"}},
        ),
        FormatError,
        "meta blob as a data blob",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_manifest_that_breaks_a_rule_is_refused(name: str) -> None:
    change, kind, message = BROKEN[name]
    with pytest.raises(kind, match=message) as caught:
        decoded(changed(change))
    assert caught.value.where == "test"


def test_too_many_layers_are_refused() -> None:
    meta = json.loads(encoded(*image("m")))["layers"][0] | {"annotations": {}}
    data = changed(lambda manifest: manifest.update(layers=[meta] * 128))
    with pytest.raises(FormatError, match="more than 127 EROFS layers"):
        parse_form(data, where="test")


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{" * 100_000, b" " * (MAX_MANIFEST + 1)])
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_form(data, where="test")


@given(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=12), st.booleans())
def test_a_manifest_with_any_bytes_changed_is_refused_or_makes_sense(place: int, noise: bytes, insert: bool) -> None:
    data = encoded(*SAMPLES["stack"])
    at = place % len(data)
    changed_data = data[:at] + noise + data[at if insert else at + len(noise) :]
    try:
        document = decoded(changed_data)
    except ErosealError:
        return
    assert document.image == SAMPLES["stack"][0].image or b'"dev.eroseal.image"' not in changed_data


def test_a_compressed_layer_says_its_blob_size_itself() -> None:
    info, layer = blob("a")
    packed = msgspec.structs.replace(layer, media_type="application/vnd.erofs+zstd", size=77)
    assert blob_info(packed) is None
    sized = msgspec.structs.replace(
        packed,
        annotations=packed.annotations
        | {"dev.eroseal.size": str(info.size), "org.erofs.uncompressed-digest": f"sha256:{'9' * 64}"},
    )
    assert blob_info(sized) == info
    assert diff_id(sized) == f"sha256:{'9' * 64}"
    assert diff_id(layer) == layer.digest


# Configs


def config(original: object | None, **options: Any) -> Json:
    data = None if original is None else json.dumps(original).encode()
    found: Json = json.loads(config_for(data, architecture="arm64", diff_ids=["sha256:x"], **options))
    return found


def test_a_minimal_config() -> None:
    assert config(None) == {
        "architecture": "arm64",
        "os": "linux",
        "os.features": ["erofs"],
        "rootfs": {"type": "layers", "diff_ids": ["sha256:x"]},
    }


def test_a_config_keeps_what_the_image_does_and_drops_what_its_layers_were() -> None:
    original = {
        "created": "2024-05-01T00:00:00Z",
        "author": "somebody",
        "architecture": "amd64",
        "os": "linux",
        "os.version": "1",
        "os.features": ["erofs", "thing"],
        "variant": "v8",
        "config": {"Entrypoint": ["/bin/sh"], "Env": ["A=ü"], "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:old"]},
        "history": [{"created_by": "ADD"}],
        "container": "docker's own",
    }
    kept = config(original)
    assert kept == {name: original[name] for name in original if name not in ("history", "container")} | {
        "os.features": ["thing", "erofs"],
        "rootfs": {"type": "layers", "diff_ids": ["sha256:x"]},
    }
    assert config(kept) == kept


@pytest.mark.parametrize(
    "original",
    [[], "x", 1, {"os": 1}, {"config": []}, {"os.features": "erofs"}, {"os.features": [1]}, {"created": {}}],
)
def test_a_config_of_another_shape_is_refused(original: object) -> None:
    with pytest.raises(FormatError, match="not an image config"):
        config(original)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b" " * (MAX_MANIFEST + 1)])
def test_a_config_that_is_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        config_for(data, architecture="amd64", diff_ids=[])


def test_a_config_too_large_for_registries_is_not_made() -> None:
    with pytest.raises(OutputError, match="registries take"):
        config_for(None, architecture="amd64", diff_ids=[f"sha256:{'0' * 64}"] * 65_536)
