"""Image layouts: with other tools, with entries of others, and with what hostile ones contain."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.oci import descriptor_of, layer_tar, plain, put, put_image, put_index

from eroseal.errors import ErosealError, FormatError, NotFoundError, OutputError, UnsupportedError
from eroseal.limits import MAX_MANIFEST
from eroseal.readat import BytesAt
from eroseal.store.oci import documents, layout_reader
from eroseal.store.oci.documents import OCI_EMPTY, OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest, encode
from eroseal.store.oci.layout import LayoutRepository

TYPE = "application/vnd.example.thing"
NAME = "org.opencontainers.image.ref.name"


@pytest.fixture
def layout(tmp_path: Path) -> LayoutRepository:
    return LayoutRepository(tmp_path / "layout", create=True, durable=False)


def index_of(layout: LayoutRepository) -> dict[str, object]:
    return json.loads((layout.path / "index.json").read_bytes())


def refused(kind: type[ErosealError], words: str, work: Callable[[], object]) -> None:
    with pytest.raises(kind, match=words):
        work()


class TestOpening:
    def test_made_and_opened_again(self, layout: LayoutRepository) -> None:
        assert json.loads((layout.path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
        assert index_of(layout) == {"schemaVersion": 2, "manifests": []}
        put_image(layout, b"x", tag="t")
        assert LayoutRepository(layout.path).tags() == ["t"]
        assert LayoutRepository(layout.path, create=True).tags() == ["t"]

    def test_what_is_no_layout(self, tmp_path: Path) -> None:
        refused(NotFoundError, "not an OCI image layout", lambda: LayoutRepository(tmp_path / "none"))
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "file").write_bytes(b"")
        refused(OutputError, "exists already", lambda: LayoutRepository(tmp_path / "other", create=True))
        refused(OutputError, "part of the path", lambda: LayoutRepository(tmp_path / "other/file/x", create=True))
        assert os.listdir(tmp_path / "other") == ["file"]

    def test_a_killed_making_is_finished(self, tmp_path: Path) -> None:
        LayoutRepository(tmp_path / "l", create=True)
        (tmp_path / "l" / "oci-layout").unlink()
        assert LayoutRepository(tmp_path / "l", create=True).tags() == []

    @pytest.mark.parametrize(
        ("mark", "kind"),
        [
            (b'{"imageLayoutVersion":"2.0.0"}', UnsupportedError),
            (b"{}", FormatError),
            (b"no json", FormatError),
            (b"[" * 4000, FormatError),
            (bytes(5000), FormatError),
        ],
    )
    def test_other_marks(self, layout: LayoutRepository, mark: bytes, kind: type[ErosealError]) -> None:
        (layout.path / "oci-layout").write_bytes(mark)
        with pytest.raises(kind):
            LayoutRepository(layout.path)


class TestContent:
    def test_round_trip(self, layout: LayoutRepository) -> None:
        data = os.urandom(3_000_000)
        told: list[int] = []
        descriptor = descriptor_of(data)
        for _ in range(2):
            layout.put_blob(descriptor, BytesAt(data + b"more"), progress=told.append)
        assert sum(told) == 2 * len(data)
        assert layout.has_blob(descriptor)
        assert b"".join(layout.stream_blob(descriptor)) == data
        assert layout.read_blob(descriptor, limit=len(data)) == data
        assert layout.open_blob(descriptor).read_at(5, 10) == data[5:15]
        refused(FormatError, "more than 10", lambda: layout.read_blob(descriptor, limit=10))
        layout.delete_blob(descriptor)
        assert not layout.has_blob(descriptor)
        refused(NotFoundError, "not there", lambda: layout.open_blob(descriptor))
        refused(NotFoundError, "not there", lambda: layout.delete_blob(descriptor))

    def test_a_wrong_source_leaves_nothing(self, layout: LayoutRepository) -> None:
        descriptor = descriptor_of(b"right")
        refused(FormatError, "has the digest", lambda: layout.put_blob(descriptor, BytesAt(b"wrong")))
        refused(FormatError, "truncated", lambda: layout.put_blob(descriptor, BytesAt(b"righ")))
        assert os.listdir(layout.path / "blobs/sha256") == []

    def test_damage_is_never_given_as_right(self, layout: LayoutRepository) -> None:
        descriptor = put(layout, bytes(2_000_000))
        path = layout.path / "blobs/sha256" / descriptor.digest[7:]
        for damage in (bytes(1_999_999) + b"x", bytes(1_999_999), bytes(2_000_001)):
            path.write_bytes(damage)
            refused(FormatError, "digest|does not have", lambda: list(layout.stream_blob(descriptor)))
        layout.put_blob(descriptor, BytesAt(bytes(2_000_000)))
        assert b"".join(layout.stream_blob(descriptor)) == bytes(2_000_000)

    @pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
    def test_only_plain_files_are_read(self, layout: LayoutRepository, tmp_path: Path, kind: str) -> None:
        (tmp_path / "secret").write_bytes(b"secret")
        descriptor = descriptor_of(b"secret")
        path = layout.path / "blobs/sha256" / descriptor.digest[7:]
        path.parent.mkdir(exist_ok=True)
        {
            "link": lambda: path.symlink_to(tmp_path / "secret"),
            "fifo": lambda: os.mkfifo(path),
            "directory": path.mkdir,
        }[kind]()
        refused(FormatError, "not a plain file", lambda: layout.open_blob(descriptor))
        refused(FormatError, "not a plain file", lambda: list(layout.stream_blob(descriptor)))


class TestManifests:
    def test_tags(self, layout: LayoutRepository) -> None:
        one, two = put_image(layout, b"one", tag="a"), put_image(layout, b"two", tag="b")
        assert layout.tags() == ["a", "b"]
        data, descriptor = layout.manifest("a")
        assert (descriptor.digest, descriptor.media_type, len(data)) == (one.digest, OCI_MANIFEST, one.size)
        assert layout.manifest(one.digest) == (data, descriptor)
        layout.put_manifest(layout.manifest("b")[0], OCI_MANIFEST, tag="a")
        assert layout.manifest("a")[1].digest == two.digest
        layout.delete_tag("a")
        assert layout.tags() == ["b"]
        refused(NotFoundError, "there are: b", lambda: layout.manifest("a"))
        refused(NotFoundError, "no image tagged", lambda: layout.delete_tag("a"))
        refused(FormatError, "not a sha256", lambda: layout.manifest("sha256:../../x"))

    def test_what_lies_in_indexes_is_found_by_its_digest(self, layout: LayoutRepository) -> None:
        image = put_image(layout, b"x")
        put_index(layout, [plain(image)], tag="i")
        (layout.path / "index.json").write_text(
            json.dumps({"schemaVersion": 2, "manifests": [e for e in index_of(layout)["manifests"] if NAME in str(e)]})
        )
        assert layout.manifest(image.digest)[1].media_type == OCI_MANIFEST
        assert layout.manifest("i")[1].media_type == OCI_INDEX

    def test_entries_of_others_stay_byte_for_byte(self, layout: LayoutRepository) -> None:
        foreign = (
            '{ "mediaType":"x/y", "digest":"sha256:%064d", "size":1.0e1, "annotations":{"%s":"other"}, "z":[1.50] }'
        )
        foreign = foreign % (7, NAME)
        text = f'{{"schemaVersion":2,"extra":{{"b":1,"a":2}},"manifests":[{foreign}],"annotations":{{"k":"v"}}}}'
        (layout.path / "index.json").write_text(text.replace("1.0e1", "10"))
        put_image(layout, b"x", tag="t")
        layout.delete_tag("t")
        after = (layout.path / "index.json").read_text()
        assert foreign.replace("1.0e1", "10") in after
        assert '"extra":{"b":1,"a":2}' in after
        assert layout.tags() == ["other"]

    def test_writers_at_the_same_time(self, layout: LayoutRepository) -> None:
        def write(number: int) -> None:
            mine = LayoutRepository(layout.path, durable=False)
            for turn in range(5):
                put_image(mine, b"%d" % number, tag=f"t{number}-{turn}")

        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(layout.tags()) == 30

    @pytest.mark.parametrize(
        "index",
        [
            b"", b"[]", b'{"schemaVersion":2}', b'{"schemaVersion":2,"manifests":[{}]}', b"[" * 100_000,
            b'{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:../../../etc/passwd","size":1}]}',
            b'{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"md5:0","size":1}]}',
            b'{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:' + b"0" * 64 + b'","size":-1}]}',
            b'{"schemaVersion":2,"manifests":[],"layers":[]}',
        ],
    )  # fmt: skip
    def test_broken_indexes(self, layout: LayoutRepository, index: bytes) -> None:
        (layout.path / "index.json").write_bytes(index)
        with pytest.raises(FormatError):
            layout.tags()
        with pytest.raises(FormatError):
            put_image(layout, b"x", tag="t")

    def test_an_index_that_is_missing(self, layout: LayoutRepository) -> None:
        (layout.path / "index.json").unlink()
        refused(FormatError, "without index.json", layout.tags)

    def test_an_index_is_parsed_when_it_changes(
        self, layout: LayoutRepository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To parse it for each of its tags would take time in the square of their number."""
        parsed: list[bytes] = []
        monkeypatch.setattr(layout_reader, "parse", lambda data, *_, **more: parsed.append(data) or parse(data, **more))
        parse = functools.partial(documents.parse, kind=documents.Index)
        image = put_image(layout, b"x", tag="t0")
        data = index_of(layout)
        entry = data["manifests"][0]
        data["manifests"] = [{**entry, "annotations": {NAME: f"t{number}"}} for number in range(100)]
        (layout.path / "index.json").write_text(json.dumps(data))
        parsed.clear()
        assert [layout.manifest(tag)[1].digest for tag in layout.tags()] == [image.digest] * 100
        assert layout.manifest(image.digest)[1].digest == image.digest
        assert len(parsed) == 1
        layout.delete_tag("t7")
        refused(NotFoundError, "no image tagged", lambda: layout.manifest("t7"))
        assert len(layout.tags()) == 99

    def test_one_tag_for_two_images(self, layout: LayoutRepository) -> None:
        entries = [{**plain(put_image(layout, data)), "annotations": {NAME: "t"}} for data in (b"1", b"2")]
        (layout.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
        refused(FormatError, "several images", lambda: layout.manifest("t"))

    def test_sizes_have_bounds(self, layout: LayoutRepository) -> None:
        refused(OutputError, "at most", lambda: layout.put_manifest(bytes(MAX_MANIFEST + 1), OCI_MANIFEST))
        image = put_image(layout, b"x", tag="t")
        (layout.path / "blobs/sha256" / image.digest[7:]).write_bytes(bytes(MAX_MANIFEST + 1))
        refused(FormatError, "more than", lambda: layout.manifest("t"))


class TestReferrers:
    @staticmethod
    def artifact(layout: LayoutRepository, subject: Descriptor, number: int) -> bytes:
        empty = put(layout, b"{}", OCI_EMPTY)
        fields = Manifest(schema_version=2, media_type=OCI_MANIFEST, artifact_type=TYPE, config=empty, layers=[empty],
                          subject=subject, annotations={"number": str(number)})  # fmt: skip
        return encode(fields)

    def test_found_and_replaced(self, layout: LayoutRepository) -> None:
        subject, other = put_image(layout, b"x", tag="t"), put_image(layout, b"y", tag="u")
        first = layout.put_referrer(self.artifact(layout, subject, 1), subject.digest, artifact_type=TYPE)
        layout.put_referrer(self.artifact(layout, other, 1), other.digest, artifact_type=TYPE)
        assert layout.referrers(subject.digest, artifact_type=TYPE) == [first]
        second = layout.put_referrer(
            self.artifact(layout, subject, 2), subject.digest, artifact_type=TYPE, replaces=first.digest
        )
        assert layout.referrers(subject.digest, artifact_type=TYPE) == [second]
        assert layout.referrers(subject.digest, artifact_type="other") == []
        assert layout.tags() == ["t", "u"]
        (layout.path / "blobs/sha256" / second.digest[7:]).unlink()
        assert layout.referrers(subject.digest, artifact_type=TYPE) == []


class TestPeers:
    def test_ours_to_skopeo_and_back(
        self, layout: LayoutRepository, require_peer: Callable[[str], str], tmp_path: Path
    ) -> None:
        put_image(layout, layer_tar(a=b"1"), layer_tar(b=b"2"), tag="t")
        skopeo = require_peer("skopeo")
        there, back = f"oci:{tmp_path / 'there'}:t", f"oci:{tmp_path / 'back'}:t"
        subprocess.run([skopeo, "copy", "--quiet", f"oci:{layout.path}:t", there], check=True)
        subprocess.run([skopeo, "copy", "--quiet", there, back], check=True)
        assert LayoutRepository(tmp_path / "back").manifest("t") == layout.manifest("t")
        # And skopeo writes into a layout of ours without a harm to what is there.
        subprocess.run([skopeo, "copy", "--quiet", there, f"oci:{layout.path}:u"], check=True)
        assert layout.tags() == ["t", "u"]

    def test_umocis_to_us_and_ours_to_umoci(
        self, layout: LayoutRepository, require_peer: Callable[[str], str], tmp_path: Path
    ) -> None:
        umoci = require_peer("umoci")
        theirs = tmp_path / "theirs"
        subprocess.run([umoci, "init", "--layout", theirs], check=True, capture_output=True)
        subprocess.run([umoci, "new", "--image", f"{theirs}:t"], check=True, capture_output=True)
        repository = LayoutRepository(theirs)
        put_image(repository, layer_tar(a=b"1"), tag="ours")
        listed = subprocess.run([umoci, "list", "--layout", theirs], check=True, capture_output=True, text=True).stdout
        assert sorted(listed.split()) == repository.tags() == ["ours", "t"]
        stored = [put_image(repository, layer_tar(b=b"2")), *(repository.manifest(tag)[1] for tag in repository.tags())]
        subprocess.run([umoci, "gc", "--layout", theirs], check=True, capture_output=True)
        assert [repository.manifest(item.digest)[1].digest for item in stored] == [item.digest for item in stored]
        assert "config" in json.loads(repository.manifest("t")[0])
