"""Native stores in object stores: what the contract does not ask of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.s3 import SECRET, S3Server, s3_options, s3_store
from tests.support.stores import fill, publish, sample_blob, sample_image
from tests.unit.store_samples import signature, tree

from eroseal.errors import AccessError, FormatError, NotFoundError, OutputError, UsageError, VerificationError
from eroseal.format.record import RecordEntry
from eroseal.readat import BytesAt
from eroseal.store.document import MAX_IMAGE_DOCUMENT
from eroseal.store.fsck import check_store
from eroseal.store.keys import blob_key, record_key
from eroseal.store.local import LocalStore
from eroseal.store.object_settings import object_settings
from eroseal.store.objects import open_object_store
from eroseal.store.reference import ObjectReference
from eroseal.store.remote import RemoteOptions

pytestmark = pytest.mark.usefixtures("s3_server")

WEEK_AGO = 7 * 24 * 3600


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


# Between directories and buckets


def test_a_synced_directory_is_a_store_and_the_other_way_round(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    directory = LocalStore.create(tmp_path / "directory", durable=False)
    document = publish(directory, "app", sample_image((1, 2)), [signature("signed")])
    for name, data in tree(directory.path).items():
        s3_server.call("PUT", f"{bucket}/up/{name}", data)
    with s3_store(s3_server.url, bucket, "up") as store:
        assert store.where == f"s3://{bucket}/up"
        assert store.list_images() == ["app"]
        assert store.image("app") == (document, [signature("signed")])
        assert list(store.list_blobs()) == list(directory.list_blobs())
        publish(store, "more", sample_image((3,)), [signature("too")])
        store.update_record("app", lambda entries: [])
    for key in s3_server.keys(bucket):
        file = tmp_path / "back" / key.removeprefix("up/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(s3_server.call("GET", f"{bucket}/{key}"))
    back = LocalStore.open(tmp_path / "back", durable=False)
    assert back.image("app") == (document, [])
    assert back.image("more") == (sample_image((3,)).document, [signature("too")])
    report = check_store(back)
    assert report.ok
    assert list(report.findings) == []


def test_a_store_may_fill_a_whole_bucket(s3_server: S3Server, bucket: str) -> None:
    with s3_store(s3_server.url, bucket) as store:
        document = publish(store, "app", sample_image())
        assert store.where == f"s3://{bucket}"
        assert store.image("app") == (document, [])
    assert s3_server.keys(bucket) == sorted(["images/app", *(blob_key(blob.digest) for blob in document.blobs)])


def test_stores_of_one_bucket_do_not_see_each_other(s3_server: S3Server, bucket: str) -> None:
    with (
        s3_store(s3_server.url, bucket, "a") as one,
        s3_store(s3_server.url, bucket, "a/b") as two,
        s3_store(s3_server.url, bucket, "ab") as three,
    ):
        publish(two, "app", sample_image())
        for other in (one, three):
            assert other.list_images() == []
            assert list(other.list_blobs()) == []
            assert not other.has_image("app")


def test_the_server_copies_blobs_within_a_bucket(s3_server: S3Server, bucket: str) -> None:
    digest, blob = sample_blob(1)
    with s3_store(s3_server.url, bucket, "from") as origin, s3_store(s3_server.url, bucket, "to") as store:
        with pytest.raises(NotFoundError):
            store.adopt_blob(digest, origin)
        origin.put_blob(digest, BytesAt(blob), jobs=1)
        assert store.adopt_blob(digest, origin)
        assert s3_server.call("GET", f"{bucket}/to/{blob_key(digest)}") == blob
        assert store.adopt_blob(digest, origin)


def test_blobs_of_other_places_are_not_adopted(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    digest, blob = sample_blob(1)
    local = LocalStore.create(tmp_path / "local", durable=False)
    local.put_blob(digest, BytesAt(blob), jobs=1)
    with (
        s3_store(s3_server.url, s3_server.new_bucket()) as elsewhere,
        s3_store(s3_server.url, bucket) as store,
    ):
        elsewhere.put_blob(digest, BytesAt(blob), jobs=1)
        assert not store.adopt_blob(digest, elsewhere)
        assert not store.adopt_blob(digest, local)
        assert not local.adopt_blob(digest, store)
        assert not store.has_blob(digest)


def test_what_is_not_the_blob_is_not_adopted(s3_server: S3Server, bucket: str) -> None:
    digest, blob = sample_blob(1)
    key = blob_key(digest)
    with s3_store(s3_server.url, bucket, "from") as origin, s3_store(s3_server.url, bucket, "to") as store:
        for wrong in (sample_blob(2)[1], b"", blob[:-100]):
            s3_server.call("PUT", f"{bucket}/from/{key}", wrong)
            with pytest.raises(VerificationError):
                store.adopt_blob(digest, origin)
        s3_server.call("PUT", f"{bucket}/from/{key}", blob + b"more")
        assert not store.adopt_blob(digest, origin)
        assert not store.has_blob(digest)


# What others put into the bucket


def test_foreign_objects_are_passed_over(s3_server: S3Server, bucket: str) -> None:
    with s3_store(s3_server.url, bucket, "p") as store:
        document = publish(store, "app", sample_image(), [signature("x")])
        hex_digits = document.image.hex
        for key in (
            "README",
            "images/",
            "blobs/",
            "images/.hidden",
            "images/a directory/app",
            "images/app.record",
            "images/app.ffff.record",
            "images/-x",
            "blobs/README",
            "blobs/ab/",
            "blobs/ab/short",
            f"blobs/{hex_digits[:2]}/{hex_digits[2:]}.bak",
            f"blobs/{hex_digits}",
            f"blobs/{hex_digits[:2]}/{hex_digits[2:].upper()}",
            f"blobs/{hex_digits[:2]}/{hex_digits[2:]}/more",
            "imagesand/more",
        ):
            s3_server.call("PUT", f"{bucket}/p/{key.replace(' ', '%20')}", b"foreign")
        assert store.list_images() == ["app"]
        assert list(store.list_blobs()) == sorted((blob.digest for blob in document.blobs), key=lambda d: d.hex)
        store.delete_image("app")
    assert f"p/{record_key('app', document.image)}" not in s3_server.keys(bucket)
    assert "p/images/app.ffff.record" in s3_server.keys(bucket)


def test_hostile_documents_are_refused(s3_server: S3Server, bucket: str) -> None:
    with s3_store(s3_server.url, bucket) as store:
        document = publish(store, "good", sample_image())
        text = document.encode()
        many = json.loads(text)
        many["blobs"] *= 70_000
        for number, data in enumerate(
            [
                b"",
                b"not json",
                b"[" * 100_000,
                text[:-1],
                text + b"\n",
                text.replace(b'"size":', b'"size": '),
                text.replace(b"}\n", b',"extra":1}\n'),
                text.replace(str(document.image).encode(), str(sample_blob(3)[0]).encode(), 1),
                b"\xff\xfe" + text,
                json.dumps(many, separators=(",", ":")).encode() + b"\n",
                b" " * (MAX_IMAGE_DOCUMENT + 1),
            ]
        ):
            s3_server.call("PUT", f"{bucket}/images/bad{number}", data)
            with pytest.raises(FormatError) as refusal:
                store.image(f"bad{number}")
            assert f"s3://{bucket}/images/bad{number}" in str(refusal.value)
            with pytest.raises(FormatError):
                store.update_record(f"bad{number}", lambda entries: [])
            # Still it can be got rid of, and replaced.
            assert store.has_image(f"bad{number}")
            store.put_image(f"bad{number}", document, replace=True)
            assert store.image(f"bad{number}") == (document, [])
        store.delete_image("bad0")
        assert not store.has_image("bad0")


def test_hostile_records_are_refused(s3_server: S3Server, bucket: str) -> None:
    with s3_store(s3_server.url, bucket) as store:
        document = publish(store, "app", sample_image(), [signature("good")])
        key = record_key("app", document.image)
        good = s3_server.call("GET", f"{bucket}/{key}")
        for data in (b"", b"junk", good[:-1], good + b"\0", good[:-3] + b"abc", bytes(17 << 20)):
            s3_server.call("PUT", f"{bucket}/{key}", data)
            with pytest.raises(FormatError, match=r"record|bytes"):
                store.image("app")
            with pytest.raises(FormatError):
                store.update_record("app", lambda entries: [])
            assert s3_server.call("GET", f"{bucket}/{key}") == data
        store.put_image("app", document, [signature("new")], replace=True)
        assert store.image("app") == (document, [signature("new")])


def test_a_cut_object_is_healed_by_a_copy(s3_server: S3Server, bucket: str) -> None:
    digest, blob = sample_blob(1)
    with s3_store(s3_server.url, bucket) as store:
        for data in (b"", b"short", blob[:-64], blob[:-1], blob + b"x"):
            s3_server.call("PUT", f"{bucket}/{blob_key(digest)}", data)
            assert store.put_blob(digest, BytesAt(blob), jobs=1) == len(blob)
            assert s3_server.call("GET", f"{bucket}/{blob_key(digest)}") == blob


def test_records_that_nobody_needs_go_once_they_are_old(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan = f"images/app.{'0' * 32}.record"
    with s3_store(s3_server.url, bucket) as store:
        s3_server.call("PUT", f"{bucket}/{orphan}", b"from a writer that was killed, or is still at it")
        s3_server.call("PUT", f"{bucket}/images/app2.{'0' * 32}.record", b"of another image")
        old = publish(store, "app", sample_image((1,)), [signature("old")])
        publish(store, "app", sample_image((2,), 1), [signature("new")], replace=True)
        assert orphan in s3_server.keys(bucket)
        assert record_key("app", old.image) not in s3_server.keys(bucket)
        now = __import__("time").time() + WEEK_AGO
        monkeypatch.setattr("eroseal.store.keyed.time.time", lambda: now)
        document = publish(store, "app", sample_image((1,)), [signature("newest")], replace=True)
        assert orphan not in s3_server.keys(bucket)
        assert f"images/app2.{'0' * 32}.record" in s3_server.keys(bucket)
        assert store.image("app") == (document, [signature("newest")])


def test_a_record_that_a_killed_writer_left_is_not_taken_for_the_new_one(s3_server: S3Server, bucket: str) -> None:
    sample = sample_image()
    with s3_store(s3_server.url, bucket) as store:
        publish(store, "other", sample, [signature("left behind")])
        left = s3_server.call("GET", f"{bucket}/{record_key('other', sample.document.image)}")
        for name, record in (("bare", list[RecordEntry]()), ("signed", [signature("mine")])):
            s3_server.call("PUT", f"{bucket}/{record_key(name, sample.document.image)}", left)
            store.put_image(name, sample.document, record)
            assert store.image(name) == (sample.document, record)


# Reaching the server


def test_wrong_credentials_are_named_and_not_shown(s3_server: S3Server, bucket: str) -> None:
    with s3_store(s3_server.url, bucket) as store:
        sample = sample_image()
        fill(store, sample)
        with s3_server.guarded():
            for attempt in (
                lambda: store.image("app"),
                lambda: store.has_blob(sample.document.image),
                store.list_images,
                lambda: store.put_image("app", sample.document),
                lambda: store.put_blob(sample_blob(5)[0], BytesAt(sample_blob(5)[1])),
                lambda: s3_store(s3_server.url, bucket),
            ):
                with pytest.raises(AccessError, match="refuses access") as refusal:
                    attempt()
                assert SECRET not in repr(refusal.getrepr(style="long", chain=True))
                assert refusal.value.exit_code == 4


def test_a_missing_bucket_is_found_before_any_work(s3_server: S3Server) -> None:
    with pytest.raises(NotFoundError, match=r"s3://no-such-bucket: no such bucket"):
        s3_store(s3_server.url, "no-such-bucket")
    with s3_store(s3_server.url, "no-such-bucket", create=False) as store:
        with pytest.raises(NotFoundError, match="no such bucket"):
            store.image("app")
        with pytest.raises(NotFoundError, match="no such bucket"):
            store.list_images()
        with pytest.raises(NotFoundError, match="no such bucket"):
            store.put_blob(sample_blob(1)[0], BytesAt(sample_blob(1)[1]), jobs=1)


def test_missing_credentials_are_found_without_a_request() -> None:
    options = RemoteOptions(s3_endpoint="http://127.0.0.1:1")
    with pytest.raises(AccessError, match="AWS_ACCESS_KEY_ID"):
        open_object_store(ObjectReference("s3", "bucket", "", "x"), options, create=True)
    with pytest.raises(AccessError, match="AWS_ACCESS_KEY_ID"):
        open_object_store(
            ObjectReference("s3", "bucket", "", "x"),
            RemoteOptions(environment=(("AWS_EC2_METADATA_DISABLED", "true"),)),
            create=True,
        )


@pytest.mark.parametrize(
    "endpoint",
    [
        "ftp://127.0.0.1",
        "127.0.0.1:9000",
        "http://",
        "http://127.0.0.1:99999",
        "http://user:secret@127.0.0.1",
        "http://ho st",
        "http://[::1",
        "http://127.0.0.1/?query",
        "http://127.0.0.1/a b",
        "http://bücher.example",
        "",
    ],
)
def test_endpoints_that_cannot_be_are_refused(endpoint: str) -> None:
    with pytest.raises(UsageError, match="not an endpoint") as refusal:
        open_object_store(ObjectReference("s3", "bucket", "", "x"), s3_options(endpoint), create=True)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("bucket", ["a", "b b", "-b", "b/c", "b\n", "bü", "b?", "b#", ".b", "x" * 223])
def test_buckets_that_cannot_be_are_refused(bucket: str) -> None:
    with pytest.raises(UsageError, match="no bucket is called so"):
        open_object_store(ObjectReference("s3", bucket, "", "x"), s3_options("http://127.0.0.1:1"), create=True)


def test_plain_http_reaches_this_machine_only() -> None:
    reference = ObjectReference("s3", "bucket", "", "x")
    with pytest.raises(UsageError, match="plain HTTP"):
        object_settings(reference, s3_options("http://s3.example"))
    assert object_settings(reference, s3_options("http://s3.example", tls_verify=False)).client["allow_http"]
    assert object_settings(reference, s3_options("http://127.0.0.1:9")).client["allow_http"]
    assert not object_settings(reference, s3_options("https://s3.example")).client["allow_http"]


def test_settings_come_from_the_variables_of_the_tools() -> None:
    environment = (
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_SESSION_TOKEN", "token"),
        ("AWS_DEFAULT_REGION", "eu-north-1"),
        ("AWS_ENDPOINT_URL", "https://any.example"),
        ("AWS_ENDPOINT_URL_S3", "https://s3.example"),
        ("AWS_PROFILE", "unused"),
        ("AWS_REGION", ""),
        ("HOME", "unused"),
    )
    settings = object_settings(ObjectReference("s3", "bucket", "", "x"), RemoteOptions(environment=environment))
    assert settings.config == {
        "access_key_id": "id",
        "secret_access_key": SECRET,
        "session_token": "token",
        "region": "eu-north-1",
        "endpoint": "https://s3.example",
    }
    assert SECRET not in repr(settings)
    given = RemoteOptions(environment=environment, s3_endpoint="https://mine.example")
    assert object_settings(ObjectReference("s3", "bucket", "", "x"), given).config["endpoint"] == "https://mine.example"


def test_an_object_of_too_many_parts_is_refused(s3_server: S3Server, bucket: str) -> None:
    with (
        s3_store(s3_server.url, bucket) as store,
        pytest.raises(OutputError, match="too large for an object store"),
    ):
        store.keys.upload("blobs/x", BytesAt(b""), 1 << 40)
    assert s3_server.keys(bucket) == []
