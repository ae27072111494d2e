"""The attacks that the format was designed against, each on an image that was really built.

The verifier's single rules are tested in test_verifier.py, those of the policy in test_policy.py; here the whole
has to stand: `open_image`, its devices, the reader, the structure check, the builder.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import google_crc32c
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.peer.certs import NOW, Identity, signer
from tests.unit.small_images import (
    Altered,
    MemoryImage,
    build_image,
    finder,
    load_image,
    pin,
    read_whole,
    region_of,
    resealed,
    seal_of,
    sealed,
    shape_of,
    verify_whole,
)

from eroseal.build.options import BlobLayout
from eroseal.crypto import ed25519
from eroseal.crypto.blocks import BlockHasher
from eroseal.crypto.cms import sign_bare, sign_statement
from eroseal.errors import AuthenticityError, FormatError, IntegrityError, UsageError, VerificationError
from eroseal.format import record
from eroseal.format.chunkmap import encode_chunk_map
from eroseal.format.digest import BLOCK, Digest, HashAlgorithm, TreeParams
from eroseal.format.dmverity import superblock as dmverity_superblock
from eroseal.format.erofs import (
    CHUNK_INDEX,
    DEVICE_SLOT_SIZE,
    LAYOUT_CHUNK_BASED,
    LAYOUT_FLAT_PLAIN,
    NID_SLOT,
    SUPER_OFFSET,
    Superblock,
)
from eroseal.format.fsverity import Descriptor, formatted_digest
from eroseal.format.record import (
    CHUNK_MAP,
    DESCRIPTOR,
    IMAGE_MAGIC,
    IMAGE_SIGNATURE,
    SEAL_MAGIC,
    Footer,
    RecordEntry,
    encode_record,
    parse_record,
)
from eroseal.format.sealed import TreeShape, encode_seal, padded_record_length, record_tail
from eroseal.format.statement import ImageSignature, SignatureKind, Statement
from eroseal.image.check import check_image
from eroseal.image.reader import ImageReader
from eroseal.image.unpack import unpack
from eroseal.limits import MAX_IMAGE_RECORD
from eroseal.store.local import LocalStore
from eroseal.store.resolve import resolve
from eroseal.trust.image import VerifiedImage, open_blob, open_image
from eroseal.trust.policy import Policy, RolelessForm

SIGNER = signer(name="image signer")
DATA_SIGNER = signer(name="data signer")
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
FORMS = frozenset(RolelessForm)
ALGORITHMS = list(HashAlgorithm)
NOISE = random.Random(7)


def noise(blocks: int) -> bytes:
    return NOISE.randbytes(blocks * BLOCK)


def by_signer(*identities: Identity, accept: frozenset[RolelessForm] = frozenset(), **options: object) -> Policy:
    """Accept these certificates and the Ed25519 key."""
    certificates = tuple(item.certificate for item in identities or (SIGNER,))
    return Policy(
        certificates=certificates,
        ed25519_keys=(KEY.public_key(),),
        time=NOW,
        accept=accept,
        **options,  # type: ignore[arg-type]
    )


def statement_entry(
    digest: Digest, name: str = "web", version: int = 5, *, kind: SignatureKind = SignatureKind.CMS
) -> RecordEntry:
    text = Statement(digest, name, version, NOW).encode()
    if kind is SignatureKind.ED25519:
        value = ImageSignature(kind, text, ed25519.sign(KEY, text), ed25519.key_id(KEY.public_key()))
    else:
        value = ImageSignature(kind, text, sign_statement(text, SIGNER.key, SIGNER.certificate))
    return RecordEntry(IMAGE_SIGNATURE, value.encode())


def roleless_entries(digest: Digest, root_hash: bytes, by: Identity = SIGNER) -> list[RecordEntry]:
    """Types 17 to 19, and 22, over a blob."""
    kernel = sign_bare(formatted_digest(digest), by.key, by.certificate)
    return [
        RecordEntry(record.FSVERITY_SIGNATURE, kernel),
        RecordEntry(record.DMVERITY_SIGNATURE, sign_bare(root_hash.hex().encode(), by.key, by.certificate)),
        RecordEntry(record.BOOTLOADER_SIGNATURE, ed25519.sign(KEY, formatted_digest(digest))),
        RecordEntry(record.DATA_BLOB_SIGNATURE, kernel),
    ]


def refusal(call: Callable[[], object]) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        call()
    assert caught.value.exit_code == 3
    return caught.value


def opened(image: MemoryImage, policy: Policy | None = None, entries: Sequence[RecordEntry] = ()) -> VerifiedImage:
    meta, data = image.sources()
    return open_image(meta, policy=policy or image.pinned, record=entries, open_data=finder(data))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> MemoryImage:
    """Two data blobs of two blocks each, and a meta blob."""
    files = {"a": noise(2), "b": noise(2), "small": b"inlined"}
    _, built = build_image(tmp_path_factory.mktemp("honest"), files, blobs=BlobLayout.FILE)
    assert [len(region_of(blob)) for blob in built.data] == [2 * BLOCK, 2 * BLOCK]
    return built


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> MemoryImage:
    """One file with all data inside, five blocks."""
    directory = tmp_path_factory.mktemp("single")
    _, built = build_image(
        directory, {"a": noise(2), "b": noise(1)}, blobs=BlobLayout.NONE, target=directory / "single.erofs"
    )
    return built


# --- a data blob that holds an EROFS image, presented as an image ---


@pytest.fixture(scope="module", params=ALGORITHMS, ids=lambda item: item.name_text)
def nested(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryImage, MemoryImage]:
    """(outer image with a data blob that is an image's data region byte for byte, that inner image)."""
    params = TreeParams(request.param)
    directory = tmp_path_factory.mktemp("nested")
    _, inner = build_image(
        directory / "inner",
        {"etc/shadow": b"root::0:0:::::\n", "big": noise(3)},
        blobs=BlobLayout.NONE,
        target=directory / "inner.erofs",
        params=params,
    )
    _, outer = build_image(
        directory / "outer", {"disk.img": region_of(inner.meta)}, blobs=BlobLayout.FILE, params=params
    )
    return outer, inner


def test_a_data_blob_can_be_a_valid_image_with_a_valid_name(nested: tuple[MemoryImage, MemoryImage]) -> None:
    """Why roles matter: the data blob's digest is the digest of the image that the file holds."""
    outer, inner = nested
    assert outer.digests == (inner.digest,)
    meta = Altered(outer.data[0], "data blob")
    image = verify_whole(meta, {}, pin(inner.digest))
    assert ImageReader(image).lookup(b"etc/shadow").is_regular


def test_a_data_blob_is_not_the_image_that_names_it(nested: tuple[MemoryImage, MemoryImage]) -> None:
    outer, inner = nested
    signatures = [statement_entry(outer.digest), statement_entry(outer.digest, kind=SignatureKind.ED25519)]
    signatures += roleless_entries(outer.digest, seal_of(outer.meta).descriptor.root_hash)
    for policy in (outer.pinned, by_signer(), by_signer(accept=FORMS), by_signer(name="web", min_version=1)):
        meta, data = outer.sources()
        open_image(meta, policy=policy, record=signatures, open_data=finder(data)).close()
        error = refusal(
            lambda policy=policy: open_image(
                Altered(outer.data[0], "data blob"), policy=policy, record=signatures, open_data=finder({})
            )
        )
        assert isinstance(error, AuthenticityError)
        assert str(inner.digest) in str(error)


@pytest.mark.parametrize("by", [DATA_SIGNER, SIGNER], ids=["another-key", "image-key"])
def test_signatures_over_a_data_blob_make_no_image(nested: tuple[MemoryImage, MemoryImage], by: Identity) -> None:
    """Not even those that someone made with the image key: only statements count, until the policy says otherwise."""
    outer, inner = nested
    forms = roleless_entries(inner.digest, seal_of(outer.data[0]).descriptor.root_hash, by)
    kernel = forms[0].value
    # The same signatures dressed up as others.
    forms.append(RecordEntry(record.IMAGE_SIGNATURE, kernel))
    forms.append(
        RecordEntry(
            record.IMAGE_SIGNATURE,
            ImageSignature(SignatureKind.CMS, formatted_digest(inner.digest), kernel).encode(),
        )
    )
    forms.append(
        RecordEntry(
            record.IMAGE_SIGNATURE,
            ImageSignature(SignatureKind.CMS, Statement(inner.digest, "", 0, 0).encode(), kernel).encode(),
        )
    )

    def open_it(policy: Policy, entries: Sequence[RecordEntry]) -> None:
        source = Altered(outer.data[0], "data blob")
        with open_image(source, policy=policy, record=entries, open_data=finder({})):
            pass

    no_key = [entry for entry in forms if entry.type != record.BOOTLOADER_SIGNATURE]
    assert isinstance(refusal(lambda: open_it(by_signer(), forms)), AuthenticityError)
    assert isinstance(refusal(lambda: open_it(by_signer(accept=FORMS, name="web"), forms)), AuthenticityError)
    assert isinstance(refusal(lambda: open_it(by_signer(accept=FORMS, min_version=0), forms)), AuthenticityError)
    if by is DATA_SIGNER:
        # Type 22 moved to type 17: a different key is what protects those who accept roleless forms.
        assert isinstance(refusal(lambda: open_it(by_signer(accept=FORMS), no_key)), AuthenticityError)
    else:
        # What the user of roleless forms takes upon himself, by name.
        open_it(by_signer(accept=FORMS), no_key)


def test_the_dm_verity_form_is_no_source_of_trust(image: MemoryImage) -> None:
    entries = roleless_entries(image.digest, seal_of(image.meta).descriptor.root_hash)[1:2]
    assert entries[0].type == record.DMVERITY_SIGNATURE
    assert "no image signature" in str(refusal(lambda: opened(image, by_signer(accept=FORMS), entries)))
    with pytest.raises(UsageError, match="neither length nor salt"):
        RolelessForm.from_name("dm-verity")


# --- a top tree block as a blob of one block, under the same root hash ---


def one_block_blob(directory: Path, blob: bytes) -> bytes:
    """The top tree block of a blob as the data region of another, whose root hash is the same."""
    descriptor, shape = seal_of(blob).descriptor, shape_of(blob)
    top = blob[shape.offset : shape.offset + BLOCK]
    forged = sealed(directory, top, descriptor.params)
    assert seal_of(forged).descriptor.root_hash == descriptor.root_hash
    return forged


def test_a_top_tree_block_is_no_data_blob(tmp_path: Path, image: MemoryImage) -> None:
    forged = one_block_blob(tmp_path, image.data[0])
    meta, data = image.altered(data={0: forged})
    with open_image(meta, policy=image.pinned, open_data=finder(data)) as verified:
        error = refusal(lambda: verified.device(0))
    assert (error.step, isinstance(error, IntegrityError)) == (3, True)
    with pytest.raises(IntegrityError) as caught:
        open_blob(Altered(forged, "forged"), image.digests[0])
    assert caught.value.step == 3


def test_a_top_tree_block_with_the_true_seal_around_it_is_no_data_blob(image: MemoryImage) -> None:
    """The honest descriptor, moved to where one block of data would put it."""
    blob = image.data[0]
    shape, descriptor = shape_of(blob), seal_of(blob).descriptor
    top = blob[shape.offset : shape.offset + BLOCK]
    one = Descriptor(descriptor.params, BLOCK, descriptor.root_hash)
    honest = blob[shape.record_offset :]
    for dmverity in (dmverity_superblock(one), dmverity_superblock(descriptor)):
        forged = top + dmverity + honest
        for size in (None, BLOCK, 2 * BLOCK):
            with pytest.raises(IntegrityError) as caught:
                open_blob(Altered(forged, "forged"), image.digests[0], data_size=size)
            assert caught.value.step in (1, 2)


def test_a_top_tree_block_is_no_image_under_a_signed_root_hash(tmp_path: Path, single: MemoryImage) -> None:
    forged = one_block_blob(tmp_path, single.meta)
    root = seal_of(single.meta).descriptor.root_hash
    entries = [statement_entry(single.digest), *roleless_entries(single.digest, root)]
    for policy in (single.pinned, by_signer(accept=FORMS)):
        error = refusal(
            lambda policy=policy: open_image(
                Altered(forged, "forged"), policy=policy, record=entries, open_data=finder({}), data_size=BLOCK
            )
        )
        assert isinstance(error, AuthenticityError)


# --- hostile images whose seal is in order ---


def superblock_of(region: bytes | bytearray) -> Superblock:
    return Superblock.parse(bytes(region[SUPER_OFFSET:BLOCK]))


def index_at(image: MemoryImage, path: bytes) -> int:
    """Byte offset of the first chunk index of a file."""
    reader = ImageReader(opened(image))
    inode = reader.lookup(path)
    return -(-inode.end // 8) * 8


def address(region: bytearray, at: int, *, device: int | None = None, block: int) -> None:
    """Overwrite a chunk index."""
    high, old, _ = CHUNK_INDEX.unpack_from(region, at)
    CHUNK_INDEX.pack_into(region, at, high, old if device is None else device, block)


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 1 << 20, (1 << 32) - 2])
def test_an_extent_that_points_past_the_data_region(tmp_path: Path, image: MemoryImage, block: int) -> None:
    """The kernel would serve the dm-verity superblock, the tree or the record as the file's content."""
    at = index_at(image, b"a")
    hostile = resealed(tmp_path, image, lambda region: address(region, at, device=1, block=block))
    refuse_structure(hostile, b"a")


