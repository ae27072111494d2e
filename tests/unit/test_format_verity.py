from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eroseal.errors import ErosealError, FormatError, UsageError
from eroseal.format.digest import BLOCK, Digest, HashAlgorithm, TreeParams
from eroseal.format.dmverity import derived_uuid, superblock
from eroseal.format.fsverity import DESCRIPTOR_SIZE, Descriptor, formatted_digest

SHA256, SHA512 = HashAlgorithm.SHA256, HashAlgorithm.SHA512
SALT = bytes(range(1, 33))
DESCRIPTORS = [
    Descriptor(TreeParams(SHA256), BLOCK, bytes(range(32))),
    Descriptor(TreeParams(SHA256, SALT), 7 * BLOCK, bytes(range(32))),
    Descriptor(TreeParams(SHA512, b"\0"), 1 << 40, bytes(range(64))),
]


# --- digests ---


@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_digests_round_trip_as_text_and_as_tag(algorithm: HashAlgorithm) -> None:
    digest = Digest(algorithm, bytes(range(200, 200 + 32)) * (algorithm.digest_size // 32))
    assert str(digest) == f"fsverity-{algorithm.name_text}-12:{digest.hex}"
    assert Digest.parse(str(digest)) == digest
    assert len(digest.tag()) == 64
    assert Digest.from_tag(algorithm, digest.tag()) == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 64,
        "sha256:" + "0" * 64,
        "fsverity-sha256-12",
        "fsverity-sha256-12:",
        "fsverity-sha256-12:" + "0" * 63,
        "fsverity-sha256-12:" + "0" * 65,
        "fsverity-sha256-12:" + "A" * 64,
        "fsverity-sha256-12:" + "g" * 64,
        "fsverity-sha256-12:" + " " + "0" * 63,
        "fsverity-sha256-12:" + "٣" * 64,
        "fsverity-sha256-10:" + "0" * 64,
        "fsverity-sha256-12:" + "0" * 128,
        "fsverity-sha512-12:" + "0" * 64,
        "FSVERITY-sha256-12:" + "0" * 64,
        "fsverity-sha256-12:" + "0" * 64 + "\n",
        "fsverity-sha256-12:" + "0" * 32 + ":" + "0" * 31,
    ],
)
def test_only_one_spelling_of_a_digest_is_read(text: str) -> None:
    with pytest.raises(UsageError, match="not an image digest"):
        Digest.parse(text)


def test_a_digest_has_its_algorithms_length() -> None:
    with pytest.raises(FormatError, match="has 32 bytes, not 31"):
        Digest(SHA256, bytes(31))


@pytest.mark.parametrize("tag", [b"", bytes(63), bytes(65)])
def test_a_tag_has_64_bytes(tag: bytes) -> None:
    with pytest.raises(FormatError, match="64 bytes"):
        Digest.from_tag(SHA256, tag)


@pytest.mark.parametrize("tag", [bytes(64), b"A" * 64, b"0" * 63 + b"\0", b" " + b"0" * 63])
def test_a_tag_is_strictly_hexadecimal(tag: bytes) -> None:
    with pytest.raises(FormatError, match="not a lowercase hex digest"):
        Digest.from_tag(SHA256, tag)


def test_a_salt_is_padded_to_the_hashs_block() -> None:
    assert TreeParams(SHA256).padded_salt == b""
    assert TreeParams(SHA256, b"a").padded_salt == b"a" + bytes(63)
    assert TreeParams(SHA512, b"a").padded_salt == b"a" + bytes(127)
    with pytest.raises(UsageError, match="at most 32 bytes, not 33"):
        TreeParams(SHA256, bytes(33))


