"""A real image of many layers goes all the way: merged, pushed, pulled elsewhere, verified, mounted and unpacked.

What comes out is what umoci unpacks from the same image.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.containers.conftest import Layered
from tests.support.kernel import mount_erofs, unmount
from tests.support.program import Outcome, eroseal
from tests.support.registry import Registry
from tests.support.trees import assert_same, tree_of

pytestmark = pytest.mark.usefixtures("need_root")


def skopeo(require_peer: Callable[[str], str], *arguments: str, cwd: Path) -> bytes:
    done = subprocess.run([require_peer("skopeo"), *arguments], cwd=cwd, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def blobs_of(reference: str, place: Path) -> list[Path]:
    found: Outcome = eroseal("digest", reference, "--json", cwd=place)
    return [place / blob["path"] for blob in found.document["blobs"]]


def test_all_the_way(
    layered: Layered,
    registry: Registry,
    need_kernel_erofs: None,
    require_peer: Callable[[str], str],
    tmp_path: Path,
) -> None:
    built = eroseal("build", layered.source, "dir:store:app", cwd=tmp_path).last
    remote = f"docker://{registry.host}/roundtrip/app:1"
    assert eroseal("copy", "dir:store:app", remote, cwd=tmp_path).last == built
    eroseal("verify", remote, "--digest", built, cwd=tmp_path)
    assert eroseal("copy", remote, "dir:elsewhere:app", cwd=tmp_path).last == built
    eroseal("fsck", "elsewhere", cwd=tmp_path)
    eroseal("verify", "dir:elsewhere:app", "--digest", built, cwd=tmp_path)

    eroseal("unpack", "dir:elsewhere:app", "out", "--digest", built, cwd=tmp_path)
    assert_same(tree_of(tmp_path / "out"), layered.tree)

    mounted = tmp_path / "mounted"
    mounted.mkdir()
    meta, *data = blobs_of("dir:elsewhere:app", tmp_path)
    mount_erofs(meta, data, mounted)
    try:
        assert_same(tree_of(mounted), layered.tree)
    finally:
        unmount(mounted)

    config = json.loads(skopeo(require_peer, "inspect", "--config", "--tls-verify=false", remote, cwd=tmp_path))
    assert config["config"]["Entrypoint"] == ["/bin/sh"]
    assert "FLAVOUR=mild" in config["config"]["Env"]
    assert config["os.features"] == ["erofs"]


def test_the_way_to_a_source_changes_nothing(
    layered: Layered, registry: Registry, require_peer: Callable[[str], str], tmp_path: Path
) -> None:
    wanted = eroseal("build", layered.source, "dir:store:oci", "--no-sync", cwd=tmp_path).last
    there = f"docker://{registry.host}/source/app:tar"
    skopeo(require_peer, "copy", "--dest-tls-verify=false", layered.source, there, cwd=tmp_path)
    skopeo(require_peer, "copy", layered.source, "oci-archive:app.oci.tar:app", cwd=tmp_path)
    assert eroseal("build", there, "dir:store:registry", "--no-sync", cwd=tmp_path).last == wanted
    assert (
        eroseal("build", "oci-archive:app.oci.tar:app", "dir:store:archive", "--no-sync", cwd=tmp_path).last == wanted
    )
    assert eroseal("build", layered.source, "dir:store:one", "--jobs", "1", "--no-sync", cwd=tmp_path).last == wanted


def test_a_saved_image_holds_the_same_files(
    layered: Layered, require_peer: Callable[[str], str], tmp_path: Path
) -> None:
    skopeo(require_peer, "copy", layered.source, "docker-archive:app.docker.tar:app:1", cwd=tmp_path)
    eroseal("build", "docker-archive:app.docker.tar", "dir:store:app", "--no-sync", cwd=tmp_path)
    eroseal("unpack", "dir:store:app", "out", "--insecure", cwd=tmp_path)
    assert_same(tree_of(tmp_path / "out"), layered.tree)


@pytest.mark.parametrize("target", ["oci:layout:new", "docker://{host}/direct/app:new"])
def test_builds_straight_into_other_places(layered: Layered, registry: Registry, target: str, tmp_path: Path) -> None:
    target = target.format(host=registry.host)
    wanted = eroseal("build", layered.source, "dir:store:app", "--no-sync", cwd=tmp_path).last
    assert eroseal("build", layered.source, target, cwd=tmp_path).last == wanted
    eroseal("verify", target, "--digest", wanted, cwd=tmp_path)
    refused = eroseal("build", layered.source, target, cwd=tmp_path, code=1)
    assert "exists already" in refused.error


def test_one_blob_for_each_layer(layered: Layered, tmp_path: Path) -> None:
    built = eroseal("build", layered.source, "dir:store:app", "--blobs", "layer", "--no-sync", "--json", cwd=tmp_path)
    roles = [blob["role"] for blob in built.document["blobs"]]
    assert roles == ["meta"] + ["data"] * (len(roles) - 1)
    assert 2 < len(roles) <= 8
    digest = built.document["image"]
    eroseal("verify", "dir:store:app", "--digest", digest, cwd=tmp_path)
    eroseal("unpack", "dir:store:app", "out", "--digest", digest, cwd=tmp_path)
    assert_same(tree_of(tmp_path / "out"), layered.tree)


def test_a_tree_is_the_same_image_as_a_directory_and_as_an_archive(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    subprocess.run(["cp", "-a", "/etc", tree], check=True)
    subprocess.run(["cp", "/bin/bash", tree / "large"], check=True)
    (tree / "passwd.hard").hardlink_to(tree / "passwd")
    subprocess.run(
        ["tar", "--format=pax", "--xattrs", "--xattrs-include=*", "-C", tree, "-cf", tmp_path / "tree.tar", "."],
        check=True,
    )
    subprocess.run(["zstd", "-q", tmp_path / "tree.tar"], check=True)
    wanted = eroseal("build", "tree", "dir:store:tree", "--no-sync", cwd=tmp_path).last
    assert eroseal("build", "tree.tar", "dir:store:tar", "--no-sync", cwd=tmp_path).last == wanted
    assert eroseal("build", "tree.tar.zst", "dir:store:zst", "--no-sync", cwd=tmp_path).last == wanted
    with (tmp_path / "tree.tar").open("rb") as archive:
        assert eroseal("build", "-", "dir:store:stdin", "--no-sync", stdin=archive, cwd=tmp_path).last == wanted
    single = eroseal("build", "tree", "tree.erofs", "--no-sync", cwd=tmp_path).last
    assert eroseal("build", "tree.tar", "tar.erofs", "--no-sync", cwd=tmp_path).last == single
    assert (tmp_path / "tree.erofs").read_bytes() == (tmp_path / "tar.erofs").read_bytes()


def test_the_next_version_uploads_only_new_chunks(registry: Registry, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    subprocess.run(["cp", "-a", "/usr/share/doc/bash", tree], check=True)
    (tree / "large").write_bytes(bytes(range(256)) * 16384)
    first, second = (f"docker://{registry.host}/next/app:{number}" for number in (1, 2))
    eroseal("build", "tree", first, cwd=tmp_path)
    size = sum(file.stat().st_size for file in registry.root.rglob("data"))
    with (tree / "large").open("r+b") as file:
        file.write(b"changed")
    built = eroseal("build", "tree", second, "--base", first, "--json", cwd=tmp_path).document
    grown = sum(file.stat().st_size for file in registry.root.rglob("data")) - size
    assert built["bytes_new"] == 65536
    assert grown < 65536 + 262144
    eroseal("verify", second, "--digest", built["image"], cwd=tmp_path)
    automatic = f"docker://{registry.host}/next/app:3"
    again = eroseal("build", "tree", automatic, "--base-auto", "--json", cwd=tmp_path).document
    assert again["bytes_new"] == 0
    assert again["image"] == built["image"]


def test_a_stack_is_a_base_like_any_image(layered: Layered, tmp_path: Path) -> None:
    eroseal("build", layered.source, "dir:store:app-1", "--layers", "stack", "--no-sync", cwd=tmp_path)
    again = eroseal(
        "build", layered.source, "dir:store:app-2", "--layers", "stack", "--base-auto", "--json", cwd=tmp_path
    ).document
    assert again["bytes_new"] == 0
    # Merged, no chunk is another one than in the layers.
    merged = eroseal("build", layered.source, "dir:store:m", "--base", "dir:store:app-1", "--json", cwd=tmp_path)
    assert merged.document["bytes_new"] == 0
    eroseal("verify", "dir:store:app-2", "--digest", again["image"], cwd=tmp_path)
