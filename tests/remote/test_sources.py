"""Container images as sources of builds: which one is meant, what it consists of, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.oci import descriptor_of, image_manifest, layer_tar, plain, plant, put, put_image, put_index
from tests.support.registry import Registry

from eroseal.errors import ErosealError, FormatError, NotFoundError, UnsupportedError, UsageError
from eroseal.limits import MAX_STACK_LAYERS
from eroseal.store.oci import tarfiles
from eroseal.store.oci.documents import OCI_MANIFEST, Config, Descriptor, Index, Manifest, Platform, parse
from eroseal.store.oci.layout import LayoutRepository
from eroseal.store.oci.platform import Target, choose, machine_target, parse_platform
from eroseal.store.oci.registry import RegistryRepository
from eroseal.store.oci.select import SourceImage, open_source
from eroseal.store.remote import RemoteOptions

OPTIONS = RemoteOptions(attempts=1)
ONE, TWO = layer_tar(a=b"first"), layer_tar(b=b"second", c=b"")


@pytest.fixture
def layout(tmp_path: Path) -> LayoutRepository:
    return LayoutRepository(tmp_path / "layout", create=True, durable=False)


def opened(text: str, platform: str | None = None) -> SourceImage:
    return open_source(text, OPTIONS, platform=platform)


def tars(image: SourceImage) -> list[bytes]:
    """The uncompressed layers."""
    with image:
        found = [b"".join(layer.open()) for layer in image.layers]
        unpacked = [gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data for data in found]
        assert [layer.diff_id for layer in image.layers] == [descriptor_of(data).digest for data in unpacked]
        assert json.loads(image.config)["rootfs"]["diff_ids"] == [layer.diff_id for layer in image.layers]
        return unpacked


def refused(kind: type[ErosealError], words: str, text: str, platform: str | None = None) -> None:
    with pytest.raises(kind, match=words):
        opened(text, platform)


class TestPlaces:
    def test_a_layout(self, layout: LayoutRepository) -> None:
        stored = put_image(layout, ONE, TWO, tag="t")
        for text in (f"oci:{layout.path}:t", f"oci:{layout.path}"):
            image = opened(text)
            assert (image.digest, image.where) == (stored.digest, text)
            assert tars(image) == [ONE, TWO]
        put_image(layout, TWO, tag="u")
        refused(UsageError, "lists 2 images.*there are: t, u", f"oci:{layout.path}")
        refused(NotFoundError, "no image tagged 'v'.*there are: t, u", f"oci:{layout.path}:v")
        refused(NotFoundError, "not an OCI image layout", "oci:/nowhere:t")
        refused(UsageError, "not a tag", f"oci:{layout.path}:.t")
        refused(UsageError, "write PATH", f"oci:{layout.path}:")

    def test_a_registry(self, registry: Registry) -> None:
        with RegistryRepository(registry.host, "sources/one", OPTIONS) as repository:
            stored = put_image(repository, ONE, TWO, tag="t")
        assert tars(opened(f"docker://{registry.host}/sources/one:t")) == [ONE, TWO]
        assert tars(opened(f"docker://{registry.host}/sources/one@{stored.digest}")) == [ONE, TWO]
        refused(NotFoundError, "404", f"docker://{registry.host}/sources/one:none")
        refused(UsageError, "not a container image", "dir:/x:y")

    def test_archives_of_skopeo(
        self, layout: LayoutRepository, require_peer: Callable[[str], str], tmp_path: Path
    ) -> None:
        stored = put_image(layout, ONE, TWO, ONE, tag="t")
        skopeo = require_peer("skopeo")
        saved, kept = tmp_path / "saved.tar", tmp_path / "kept.tar"
        for target in (f"docker-archive:{saved}:busy/box:1.2", f"oci-archive:{kept}:t"):
            subprocess.run([skopeo, "copy", "--quiet", f"oci:{layout.path}:t", target], check=True)
        image = opened(f"oci-archive:{kept}")
        assert image.digest == stored.digest
        assert tars(image) == tars(opened(f"oci-archive:{kept}:t")) == [ONE, TWO, ONE]
        for name in ("", ":busy/box:1.2", ":docker.io/busy/box:1.2"):
            assert tars(opened(f"docker-archive:{saved}{name}")) == [ONE, TWO, ONE]
        refused(
            NotFoundError,
            "no image 'busy/box:2'.*there are: docker.io/busy/box:1.2",
            f"docker-archive:{saved}:busy/box:2",
        )
        refused(UsageError, "not an image name", f"docker-archive:{saved}:Not A Name")
        refused(UsageError, "write docker-archive", f"docker-archive:{saved}:")
        refused(NotFoundError, "no such file", f"docker-archive:{tmp_path / 'none'}")
        refused(FormatError, "not an OCI image layout", f"oci-archive:{saved}")
        refused(FormatError, "has no manifest.json", f"docker-archive:{kept}")
        saved.write_bytes(gzip.compress(saved.read_bytes()))
        refused(UnsupportedError, "compressed as a whole.*gzip -d", f"docker-archive:{saved}")


class TestPlatforms:
    @pytest.fixture
    def many(self, layout: LayoutRepository) -> LayoutRepository:
        entries: list[dict[str, Any]] = []
        for os_name, architecture, variant in (
            ("linux", "arm", "v6"), ("linux", "arm", "v7"), ("linux", "arm64", ""), ("linux", "amd64", ""),
            ("linux", "riscv64", ""), ("windows", "amd64", ""),
        ):  # fmt: skip
            data = layer_tar(which=f"{os_name}/{architecture}/{variant}".encode())
            stored = put_image(layout, data, platform=(os_name, architecture, variant))
            platform = {"os": os_name, "architecture": architecture, **({"variant": variant} if variant else {})}
            entries.append({**plain(stored), "platform": platform})
        attestation = {**plain(put_image(layout, b"x")), "platform": {"os": "unknown", "architecture": "unknown"}}
        inner = put_index(layout, entries[:3])
        put_index(layout, [attestation, {**plain(inner), "platform": {"os": "linux", "architecture": "arm"}},
                           *entries[2:]], tag="many")  # fmt: skip
        put_index(layout, [attestation, plain(put_image(layout, ONE))], tag="one")
        return layout

    @pytest.mark.parametrize(
        ("platform", "which"),
        [("linux/amd64", "linux/amd64/"), ("linux/arm64", "linux/arm64/"), ("linux/arm64/v8", "linux/arm64/"),
         ("linux/aarch64", "linux/arm64/"), ("windows/amd64", "windows/amd64/"), ("linux/arm", "linux/arm/v6"),
         ("linux/arm/v7", "linux/arm/v7")],
    )  # fmt: skip
    def test_choice(self, many: LayoutRepository, platform: str, which: str) -> None:
        assert tars(opened(f"oci:{many.path}:many", platform)) == [layer_tar(which=which.encode())]

    def test_what_is_not_there(self, many: LayoutRepository) -> None:
        text = f"oci:{many.path}:many"
        refused(NotFoundError, "no image for linux/s390x.*linux/amd64, linux/arm, linux/arm64", text, "linux/s390x")
        refused(NotFoundError, "no image for linux/arm64/v9", text, "linux/arm64/v9")
        for wrong in ("linux", "linux/", "linux/amd64/v1/x", "Linux/amd64", "linux/amd64\n", ""):
            refused(UsageError, "not a platform", text, wrong)

    def test_one_image_is_taken_unless_another_platform_is_asked_for(self, many: LayoutRepository) -> None:
        assert tars(opened(f"oci:{many.path}:one")) == [ONE]
        assert tars(opened(f"oci:{many.path}:one", "linux/amd64")) == [ONE]
        refused(NotFoundError, "no image for linux/arm64.*it is for linux/amd64", f"oci:{many.path}:one", "linux/arm64")
        put_image(many, TWO, tag="plain", platform=("linux", "s390x", ""))
        assert tars(opened(f"oci:{many.path}:plain")) == [TWO]
        refused(NotFoundError, "it is for linux/s390x", f"oci:{many.path}:plain", "linux/amd64")

    def test_this_machine(self) -> None:
        assert str(machine_target("x86_64")) == "linux/amd64"
        assert str(machine_target("aarch64")) == "linux/arm64"
        assert str(machine_target("armv7l")) == "linux/arm/v7"
        assert str(machine_target("s390x")) == "linux/s390x"
        assert parse_platform("linux/x86_64") == Target("linux", "amd64")

    def test_plain_images_are_preferred(self) -> None:
        erofs = Platform(os="linux", architecture="amd64", os_features=["erofs"])
        tar = Platform(os="linux", architecture="amd64", variant="v3")
        entries = [descriptor_of(b"e", OCI_MANIFEST, platform=erofs), descriptor_of(b"t", OCI_MANIFEST, platform=tar)]
        assert choose(entries, Target("linux", "amd64"), where="x") == entries[1]


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "kind", "words"),
        [
            ({"layers": "EROFS"}, UnsupportedError, "EROFS image already"),
            ({"layers": "UNKNOWN"}, UnsupportedError, "unknown type 'x/unknown'"),
            ({"layers": "ENCRYPTED"}, UnsupportedError, "unknown type"),
            ({"layers": "FOREIGN"}, UnsupportedError, "not distributed"),
            ({"layers": "MANY"}, UnsupportedError, "more than 127"),
            ({"layers": []}, FormatError, "0 layers, of which the config names 1"),
            ({"manifests": []}, FormatError, "manifest and an index at once"),
            (
                {"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"},
                UnsupportedError,
                "v1.prettyjws",
            ),
            ({"mediaType": "x/y"}, UnsupportedError, "not an image, but 'x/y'"),
            ({"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json"}}, UnsupportedError, "helm"),
        ],
    )
    def test_manifests(
        self, layout: LayoutRepository, fields: dict[str, Any], kind: type[ErosealError], words: str
    ) -> None:
        stored = plain(put(layout, ONE, "x"))
        layers = {
            "EROFS": [{**stored, "mediaType": "application/vnd.erofs"}],
            "UNKNOWN": [{**stored, "mediaType": "x/unknown"}],
            "ENCRYPTED": [{**stored, "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"}],
            "FOREIGN": [{**plain(descriptor_of(b"absent")), "urls": ["https://example.org/x"],
                         "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}],
            "MANY": [{**stored, "mediaType": "application/vnd.oci.image.layer.v1.tar"}] * (MAX_STACK_LAYERS + 1),
        }  # fmt: skip
        if isinstance(fields.get("layers"), str):
            fields = {"layers": layers[fields["layers"]]}
        if "config" in fields:
            fields = {"config": {**plain(put(layout, b"{}", "x")), **fields["config"]}}
        data = image_manifest(layout, ONE, **fields)
        plant(layout.path, data, json.loads(data)["mediaType"], "t")
        refused(kind, words, f"oci:{layout.path}:t")

    @pytest.mark.parametrize(
        "config",
        [b"", b"no json", b"{}", b'{"rootfs":{"type":"layers"}}', b'{"rootfs":{"type":"layers","diff_ids":["md5:0"]}}',
         b'{"rootfs":{"type":"layers","diff_ids":[7]}}', b"[" * 100_000],
    )  # fmt: skip
    def test_configs(self, layout: LayoutRepository, config: bytes) -> None:
        stored = put(layout, config, "application/vnd.oci.image.config.v1+json")
        plant(layout.path, image_manifest(layout, ONE, config=plain(stored)), OCI_MANIFEST, "t")
        with pytest.raises(FormatError):
            opened(f"oci:{layout.path}:t")

    def test_circles_of_indexes_end(self, layout: LayoutRepository) -> None:
        """No index can contain itself, but a chain of them can be as long as somebody likes."""
        entry = plain(put_image(layout, ONE))
        for _ in range(10):
            entry = {**plain(put_index(layout, [{**entry, "platform": {"os": "linux", "architecture": "amd64"}}]))}
        put_index(layout, [entry], tag="t")
        refused(UnsupportedError, "not an image", f"oci:{layout.path}:t", "linux/amd64")

    def test_layers_that_are_not_what_they_should_be(self, layout: LayoutRepository) -> None:
        put_image(layout, ONE, tag="t")
        with opened(f"oci:{layout.path}:t") as image:
            layer = image.layers[0]
            path = layout.path / "blobs/sha256" / layer.descriptor.digest[7:]
            data = path.read_bytes()
            for damage in (data[:-1], data + b"x", data[:-1] + bytes([data[-1] ^ 1])):
                path.write_bytes(damage)
                with pytest.raises(FormatError, match=r"digest|does not have"):
                    list(layer.open())
            path.unlink()
            with pytest.raises(NotFoundError):
                list(layer.open())


def saved_archive(path: Path, manifest: object, **files: bytes) -> str:
    """An archive as `docker save` makes it; `/` in names is spelled `__`."""
    with tarfile.open(path, "w") as archive:
        entries = {name.replace("__", "/"): data for name, data in files.items()}
        if manifest is not None:
            entries["manifest.json"] = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        for name, data in entries.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return f"docker-archive:{path}"


def config_of(*tars: bytes) -> bytes:
    diff_ids = [descriptor_of(data).digest for data in tars]
    return json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    ).encode()


class TestSavedArchives:
    def test_the_classic_form(self, tmp_path: Path) -> None:
        """Layers in directories of their own, one of them a link to another."""
        path = tmp_path / "saved.tar"
        config = config_of(ONE, TWO, ONE)
        name = f"{hashlib.sha256(config).hexdigest()}.json"
        layers = ["0/layer.tar", "1/layer.tar", "2/layer.tar"]
        manifest = [{"Config": name, "RepoTags": None, "Layers": layers}]
        saved_archive(path, manifest, **{name: config, "0__layer.tar": ONE, "1__layer.tar": TWO})
        with tarfile.open(path, "a") as archive:
            link = tarfile.TarInfo("2/layer.tar")
            link.type, link.linkname = tarfile.SYMTYPE, "../0/layer.tar"
            archive.addfile(link)
        assert tars(opened(f"docker-archive:{path}")) == [ONE, TWO, ONE]

    def test_the_form_with_a_layout_inside(self, tmp_path: Path) -> None:
        compressed = [gzip.compress(data, 1) for data in (ONE, TWO)]
        config = config_of(ONE, TWO)
        names = [f"blobs/sha256/{hashlib.sha256(data).hexdigest()}" for data in (config, *compressed)]
        files = {name.replace("/", "__"): data for name, data in zip(names, (config, *compressed), strict=True)}
        manifest = [{"Config": names[0], "RepoTags": ["box:latest"], "Layers": names[1:], "LayerSources": {}}]
        text = saved_archive(tmp_path / "saved.tar", manifest, **files)
        assert tars(opened(f"{text}:box")) == [ONE, TWO]
        files[names[1].replace("/", "__")] = compressed[1]
        text = saved_archive(tmp_path / "saved.tar", manifest, **files)
        with opened(text) as image, pytest.raises(FormatError, match="digest"):
            list(image.layers[0].open())

    def test_compressed_layers_of_any_name(self, tmp_path: Path) -> None:
        compressed = gzip.compress(ONE, 1)
        manifest = [{"Config": "c", "Layers": ["./x.tar.gz"]}]
        text = saved_archive(tmp_path / "saved.tar", manifest, c=config_of(ONE), **{"x.tar.gz": compressed})
        image = opened(text)
        assert image.layers[0].descriptor.digest == descriptor_of(compressed).digest
        assert image.layers[0].descriptor.media_type.endswith("+gzip")
        assert tars(image) == [ONE]

    @pytest.mark.parametrize("diff_id", ["", "foo:bar", "md5:00", "shake_128:00", "sha256:zz"])
    def test_digests_of_unknown_kinds(self, tmp_path: Path, diff_id: str) -> None:
        config = json.dumps({"rootfs": {"type": "layers", "diff_ids": [diff_id]}}).encode()
        manifest = [{"Config": "c", "Layers": ["l"]}]
        for layer in (ONE, gzip.compress(ONE, 1)):
            text = saved_archive(tmp_path / "saved.tar", manifest, c=config, l=layer)
            refused(FormatError, "not a sha256 or sha512 digest", text)

    def test_several_images(self, tmp_path: Path) -> None:
        manifest = [{"Config": f"c{n}", "RepoTags": [f"img:{n}"], "Layers": [f"l{n}"]} for n in range(2)]
        text = saved_archive(tmp_path / "s.tar", manifest, c0=config_of(ONE), c1=config_of(TWO), l0=ONE, l1=TWO)
        assert tars(opened(f"{text}:img:1")) == [TWO]
        refused(UsageError, "has 2 images.*img:0, img:1", text)

    @pytest.mark.parametrize(
        ("manifest", "kind", "words"),
        [
            (None, FormatError, "no manifest.json"),
            (b"", FormatError, "malformed"),
            ({}, FormatError, "malformed"),
            ([{}], FormatError, "malformed"),
            (b"[" * 100_000, FormatError, "malformed"),
            ([], UsageError, "has 0 images"),
            ([{"Config": "none", "Layers": []}], NotFoundError, "'none' is missing"),
            ([{"Config": "../../etc/passwd", "Layers": []}], NotFoundError, "is missing"),
            ([{"Config": "c", "Layers": []}], FormatError, "0 layers"),
            ([{"Config": "c", "Layers": ["none"]}], NotFoundError, "layer 'none' is missing"),
            ([{"Config": "c", "Layers": ["loop"]}], FormatError, "links"),
            ([{"Config": "c", "Layers": ["out"]}], NotFoundError, "missing"),
            ([{"Config": "0" * 64 + ".json", "Layers": ["l"]}], FormatError, "digest that its name says"),
            ([{"Config": "l", "Layers": ["l"]}], FormatError, "not a valid config"),
        ],
    )
    def test_what_is_refused(self, tmp_path: Path, manifest: object, kind: type[ErosealError], words: str) -> None:
        path = tmp_path / "saved.tar"
        text = saved_archive(path, manifest, c=config_of(ONE), l=ONE, **{"0" * 64 + ".json": config_of(ONE)})
        with tarfile.open(path, "a") as archive:
            for name, target in (("loop", "loop"), ("out", "../../etc/passwd")):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, target
                archive.addfile(link)
        refused(kind, words, text)

    def test_a_layer_that_is_not_what_the_config_says(self, tmp_path: Path) -> None:
        manifest = [{"Config": "c", "Layers": ["l"]}]
        text = saved_archive(tmp_path / "s.tar", manifest, c=config_of(ONE), l=TWO)
        with opened(text) as image, pytest.raises(FormatError, match="has the digest"):
            list(image.layers[0].open())

    def test_bombs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tarfiles, "MAX_SAVED_MEMBERS", 100)
        path = tmp_path / "many.tar"
        path.write_bytes(tarfile.TarInfo("x").tobuf() * 101 + bytes(1024))
        refused(FormatError, "more than 100 members", f"docker-archive:{path}")
        # A header of 8 TiB, in a file that has as many bytes, none of them on the disk.
        header = tarfile.TarInfo("pax")
        header.type, header.size = tarfile.XHDTYPE, 1 << 43
        path.write_bytes(header.tobuf(tarfile.GNU_FORMAT))
        os.truncate(path, 1 << 43)
        refused(FormatError, "header of", f"docker-archive:{path}")
        # Python's tarfile, as of 3.11.7, would think about this one for hours.
        digits = tarfile.TarInfo("pax")
        digits.type, digits.size = tarfile.XHDTYPE, 1 << 21
        path.write_bytes(digits.tobuf(tarfile.GNU_FORMAT) + b"9" * (1 << 21))
        refused(FormatError, "does not begin with its length", f"docker-archive:{path}")

    def test_odd_members(self, tmp_path: Path) -> None:
        path, manifest = tmp_path / "odd.tar", [{"Config": "c", "Layers": ["dir/../l"]}]
        text = saved_archive(path, manifest, c=config_of(ONE), l=ONE)
        good = path.read_bytes()
        for kind, size in ((tarfile.DIRTYPE, 0), (tarfile.CHRTYPE, 0), (b"Z", 700), (tarfile.REGTYPE, 700)):
            odd = tarfile.TarInfo("l/" if kind == tarfile.DIRTYPE else "odd")
            odd.type, odd.size = kind, size
            path.write_bytes(odd.tobuf(tarfile.GNU_FORMAT) + bytes(-size % 512 + size) + good)
            assert tars(opened(text)) == [ONE]
        sparse = tarfile.TarInfo("s")
        sparse.type = tarfile.GNUTYPE_SPARSE
        path.write_bytes(sparse.tobuf(tarfile.GNU_FORMAT) + good)
        refused(UnsupportedError, "a sparse file", text)

    @given(cut=st.integers(0, 6000), flips=st.lists(st.tuples(st.integers(0, 5999), st.integers(1, 255)), max_size=6))
    def test_anything_opens_or_is_refused(
        self, tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[tuple[int, int]]
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "mutated.tar"
        text = saved_archive(path, [{"Config": "c", "Layers": ["l"]}], c=config_of(ONE), l=ONE)
        data = bytearray(path.read_bytes())
        for place, flip in flips:
            data[place % len(data)] ^= flip
        path.write_bytes(data[: len(data) - cut])
        for prefix in ("docker-archive", "oci-archive"):
            try:
                with opened(f"{prefix}:{path}") as image:
                    assert b"".join(image.layers[0].open()) == ONE
            except ErosealError:
                continue
        assert text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(["sha256:" + "0" * 64, OCI_MANIFEST]),
    lambda children: st.lists(children, max_size=3)
    | st.dictionaries(
        st.sampled_from(["schemaVersion", "mediaType", "digest", "size", "config", "layers", "manifests", "platform",
                         "annotations", "rootfs", "diff_ids", "type", "os", "architecture", "subject", "urls"]),
        children, max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip


class TestDocuments:
    @given(json_values | st.binary(max_size=60))
    def test_anything_parses_or_is_refused(self, value: Any) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        for kind in (Manifest, Index, Config):
            try:
                assert isinstance(parse(data, kind, where="x"), kind)
            except ErosealError as error:
                assert error.where == "x"

    @pytest.mark.parametrize("size", [-1, 1 << 63, 1 << 70])
    def test_sizes_are_sizes(self, size: int) -> None:
        data = json.dumps({"schemaVersion": 2, "manifests": [{**plain(descriptor_of(b"")), "size": size}]}).encode()
        with pytest.raises(FormatError):
            parse(data, Index, where="x")

    def test_digests_have_one_spelling(self) -> None:
        for digest in (
            "sha256:" + "A" * 64,
            "sha256:" + "0" * 63,
            "SHA256:" + "0" * 64,
            "sha256:" + "0" * 64 + "\n",
            "",
        ):
            with pytest.raises(ValueError, match="not a sha256"):
                Descriptor(media_type="x", digest=digest, size=0)
