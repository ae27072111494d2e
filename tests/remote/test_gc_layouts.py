"""Collecting image layouts, ours and those of other tools: what the index reaches stays, however deep it lies."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.oci import descriptor_of, layer_tar, plain, put, put_image, put_index
from tests.support.oci_places import Place, layout_place
from tests.support.stores import publish, publish_stack, sample_image
from tests.unit.store_samples import signature

from eroseal.errors import ErosealError, FormatError, NotFoundError
from eroseal.store.garbage import Collected, CollectOptions
from eroseal.store.gc import collect
from eroseal.store.oci import collect as collecting
from eroseal.store.oci.collect import collect_layout
from eroseal.store.oci.documents import OCI_EMPTY, OCI_LAYER, OCI_MANIFEST, Descriptor
from eroseal.store.oci.layout import LayoutRepository
from eroseal.store.reference import parse_reference
from eroseal.store.remote import RemoteOptions

LONG_AGO = time.time() - 100 * 24 * 3600


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "layout"


@pytest.fixture
def layout(path: Path) -> LayoutRepository:
    return LayoutRepository(path, create=True, durable=False)


@pytest.fixture
def place(path: Path) -> Iterator[Place]:
    with contextlib.ExitStack() as opened:
        yield layout_place(path, opened)


def age(path: Path) -> None:
    for file in path.glob("blobs/*/*"):
        os.utime(file, (LONG_AGO, LONG_AGO))


def contents(path: Path) -> set[str]:
    return {f"{file.parent.name}:{file.name}" for file in path.glob("blobs/*/*")}


def run(path: Path, **options: object) -> Collected:
    layout = LayoutRepository(path, durable=False)
    return collect_layout(layout, CollectOptions(**options))  # type: ignore[arg-type]


def tagged(path: Path, *tags: str) -> None:
    """Leave in the index what has one of these tags, as another tool would."""
    index = json.loads((path / "index.json").read_bytes())
    index["manifests"] = [
        entry
        for entry in index["manifests"]
        if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") in tags
    ]
    (path / "index.json").write_text(json.dumps(index))


def test_images_of_ours(path: Path, place: Place) -> None:
    store = place.store()
    kept = publish(store, "kept", sample_image((1, 2)), [signature("mine")])
    stack = publish_stack(store, "stack", [sample_image((3,)), sample_image((4,), 1)])
    before = contents(path)
    publish(store, "old", sample_image((2, 5)))
    store.delete_image("old")
    assert run(path).kept["young"] > 0
    age(path)
    told = run(path, dry_run=True)
    collected = run(path)
    assert told == collected
    assert contents(path) == before
    assert {blob.digest for blob in collected.blobs} & before == set()
    assert len(collected.blobs) == 4  # a meta blob, a data blob, config and manifest
    again = place.store()
    assert again.image("kept") == (kept, [signature("mine")])
    assert again.image("stack") == (stack, [])
    assert collect(parse_reference(f"oci:{path}:x"), CollectOptions(), RemoteOptions()).blobs == ()  # type: ignore[arg-type]


def test_a_record_goes_with_its_image(path: Path, place: Place, require_peer: Callable[[str], str]) -> None:
    umoci = require_peer("umoci")
    store = place.store()
    publish(store, "kept", sample_image((1, 2)), [signature("mine")])
    before, index = contents(path), (path / "index.json").read_bytes()
    publish(store, "old", sample_image((2, 5)), [signature("yours")])
    subprocess.run([umoci, "rm", "--image", f"{path}:old"], check=True)
    run(path)  # all is young
    assert len(json.loads((path / "index.json").read_bytes())["manifests"]) == 3
    age(path)
    told = run(path, dry_run=True)
    assert run(path) == told
    assert len(told.blobs) == 6  # the four of the image, the record and its manifest
    assert contents(path) == before
    assert json.loads((path / "index.json").read_bytes()) == json.loads(index)
    subprocess.run([umoci, "gc", "--layout", path], check=True)
    assert contents(path) == before


def test_a_record_stays_with_what_is_young(path: Path, place: Place, layout: LayoutRepository) -> None:
    """Somebody may be at work: the image comes after its record, or the record was made just now."""
    store = place.store()
    publish(store, "image", sample_image((1,)), [signature("mine")])
    _, manifest = layout.manifest("image")
    record = next(entry for entry in layout.index().manifests if entry.artifact_type is not None)
    layout.delete_tag("image")
    for young in (manifest.digest, record.digest):
        age(path)
        os.utime(layout.blob_path(young))
        assert run(path, dry_run=True).kept["named"] > 0
    age(path)
    collect_layout(layout, CollectOptions())
    assert (contents(path), layout.index().manifests) == (set(), [])


def test_nested_indexes_and_artifacts_of_others(path: Path, layout: LayoutRepository) -> None:
    images = [put_image(layout, layer_tar(a=str(number).encode())) for number in range(2)]
    inner = put_index(layout, [plain(image) for image in images])
    put_index(layout, [plain(inner)], tag="outer")
    artifact = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.sbom",
        "config": plain(put(layout, b"{}", OCI_EMPTY)),
        "layers": [plain(put(layout, b"an sbom", "text/plain"))],
        "subject": plain(images[0]),
    }
    referrer = layout.put_manifest(json.dumps(artifact).encode(), OCI_MANIFEST)
    referrers = put_index(layout, [plain(referrer)], tag=f"sha256-{images[0].digest[7:]}")
    draft = {"mediaType": collecting._ARTIFACT, "blobs": [plain(put(layout, b"of a draft", "text/plain"))]}
    put_index(layout, [plain(put(layout, json.dumps(draft).encode(), collecting._ARTIFACT))], tag="draft")
    tagged(path, "outer", f"sha256-{images[0].digest[7:]}", "draft")
    before = contents(path)
    loose = put(layout, b"nobody's")
    age(path)
    assert [blob.digest for blob in run(path).blobs] == [loose.digest]
    assert contents(path) == before
    # The list of referrers alone keeps the artifact, not the image that it is about.
    tagged(path, f"sha256-{images[0].digest[7:]}")
    run(path)
    assert {referrer.digest, referrers.digest} <= contents(path)
    assert not {image.digest for image in images} & contents(path)
    assert len(contents(path)) == 4


def test_a_part_of_an_image_for_many_platforms(path: Path, layout: LayoutRepository) -> None:
    """Other tools copy one platform's image and the whole index."""
    here = put_image(layout, layer_tar(a=b"1"))
    missing = descriptor_of(b"another platform's manifest", OCI_MANIFEST)
    put_index(layout, [plain(missing), plain(here)], tag="all")
    tagged(path, "all")
    age(path)
    before = contents(path)
    assert run(path).blobs == ()
    assert contents(path) == before