def test_algorithms_by_name_and_number() -> None:
    for algorithm in HashAlgorithm:
        assert HashAlgorithm.from_name(algorithm.name_text) is algorithm
        assert HashAlgorithm.from_fsverity_id(algorithm.fsverity_id) is algorithm
        assert algorithm.hashes_per_block * algorithm.digest_size == BLOCK
    with pytest.raises(UsageError, match="unknown hash algorithm 'sha1'"):
        HashAlgorithm.from_name("sha1")
    with pytest.raises(FormatError, match="unknown fs-verity hash algorithm 3"):
        HashAlgorithm.from_fsverity_id(3)


# --- descriptors ---


@pytest.mark.parametrize("descriptor", DESCRIPTORS, ids=["plain", "salted", "sha512"])
def test_descriptors_round_trip(descriptor: Descriptor) -> None:
    data = descriptor.encode()
    assert len(data) == DESCRIPTOR_SIZE
    assert Descriptor.parse(data) == descriptor
    name = descriptor.params.algorithm.name_text
    assert descriptor.digest.value == hashlib.new(name, data).digest()


def test_fields_lie_where_the_kernel_has_them() -> None:
    data = DESCRIPTORS[1].encode()
    assert data[:4] == bytes([1, 1, 12, 32])
    assert struct.unpack_from("<IQ", data, 4) == (0, 7 * BLOCK)
    assert data[16:80] == bytes(range(32)) + bytes(32)
    assert data[80:112] == SALT
    assert data[112:] == bytes(144)


@pytest.mark.parametrize(
    ("offset", "patch", "message"),
    [
        (0, b"\x02", "version 2"),
        (1, b"\x03", "hash algorithm 3"),
        (2, b"\x0a", "2\\^10"),
        (2, b"\xff", "2\\^255"),
        (3, b"\x21", "salt has 33 bytes"),
        (3, b"\x1f", "not canonical"),
        (4, b"\x01", "not canonical"),
        (8, bytes(8), "data size 0"),
        (8, b"\x01\x10", "data size"),
        (8, b"\0" * 7 + b"\x80", "data size"),
        (48, b"\x01", "not canonical"),
        (112, b"\x01", "not canonical"),
        (255, b"\x80", "not canonical"),
    ],
)
def test_descriptors_are_canonical(offset: int, patch: bytes, message: str) -> None:
    data = bytearray(DESCRIPTORS[1].encode())
    data[offset : offset + len(patch)] = patch
    with pytest.raises(FormatError, match=message):
        Descriptor.parse(bytes(data))


@given(st.binary(min_size=0, max_size=300))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        assert Descriptor.parse(data).encode() == data
    except ErosealError as error:
        assert isinstance(error, FormatError)


def test_the_formatted_digest_names_algorithm_and_length() -> None:
    digest = DESCRIPTORS[2].digest
    assert formatted_digest(digest) == b"FSVerity" + b"\x02\x00\x40\x00" + digest.value


# --- dm-verity ---


@pytest.mark.parametrize("descriptor", DESCRIPTORS, ids=["plain", "salted", "sha512"])
def test_the_dm_verity_superblock_follows_from_the_descriptor(descriptor: Descriptor) -> None:
    data = superblock(descriptor)
    assert len(data) == BLOCK
    assert data[512:] == bytes(BLOCK - 512)
    signature, version, hash_type, uuid, name, data_block, hash_block, blocks, salt_size = struct.unpack_from(
        "<8sII16s32sIIQH", data
    )
    assert (signature, version, hash_type) == (b"verity\0\0", 1, 1)
    assert name.rstrip(b"\0").decode() == descriptor.params.algorithm.name_text
    assert (data_block, hash_block, blocks) == (BLOCK, BLOCK, descriptor.data_size // BLOCK)
    padded = descriptor.params.padded_salt
    assert salt_size == len(padded)
    assert data[88 : 88 + 256] == padded.ljust(256, b"\0")
    assert uuid == derived_uuid(descriptor)
    assert uuid[6] >> 4 == 8
    assert uuid[8] >> 6 == 2


def test_uuids_differ_from_blob_to_blob() -> None:
    assert len({derived_uuid(descriptor) for descriptor in DESCRIPTORS}) == len(DESCRIPTORS)
