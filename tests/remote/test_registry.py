"""A registry's repository, against a real registry and against what stands between."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.oci import descriptor_of, plain, put, put_image, put_index
from tests.support.proxy import PASS, Fault, FaultProxy
from tests.support.registry import Registry
from tests.support.uploads import Uploads
from tests.support.web import Handler, Server, make_certificate, with_tls

from eroseal.errors import (
    ErosealError,
    FormatError,
    NotFoundError,
    OutputError,
    RemoteError,
    UnsupportedError,
    UsageError,
)
from eroseal.limits import MAX_MANIFEST
from eroseal.readat import BytesAt
from eroseal.store.oci import upload
from eroseal.store.oci.documents import OCI_EMPTY, OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest, encode
from eroseal.store.oci.registry import RegistryRepository
from eroseal.store.oci.unfinished import Unfinished
from eroseal.store.remote import RemoteOptions

pytestmark = pytest.mark.usefixtures("no_waiting")

ATTEMPTS = 4
CHUNK = 1 << 20
TYPE = "application/vnd.example.thing"

Open = Callable[..., RegistryRepository]


@pytest.fixture
def open_at(tmp_path: Path) -> Iterator[Open]:
    opened: list[RegistryRepository] = []

    def make(host: str, name: str, **options: object) -> RegistryRepository:
        given = {"attempts": ATTEMPTS, "state": tmp_path / "state", **options}
        opened.append(RegistryRepository(host, name, RemoteOptions(**given)))
        return opened[-1]

    yield make
    for repository in opened:
        repository.close()


@pytest.fixture
def proxy(registry: Registry) -> Iterator[FaultProxy]:
    with FaultProxy(registry.host) as server:
        yield server


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "CHUNK", CHUNK)
    monkeypatch.setattr(upload, "SMALL", CHUNK)


def refused(kind: type[ErosealError], words: str, work: Callable[[], object]) -> ErosealError:
    with pytest.raises(kind, match=words) as caught:
        work()
    return caught.value


class TestManifests:
    def test_by_tag_and_by_digest(self, registry: Registry, open_at: Open) -> None:
        repository = open_at(registry.host, "manifests/found")
        stored = put_image(repository, b"x", tag="t")
        data, descriptor = repository.manifest("t")
        assert (descriptor.digest, descriptor.size, descriptor.media_type) == (stored.digest, len(data), OCI_MANIFEST)
        assert repository.manifest(stored.digest) == (data, descriptor)
        index = put_index(repository, [plain(stored)], tag="i")
        assert repository.manifest("i")[1].media_type == OCI_INDEX
        assert index.digest == repository.manifest("i")[1].digest
        refused(NotFoundError, "404", lambda: repository.manifest("none"))
        refused(NotFoundError, "404", lambda: repository.manifest(f"sha256:{0:064}"))
        refused(UsageError, "not a tag", lambda: repository.manifest("../../x"))
        refused(FormatError, "not a sha256", lambda: repository.manifest("sha256:x"))

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            (Fault(flip=20), "has the digest"),
            (Fault(short=1), "has the digest"),
            (Fault(headers={"Docker-Content-Digest": f"sha256:{0:064}"}), "has the digest"),
            (Fault(headers={"Content-Type": OCI_INDEX}), "is sent as"),
            (Fault(headers={"Docker-Content-Digest": "md5:0"}), "not a sha256"),
        ],
    )
    def test_lies(self, registry: Registry, proxy: FaultProxy, open_at: Open, fault: Fault, words: str) -> None:
        digest = put_image(open_at(registry.host, "manifests/lies"), b"x", tag="t").digest
        repository = open_at(proxy.host, "manifests/lies")
        for reference in ("t", digest):
            proxy.script("GET .*/manifests/", fault)
            if reference == digest and "Docker-Content-Digest" in fault.headers:
                assert repository.manifest(digest)[1].digest == digest
            else:
                refused(FormatError, words, lambda reference=reference: repository.manifest(reference))

    def test_types_that_nobody_names(self, registry: Registry, proxy: FaultProxy, open_at: Open) -> None:
        direct = open_at(registry.host, "manifests/untyped")
        put_image(direct, b"x", tag="t")
        repository = open_at(proxy.host, "manifests/untyped")
        proxy.script("GET", Fault(headers={"Content-Type": "text/plain; charset=utf-8"}))
        assert repository.manifest("t")[1].media_type == OCI_MANIFEST
        for body in (b"{}", b"no json", b"[]", b'{"mediaType":7}'):
            proxy.script("GET .*/manifests/t", PASS, Fault(status=200, body=body))
            repository.manifest("t")
            error = refused(FormatError, "manifest", lambda: repository.manifest("t"))
            assert error.exit_code == 3

    def test_sizes_have_bounds(self, proxy: FaultProxy, open_at: Open) -> None:
        repository = open_at(proxy.host, "manifests/large")
        proxy.script("GET .*/manifests/", Fault(status=200, body=b" " * (MAX_MANIFEST + 1)))
        refused(RemoteError, "more than 4194304", lambda: repository.manifest("t"))
        refused(OutputError, "registries take", lambda: repository.put_manifest(bytes(MAX_MANIFEST + 1), OCI_MANIFEST))

    def test_a_manifest_whose_contents_are_missing_is_refused(self, registry: Registry, open_at: Open) -> None:
        repository = open_at(registry.host, "manifests/incomplete")
        data = encode(Manifest(schema_version=2, config=descriptor_of(b"none", OCI_EMPTY), layers=[]))
        refused(RemoteError, "answered 400", lambda: repository.put_manifest(data, OCI_MANIFEST, tag="t"))


class TestTags:
    def test_pages(self, registry: Registry, open_at: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("eroseal.store.oci.registry._PAGE", 2)
        repository = open_at(registry.host, "tags/pages")
        assert repository.tags() == []
        for number in range(5):
            put_image(repository, b"x", tag=f"t{number}")
        assert repository.tags() == [f"t{number}" for number in range(5)]

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            (Fault(status=200, body=b"[]"), "something else"),
            (Fault(status=200, body=b'{"tags":["\\u001b[2J"]}'), "no tag"),
            (Fault(status=200, body=b'{"tags":["../x"]}'), "no tag"),
            (
                Fault(
                    status=200,
                    body=b'{"tags":["a"]}',
                    headers={"Link": '<http://127.0.0.1:1/v2/x/tags/list>; rel="next"'},
                ),
                "somewhere else",
            ),
            (
                Fault(status=200, body=b'{"tags":["a"]}', headers={"Link": '</v2/_catalog>; rel="next"'}),
                "somewhere else",
            ),
        ],
    )
    def test_lies(self, proxy: FaultProxy, open_at: Open, fault: Fault, words: str) -> None:
        proxy.script("GET", fault)
        refused(RemoteError, words, open_at(proxy.host, "tags/lies").tags)

    def test_pages_without_end(self, proxy: FaultProxy, open_at: Open) -> None:
        again = Fault(
            status=200, body=b'{"tags":["a"]}', headers={"Link": '</v2/tags/round/tags/list?n=1>; rel="next"'}
        )
        proxy.script("GET .*/tags/list", *[again] * 100)
        assert open_at(proxy.host, "tags/round").tags() == ["a"]
        assert len(proxy.of("/tags/list")) == 2

    def test_deleting(self, registry: Registry, open_at: Open) -> None:
        repository = open_at(registry.host, "tags/deleted")
        put_image(repository, b"one", tag="a")
        put_image(repository, b"two", tag="b")
        put_image(repository, b"two", tag="c")
        repository.delete_tag("a")
        assert repository.tags() == ["b", "c"]
        refused(UnsupportedError, "also tagged c", lambda: repository.delete_tag("b"))
        assert repository.tags() == ["b", "c"]
        refused(NotFoundError, "404", lambda: repository.delete_tag("a"))

    def test_deleting_where_tags_can_go_alone(self, registry: Registry, proxy: FaultProxy, open_at: Open) -> None:
        put_image(open_at(registry.host, "tags/modern"), b"one", tag="a")
        proxy.script("DELETE .*/manifests/a", Fault(status=202))
        open_at(proxy.host, "tags/modern").delete_tag("a")
        assert [item.path.rpartition("/")[2] for item in proxy.of("DELETE")] == ["a"]

    def test_deleting_where_nothing_goes(self, registry: Registry, proxy: FaultProxy, open_at: Open) -> None:
        put_image(open_at(registry.host, "tags/kept"), b"one", tag="a")
        proxy.script("DELETE", *[Fault(status=405)] * 2)
        refused(UnsupportedError, "does not delete", lambda: open_at(proxy.host, "tags/kept").delete_tag("a"))


class TestBlobs:
    def test_round_trip(self, registry: Registry, open_at: Open) -> None:
        repository = open_at(registry.host, "blobs/round")
        for size in (0, 1, 5, 100_000):
            data = os.urandom(size)
            told: list[int] = []
            descriptor = descriptor_of(data)
            assert not repository.has_blob(descriptor) or size < 2
            repository.put_blob(descriptor, BytesAt(data + b"not part of it"), progress=told.append)
            assert sum(told) == size
            assert repository.has_blob(descriptor)
            assert b"".join(repository.stream_blob(descriptor)) == data
            assert repository.read_blob(descriptor, limit=size) == data
        with repository.open_blob(descriptor) as blob:
            assert blob.read_at(50_000, 10) == data[50_000:50_010]
        refused(FormatError, "more than 10", lambda: repository.read_blob(descriptor, limit=10))

    def test_what_is_not_there(self, registry: Registry, open_at: Open) -> None:
        repository = open_at(registry.host, "blobs/none")
        absent = descriptor_of(b"absent")
        assert not repository.has_blob(absent)
        refused(NotFoundError, "not there", lambda: repository.open_blob(absent))
        refused(NotFoundError, "404", lambda: list(repository.stream_blob(absent)))

    def test_another_size_than_the_descriptors(self, registry: Registry, open_at: Open) -> None:
        repository = open_at(registry.host, "blobs/size")
        stored = put(repository, b"content")
        wrong = Descriptor(media_type="x", digest=stored.digest, size=8)
        assert not repository.has_blob(wrong)
        refused(FormatError, "has 7 bytes, not 8", lambda: list(repository.stream_blob(wrong)))

    @pytest.mark.parametrize("fault", [Fault(flip=500_000), Fault(cut=1000)])
    def test_bytes_that_changed_are_never_given_as_right(
        self, registry: Registry, proxy: FaultProxy, open_at: Open, fault: Fault
    ) -> None:
        data = random.Random(2).randbytes(1_000_000)
        descriptor = put(open_at(registry.host, "blobs/flip"), data)
        repository = open_at(proxy.host, "blobs/flip")
        proxy.script("GET .*/blobs/", fault, Fault(flip=10))
        refused(FormatError, "has the digest", lambda: list(repository.stream_blob(descriptor)))

    def test_a_cut_is_taken_up(self, registry: Registry, proxy: FaultProxy, open_at: Open) -> None:
        data = random.Random(3).randbytes(1_000_000)
        descriptor = put(open_at(registry.host, "blobs/cut"), data)
        proxy.script("GET .*/blobs/", Fault(cut=400_000), Fault(status=500), Fault(cut=1))
        assert b"".join(open_at(proxy.host, "blobs/cut").stream_blob(descriptor)) == data
        assert sum(item.sent for item in proxy.of("GET .*/blobs/")) == len(data)

    def test_mounting(self, registry: Registry, open_at: Open) -> None:
        one, two = open_at(registry.host, "blobs/one"), open_at(registry.host, "blobs/two")
        blob = put(one, b"to be mounted")
        assert two.mount_blob(blob, one)
        assert two.has_blob(blob)
        assert not two.mount_blob(descriptor_of(b"nowhere"), one)
        other = open_at(registry.host.replace("127.0.0.1", "localhost"), "blobs/one")
        assert not two.mount_blob(blob, other)

    def test_a_mount_that_leads_elsewhere_reaches_nobody(self, registry: Registry, open_at: Open) -> None:
        with FaultProxy(registry.host) as liar, FaultProxy(registry.host) as victim:
            one, two = open_at(liar.host, "blobs/one"), open_at(liar.host, "blobs/two")
            blob = put(one, b"to be mounted")
            for location in (f"{victim.url}/v2/victim/manifests/latest", "http://[", f"http://u@{liar.host}/v2/"):
                liar.script("POST .*mount", Fault(status=202, headers={"Location": location}))
                assert not two.mount_blob(blob, one)
            assert victim.exchanges == []
            assert liar.of("DELETE") == []


class TestUploads:
    def test_a_wrong_source_leaves_nothing(self, registry: Registry, open_at: Open, small_chunks: None) -> None:
        repository = open_at(registry.host, "uploads/wrong")
        for size in (100, 3 * CHUNK):
            descriptor = descriptor_of(bytes(size))
            wrong = BytesAt(bytes(size - 1) + b"x")
            refused(FormatError, "has the digest", lambda d=descriptor, w=wrong: repository.put_blob(d, w))
            assert not repository.has_blob(descriptor)
            short = BytesAt(bytes(size - 1))
            refused(FormatError, "truncated", lambda d=descriptor, w=short: repository.put_blob(d, w))
            assert not repository.has_blob(descriptor)

    @pytest.mark.parametrize("name", ["POST", "PUT"])
    @pytest.mark.parametrize("fault", [Fault(status=503), Fault(lose_answer=True), Fault(cut_request=10)])
    def test_small_ones_survive(self, proxy: FaultProxy, open_at: Open, name: str, fault: Fault) -> None:
        data = os.urandom(1000)
        proxy.script(name, fault, fault)
        put(open_at(proxy.host, "uploads/small"), data)
        assert open_at(proxy.host, "uploads/small").has_blob(descriptor_of(data))
        if fault.lose_answer and name == "PUT":
            assert sum(item.received for item in proxy.of("PUT")) == len(data)

    def test_a_cut_between_chunks_costs_nothing(self, proxy: FaultProxy, open_at: Open, small_chunks: None) -> None:
        """The proxy keeps a request until it is whole, as nginx does by default: the registry sees whole ones only."""
        data = os.urandom(4 * CHUNK + 5)
        proxy.script("PATCH", PASS, Fault(cut_request=0), PASS, Fault(status=502), Fault(status=429))
        told: list[int] = []
        repository = open_at(proxy.host, "uploads/cut")
        repository.put_blob(descriptor_of(data), BytesAt(data), progress=told.append)
        assert sum(told) == len(data)
        assert b"".join(repository.stream_blob(descriptor_of(data))) == data
        taken = [item for item in proxy.of("PATCH") if item.status == 202]
        assert sum(item.received for item in taken) == len(data)

    def test_a_lost_answer_sends_no_chunk_twice(self, proxy: FaultProxy, open_at: Open, small_chunks: None) -> None:
        """A registry that keeps what it got, whatever becomes of the answer, is believed."""
        data = os.urandom(3 * CHUNK)
        with Uploads() as registry, FaultProxy(registry.host) as between:
            between.script("PATCH", PASS, Fault(lose_answer=True))
            repository = open_at(between.host, "uploads/lost")
            repository.put_blob(descriptor_of(data), BytesAt(data))
            assert registry.blobs == {descriptor_of(data).digest: data}
            assert sum(item.received for item in between.of("PATCH")) == len(data)

    def test_part_of_a_chunk_is_enough(self, open_at: Open, small_chunks: None) -> None:
        data = os.urandom(3 * CHUNK)
        with Uploads(take=CHUNK - 1000) as registry:
            open_at(registry.host, "uploads/part").put_blob(descriptor_of(data), BytesAt(data))
            assert registry.blobs == {descriptor_of(data).digest: data}

    def test_an_upload_that_is_forgotten_starts_again(
        self, registry: Registry, proxy: FaultProxy, open_at: Open, small_chunks: None
    ) -> None:
        """docker-registry 2.8 forgets an upload whose request broke."""
        data = os.urandom(3 * CHUNK)
        proxy.script("PATCH", PASS, Fault(lose_answer=True))
        repository = open_at(proxy.host, "uploads/forgotten")
        told: list[int] = []
        repository.put_blob(descriptor_of(data), BytesAt(data), progress=told.append)
        assert sum(told) == len(data)
        assert b"".join(repository.stream_blob(descriptor_of(data))) == data

    def test_forgetting_again_and_again_ends(self, proxy: FaultProxy, open_at: Open, small_chunks: None) -> None:
        data = os.urandom(3 * CHUNK)
        proxy.script("PATCH", *[PASS, Fault(status=404)] * 50)
        proxy.script("GET .*/uploads/", *[Fault(status=404)] * 50)
        repository = open_at(proxy.host, "uploads/sieve")
        refused(RemoteError, "lost an upload", lambda: repository.put_blob(descriptor_of(data), BytesAt(data)))
        assert len(proxy.of("POST")) <= 2 * ATTEMPTS

    @pytest.mark.parametrize("value", ["7-9", "0-99999999999", "bytes", "0-2097152"])
    def test_nonsense_about_offsets(self, open_at: Open, small_chunks: None, value: str) -> None:
        with Uploads() as registry, FaultProxy(registry.host) as between:
            between.script("PATCH", *[Fault(headers={"Range": value})] * 50)
            between.script("GET", *[Fault(headers={"Range": value})] * 50)
            repository = open_at(between.host, "uploads/nonsense")
            data = os.urandom(3 * CHUNK)
            words = "which part|lost|next part"
            refused(RemoteError, words, lambda: repository.put_blob(descriptor_of(data), BytesAt(data)))
            assert registry.blobs == {}

    def test_a_killed_upload_goes_on_in_a_new_process(
        self, proxy: FaultProxy, open_at: Open, small_chunks: None, tmp_path: Path
    ) -> None:
        data = random.Random(4).randbytes(4 * CHUNK)
        (tmp_path / "data").write_bytes(data)
        proxy.script("PATCH", PASS, PASS, Fault(cut_request=1000))
        program = KILLED.format(
            host=proxy.host, data=str(tmp_path / "data"), state=str(tmp_path / "state"), chunk=CHUNK
        )
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
        )
        assert result.returncode == -9, result.stderr
        (saved,) = (tmp_path / "state").iterdir()
        assert saved.stat().st_mode & 0o777 == 0o600
        sent = sum(item.received for item in proxy.of("PATCH") if item.status == 202)
        assert sent == 2 * CHUNK
        repository = open_at(proxy.host, "uploads/killed")
        repository.put_blob(descriptor_of(data), BytesAt(data))
        assert b"".join(repository.stream_blob(descriptor_of(data))) == data
        assert sum(item.received for item in proxy.of("PATCH") if item.status == 202) == len(data)
        assert list((tmp_path / "state").iterdir()) == []

    def test_what_is_remembered_may_be_wrong(
        self, registry: Registry, proxy: FaultProxy, open_at: Open, small_chunks: None, tmp_path: Path
    ) -> None:
        data = os.urandom(2 * CHUNK)
        repository = open_at(proxy.host, "uploads/stale")
        for number, location in enumerate(
            ("http://127.0.0.1:1/x", "nonsense", f"{proxy.url}/v2/uploads/stale/blobs/uploads/x?_state=1", "http://[")
        ):
            blob = data + bytes([number])
            with Unfinished(tmp_path / "state", repository.where, descriptor_of(blob).digest) as unfinished:
                unfinished.save(location)
            repository.put_blob(descriptor_of(blob), BytesAt(blob))
            assert repository.has_blob(descriptor_of(blob))

    def test_a_state_that_cannot_be_kept_is_no_error(
        self, registry: Registry, open_at: Open, small_chunks: None, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_bytes(b"")
        data = os.urandom(2 * CHUNK)
        for state in (tmp_path / "file", None):
            repository = open_at(registry.host, f"uploads/{'nostate' if state else 'none'}", state=state)
            repository.put_blob(descriptor_of(data), BytesAt(data))
            assert repository.has_blob(descriptor_of(data))

    def test_what_nobody_goes_on_with_is_forgotten(self, tmp_path: Path) -> None:
        """Killed uploads leave files without a word, or of uploads that the registry has given up by now."""
        for name, text, days in (("old", "{}", 8), ("empty", "", 0), ("new", "{}", 6)):
            path = tmp_path / f"upload-{name}.json"
            path.write_text(text)
            os.utime(path, (time.time() - days * 86_400,) * 2)
        (tmp_path / "other").write_text("")
        with Unfinished(tmp_path, "docker://h/r", "sha256:0") as one, Unfinished(tmp_path, "docker://h/r", "sha256:1"):
            one.save("https://h/upload")  # the other one says nothing yet, and is locked
            assert len(list(tmp_path.iterdir())) == 4
        assert {path.name for path in tmp_path.glob("upload-[!0-9]*")} == {"upload-new.json"}
        with Unfinished(tmp_path, "docker://h/r", "sha256:0") as again:
            assert again.load() == "https://h/upload"

    def test_two_uploads_of_a_blob_do_not_share_what_is_remembered(self, tmp_path: Path) -> None:
        with Unfinished(tmp_path, "docker://h/r", "sha256:0") as first:
            first.save("https://h/1")
            with Unfinished(tmp_path, "docker://h/r", "sha256:0") as second:
                assert second.load() is None
                second.save("https://h/2")
                second.forget()
            assert first.load() == "https://h/1"
        with Unfinished(tmp_path, "docker://h/other", "sha256:0") as third:
            assert third.load() is None


class TestReferrers:
    @staticmethod
    def artifact(repository: RegistryRepository, subject: Descriptor, number: int) -> bytes:
        empty = put(repository, b"{}", OCI_EMPTY)
        fields = Manifest(schema_version=2, media_type=OCI_MANIFEST, artifact_type=TYPE, config=empty, layers=[empty],
                          subject=subject, annotations={"number": str(number)})  # fmt: skip
        return encode(fields)

    def test_by_the_tag_that_stands_for_them(self, registry: Registry, open_at: Open) -> None:
        repository = open_at(registry.host, "referrers/tag")
        subject = put_image(repository, b"x", tag="t")
        assert repository.referrers(subject.digest, artifact_type=TYPE) == []
        first = repository.put_referrer(self.artifact(repository, subject, 1), subject.digest, artifact_type=TYPE)
        second = repository.put_referrer(self.artifact(repository, subject, 2), subject.digest, artifact_type=TYPE)
        assert repository.referrers(subject.digest, artifact_type=TYPE) == [first, second]
        assert second.annotations == {"number": "2"}
        assert repository.referrers(subject.digest, artifact_type="other") == []
        third = repository.put_referrer(
            self.artifact(repository, subject, 3), subject.digest, artifact_type=TYPE, replaces=first.digest
        )
        assert repository.referrers(subject.digest, artifact_type=TYPE) == [second, third]
        refused(NotFoundError, "404", lambda: repository.manifest(first.digest))
        assert repository.tags() == [f"sha256-{subject.digest[7:]}", "t"]

    def test_entries_of_others_stay(self, registry: Registry, open_at: Open) -> None:
        repository = open_at(registry.host, "referrers/others")
        subject = put_image(repository, b"x", tag="t")
        foreign = {**plain(put_image(repository, b"y")), "artifactType": "other", "unknown": {"b": 1, "a": [1.50]}}
        tag = f"sha256-{subject.digest[7:]}"
        put_index(repository, [foreign], tag=tag)
        repository.put_referrer(self.artifact(repository, subject, 1), subject.digest, artifact_type=TYPE)
        entries = json.loads(repository.manifest(tag)[0])["manifests"]
        assert entries[0] == foreign
        assert [entry["artifactType"] for entry in entries] == ["other", TYPE]

    def test_by_the_api_where_there_is_one(self, registry: Registry, proxy: FaultProxy, open_at: Open) -> None:
        repository = open_at(proxy.host, "referrers/api")
        subject = put_image(repository, b"x", tag="t")
        listed = descriptor_of(b"a", OCI_MANIFEST, artifact_type=TYPE)
        other = descriptor_of(b"b", OCI_MANIFEST, artifact_type="other")
        index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
            {**plain(listed), "artifactType": TYPE}, {**plain(other), "artifactType": "other"}]})  # fmt: skip
        proxy.script("GET .*/referrers/", Fault(status=200, body=index.encode()))
        assert repository.referrers(subject.digest, artifact_type=TYPE) == [listed]
        proxy.script("PUT .*/manifests/", Fault(headers={"OCI-Subject": subject.digest}))
        repository.put_referrer(self.artifact(repository, subject, 1), subject.digest, artifact_type=TYPE)
        assert repository.tags() == ["t"]

    def test_another_writer_in_between(self, registry: Registry, proxy: FaultProxy, open_at: Open) -> None:
        repository = open_at(proxy.host, "referrers/race")
        subject = put_image(repository, b"x", tag="t")
        lost = Fault(status=201)  # as if somebody else had written over it at once
        proxy.script("PUT .*/manifests/sha256-", lost, lost)
        stored = repository.put_referrer(self.artifact(repository, subject, 1), subject.digest, artifact_type=TYPE)
        assert repository.referrers(subject.digest, artifact_type=TYPE) == [stored]
        proxy.script("PUT .*/manifests/sha256-", *[lost] * 50)
        artifact = self.artifact(repository, subject, 2)
        refused(
            OutputError,
            "all the time",
            lambda: repository.put_referrer(artifact, subject.digest, artifact_type=TYPE),
        )


class TestWhere:
    def test_dockers_own_registry(self, open_at: Open) -> None:
        repository = open_at("docker.io", "library/busybox")
        assert repository.where == "docker://docker.io/library/busybox"
        assert repository._endpoint.base == "https://registry-1.docker.io/v2/library/busybox"

    def test_tls_is_tried_first_on_loopback(
        self, open_at: Open, require_peer: Callable[[str], str], tmp_path: Path
    ) -> None:
        class Tags(Handler):
            def do_GET(self) -> None:
                self.answer(200, {}, b'{"tags":["t"]}' if self.path.endswith("list?n=1000") else b"")

        make_certificate(require_peer("openssl"), tmp_path)
        with with_tls(Server(Tags), tmp_path) as server:
            ours = (("SSL_CERT_FILE", str(tmp_path / "cert.pem")),)
            assert open_at(server.host, "where/tls", environment=ours).tags() == ["t"]
            assert open_at(server.host, "where/trusting", tls_verify=False).tags() == ["t"]
            refused(RemoteError, "not trusted", open_at(server.host, "where/strict").tags)

    def test_other_hosts_speak_tls(self, open_at: Open) -> None:
        assert open_at("registry.example:5000", "where/x")._endpoint.base == "https://registry.example:5000/v2/where/x"


class TestPeers:
    def test_skopeo_reads_and_writes_the_same(
        self, registry: Registry, open_at: Open, require_peer: Callable[[str], str], tmp_path: Path
    ) -> None:
        repository = open_at(registry.host, "peers/one")
        put_image(repository, b"one", b"two", tag="t")
        skopeo = require_peer("skopeo")
        layout = f"oci:{tmp_path / 'layout'}:t"
        here, there = (f"docker://{registry.host}/peers/{name}:t" for name in ("one", "two"))
        run = [skopeo, "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"]
        subprocess.run([*run, here, layout], check=True)
        subprocess.run([*run, layout, there], check=True)
        assert open_at(registry.host, "peers/two").manifest("t") == repository.manifest("t")


KILLED = """
import os, signal
from eroseal.readat import FileAt
from eroseal.store.http import HttpClient
from eroseal.store.oci import upload
from eroseal.store.oci.documents import Descriptor
from eroseal.store.oci.registry import RegistryRepository
from eroseal.store.remote import RemoteOptions
from pathlib import Path
import hashlib
upload.CHUNK = upload.SMALL = {chunk}
asked = HttpClient.request
sent = 0
def request(self, method, url, **more):
    global sent
    if method == "PATCH":
        sent += 1
        if sent == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    return asked(self, method, url, **more)
HttpClient.request = request
data = Path({data!r}).read_bytes()
blob = Descriptor(media_type="x", digest="sha256:" + hashlib.sha256(data).hexdigest(), size=len(data))
RegistryRepository({host!r}, "uploads/killed", RemoteOptions(state=Path({state!r}))).put_blob(blob, FileAt({data!r}))
"""
