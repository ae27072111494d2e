"""Every verb that reads images, on a stack of layers; and stacks that somebody has tampered with."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.peer import certs
from tests.support.kernel import tmpfs
from tests.support.program import Outcome, eroseal
from tests.support.stacks import build_stack, opaque, publish, whiteout
from tests.support.trees import assert_same, tree_of

from eroseal.format.digest import Digest
from eroseal.format.statement import StackDigest
from eroseal.store.document import ImageDocument, StackDocument
from eroseal.store.local import LocalStore

pytestmark = pytest.mark.usefixtures("need_root")

REF = "dir:store:app"
NOISE = random.Random(7).randbytes(40_000)


def make_layers(place: Path) -> list[Path]:
    """Write three layers, whose data blobs overlap."""
    low, middle, top = layers = [place / name for name in ("low", "middle", "top")]
    for layer in layers:
        layer.mkdir()
    (low / "etc/deep").mkdir(parents=True)
    (low / "etc/motd").write_text("hello\n")
    (low / "etc/deep/file").write_text("deep\n")
    (low / "big").write_bytes(NOISE)
    (low / "gone").write_text("taken away\n")
    (low / "link").symlink_to("etc/motd")
    (low / "hidden").mkdir()
    (low / "hidden/below").touch()
    (middle / "etc").mkdir()
    (middle / "etc/motd").write_text("changed\n")
    (middle / "copy").write_bytes(NOISE)
    (middle / "copy.hard").hardlink_to(middle / "copy")
    whiteout(middle / "gone")
    (top / "hidden").mkdir(mode=0o700)
    opaque(top / "hidden")
    os.setxattr(top / "hidden", "user.note", b"kept")
    (top / "hidden/above").touch()
    (top / "large").write_bytes(NOISE[::-1])
    (top / "again").write_bytes(NOISE)
    for layer in layers:
        for path in (*layer.rglob("*"), layer):
            os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)
    return layers


@dataclass(frozen=True, slots=True)
class Made:
    """A store with the stack `app`, its layers as images of their own, and keys."""

    place: Path
    digest: str
    layers: tuple[str, ...]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("stack")
    with tmpfs(place / "memory", "size=64m") as memory:
        document = build_stack(place / "store", make_layers(memory))
    certs.signer(name="good").write(place, "good")
    key = Ed25519PrivateKey.generate()
    certs.write_key(key, place / "ed.key")
    (place / "ed.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return Made(place, str(document.image), tuple(str(layer.image) for layer in document.layers))


@pytest.fixture
def place(made: Made, tmp_path: Path) -> Iterator[Path]:
    """Give a copy of it all that a test may change."""
    shutil.copytree(made.place, tmp_path, dirs_exist_ok=True)
    return tmp_path


def documents(place: Path) -> list[ImageDocument]:
    document, _ = LocalStore.open(place / "store").image("app")
    assert isinstance(document, StackDocument)
    return list(document.layers)


# --- reading ---


def test_verify(made: Made) -> None:
    done = eroseal("verify", REF, "--digest", made.digest, cwd=made.place)
    assert done.text.startswith(f"ok: {made.digest}, trusted by digest; 3 layers, 5 blobs, ")
    assert done.err == ""
    report = eroseal("verify", REF, "--digest", made.digest, "--json", cwd=made.place).document
    listed = eroseal("digest", REF, "--json", cwd=made.place).document
    assert (report["ok"], report["trusted_by"]) == (True, "digest")
    assert [blob["digest"] for blob in report["blobs"]] == [blob["digest"] for blob in listed["blobs"]]
    insecure = eroseal("verify", REF, "--insecure", cwd=made.place)
    assert "whole, but unverified; 3 layers, 5 blobs" in insecure.text


def test_digest(made: Made) -> None:
    assert eroseal("digest", REF, cwd=made.place).last == made.digest
    document = eroseal("digest", REF, "--json", cwd=made.place).document
    assert (document["schema"], document["image"]) == ("eroseal.digest/1", made.digest)
    roles = "".join(blob["role"][0] for blob in document["blobs"])
    assert roles == "mdmdmdd"
    metas = [blob["digest"] for blob in document["blobs"] if blob["role"] == "meta"]
    assert tuple(metas) == made.layers
    assert StackDigest.of([Digest.parse(text) for text in metas]) == StackDigest.parse(made.digest)
    data = [blob["digest"] for blob in document["blobs"] if blob["role"] == "data"]
    assert len(set(data)) == 2
    for blob in document["blobs"]:
        assert (made.place / blob["path"]).stat().st_size >= blob["size"]


def test_ls_and_stat(made: Made) -> None:
    trust = ("--digest", made.digest)
    listing = eroseal("ls", REF, "-R", *trust, cwd=made.place).text.split()
    assert listing == [
        *("again", "big", "copy", "copy.hard", "etc", "etc/deep", "etc/deep/file", "etc/motd"),
        *("hidden", "hidden/above", "large", "link"),
    ]
    assert eroseal("ls", REF, "etc", *trust, cwd=made.place).text.split() == ["deep", "motd"]
    entries = eroseal("ls", REF, "--json", *trust, cwd=made.place).document["entries"]
    numbers = {entry["path"]: entry["inode"] for entry in entries}
    assert numbers["copy"] == numbers["copy.hard"]
    assert len(set(numbers.values())) == len(numbers) - 1
    shown = eroseal("stat", REF, "hidden", "--json", *trust, cwd=made.place).document
    assert shown["entry"]["mode"] == "0700"
    assert [item["name"] for item in shown["xattrs"]] == ["user.note"]
    assert "no such file" in eroseal("stat", REF, "gone", *trust, cwd=made.place, code=1).error
    assert "no such file" in eroseal("ls", REF, "hidden/below", *trust, cwd=made.place, code=1).error


def test_cat(made: Made) -> None:
    trust = ("--digest", made.digest)
    assert eroseal("cat", REF, "etc/motd", "link", "etc/deep/file", *trust, cwd=made.place).text == (
        "changed\nchanged\ndeep\n"
    )
    for name, data in (("big", NOISE), ("copy.hard", NOISE), ("large", NOISE[::-1])):
        assert eroseal("cat", REF, name, *trust, cwd=made.place).out == data


def test_unpack_and_diff(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    eroseal("unpack", REF, out, "--digest", made.digest, cwd=made.place)
    assert (out / "etc/motd").read_text() == "changed\n"
    assert (out / "copy").stat().st_nlink == 2
    assert not os.path.lexists(out / "gone")
    assert sorted(os.listdir(out / "hidden")) == ["above"]
    assert os.listxattr(out / "hidden") == ["user.note"]
    merged = eroseal("build", out, f"dir:{tmp_path}/store:merged", "--no-sync", cwd=tmp_path).last
    same = eroseal("diff", REF, f"dir:{tmp_path}/store:merged", "--insecure", "--json", cwd=made.place).document
    assert (same["first"], same["second"], same["changes"]) == (made.digest, merged, [])
    assert same["unchanged"] == len(tree_of(out))
    layer = made.layers[0]
    trust = ("--digest", layer, "--digest", made.digest)
    grown = eroseal("diff", "dir:store:app-1", REF, *trust, "--json", cwd=made.place).document
    assert {change["path"]: change["change"] for change in grown["changes"]} == {
        **dict.fromkeys(("again", "copy", "copy.hard", "hidden/above", "large"), "added"),
        **dict.fromkeys(("gone", "hidden/below"), "removed"),
        **dict.fromkeys(("etc/motd", "hidden"), "changed"),
    }
    # The copy is the lowest layer's own data, and only the topmost layer brings a blob of data.
    assert grown["shared_bytes"] >= len(NOISE) > grown["new_bytes"] - len(NOISE)
    assert len(grown["new_blobs"]) == 3


def test_inspect(made: Made) -> None:
    text = eroseal("inspect", REF, cwd=made.place).text
    assert text.startswith(f"stack     {made.digest}\nlayers    3\ncontents  unverified\n")
    assert all(layer in text for layer in made.layers)
    document = eroseal("inspect", REF, "--digest", made.digest, "--json", cwd=made.place).document
    assert document["schema"] == "eroseal.inspect-stack/1"
    assert (document["image"], document["contents"], document["trusted_by"]) == (made.digest, "verified", "digest")
    assert tuple(layer["image"] for layer in document["layers"]) == made.layers
    assert document["files"] == {
        "names": 13,
        "by_type": {"file": 7, "directory": 4, "symlink": 1},
        "hard_links": 1,
        "xattrs": 1,
    }
    assert document["space"]["logical_bytes"] == 4 * len(NOISE) + len("changed\ndeep\n")
    assert document["space"]["shared_bytes"] >= 36864
    alone = eroseal("inspect", "dir:store:app-1", "--digest", made.layers[0], "--json", cwd=made.place).document
    assert document["layers"][0] == alone


def test_fsck_and_copy(place: Path, made: Made) -> None:
    assert "ok: 4 images, 5 blobs" in eroseal("fsck", "store", cwd=place).text
    assert eroseal("copy", REF, "dir:other:app", cwd=place).last == made.digest
    eroseal("verify", "dir:other:app", "--digest", made.digest, cwd=place)
    eroseal("fsck", "other", cwd=place)


def test_export(made: Made, tmp_path: Path) -> None:
    trust = ("--digest", made.digest)
    refused = eroseal("export", REF, tmp_path / "all", *trust, cwd=made.place, code=2)
    assert "a stack of 3 layers does not fit one file" in refused.error
    assert "--layer N" in refused.error
    layer, file = made.layers[2], tmp_path / "3.erofs"
    assert eroseal("export", REF, file, "--layer", "3", *trust, cwd=made.place).last == layer
    for blob in ("1", "2"):
        eroseal("export", REF, tmp_path / blob, "--layer", "3", "--blob", blob, *trust, cwd=made.place)
    eroseal("verify", file, "--device", "1", "--device", "2", "--digest", layer, cwd=tmp_path)
    assert (
        "the stack has 3 layers"
        in eroseal("export", REF, tmp_path / "x", "--layer", "4", *trust, cwd=made.place, code=1).error
    )
    plain = eroseal("export", "dir:store:app-1", tmp_path / "x", "--layer", "1", "--insecure", cwd=made.place, code=2)
    assert "not a stack" in plain.error
    assert not (tmp_path / "x").exists()


def test_data_files_belong_to_single_files(made: Made) -> None:
    refused = eroseal("ls", REF, "--device", "x", "--digest", made.digest, cwd=made.place, code=2)
    assert "no data files" in refused.error


# --- trust ---


def test_the_digest_of_a_layer_is_not_that_of_the_stack(made: Made) -> None:
    for verb in (("verify", REF), ("cat", REF, "big"), ("inspect", REF)):
        assert "is pinned" in eroseal(*verb, "--digest", made.layers[2], cwd=made.place, code=3).error
    refused = eroseal("verify", "dir:store:app-1", "--digest", made.digest, cwd=made.place, code=3)
    assert "is pinned" in refused.error


def test_sign(place: Path, made: Made) -> None:
    wrong = eroseal("sign", REF, "--ed25519", "ed.key", "--expect", made.layers[0], cwd=place, code=3)
    assert "not signed" in wrong.error
    for form in ("--for-kernel", "--for-bootloader"):
        keys = ("--key", "good.key", "--cert", "good.pem", "--ed25519", "ed.key")
        refused = eroseal("sign", REF, *keys, form, cwd=place, code=2)
        assert "--layer N" in refused.error
    done = eroseal(
        *("sign", REF, "--key", "good.key", "--cert", "good.pem", "--ed25519", "ed.key"),
        *("--name", "app", "--version", "4", "--expect", made.digest),
        cwd=place,
    )
    assert done.last == made.digest
    assert f"signing {made.digest} (unverified, 3 layers, 2 data blobs, " in done.err
    for trust in (("--cert", "good.pem"), ("--ed25519", "ed.pub")):
        assert "as 'app' version 4" in eroseal("verify", REF, *trust, "--name", "app", cwd=place).text
        eroseal("verify", REF, *trust, "--min-version", "5", cwd=place, code=3)
    eroseal("verify", "dir:store:app-1", "--ed25519", "ed.pub", cwd=place, code=3)
    signers = eroseal("inspect", REF, "--json", cwd=place).document["signers"]
    assert [signer["statement"]["this_image"] for signer in signers] == [True, True]


def test_sign_elsewhere(place: Path, made: Made) -> None:
    eroseal("digest", REF, "--to-sign", "statement", "--name", "app", cwd=place)
    subprocess.run(
        [
            *("openssl", "cms", "-sign", "-binary", "-outform", "DER", "-in", "statement"),
            *("-signer", "good.pem", "-inkey", "good.key", "-out", "signature"),
        ],
        cwd=place,
        check=True,
        capture_output=True,
    )
    refused = eroseal("sign", "dir:store:app-1", "--attach", "signature", "--statement", "statement", cwd=place, code=3)
    assert "the statement is about stack-sha256:" in refused.error
    eroseal("sign", REF, "--attach", "signature", "--statement", "statement", cwd=place)
    eroseal("verify", REF, "--cert", "good.pem", "--name", "app", cwd=place)


def test_signatures_of_layers_do_not_vouch_for_the_stack(place: Path, made: Made) -> None:
    for number in (1, 2, 3):
        eroseal("sign", f"dir:store:app-{number}", "--ed25519", "ed.key", "--name", "app", cwd=place)
    eroseal("verify", "dir:store:app-3", "--ed25519", "ed.pub", cwd=place)
    store = LocalStore.open(place / "store")
    entries = [entry for number in (1, 2, 3) for entry in store.image(f"app-{number}")[1]]
    store.update_record("app", lambda _: entries)
    refused = eroseal("verify", REF, "--ed25519", "ed.pub", cwd=place, code=3)
    assert refused.error.count("about another image") == 3


# --- tampering ---


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2), (0, 0, 1, 2)])
def test_documents_with_other_layers_are_refused(place: Path, made: Made, order: tuple[int, ...]) -> None:
    layers = documents(place)
    eroseal("sign", REF, "--ed25519", "ed.key", cwd=place)
    store = LocalStore.open(place / "store")
    _, record = store.image("app")
    store.put_image("app", StackDocument(tuple(layers[number] for number in order)), record, replace=True)
    for trust, why in ((("--digest", made.digest), "is pinned"), (("--ed25519", "ed.pub"), "about another image")):
        for verb in (("verify", REF), ("cat", REF, "etc/motd")):
            assert why in eroseal(*verb, *trust, cwd=place, code=3).error
    assert eroseal("digest", REF, cwd=place).last != made.digest


def test_a_document_that_lies_about_a_digest_is_refused(place: Path, made: Made) -> None:
    """The blobs of two layers change places: the names are right, what is there is not."""
    blob_path = LocalStore.open(place / "store").blob_path
    first, second = (blob_path(layer.image) for layer in documents(place)[:2])
    first.rename(place / "aside")
    second.rename(first)
    (place / "aside").rename(second)
    assert "is expected" in eroseal("verify", REF, "--digest", made.digest, cwd=place, code=3).error
    for verb in (("digest", REF), ("sign", REF, "--ed25519", "ed.key"), ("verify", REF, "--insecure")):
        assert "is expected" in eroseal(*verb, cwd=place, code=3).error


def test_altered_blobs_are_found_once(place: Path, made: Made) -> None:
    shared = documents(place)[0].data[0]
    path = LocalStore.open(place / "store").blob_path(shared.digest)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"\0altered\0")
    trust = ("--digest", made.digest)
    stopped = eroseal("verify", REF, *trust, "--json", cwd=place, code=3)
    assert [blob["ok"] for blob in stopped.document["blobs"]] == [True, False]
    done = eroseal("verify", REF, *trust, "--keep-going", cwd=place, code=3)
    assert done.text.count("bad: ") == 1
    assert "1 bad block, the first one here" in done.error
    listed = eroseal("verify", REF, *trust, "--keep-going", "--json", cwd=place, code=3).document["blobs"]
    assert [blob["ok"] for blob in listed] == [blob["digest"] != str(shared.digest) for blob in listed]
    assert len(listed) == 7
    eroseal("cat", REF, "big", *trust, cwd=place, code=3)
    eroseal("unpack", REF, "out", *trust, cwd=place, code=3)
    assert not (place / "out").exists()
    assert eroseal("cat", REF, "etc/motd", *trust, cwd=place).text == "changed\n"


def test_a_missing_blob_is_named_once(place: Path, made: Made) -> None:
    shared = documents(place)[0].data[0]
    LocalStore.open(place / "store").blob_path(shared.digest).unlink()
    done = eroseal("verify", REF, "--digest", made.digest, "--keep-going", "--json", cwd=place, code=1)
    assert shared.digest.hex in done.error
    assert [blob["ok"] for blob in done.document["blobs"]] == [True, False, True, False, True, False, True]
    assert eroseal("sign", REF, "--ed25519", "ed.key", cwd=place, code=1).out == b""


def test_a_layer_that_is_no_image(place: Path) -> None:
    layers = documents(place)
    data = layers[0].data[0]
    document = publish(place / "store", [layers[0], ImageDocument(data.digest, (data,)), layers[2]])
    for verb in (("verify", REF, "--digest", str(document.image)), ("ls", REF, "--insecure"), ("inspect", REF)):
        assert "superblock" in eroseal(*verb, cwd=place, code=3).error


def test_too_many_layers(place: Path) -> None:
    layers = documents(place)
    document = publish(place / "store", [layers[1]] * 127, "many")
    done = eroseal("verify", "dir:store:many", "--digest", str(document.image), cwd=place)
    assert "127 layers, 2 blobs" in done.text
    path = next(path for path in (place / "store/images").iterdir() if path.name == "many")
    text = path.read_text()
    start, end = text.index('{"image"'), text.index("}]}") + 3
    path.write_text(text[:start] + text[start:end] + "," + text[start:])
    for verb in (("verify", "dir:store:many", "--insecure"), ("digest", "dir:store:many")):
        assert "127 layers" in eroseal(*verb, cwd=place, code=3).error


def test_broken_layers_are_named(place: Path, tmp_path: Path) -> None:
    """A layer that is signed and hostile: the structure check says which one it is."""
    layers = documents(place)
    odd = tmp_path / "odd"
    odd.mkdir()
    with tmpfs(tmp_path / "memory", "size=16m") as memory:
        (memory / "odd/etc").mkdir(parents=True)
        os.setxattr(memory / "odd/etc", "trusted.overlay.redirect", b"/hidden")
        hostile = build_stack(place / "store", [memory / "odd"], "odd")
    document = publish(place / "store", [layers[0], hostile.layers[0]])
    refused = eroseal("verify", REF, "--digest", str(document.image), cwd=place, code=3)
    assert "layer 2, inode " in refused.error
    assert "trusted.overlay.redirect" in refused.error
    for verb in (("cat", REF, "etc/motd"), ("unpack", REF, "out")):
        assert "layer 2" in eroseal(*verb, "--insecure", cwd=place, code=3).error
    assert not (place / "out").exists()


def test_stacks_of_one_layer(place: Path) -> None:
    layers = documents(place)
    document = publish(place / "store", layers[:1], "one")
    reference = "dir:store:one"
    assert eroseal("digest", reference, cwd=place).last == str(document.image) != str(layers[0].image)
    done = eroseal("verify", reference, "--digest", str(document.image), cwd=place)
    assert "1 layer, 2 blobs" in done.text
    eroseal("unpack", reference, "stacked", "--digest", str(document.image), cwd=place)
    eroseal("unpack", "dir:store:app-1", "plain", "--digest", str(layers[0].image), cwd=place)
    assert_same(tree_of(place / "stacked"), tree_of(place / "plain"))
    refused: Outcome = eroseal("export", reference, "x", "--insecure", cwd=place, code=2)
    assert "a stack of 1 layer" in refused.error
