"""Image records as artifacts of manifests: who shares them, which one counts, and what becomes of two writers."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.oci_places import Json, Place, layout_place, manifest_of, put_changed, registry_place
from tests.support.stores import publish, sample_blob, sample_image
from tests.unit.store_samples import signature

from eroseal.errors import FormatError, NotFoundError, OutputError
from eroseal.format.record import ACCESS_TRACE, IMAGE_MAGIC, RecordEntry, encode_record
from eroseal.readat import BytesAt
from eroseal.store.document import ImageDocument
from eroseal.store.oci.documents import Descriptor
from eroseal.store.oci.record import RECORD_TYPE, REVISION, merged
from eroseal.store.oci.repository import Repository
from eroseal.store.oci.store import OciStore

# Started before the first test, or that test would be told that it left it behind.
pytestmark = pytest.mark.usefixtures("registry")


@pytest.fixture(params=["layout", "registry"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with contextlib.ExitStack() as opened:
        if request.param == "layout":
            yield layout_place(tmp_path / "layout", opened)
        else:
            yield registry_place(request.getfixturevalue("registry"), opened)


def adding(text: str) -> Callable[[list[RecordEntry]], list[RecordEntry]]:
    return lambda entries: [*entries, signature(text)]


def texts(store: OciStore, name: str) -> list[str]:
    return [entry.value.decode() for entry in store.image(name)[1]]


def artifacts(repository: Repository, name: str) -> list[Json]:
    """The manifests of an image's records."""
    subject = repository.manifest(name)[1].digest
    return [manifest_of(repository, item.digest) for item in repository.referrers(subject, artifact_type=RECORD_TYPE)]


def test_the_artifact_is_spelled_as_the_specification_says(place: Place) -> None:
    store = place.store()
    document = publish(store, "app", sample_image(), [signature("x")])
    (artifact,) = artifacts(store.repository, "app")
    subject = store.repository.manifest("app")[1]
    record = encode_record(IMAGE_MAGIC, [signature("x")])
    assert artifact == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.eroseal.image-record.v1",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}",
            "size": 2,
        },
        "layers": [
            {
                "mediaType": "application/vnd.eroseal.image-record.v1",
                "digest": f"sha256:{hashlib.sha256(record).hexdigest()}",
                "size": len(record),
            }
        ],
        "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
        "annotations": {"dev.eroseal.image": str(document.image), "dev.eroseal.record.revision": "1"},
    }


def test_each_change_takes_the_place_of_the_record_before(place: Place) -> None:
    store = place.store()
    document = publish(store, "app", sample_image())
    for number, expected in ((1, ["a"]), (2, ["a", "b"]), (3, ["a", "b", "c"])):
        store.update_record("app", adding("abc"[number - 1]), expect=document.image)
        assert texts(place.store(), "app") == expected
        assert [artifact["annotations"][REVISION] for artifact in artifacts(store.repository, "app")] == [str(number)]
    store.update_record("app", lambda entries: [])
    assert place.store().image("app") == (document, [])
    assert store.update_record("app", lambda entries: entries) == []


def test_tags_of_one_manifest_share_its_record(place: Place) -> None:
    store = place.store()
    sample = sample_image()
    publish(store, "1.0", sample, [signature("a")])
    publish(store, "latest", sample)
    assert texts(store, "latest") == ["a"]
    publish(store, "beta", sample, [signature("b"), signature("a")])
    assert sorted(texts(store, "1.0")) == ["a", "b"]
    # Another image moves the tag: what the first one had stays with it.
    publish(store, "latest", sample_image((2,), 1), [signature("c")], replace=True)
    assert texts(store, "latest") == ["c"]
    publish(store, "latest", sample, [signature("d")], replace=True)
    assert sorted(texts(store, "1.0")) == ["a", "b", "d"]
    # Whoever replaces an image by itself means its record.
    publish(store, "latest", sample, [signature("e")], replace=True)
    assert texts(store, "1.0") == ["e"]
    publish(store, "latest", sample, replace=True)
    assert texts(store, "latest") == []