def _index_of(layout: LayoutRepository, entry: Descriptor) -> None:
    data = json.loads((layout.path / "index.json").read_bytes())
    data["manifests"].append(plain(entry))
    (layout.path / "index.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        (b"not json", OCI_MANIFEST),
        (b'{"layers":[{"digest":"md5:1"}]}', OCI_MANIFEST),
        (b'{"manifests":%s}' % (b"[" * 100_000), OCI_MANIFEST),
        (b" " * ((4 << 20) + 1), OCI_MANIFEST),
    ],
    ids=["unknown", "no json", "no digest", "deep", "large"],
)
def test_nothing_goes_while_a_document_is_not_understood(
    path: Path, layout: LayoutRepository, data: bytes, media_type: str
) -> None:
    loose = put(layout, b"nobody's")
    _index_of(layout, put(layout, data, media_type))
    age(path)
    with pytest.raises(ErosealError, match="nothing is collected"):
        run(path)
    assert loose.digest in contents(path)


@pytest.mark.parametrize("kind", ["damaged", "fifo", "link", "index"])
def test_damage_stops_it(path: Path, layout: LayoutRepository, kind: str) -> None:
    image = put_image(layout, layer_tar(a=b"1"), tag="x")
    loose = put(layout, b"nobody's")
    file = path / "blobs" / image.digest.replace(":", "/")
    age(path)
    match kind:
        case "damaged":
            file.write_bytes(file.read_bytes() + b" ")
        case "fifo":
            file.unlink()
            os.mkfifo(file)
        case "link":
            file.unlink()
            file.symlink_to("/dev/zero")
        case _:
            (path / "index.json").write_text("{")
    with pytest.raises(FormatError):
        run(path)
    assert loose.digest in contents(path)


