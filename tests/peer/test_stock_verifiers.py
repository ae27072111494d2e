"""Stock tools judge images that were really built: veritysetup, fsverity and openssl, which know nothing of seals."""

from __future__ import annotations

import itertools
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.peer.certs import NOW, Identity, rsa_key, signer
from tests.unit.small_images import MemoryImage, build_image, region_of, seal_of, shape_of

from eroseal.build.options import BlobLayout
from eroseal.crypto.cms import sign_bare
from eroseal.format import record
from eroseal.format.digest import BLOCK, HashAlgorithm, TreeParams
from eroseal.format.dmverity import derived_uuid
from eroseal.format.fsverity import formatted_digest
from eroseal.format.record import RecordEntry
from eroseal.store.resolve import resolve
from eroseal.trust.image import open_image
from eroseal.trust.policy import Policy, RolelessForm

Require = Callable[[str], str]
SHA256, SHA512 = HashAlgorithm.SHA256, HashAlgorithm.SHA512
PARAMS = [TreeParams(SHA256), TreeParams(SHA256, b"\x00salt\xff"), TreeParams(SHA512), TreeParams(SHA512, bytes(32))]
PARAM_IDS = ["sha256", "sha256-salt", "sha512", "sha512-zero-salt"]


def files() -> dict[str, bytes]:
    """Data for trees of one, two and no levels, and for a meta blob of several blocks."""
    choose = random.Random(3)
    tree = {f"dir/{number:04}": choose.randbytes(choose.randrange(200)) for number in range(600)}
    tree["large"] = choose.randbytes(150 * BLOCK + 77)
    tree["one block"] = choose.randbytes(BLOCK)
    tree["two blocks"] = choose.randbytes(2 * BLOCK)
    return tree


@pytest.fixture(scope="module", params=list(BlobLayout), ids=lambda item: item.value)
def layout(request: pytest.FixtureRequest) -> BlobLayout:
    assert isinstance(request.param, BlobLayout)
    return request.param


@pytest.fixture(scope="module", params=PARAMS, ids=PARAM_IDS)
def image(request: pytest.FixtureRequest, layout: BlobLayout, tmp_path_factory: pytest.TempPathFactory) -> MemoryImage:
    directory = tmp_path_factory.mktemp("built")
    target = {"target": directory / "single.erofs"} if layout is BlobLayout.NONE else {}
    _, built = build_image(directory, files(), blobs=layout, params=request.param, **target)
    return built


def blobs(image: MemoryImage) -> Iterator[bytes]:
    yield image.meta
    yield from image.data


def verity_accepts(veritysetup: str, path: Path, root_hash: bytes, data_size: int) -> bool:
    command = [veritysetup, "verify", path, path, root_hash.hex(), f"--hash-offset={data_size}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_veritysetup_accepts_every_blob_and_no_flipped_byte(
    require_peer: Require, tmp_path: Path, image: MemoryImage
) -> None:
    """Every part that dm-verity knows: first and last byte, and some between."""
    veritysetup, path = require_peer("veritysetup"), tmp_path / "blob"
    choose = random.Random(5)
    for blob in blobs(image):
        root, shape = seal_of(blob).descriptor.root_hash, shape_of(blob)
        path.write_bytes(blob)
        assert verity_accepts(veritysetup, path, root, shape.data_size)
        # Signature, version, hash type, algorithm, block sizes, number of blocks, salt size.
        places = [shape.data_size + at for at in (0, 8, 12, 32, 64, 68, 72, 80)]
        salt = len(seal_of(blob).descriptor.params.padded_salt)
        places += [shape.data_size + 88, shape.data_size + 88 + salt - 1] if salt else []
        levels = [*(shape.level_offset(level) for level in range(len(shape.levels), 0, -1)), shape.record_offset]
        for start, end in [(0, shape.data_size), *itertools.pairwise(levels)]:
            places += [start, end - 1, choose.randrange(start, end)]
        for place in places:
            altered = bytearray(blob)
            altered[place] ^= 1 << choose.randrange(8)
            path.write_bytes(altered)
            assert not verity_accepts(veritysetup, path, root, shape.data_size), place