def test_a_stack_has_a_record(place: Place) -> None:
    from tests.support.stores import publish_stack

    store = place.store()
    document = publish_stack(store, "app", [sample_image((1,)), sample_image((2,), 1)], [signature("x")])
    assert place.store().image("app") == (document, [signature("x")])
    store.update_record("app", adding("y"), expect=document.image)
    assert texts(place.store(), "app") == ["x", "y"]


def put_record(
    place: Place,
    document: ImageDocument,
    revision: str,
    data: bytes,
    *,
    change: Callable[[Json], object] = lambda artifact: None,
) -> str:
    """Store an artifact as somebody else might, and give its digest."""
    repository = place.open()
    subject = repository.manifest("app")[1]
    layer = Descriptor(media_type=RECORD_TYPE, digest=f"sha256:{hashlib.sha256(data).hexdigest()}", size=len(data))
    config = Descriptor(
        media_type="application/vnd.oci.empty.v1+json", digest=f"sha256:{hashlib.sha256(b'{}').hexdigest()}", size=2
    )
    repository.put_blob(layer, BytesAt(data))
    repository.put_blob(config, BytesAt(b"{}"))
    artifact: Json = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": RECORD_TYPE,
        "config": {"mediaType": config.media_type, "digest": config.digest, "size": 2},
        "layers": [{"mediaType": RECORD_TYPE, "digest": layer.digest, "size": layer.size}],
        "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
        "annotations": {"dev.eroseal.image": str(document.image), REVISION: revision},
    }
    change(artifact)
    encoded = json.dumps(artifact).encode()
    return repository.put_referrer(encoded, subject.digest, artifact_type=RECORD_TYPE).digest


def record(*names: str) -> bytes:
    return encode_record(IMAGE_MAGIC, [signature(name) for name in names])


def test_the_highest_revision_counts(place: Place) -> None:
    store = place.store()
    document = publish(store, "app", sample_image(), [signature("first")])
    for revision in ("7", "10", "9"):
        put_record(place, document, revision, record(revision))
    assert texts(place.store(), "app") == ["10"]
    store.update_record("app", adding("mine"))
    assert texts(place.store(), "app") == ["10", "mine"]
    assert max(int(artifact["annotations"][REVISION]) for artifact in artifacts(store.repository, "app")) == 11


def test_records_of_other_images_and_without_revision_are_passed_over(place: Place) -> None:
    store = place.store()
    document = publish(store, "app", sample_image(), [signature("mine")])
    other = str(sample_blob(9)[0])

    def another_subject(artifact: Json) -> None:
        artifact["subject"]["digest"] = f"sha256:{'0' * 64}"

    put_record(
        place, document, "5", record("a"), change=lambda it: it["annotations"].update({"dev.eroseal.image": other})
    )
    put_record(place, document, "6", record("b"), change=lambda it: it["annotations"].pop("dev.eroseal.image"))
    put_record(place, document, "7", record("large"), change=lambda it: it["annotations"].update({"x": "y" * 65536}))
    for revision in ("0", "-1", "07", "x", "", "9" * 30):
        put_record(place, document, revision, record(f"c{revision}"))
    assert texts(place.store(), "app") == ["mine"]
    if "docker" in place.name:  # a layout looks at the subject itself
        put_record(place, document, "8", record("d"), change=another_subject)
        assert texts(place.store(), "app") == ["mine"]


@pytest.mark.parametrize(
    ("data", "change"),
    [
        (b"", lambda artifact: None),
        (b"garbage", lambda artifact: None),
        (record("a") + b"\0", lambda artifact: None),
        (record("a"), lambda artifact: artifact["layers"].append(artifact["layers"][0])),
        (record("a"), lambda artifact: artifact["layers"][0].update(mediaType="application/x")),
        (record("a"), lambda artifact: artifact["layers"][0].update(size=1 << 40)),
    ],
    ids=["empty", "garbage", "trailer", "two layers", "layer's type", "size"],
)
def test_a_broken_record_is_no_missing_one(place: Place, data: bytes, change: Callable[[Json], object]) -> None:
    store = place.store()
    document = publish(store, "app", sample_image(), [signature("mine")])
    put_record(place, document, "5", data, change=change)
    with pytest.raises(FormatError):
        store.image("app")
    with pytest.raises(FormatError):
        store.update_record("app", adding("more"))


