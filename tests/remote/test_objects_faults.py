"""Object stores that lie, stall and break, and other clouds' protocols as far as a fake of them goes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from tests.support.fake_objects import MODIFIED, FakeObjects, Fault, Request
from tests.support.s3 import SECRET, s3_store
from tests.support.stores import sample_blob, sample_image
from tests.unit.store_samples import signature

from eroseal.errors import AccessError, ErosealError, FormatError, OutputError, RemoteError
from eroseal.readat import BytesAt
from eroseal.store.keyed import KeyedStore
from eroseal.store.keys import blob_key, record_key
from eroseal.store.objects import open_object_store
from eroseal.store.readahead import READ_AHEAD
from eroseal.store.reference import ObjectReference
from eroseal.store.remote import RemoteOptions

DIGEST, BLOB = sample_blob(2, blocks=40)
PATH = f"/bucket/{blob_key(DIGEST)}"
LARGE = 20 << 20


@pytest.fixture
def server() -> Iterator[FakeObjects]:
    server = FakeObjects()
    yield server
    server.stop()


@pytest.fixture
def store(server: FakeObjects) -> Iterator[KeyedStore]:
    with s3_store(server.url, "bucket", create=False, timeout=5.0, attempts=3) as store:
        yield store


def refusing(status: int, when: Fault, body: bytes = b"") -> Fault:
    """A fault that answers with a status."""

    def refuse(request: Request) -> bool:
        if not when(request):
            return False
        request.body(keep=False)
        request.answer(status, body)
        return True

    return refuse


def once(fault: Fault) -> Fault:
    """A fault that strikes the first request that it would strike, and no other."""
    struck: list[bool] = []

    def strike(request: Request) -> bool:
        if struck or not fault(request):
            return False
        struck.append(True)
        return True

    return strike


# Failures that pass


def test_a_cut_download_goes_on_where_it_broke(server: FakeObjects, store: KeyedStore) -> None:
    server.objects[PATH] = BLOB
    source = store.open_blob(DIGEST)

    def cut(request: Request) -> bool:
        if request.command != "GET":
            return False
        start, stop = request.range(len(BLOB))
        headers = {"ETag": '"one"', "Last-Modified": MODIFIED, "Content-Length": str(stop - start)}
        request.head(206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(BLOB)}"})
        request.wfile.write(BLOB[start : start + 5000])
        request.cut()
        return True

    server.fault = once(cut)
    assert source.read_at(100, 100_000) == BLOB[100:100_100]
    assert server.count("GET") == 2


@pytest.mark.parametrize("status", [500, 503])
def test_what_fails_once_is_tried_again(server: FakeObjects, store: KeyedStore, status: int) -> None:
    server.objects[PATH] = BLOB
    for command in ("HEAD", "GET", "PUT"):
        server.fault = once(refusing(status, lambda request, c=command: request.command == c))
        with contextlib.closing(store.open_blob(DIGEST)) as source:
            assert source.read_at(0, 100) == BLOB[:100]
        store.keys.put("images/x", command.encode())
        assert server.objects["/bucket/images/x"] == command.encode()


def test_what_always_fails_is_given_up(server: FakeObjects, store: KeyedStore) -> None:
    server.fault = lambda request: request.answer(503, b"<Error><Code>SlowDown</Code></Error>") is None
    with pytest.raises(RemoteError, match="answered 503, SlowDown") as refusal:
        store.image("app")
    assert str(refusal.value).startswith("s3://bucket/images/app: ")
    assert len(server.requests) == 3


def test_a_creation_whose_answer_was_lost_is_known_again(server: FakeObjects, store: KeyedStore) -> None:
    marks: list[str] = []

    def lose(request: Request) -> bool:
        if request.command == "PUT":
            marks.append(request.headers["x-amz-meta-eroseal-writer"])
            server.objects[request.path] = request.body(keep=True)
            request.answer(500)
        return request.command == "PUT"

    def remember(request: Request) -> bool:
        if request.command == "HEAD" and marks:
            headers = {"ETag": '"one"', "Last-Modified": MODIFIED, "x-amz-meta-eroseal-writer": marks[0]}
            request.answer(200, headers=headers)
            return True
        return False

    first = once(lose)
    server.fault = lambda request: first(request) or remember(request)
    assert store.keys.create("images/x", b"data")
    # Somebody else's object is another matter.
    assert not store.keys.create("images/x", b"data")


def test_a_part_whose_connection_breaks_is_sent_again(server: FakeObjects, store: KeyedStore) -> None:
    def cut(request: Request) -> bool:
        if "partNumber" in request.path:
            request.cut()
        return "partNumber" in request.path

    server.fault = once(cut)
    told: list[int] = []
    store.keys.upload("blobs/x", BytesAt(bytes(LARGE)), LARGE, progress=told.append)
    assert server.received == LARGE
    assert sum(told) == LARGE
    assert "/bucket/blobs/x" in server.objects


def test_an_upload_that_fails_takes_its_parts_back(server: FakeObjects, store: KeyedStore) -> None:
    server.fault = refusing(400, lambda request: "partNumber=2" in request.path)
    with pytest.raises(RemoteError, match="answered 400"):
        store.keys.upload("blobs/x", BytesAt(bytes(LARGE)), LARGE)
    assert "/bucket/blobs/x" not in server.objects
    assert server.count("DELETE") == 1


def test_a_source_that_fails_takes_its_parts_back(server: FakeObjects, store: KeyedStore) -> None:
    with pytest.raises(FormatError, match="truncated"):
        store.keys.upload("blobs/x", BytesAt(bytes(LARGE - 1)), LARGE)
    assert "/bucket/blobs/x" not in server.objects
    assert server.count("DELETE") == 1


# Lies


def answers(status: int, headers: dict[str, str], body: bytes) -> Fault:
    """A server that says this to every request with a range."""

    def answer(request: Request) -> bool:
        if "Range" not in request.headers:
            return False
        request.head(status, {"ETag": '"one"', "Last-Modified": MODIFIED, "Content-Length": str(len(body))} | headers)
        request.wfile.write(body)
        return True

    return answer


SIZE = len(BLOB)
WANTED = READ_AHEAD
LAST = WANTED - 1
LIES = {
    "another part": (206, {"Content-Range": f"bytes 5-{LAST + 5}/{SIZE}"}, bytes(WANTED)),
    "less": (206, {"Content-Range": f"bytes 0-4/{SIZE}"}, bytes(5)),
    "less than it says": (206, {"Content-Range": f"bytes 0-{LAST}/{SIZE}"}, bytes(5)),
    "more than it says": (206, {"Content-Range": f"bytes 0-{LAST}/{SIZE}"}, bytes(WANTED + 1)),
    "the whole": (200, {}, BLOB),
    "no range": (206, {}, bytes(WANTED)),
    "nonsense": (206, {"Content-Range": "bytes potato"}, bytes(WANTED)),
    "another size": (206, {"Content-Range": f"bytes 0-{LAST}/123456789"}, bytes(WANTED)),
    "not satisfiable": (416, {}, b""),
    "nothing": (204, {}, b""),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_ranges_are_refused(server: FakeObjects, store: KeyedStore, lie: str) -> None:
    server.objects[PATH] = BLOB
    source = store.open_blob(DIGEST)
    assert source.read_at(0, WANTED) == BLOB[:WANTED]
    server.fault = answers(*LIES[lie])
    with pytest.raises((RemoteError, FormatError)):
        source.read_at(0, WANTED)


def test_an_object_that_vanishes_or_shrinks_is_noticed(server: FakeObjects, store: KeyedStore) -> None:
    server.objects[PATH] = BLOB
    source = store.open_blob(DIGEST)
    server.objects[PATH] = BLOB[:8192]
    with pytest.raises(FormatError, match="has 8192 bytes"):
        source.read_at(0, 10)
    del server.objects[PATH]
    with pytest.raises(FormatError, match="vanished"):
        source.read_at(0, 10)


def test_a_size_that_is_a_lie_leads_to_no_allocation(server: FakeObjects, store: KeyedStore) -> None:
    def boast(request: Request) -> bool:
        headers = {"ETag": '"one"', "Last-Modified": MODIFIED, "Content-Length": str(1 << 45)}
        request.head(200, headers)
        if request.command == "GET":
            request.cut()
        return True

    server.fault = boast
    with pytest.raises(FormatError, match="more than"):
        store.image("app")
    # The footer is not where the server says that the end is: so the blob is not taken for complete.
    with pytest.raises(ErosealError):
        store.put_blob(DIGEST, BytesAt(BLOB), jobs=1)


def test_listings_that_are_nonsense_are_refused(server: FakeObjects, store: KeyedStore) -> None:
    entry = "<Contents><Key>{}</Key><LastModified>2026-11-28T11:22:30Z</LastModified><Size>1</Size></Contents>"
    pages = [
        "<html>",
        "",
        entry.format("images/b") + entry.format("images/a"),
        entry.format("images/a") * 2,
        entry.format("images/../a"),
        entry.format("images//a"),
        entry.format("images/a").replace("2026", "when"),
        entry.format("images/a").replace("<Size>1", "<Size>-1"),
    ]
    for page in pages:
        body = f"<ListBucketResult>{page}</ListBucketResult>".encode() if page else b""
        server.fault = lambda request, body=body: request.answer(200, body) is None
        with pytest.raises(RemoteError):
            store.list_images()


def test_refusals_do_not_repeat_what_was_signed(server: FakeObjects, store: KeyedStore) -> None:
    def echo(request: Request) -> bool:
        said = f"<Error><Code>SignatureDoesNotMatch</Code><StringToSign>{request.headers}</StringToSign></Error>"
        return request.answer(403, said.encode()) is None

    server.fault = echo
    with pytest.raises(AccessError, match="403, SignatureDoesNotMatch") as refusal:
        store.image("app")
    shown = str(refusal.getrepr(style="short", chain=True))
    assert SECRET not in shown
    assert "AKIDEXAMPLE" not in shown


def test_a_server_that_ignores_conditions_does_not_hang_us(server: FakeObjects, store: KeyedStore) -> None:
    sample = sample_image()
    for digest, blob in sample.blobs.items():
        store.put_blob(digest, BytesAt(blob), jobs=1)
    store.put_image("app", sample.document)
    assert store.update_record("app", lambda entries: [*entries, signature("x")]) == [signature("x")]
    assert store.image("app") == (sample.document, [signature("x")])


def test_a_server_that_never_takes_a_change_is_given_up(
    server: FakeObjects, store: KeyedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = sample_image()
    for digest, blob in sample.blobs.items():
        server.objects[f"/bucket/{blob_key(digest)}"] = blob
    server.objects["/bucket/images/app"] = sample.document.encode()
    server.fault = refusing(412, lambda request: request.command == "PUT")
    monkeypatch.setattr("eroseal.store.keyed.MAX_WRITE_CONFLICTS", 3)
    asked: list[int] = []
    with pytest.raises(OutputError, match="others change the record"):
        store.update_record("app", lambda entries: [*entries, signature(str(asked.append(1)))])
    assert len(asked) == 3
    assert f"/bucket/{record_key('app', sample.document.image)}" not in server.objects


# Other clouds


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_other_clouds_are_read_and_written_the_same_way(server: FakeObjects, scheme: str) -> None:
    environment = {
        "gs": [("GOOGLE_BASE_URL", server.url), ("GOOGLE_SKIP_SIGNATURE", "true")],
        "az": [
            ("AZURE_STORAGE_ENDPOINT", server.url),
            ("AZURE_STORAGE_ACCOUNT", "account"),
            ("AZURE_STORAGE_KEY", "c2VjcmV0"),
        ],
    }[scheme]
    options = RemoteOptions(environment=tuple(environment), attempts=2)
    with open_object_store(ObjectReference(scheme, "bucket", "p", "x"), options, create=False) as store:
        assert store.where == f"{scheme}://bucket/p"
        sample = sample_image()
        for digest, blob in sample.blobs.items():
            server.objects[f"/bucket/p/{blob_key(digest)}"] = blob
        server.objects["/bucket/p/images/app"] = sample.document.encode()
        assert store.image("app") == (sample.document, [])
        assert not store.has_image("other")
        with contextlib.closing(store.open_blob(sample.document.image)) as source:
            blob = sample.blobs[sample.document.image]
            assert source.read_at(1000, 5000) == blob[1000:6000]
        server.fault = lambda request: request.answer(403) is None
        with pytest.raises(AccessError, match="refuses access"):
            store.image("app")
