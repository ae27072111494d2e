"""Our images in other tools' hands: skopeo copies them, says what they are, and changes nothing.

No option is needed but those for plain HTTP: skopeo passes layer types that it does not know through as they are, and
does not recompress them. `--preserve-digests` has it refuse rather than change a manifest, so it is good to give.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.oci_places import Place, layout_place, manifest_of, registry_place
from tests.support.program import eroseal
from tests.support.registry import Registry
from tests.unit.store_samples import tree

from eroseal.image.check import check_image
from eroseal.image.reader import ImageReader
from eroseal.image.unpack import unpack
from eroseal.store.reference import parse_reference
from eroseal.store.remote import RemoteOptions
from eroseal.store.resolve import resolve
from eroseal.store.transfer import CopyOptions, copy
from eroseal.trust.image import open_blob, open_image
from eroseal.trust.policy import Policy
from eroseal.trust.scan import scan_blob

# Started before the first test, or that test would be told that it left it behind.
pytestmark = pytest.mark.usefixtures("registry")
REMOTE = RemoteOptions(attempts=2)
Skopeo = Callable[..., bytes]


@pytest.fixture
def skopeo(require_peer: Callable[[str], str]) -> Skopeo:
    program = require_peer("skopeo")

    def run(*arguments: str) -> bytes:
        done = subprocess.run([program, *arguments], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return run


@pytest.fixture
def opened() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree, and a store in which the program put an image of it, with data blobs."""
    place = tmp_path_factory.mktemp("skopeo")
    directory = place / "tree"
    (directory / "etc").mkdir(parents=True)
    (directory / "etc" / "motd").write_text("hello\n")
    for number in range(3):
        (directory / f"large{number}").write_bytes(bytes([number + 1]) * (300_000 + number) + b"tail" * 5000)
    eroseal("build", directory, f"dir:{place}/store:app", "--blobs", "file", cwd=place)
    return place


def push(source: Path, place: Place, *, compress: bool) -> None:
    reference = parse_reference(f"dir:{source}/store:app")
    copy(reference, parse_reference(f"{place.name}:app"), CopyOptions(compress=compress, jobs=1), remote=REMOTE)


def check_whole(place: Place, source: Path, target: Path) -> None:
    """Read an image as a user would, with its digest pinned, and compare what it unpacks to."""
    with resolve(f"dir:{source}/store:app") as local:
        document = local.document
    assert document is not None
    policy = Policy(time=int(time.time()), digests=(document.image,))
    with resolve(f"{place.name}:app", remote=REMOTE) as stored:
        assert stored.document == document
        for blob in document.blobs:
            with contextlib.closing(stored.open_data(blob.digest)) as part:
                assert scan_blob(part, open_blob(part, blob.digest), jobs=1) == []
        with open_image(stored.meta, policy=policy, record=stored.record, open_data=stored.open_data) as image:
            reader = ImageReader(image)
            assert check_image(reader).warnings == ()
            unpack(reader, target)
    assert tree(target) == tree(source / "tree")


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "zstd"])
@pytest.mark.parametrize("flags", [(), ("--preserve-digests", "--all")], ids=["bare", "preserving"])
def test_copies_change_nothing(
    source: Path,
    skopeo: Skopeo,
    registry: Registry,
    opened: contextlib.ExitStack,
    tmp_path: Path,
    compress: bool,
    flags: tuple[str, ...],
) -> None:
    places = [
        registry_place(registry, opened),
        layout_place(tmp_path / "layout", opened),
        registry_place(registry, opened),
        layout_place(tmp_path / "again", opened),
    ]
    push(source, places[0], compress=compress)
    for here, there in itertools.pairwise(places):
        open_http = ("--src-tls-verify=false", "--dest-tls-verify=false")
        skopeo("copy", *flags, *open_http, f"{here.name}:app", f"{there.name}:app")
        assert there.open().manifest("app") == here.open().manifest("app")
    for number, place in enumerate(places[1:]):
        check_whole(place, source, tmp_path / f"unpacked{number}")


def test_layouts_of_ours_are_copied_too(
    source: Path, skopeo: Skopeo, registry: Registry, opened: contextlib.ExitStack, tmp_path: Path
) -> None:
    here, there = layout_place(tmp_path / "layout", opened), registry_place(registry, opened)
    push(source, here, compress=False)
    skopeo("copy", "--preserve-digests", "--dest-tls-verify=false", f"{here.name}:app", f"{there.name}:app")
    assert there.open().manifest("app") == here.open().manifest("app")
    check_whole(there, source, tmp_path / "unpacked")
    # The same image, pushed by ourselves, is the same manifest.
    ours = registry_place(registry, opened)
    push(source, ours, compress=False)
    assert ours.open().manifest("app") == here.open().manifest("app")


def test_skopeo_says_what_it_is(source: Path, skopeo: Skopeo, registry: Registry, opened: contextlib.ExitStack) -> None:
    place = registry_place(registry, opened)
    push(source, place, compress=False)
    name = f"{place.name}:app"
    manifest = manifest_of(place.open(), "app")
    assert skopeo("inspect", "--raw", "--tls-verify=false", name) == place.open().manifest("app")[0]
    found = json.loads(skopeo("inspect", "--tls-verify=false", name))
    assert found["Layers"] == [layer["digest"] for layer in manifest["layers"]]
    assert found["Digest"] == place.open().manifest("app")[1].digest
    assert (found["Os"], found["RepoTags"]) == ("linux", ["app"])
    config = json.loads(skopeo("inspect", "--config", "--raw", "--tls-verify=false", name))
    assert config["os.features"] == ["erofs"]
    assert config["rootfs"]["diff_ids"] == found["Layers"]


def test_stock_tools_verify_a_layer_by_its_annotations(
    source: Path, require_peer: Callable[[str], str], opened: contextlib.ExitStack, tmp_path: Path
) -> None:
    veritysetup = require_peer("veritysetup")
    place = layout_place(tmp_path / "layout", opened)
    push(source, place, compress=False)
    layers = manifest_of(place.open(), "app")["layers"]
    assert len(layers) > 1
    for layer in layers:
        file, annotations = str(place.file(layer["digest"])), layer["annotations"]
        root = annotations["org.erofs.dmverity.root_digest"].removeprefix("sha256:")
        offset = annotations["org.erofs.dmverity.hash_offset"]
        done = subprocess.run(
            [veritysetup, "verify", file, file, root, f"--hash-offset={offset}"], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