def refuse_structure(hostile: MemoryImage, path: bytes) -> None:
    """Signed and sealed as it should be, and refused all the same: by the check, by reading, by unpacking."""
    with opened(hostile, by_signer(), [statement_entry(hostile.digest)]) as verified:
        reader = ImageReader(verified)
        with pytest.raises(FormatError) as caught:
            check_image(ImageReader(verified))
        assert caught.value.exit_code == 3
        with pytest.raises(FormatError):
            inode = reader.lookup(path)
            reader.read(inode, 0, inode.size)
    meta, data = hostile.sources()
    with pytest.raises(FormatError):
        verify_whole(meta, data, hostile.pinned)


def test_extents_past_the_data_region_unpack_nothing(tmp_path: Path, image: MemoryImage) -> None:
    at = index_at(image, b"a")
    hostile = resealed(tmp_path, image, lambda region: address(region, at, device=1, block=1))
    with opened(hostile) as verified, pytest.raises(FormatError):
        unpack(ImageReader(verified), tmp_path / "out", jobs=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", [3, 4, 255, 65535])
def test_an_extent_on_a_device_that_is_not_there(tmp_path: Path, image: MemoryImage, device: int) -> None:
    at = index_at(image, b"a")
    refuse_structure(resealed(tmp_path, image, lambda region: address(region, at, device=device, block=0)), b"a")


COMPACT_SIZE_AT = 8
COMPACT_U_AT = 16  # first block of a flat file, or chunk format


@pytest.mark.parametrize("beyond", [0, 1, 2, 3, 1 << 20])
def test_an_extent_in_the_meta_blobs_own_seal(tmp_path: Path, single: MemoryImage, beyond: int) -> None:
    """A flat file of two blocks in the image itself, moved so that its last block lies behind D."""
    blocks = len(region_of(single.meta)) // BLOCK
    inode = ImageReader(opened(single)).lookup(b"a")
    assert (inode.layout, inode.raw.extended, inode.size) == (LAYOUT_FLAT_PLAIN, False, 2 * BLOCK)

    def move(region: bytearray) -> None:
        struct.pack_into("<I", region, inode.position + COMPACT_U_AT, blocks - 1 + beyond)

    refuse_structure(resealed(tmp_path, single, move), b"a")


def test_a_chunk_that_begins_inside_and_ends_past_the_data_region(tmp_path: Path, image: MemoryImage) -> None:
    """A chunk's length follows from the file's size: three blocks on a device that has two."""
    inode = ImageReader(opened(image)).lookup(b"a")
    assert (inode.layout, inode.raw.extended) == (LAYOUT_CHUNK_BASED, False)

    def grow(region: bytearray) -> None:
        struct.pack_into("<I", region, inode.position + COMPACT_SIZE_AT, 3 * BLOCK)
        struct.pack_into("<I", region, inode.position + COMPACT_U_AT, inode.raw.i_u + 1)

    refuse_structure(resealed(tmp_path, image, grow), b"a")


def test_an_extent_that_runs_from_one_device_into_the_next(tmp_path: Path, image: MemoryImage) -> None:
    """Neighbours in the unified address space only: what follows the first device's data is its seal."""
    first, second = ImageReader(opened(image)).devices
    assert first.uniaddr + first.blocks == second.uniaddr
    at = index_at(image, b"a")
    fits = resealed(tmp_path, image, lambda region: address(region, at, device=0, block=first.uniaddr))
    verify_whole(*fits.sources(), fits.pinned)
    refuse_structure(
        resealed(tmp_path, image, lambda region: address(region, at, device=0, block=first.uniaddr + 1)), b"a"
    )
    refuse_structure(
        resealed(tmp_path, image, lambda region: address(region, at, device=0, block=second.uniaddr + 1)), b"a"
    )


def test_a_superblock_that_claims_more_blocks_than_the_data_region(tmp_path: Path, image: MemoryImage) -> None:
    blocks = superblock_of(region_of(image.meta)).blocks

    def claim(region: bytearray) -> None:
        struct.pack_into("<I", region, SUPER_OFFSET + 36, blocks + 1)

    hostile = resealed(tmp_path, image, claim)
    assert superblock_of(region_of(hostile.meta)).blocks == blocks + 1
    assert refusal(lambda: opened(hostile)).step == 6


@pytest.mark.parametrize("slot", [1 << 15, 65535])
def test_a_device_table_outside_the_data_region(tmp_path: Path, image: MemoryImage, slot: int) -> None:
    def move(region: bytearray) -> None:
        struct.pack_into("<H", region, SUPER_OFFSET + 88, slot)

    hostile = resealed(tmp_path, image, move)
    assert superblock_of(region_of(hostile.meta)).devt_slotoff == slot
    assert refusal(lambda: opened(hostile)).step == 6


def test_a_root_inode_outside_the_data_region(tmp_path: Path, image: MemoryImage) -> None:
    def move(region: bytearray) -> None:
        struct.pack_into("<H", region, SUPER_OFFSET + 14, len(region) // NID_SLOT)

    with opened(resealed(tmp_path, image, move)) as verified, pytest.raises(FormatError):
        ImageReader(verified).root()


# --- device tags ---


def slot_offset(image: MemoryImage, number: int) -> int:
    return superblock_of(region_of(image.meta)).devt_slotoff * DEVICE_SLOT_SIZE + number * DEVICE_SLOT_SIZE


def swap_tags(image: MemoryImage) -> Callable[[bytearray], None]:
    first, second = slot_offset(image, 0), slot_offset(image, 1)

    def swap(region: bytearray) -> None:
        region[first : first + 64], region[second : second + 64] = (
            region[second : second + 64],
            region[first : first + 64],
        )

    return swap


def test_swapped_device_tags(tmp_path: Path, image: MemoryImage) -> None:
    """In the blob itself they break the tree; sealed again they make another image."""
    region = bytearray(region_of(image.meta))
    swap_tags(image)(region)
    meta, data = image.altered(meta=bytes(region) + image.meta[len(region) :])
    assert refusal(lambda: verify_whole(meta, data, image.pinned)).step in (4, 5)
    other = resealed(tmp_path, image, swap_tags(image))
    assert other.digest != image.digest
    signatures = [statement_entry(image.digest), statement_entry(image.digest, kind=SignatureKind.ED25519)]
    for policy in (image.pinned, by_signer()):
        error = refusal(lambda policy=policy: opened(other, policy, signatures))
        assert isinstance(error, AuthenticityError)


def test_a_tag_that_names_nothing_is_refused_before_any_blob_is_opened(tmp_path: Path, image: MemoryImage) -> None:
    at = slot_offset(image, 0)
    for tag in (bytes(64), image.digests[0].hex.upper().encode(), b"sha256:" + image.digests[0].hex.encode()[:57]):

        def write(region: bytearray, tag: bytes = tag) -> None:
            region[at : at + 64] = tag

        hostile = resealed(tmp_path, image, write)
        assert refusal(lambda hostile=hostile: opened(hostile)).step == 7


def test_a_device_slot_that_claims_another_size(tmp_path: Path, image: MemoryImage) -> None:
    """Larger, the kernel would serve the seal; smaller, it would hide data."""
    at = slot_offset(image, 0) + 64
    for blocks in (1, 3, 5, 0xFFFFFFFF):
        hostile = resealed(tmp_path, image, lambda region, blocks=blocks: struct.pack_into("<I", region, at, blocks))
        with opened(hostile) as verified:
            error = refusal(lambda verified=verified: verified.device(0))
            assert error.step in (1, 2, 7)
    hostile = resealed(tmp_path, image, lambda region: struct.pack_into("<I", region, at, 0))
    assert refusal(lambda: opened(hostile)).step == 6


# --- other blobs ---


@pytest.mark.parametrize("impostor", ["the other data blob", "the meta blob", "a stranger"])
def test_swapped_data_blobs(tmp_path: Path, image: MemoryImage, impostor: str) -> None:
    blob = {
        "the other data blob": image.data[1],
        "the meta blob": image.meta,
        "a stranger": sealed(tmp_path, noise(2), chunks=[2]),
    }[impostor]
    meta, data = image.altered(data={0: blob})
    with open_image(meta, policy=image.pinned, open_data=finder(data)) as verified:
        error = refusal(lambda: verified.device(0))
        assert error.step in (1, 3)  # no seal where its size would put it, or another digest
        assert verified.device(1).read_at(0, 2 * BLOCK) == region_of(image.data[1])


def test_another_image_in_the_place_of_this_one(image: MemoryImage, single: MemoryImage) -> None:
    error = refusal(lambda: opened(single, image.pinned))
    assert isinstance(error, AuthenticityError)
    assert str(image.digest) in str(error)
    assert str(single.digest) in str(error)


def test_salt_and_algorithm_are_the_same_throughout(tmp_path: Path, image: MemoryImage) -> None:
    """A data blob with another salt, named by its true digest: refused, for dedup and kernels rely on one salt."""
    at = slot_offset(image, 0)
    region = region_of(image.data[0])
    salted = sealed(tmp_path, region, TreeParams(HashAlgorithm.SHA256, b"another"), [2])

    def rename(table: bytearray) -> None:
        table[at : at + 64] = seal_of(salted).descriptor.digest.tag()

    hostile = resealed(tmp_path, image, rename, data=(salted, image.data[1]))
    with opened(hostile) as verified:
        error = refusal(lambda: verified.device(0))
    assert error.step == 7
    assert "salt" in str(error)

    wide = sealed(tmp_path, region, TreeParams(HashAlgorithm.SHA512), [2])

    def widen(table: bytearray) -> None:
        table[at : at + 64] = seal_of(wide).descriptor.digest.tag()

    assert refusal(lambda: opened(resealed(tmp_path, image, widen))).step == 7


def test_a_hex_tag_under_sha512_is_a_digest_that_no_blob_has(tmp_path: Path, image: MemoryImage) -> None:
    """The meta blob's verified algorithm decides a tag's form: 64 hex characters are then 64 raw bytes."""
    meta = sealed(tmp_path, region_of(image.meta), TreeParams(HashAlgorithm.SHA512))
    digest = seal_of(meta).descriptor.digest
    _, data = image.sources()
    tag = Digest(HashAlgorithm.SHA512, image.digests[0].hex.encode())
    with open_image(
        Altered(meta, "meta"), policy=pin(digest), open_data=lambda item: data[image.digests[0]]
    ) as verified:
        assert verified.devices[0].digest == tag
        assert refusal(lambda: verified.device(0)).step in (1, 3)


# --- signatures: stale versions, other names, other images ---


@pytest.mark.parametrize("kind", list(SignatureKind))
def test_a_stale_version_and_another_name_under_a_valid_signature(image: MemoryImage, kind: SignatureKind) -> None:
    entries = [statement_entry(image.digest, "web", 5, kind=kind)]
    for accepted in ({}, {"name": "web"}, {"min_version": 5}, {"name": "web", "min_version": 5}):
        with opened(image, by_signer(**accepted), entries) as verified:
            assert verified.statement == Statement(image.digest, "web", 5, NOW)
    for required in (
        {"name": "db"},
        {"name": ""},
        {"name": "Web"},
        {"min_version": 6},
        {"name": "db", "min_version": 1},
    ):
        error = refusal(lambda required=required: opened(image, by_signer(**required), entries))
        assert (error.step, isinstance(error, AuthenticityError)) == (3, True)
    # The pinned digest does not excuse from a name or version that is required as well.
    strict = Policy(
        digests=(image.digest,),
        certificates=(SIGNER.certificate,),
        ed25519_keys=(KEY.public_key(),),
        time=NOW,
        name="db",
    )
    assert isinstance(refusal(lambda: opened(image, strict, entries)), AuthenticityError)


def test_one_statement_cannot_lend_its_name_and_another_its_version(image: MemoryImage) -> None:
    entries = [statement_entry(image.digest, "web", 1), statement_entry(image.digest, "db", 9)]
    error = refusal(lambda: opened(image, by_signer(name="web", min_version=5), entries))
    assert "version 1" in str(error)
    assert "'db'" in str(error)
    with opened(image, by_signer(name="db", min_version=5), entries) as verified:
        assert verified.statement is not None
        assert verified.statement.version == 9


@pytest.mark.parametrize("kind", list(SignatureKind))
def test_a_signature_moved_to_another_image(image: MemoryImage, single: MemoryImage, kind: SignatureKind) -> None:
    entry = statement_entry(image.digest, kind=kind)
    error = refusal(lambda: opened(single, by_signer(), [entry]))
    assert "another image" in str(error)
    # The statement rewritten to fit, the signature kept.
    value = ImageSignature.parse(entry.value)
    lie = ImageSignature(value.kind, Statement(single.digest, "web", 5, NOW).encode(), value.signature, value.key_id)
    refusal(lambda: opened(single, by_signer(), [RecordEntry(IMAGE_SIGNATURE, lie.encode())]))
    # Forms without a statement are bound to the digest as well.
    forms = roleless_entries(image.digest, seal_of(image.meta).descriptor.root_hash)
    opened(image, by_signer(accept=FORMS), forms).close()
    refusal(lambda: opened(single, by_signer(accept=FORMS), forms))


# --- bytes appended, cut off, changed ---


def test_appended_bytes_are_never_read(image: MemoryImage, single: MemoryImage) -> None:
    """To any blob, whatever they are: the same image, the same bytes."""
    honest = read_whole(verify_whole(*image.sources(), image.pinned))
    for tail in (b"\0", b"x" * 4095, bytes(3 * BLOCK), single.meta, image.meta, image.data[1], noise(20)):
        meta, data = image.altered(meta=image.meta + tail, data={0: image.data[0] + tail, 1: image.data[1] + tail})
        verified = verify_whole(meta, data, image.pinned)
        assert read_whole(verified) == honest
        assert verified.meta.size == len(region_of(image.meta))
        with pytest.raises(FormatError):
            verified.meta.read_at(verified.meta.size, 1)


def test_appended_footers_and_records_mislead_nobody(image: MemoryImage, single: MemoryImage) -> None:
    """A footer is a hint: one that lies, or one that leads to a seal inside the data, ends in a refusal at worst."""
    shape = shape_of(image.meta)
    footers = [
        Footer(shape.data_size + BLOCK, shape.record_offset + BLOCK, BLOCK),
        Footer(BLOCK, 2 * BLOCK, BLOCK),
        Footer(1 << 59, 1 << 60, BLOCK),
        Footer(0, 0, 0),
        Footer(shape.data_size, 0, 1 << 63),
    ]
    for footer in footers:
        tail = bytes(BLOCK - 64) + footer.encode()
        meta, data = image.altered(meta=image.meta + tail)
        assert verify_whole(meta, data, image.pinned).digest == image.digest
    # The image record of another image, with its valid signature.
    foreign = encode_record(IMAGE_MAGIC, [statement_entry(single.digest)])
    length = padded_record_length(len(foreign))
    tail = foreign.ljust(length - 64, b"\0") + Footer(shape.data_size, shape.record_offset, BLOCK).encode()
    entries = parse_record(IMAGE_MAGIC, foreign, limit=MAX_IMAGE_RECORD)
    meta, data = image.altered(meta=image.meta + tail)
    refusal(lambda: open_image(meta, policy=by_signer(), record=entries, open_data=finder(data)))
    assert verify_whole(meta, data, image.pinned).digest == image.digest


def test_a_seal_inside_the_data_region_cannot_stand_for_the_blob(tmp_path: Path) -> None:
    """A file that is a sealed image, in an image; a footer behind it all points at the inner seal."""
    _, inner = build_image(
        tmp_path / "inner", {"evil": b"evil"}, blobs=BlobLayout.NONE, target=tmp_path / "inner.erofs"
    )
    _, outer = build_image(tmp_path / "outer", {"file": inner.meta}, blobs=BlobLayout.FILE)
    assert region_of(outer.data[0]) == inner.meta
    shape = shape_of(inner.meta)
    lure = bytes(BLOCK - 64) + Footer(shape.data_size, shape.record_offset, BLOCK).encode()
    # As a data blob, D is known and the footer is not even looked at.
    meta, data = outer.altered(data={0: outer.data[0] + lure})
    assert verify_whole(meta, data, outer.pinned).digest == outer.digest
    # By itself, under its own name: the inner seal has another digest.
    with pytest.raises(IntegrityError) as caught:
        open_blob(Altered(outer.data[0] + lure, "lured"), outer.digests[0])
    assert caught.value.step == 3


def boundaries(blob: bytes) -> list[int]:
    """Lengths that cut a blob at, just before and just after each of its parts."""
    shape = shape_of(blob)
    starts = {1, SUPER_OFFSET, BLOCK, shape.data_size, shape.offset, shape.record_offset}
    starts |= {shape.level_offset(level) for level in range(1, len(shape.levels) + 1)}
    starts |= {shape.record_offset + 32, shape.record_offset + 40, shape.record_offset + 296, len(blob) - 64, len(blob)}
    return sorted({cut + near for cut in starts for near in (-1, 0, 1) if 0 <= cut + near < len(blob)})


@pytest.mark.parametrize("number", [0, 1, 2])
def test_truncated_blobs(image: MemoryImage, number: int) -> None:
    blob = (image.meta, *image.data)[number]
    for cut in boundaries(blob):
        for filler in (b"", bytes(len(blob) - cut)):
            altered = blob[:cut] + filler
            if altered == blob:
                continue
            meta, data = image.altered(altered) if number == 0 else image.altered(data={number - 1: altered})
            error = refusal(lambda meta=meta, data=data: verify_whole(meta, data, image.pinned))
            assert isinstance(error, IntegrityError)
            assert error.blob is not None


# struct verity_sb: signature, version, hash_type, uuid, algorithm, data_block_size, hash_block_size, data_blocks,
# salt_size, padding, salt, padding
DMVERITY_FIELDS = {
    "signature": 0,
    "version": 8,
    "hash type": 12,
    "uuid": 16,
    "algorithm": 32,
    "data block size": 64,
    "hash block size": 68,
    "data blocks": 72,
    "salt size": 80,
    "padding after the salt size": 82,
    "salt": 88,
    "padding after the salt": 344,
    "padding of the block": 512,
}


@pytest.mark.parametrize("field", DMVERITY_FIELDS)
def test_an_altered_dm_verity_superblock(image: MemoryImage, field: str) -> None:
    """Stock tools read it: what they see must be what was vouched for, to the byte."""
    for number, blob in enumerate((image.meta, *image.data)):
        altered = bytearray(blob)
        altered[shape_of(blob).data_size + DMVERITY_FIELDS[field]] ^= 1
        meta, data = image.altered(bytes(altered)) if number == 0 else image.altered(data={number - 1: bytes(altered)})
        error = refusal(lambda meta=meta, data=data: verify_whole(meta, data, image.pinned))
        assert error.step == 2


def test_the_dm_verity_superblock_of_another_salt_or_length(image: MemoryImage) -> None:
    blob = image.data[0]
    descriptor, shape = seal_of(blob).descriptor, shape_of(blob)
    others = [
        Descriptor(TreeParams(HashAlgorithm.SHA256, b"s"), descriptor.data_size, descriptor.root_hash),
        Descriptor(TreeParams(HashAlgorithm.SHA512), descriptor.data_size, bytes(64)),
        Descriptor(descriptor.params, descriptor.data_size - BLOCK, descriptor.root_hash),
    ]
    for other in others:
        altered = blob[: shape.data_size] + dmverity_superblock(other) + blob[shape.offset :]
        meta, data = image.altered(data={0: altered})
        assert refusal(lambda meta=meta, data=data: verify_whole(meta, data, image.pinned)).step == 2


# --- record entries: reordered, repeated, unknown and critical ---


def seal_record(entries: Sequence[RecordEntry], descriptor: Descriptor) -> bytes:
    """A seal record with its entries in the order given, checksums right."""
    body = b"".join(encode_record(SEAL_MAGIC, [entry])[32:] for entry in entries)
    head = struct.pack("<8sIIQI", SEAL_MAGIC, 1, 32, 32 + len(body), google_crc32c.value(body))
    data = head + struct.pack("<I", google_crc32c.value(head)) + body
    return data + record_tail(descriptor, len(data))


def test_seal_records_with_other_entries(image: MemoryImage) -> None:
    blob = image.data[0]
    descriptor, shape = seal_of(blob).descriptor, shape_of(blob)
    head = blob[: shape.record_offset]
    good = RecordEntry(DESCRIPTOR, descriptor.encode(), critical=True)
    chunks = RecordEntry(CHUNK_MAP, encode_chunk_map([2]))
    other = RecordEntry(DESCRIPTOR, seal_of(image.data[1]).descriptor.encode(), critical=True)
    assert head + seal_record([good, chunks], descriptor) == blob
    hostile = {
        "reordered": [chunks, good],
        "repeated": [good, good],
        "two descriptors": [good, other, chunks],
        "the other first": [other, good],
        "repeated chunk map": [good, chunks, chunks],
        "unknown and critical": [good, RecordEntry(3, b"x", critical=True)],
        "unknown": [good, RecordEntry(3, b"x")],
        "unknown, type 0": [RecordEntry(0, b"x"), good],
        "unknown, highest type": [good, RecordEntry(65535, b"", critical=True)],
        "an image signature": [good, chunks, statement_entry(image.digest)],
        "descriptor not critical": [RecordEntry(DESCRIPTOR, descriptor.encode())],
        "chunk map critical": [good, RecordEntry(CHUNK_MAP, encode_chunk_map([2]), critical=True)],
        "no descriptor": [chunks],
        "nothing": [],
    }
    for label, entries in hostile.items():
        meta, data = image.altered(data={0: head + seal_record(entries, descriptor)})
        error = refusal(lambda meta=meta, data=data: verify_whole(meta, data, image.pinned))
        assert error.step in (1, 2), label
    # No chunk map at all is in order: a hint that is missing.
    meta, data = image.altered(data={0: head + encode_seal(descriptor, None)})
    verify_whole(meta, data, image.pinned)


def test_image_records_with_other_entries(tmp_path: Path) -> None:
    """In a store: a record that breaks the rules is refused as a whole, and says so."""
    reference, image = build_image(tmp_path, {"a": b"a"})
    store = LocalStore.open(tmp_path / "store")
    store.update_record("image", lambda entries: [*entries, statement_entry(image.digest)])
    path = store.record_path("image", image.digest)

    def open_it() -> None:
        with (
            resolve(reference) as stored,
            open_image(stored.meta, policy=by_signer(), record=stored.record, open_data=stored.open_data) as verified,
        ):
            assert verified.trusted_by == "cert"

    open_it()
    entry = statement_entry(image.digest)

    def write(*entries: RecordEntry) -> None:
        body = b"".join(encode_record(IMAGE_MAGIC, [item])[32:] for item in entries)
        head = struct.pack("<8sIIQI", IMAGE_MAGIC, 1, 32, 32 + len(body), google_crc32c.value(body))
        path.write_bytes(head + struct.pack("<I", google_crc32c.value(head)) + body)

    write(entry, entry, RecordEntry(99, b"of the future"))
    open_it()  # signatures may repeat, and what is unknown without being critical is passed over
    hostile = [
        [entry, RecordEntry(99, b"", critical=True)],
        [RecordEntry(99, b""), entry],
        [RecordEntry(record.ACCESS_TRACE, b""), entry],
        [entry, RecordEntry(record.ACCESS_TRACE, b"1"), RecordEntry(record.ACCESS_TRACE, b"2")],
        [RecordEntry(DESCRIPTOR, seal_of(image.meta).descriptor.encode(), critical=True), entry],
    ]
    for entries in hostile:
        write(*entries)
        with pytest.raises(FormatError) as caught:
            open_it()
        assert caught.value.exit_code == 3


# --- a second preimage between tree levels, in deduplication ---


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda item: item.name_text)
@pytest.mark.parametrize("names", [("large", "tiny"), ("zlarge", "tiny")], ids=["large-first", "tiny-first"])
@pytest.mark.parametrize("layout", [BlobLayout.BUILD, BlobLayout.FILE, BlobLayout.NONE], ids=lambda item: item.value)
def test_a_block_of_chosen_hashes_is_not_the_chunk_that_they_hash(
    tmp_path: Path, algorithm: HashAlgorithm, names: tuple[str, str], layout: BlobLayout
) -> None:
    """The leaf hash of one file's only block equals the hash of the other's joined leaf hashes."""
    params = TreeParams(algorithm)
    hasher = BlockHasher(params)
    large = noise(algorithm.hashes_per_block)
    tiny = hasher.hash_blocks(large)
    assert len(tiny) == BLOCK
    assert hasher.hash_blocks(tiny) == hasher.hash(hasher.hash_blocks(large))
    files = {names[0]: large, names[1]: tiny}
    target = tmp_path / "single.erofs" if layout is BlobLayout.NONE else f"dir:{tmp_path}/store:image"
    _, image = build_image(tmp_path, files, params=params, chunk_size=len(large), blobs=layout, target=target)
    assert contents(verify_whole(*image.sources(), image.pinned)) == files


def contents(image: VerifiedImage) -> dict[str, bytes]:
    reader = ImageReader(image)
    return {path.decode(): reader.read(inode, 0, inode.size) for path, inode in reader.walk() if inode.is_regular}


@pytest.mark.parametrize("base_has", ["large", "tiny"])
def test_chosen_hashes_across_a_base(tmp_path: Path, base_has: str) -> None:
    hasher = BlockHasher(TreeParams())
    large = noise(128)
    files = {"large": large, "tiny": hasher.hash_blocks(large)}
    base, _ = build_image(tmp_path / "base", {base_has: files[base_has]}, chunk_size=512 << 10)
    _, image = build_image(tmp_path / "new", files, chunk_size=512 << 10, bases=(base,))
    assert len(image.data) == 2  # the base's chunk is shared, the other one is new
    assert contents(verify_whole(*image.sources(), image.pinned)) == files


# --- a base whose chunk map lies ---


LIES: dict[str, Sequence[int]] = {
    "one long chunk": [8],
    "single blocks": [1] * 8,
    "shifted": [1, 2, 2, 2, 1],
    "too short": [2],
    "nothing": [],
    "uneven": [3, 5],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_chunk_map_that_lies_finds_nothing_wrong(tmp_path: Path, lie: str) -> None:
    """Ids come from verified tree blocks: whatever the map says, what is reused has the content it should."""
    chunk = 2 * BLOCK
    shared, fresh = noise(8), noise(2)
    base, image = build_image(tmp_path / "base", {"shared": shared}, chunk_size=chunk)
    honest_map = encode_chunk_map([2, 2, 2, 2])
    assert seal_of(image.data[0]).chunk_map == honest_map
    blob = image.data[0]
    descriptor, shape = seal_of(blob).descriptor, shape_of(blob)
    path = LocalStore.open(tmp_path / "base" / "store").blob_path(image.digests[0])
    path.chmod(0o644)
    path.write_bytes(blob[: shape.record_offset] + encode_seal(descriptor, LIES[lie]))
    files = {
        "shared": shared,
        "shifted": shared[BLOCK:] + fresh[:BLOCK],
        "one": shared[BLOCK : 2 * BLOCK],
        "three": shared[:chunk] + fresh,
    }
    _, built = build_image(tmp_path / "new", files, chunk_size=chunk, bases=(base,))
    assert contents(verify_whole(*built.sources(), built.pinned)) == files


@pytest.mark.parametrize(
    "chunk_map",
    [
        b"",
        b"\xff" * 30,
        b"\x01\x02",
        b"\x01\x00\x01",
        b"\x01\x01\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x02\x02\x01\x02\x03",
    ],
    ids=["empty", "endless", "cut", "no blocks", "too many", "split run"],
)
def test_a_broken_chunk_map_in_a_base_finds_nothing_wrong(tmp_path: Path, chunk_map: bytes) -> None:
    shared = noise(8)
    base, image = build_image(tmp_path / "base", {"shared": shared})
    blob = image.data[0]
    descriptor, shape = seal_of(blob).descriptor, shape_of(blob)
    entries = [RecordEntry(DESCRIPTOR, descriptor.encode(), critical=True), RecordEntry(CHUNK_MAP, chunk_map)]
    path = LocalStore.open(tmp_path / "base" / "store").blob_path(image.digests[0])
    path.chmod(0o644)
    path.write_bytes(blob[: shape.record_offset] + seal_record(entries, descriptor))
    meta, data = load_image(base).sources()
    verify_whole(meta, data, image.pinned)  # as an image it is intact
    _, built = build_image(tmp_path / "new", {"shared": shared}, bases=(base,))
    assert contents(verify_whole(*built.sources(), built.pinned)) == {"shared": shared}


def test_a_base_with_another_salt_takes_no_part(tmp_path: Path) -> None:
    shared = noise(8)
    base, _ = build_image(tmp_path / "base", {"shared": shared}, params=TreeParams(HashAlgorithm.SHA256, b"a"))
    with pytest.raises(UsageError, match="another hash or salt"):
        build_image(tmp_path / "new", {"shared": shared}, bases=(base,))


def test_a_base_that_does_not_verify_takes_no_part(tmp_path: Path) -> None:
    """A tree block altered to hold the hashes of other content, so that a build would reuse the wrong bytes."""
    shared = noise(8)
    base, image = build_image(tmp_path / "base", {"shared": shared})
    blob = bytearray(image.data[0])
    shape = TreeShape.of(8 * BLOCK, TreeParams())
    wanted = noise(8)
    blob[shape.offset : shape.offset + 8 * 32] = BlockHasher(TreeParams()).hash_blocks(wanted)
    path = LocalStore.open(tmp_path / "base" / "store").blob_path(image.digests[0])
    path.chmod(0o644)
    path.write_bytes(blob)
    with pytest.raises(VerificationError) as caught:
        build_image(tmp_path / "new", {"wanted": wanted}, bases=(base,))
    assert caught.value.step == 4