def test_veritysetup_reads_the_parameters(require_peer: Require, tmp_path: Path, image: MemoryImage) -> None:
    veritysetup, path = require_peer("veritysetup"), tmp_path / "blob"
    for blob in blobs(image):
        descriptor = seal_of(blob).descriptor
        path.write_bytes(blob)
        command = [veritysetup, "dump", path, f"--hash-offset={descriptor.data_size}"]
        dump = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        shown = {key.strip(): value.split() for key, _, value in (line.partition(":") for line in dump.splitlines())}
        assert shown["Data blocks"] == [str(descriptor.data_size // BLOCK)]
        assert shown["Hash algorithm"] == [descriptor.params.algorithm.name_text]
        assert shown["Salt"] == [descriptor.params.padded_salt.hex() or "-"]
        assert shown["UUID"][0].replace("-", "") == derived_uuid(descriptor).hex()


def test_fsverity_computes_the_digest_of_every_blob(require_peer: Require, tmp_path: Path, image: MemoryImage) -> None:
    path = tmp_path / "region"
    for blob in blobs(image):
        descriptor = seal_of(blob).descriptor
        path.write_bytes(region_of(blob))
        tree = tmp_path / "tree"
        tree.unlink(missing_ok=True)
        command = [require_peer("fsverity"), "digest", path, f"--hash-alg={descriptor.params.algorithm.name_text}"]
        command += [f"--salt={descriptor.params.salt.hex()}"] if descriptor.params.salt else []
        command += [f"--out-merkle-tree={tree}", f"--out-descriptor={tmp_path / 'descriptor'}", "--compact"]
        digest = subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
        assert digest == descriptor.digest.hex
        assert (tmp_path / "descriptor").read_bytes() == descriptor.encode()
        shape = shape_of(blob)
        assert tree.read_bytes() == blob[shape.offset : shape.record_offset]


# --- kernel signatures over a built image ---


@pytest.fixture(scope="module", params=["rsa", "ecdsa"])
def identity(request: pytest.FixtureRequest) -> Identity:
    return signer(key=rsa_key() if request.param == "rsa" else None)


@pytest.mark.parametrize("algorithm", list(HashAlgorithm), ids=lambda item: item.name_text)
def test_fsverity_openssl_and_we_agree_on_the_kernels_form(
    require_peer: Require, tmp_path: Path, identity: Identity, algorithm: HashAlgorithm
) -> None:
    """What each makes over the meta blob's digest, the others accept; over another image's, nobody does."""
    reference, image = build_image(tmp_path / "one", {"a": b"a" * 5000}, params=TreeParams(algorithm))
    other_reference, other = build_image(tmp_path / "two", {"a": b"b" * 5000}, params=TreeParams(algorithm))
    key, pem = identity.write(tmp_path, "signer")
    region, made = tmp_path / "region", tmp_path / "made"
    region.write_bytes(region_of(image.meta))
    command = [require_peer("fsverity"), "sign", region, made, f"--key={key}", f"--cert={pem}"]
    subprocess.run([*command, f"--hash-alg={algorithm.name_text}"], check=True, capture_output=True)
    signatures = {
        "fsverity": made.read_bytes(),
        "ours": sign_bare(formatted_digest(image.digest), identity.key, identity.certificate),
    }
    policy = Policy(certificates=(identity.certificate,), time=NOW, accept=frozenset({RolelessForm.FSVERITY}))
    for maker, signature in signatures.items():
        made.write_bytes(signature)
        for digest, expected in ((image.digest, True), (other.digest, False)):
            content = tmp_path / "content"
            content.write_bytes(formatted_digest(digest))
            command = [require_peer("openssl"), "cms", "-verify", "-binary", "-inform", "DER", "-in", made]
            command += ["-content", content, "-certfile", pem, "-noverify", "-out", "/dev/null"]
            accepted = subprocess.run(command, capture_output=True, check=False).returncode == 0
            assert accepted == expected, maker
        entry = RecordEntry(record.FSVERITY_SIGNATURE, signature)
        with resolve(reference) as stored:
            stored.update_record(lambda entries, entry=entry: [entry])
        with (
            resolve(reference) as stored,
            open_image(stored.meta, policy=policy, record=stored.record, open_data=stored.open_data) as verified,
        ):
            assert verified.trusted_by == "fsverity"
        with resolve(other_reference) as stored, pytest.raises(Exception, match="does not match") as caught:
            open_image(stored.meta, policy=policy, record=[entry], open_data=stored.open_data)
        assert getattr(caught.value, "step", None) == 3