def test_a_record_that_is_listed_but_gone_is_passed_over(place: Place) -> None:
    store = place.store()
    document = publish(store, "app", sample_image(), [signature("mine")])
    file = place.file(put_record(place, document, "5", record("gone")))
    file.unlink()
    assert texts(place.store(), "app") == ["mine"]


# Two writers


def test_threads_of_a_store_wait_for_each_other(place: Place) -> None:
    store = place.store()
    publish(store, "app", sample_image())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: store.update_record("app", adding(str(number))), range(8)))
    assert sorted(texts(place.store(), "app")) == [str(number) for number in range(8)]


def test_a_change_during_ours_is_not_lost(place: Place) -> None:
    store, other = place.store(), place.store()
    publish(store, "app", sample_image(), [signature("old")])

    def slow(entries: list[RecordEntry]) -> Sequence[RecordEntry]:
        other.update_record("app", adding("theirs"))
        return [*entries, signature("ours")]

    with pytest.raises(OutputError, match=r"another writer .* try again"):
        store.update_record("app", slow)
    assert texts(store, "app") == ["old", "theirs"]
    store.update_record("app", adding("ours"))
    assert texts(store, "app") == ["old", "theirs", "ours"]


def test_two_that_wrote_at_the_same_time_both_hear_of_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.store()
    document = publish(store, "app", sample_image())
    repository = store.repository
    real = repository.put_referrer

    def late(data: bytes, subject: str, *, artifact_type: str, replaces: str | None = None) -> Descriptor:
        put_record(place, document, "1", record("theirs"))
        return real(data, subject, artifact_type=artifact_type, replaces=replaces)

    monkeypatch.setattr(repository, "put_referrer", late)
    with pytest.raises(OutputError, match="another writer"):
        store.update_record("app", adding("ours"))
    # Everybody sees the same one of the two, and the next writer goes on from it.
    seen = texts(place.store(), "app")
    assert seen in (["theirs"], ["ours"])
    monkeypatch.undo()
    store.update_record("app", adding("more"))
    assert texts(place.store(), "app") == [*seen, "more"]


def test_an_image_that_moved_meanwhile_keeps_its_record(place: Place) -> None:
    store = place.store()
    old = publish(store, "app", sample_image((1,)), [signature("old")])
    publish(store, "app", sample_image((2,), 1), [signature("new")], replace=True)
    with pytest.raises(OutputError, match="replaced meanwhile"):
        store.update_record("app", adding("x"), expect=old.image)
    assert texts(store, "app") == ["new"]
    with pytest.raises(NotFoundError):
        store.update_record("nothing", adding("x"))


def test_a_record_that_could_not_be_read_is_not_written(place: Place) -> None:
    store = place.store()
    sample = sample_image()
    document = publish(store, "app", sample, [signature("old")])
    broken = [RecordEntry(999, b"", critical=True)]
    with pytest.raises(OutputError, match="cannot be written"):
        store.update_record("app", lambda entries: broken)
    with pytest.raises(OutputError, match="cannot be written"):
        store.put_image("other", document, broken)
    assert texts(store, "app") == ["old"]
    assert not store.has_image("other")


def test_records_are_merged_without_repeating_anything() -> None:
    a, b, first, second = (
        signature("a"),
        signature("b"),
        RecordEntry(ACCESS_TRACE, b"1"),
        RecordEntry(ACCESS_TRACE, b"2"),
    )
    assert merged([a, first], []) == [a, first]
    assert merged([], [a, first]) == [a, first]
    assert merged([a, first], [b, a, second]) == [b, a, second]
    assert merged([a, b], [b]) == [a, b]


def test_records_of_a_copied_manifest_stay_with_the_first(place: Place) -> None:
    store = place.store()
    publish(store, "app", sample_image(), [signature("x")])
    put_changed(store.repository, "app", "changed", lambda it: it.update(novelty=1))
    assert store.image("changed") == (sample_image().document, [])