def test_foreign_files_stay(path: Path, layout: LayoutRepository) -> None:
    put(layout, b"nobody's")
    (path / "blobs/sha256/notes").write_bytes(b"x")
    (path / "blobs/sha256" / ("0" * 64)).mkdir()
    (path / "blobs/md5").mkdir()
    (path / "blobs/md5" / ("0" * 32)).write_bytes(b"x")
    (path / ".eroseal-tmp-1-x").mkdir()
    (path / "blobs/sha256/.eroseal-tmp-1-x").write_bytes(b"left")
    age(path)
    collected = run(path, grace=0.0)
    assert len(collected.blobs) == 1
    assert [os.path.basename(item) for item in collected.leftovers] == [".eroseal-tmp-1-x"] * 2
    assert contents(path) == {"sha256:notes", f"sha256:{'0' * 64}", f"md5:{'0' * 32}"}


def test_whoever_counts_on_content_makes_it_young(path: Path, layout: LayoutRepository) -> None:
    loose = put(layout, b"nobody's", OCI_LAYER)
    age(path)
    assert put(layout, b"nobody's", OCI_LAYER) == loose
    assert run(path).kept["young"] == 1


def test_an_image_whose_content_just_went_is_not_published(path: Path, layout: LayoutRepository) -> None:
    image = put_image(layout, layer_tar(a=b"1"), tag="x")
    data, _ = layout.manifest("x")
    layout.delete_tag("x")
    age(path)
    assert len(run(path).blobs) == 3
    with pytest.raises(NotFoundError, match="copy the image again"):
        layout.put_manifest(data, OCI_MANIFEST, tag="x")
    assert layout.tags() == []
    assert image.digest in contents(path)  # and goes with the next collection


def test_what_is_tagged_between_the_two_looks_stays(
    path: Path, layout: LayoutRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_image(layout, layer_tar(a=b"1"), tag="x")
    data, _ = layout.manifest("x")
    layout.delete_tag("x")
    age(path)
    lock = collecting.exclusive_lock

    def late(file: Path) -> object:
        layout.put_manifest(data, OCI_MANIFEST, tag="x")
        return lock(file)

    monkeypatch.setattr(collecting, "exclusive_lock", late)
    assert run(path, grace=0.0).blobs == ()
    assert len(contents(path)) == 3


def test_layouts_of_skopeo_and_umoci(require_peer: Callable[[str], str], path: Path, tmp_path: Path) -> None:
    skopeo, umoci = require_peer("skopeo"), require_peer("umoci")

    def call(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    call(umoci, "init", "--layout", str(path))
    call(umoci, "new", "--image", f"{path}:empty")
    for number in range(3):
        (tmp_path / "file").write_text(str(number))
        image = f"{path}:{'x' if number else 'empty'}"
        call(umoci, "insert", "--image", image, "--tag", "x", str(tmp_path / "file"), "/f")
    call(skopeo, "--insecure-policy", "copy", f"oci:{path}:x", f"oci:{path}:kept")
    call(umoci, "rm", "--image", f"{path}:x")
    age(path)
    before = contents(path)
    collected = run(path)
    assert {blob.digest for blob in collected.blobs} == before - contents(path)
    assert len(collected.blobs) > 0
    call(umoci, "gc", "--layout", str(path))
    assert contents(path) == before - {blob.digest for blob in collected.blobs}, "umoci finds nothing more"
    call(skopeo, "--insecure-policy", "copy", f"oci:{path}:kept", f"oci:{tmp_path}/copy:kept")
    call(skopeo, "--insecure-policy", "copy", f"oci:{path}:empty", f"oci:{tmp_path}/copy:empty")
