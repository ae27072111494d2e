"""The image statement and the signature entry: one spelling each, everything else refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eroseal.errors import FormatError, UsageError
from eroseal.format.digest import Digest, HashAlgorithm
from eroseal.format.statement import (
    ImageSignature,
    SignatureKind,
    StackDigest,
    Statement,
    parse_image_digest,
)

SHA256 = Digest(HashAlgorithm.SHA256, bytes(range(32)))
SHA512 = Digest(HashAlgorithm.SHA512, bytes(range(64)))
STACK = StackDigest(bytes(32))

digests = st.one_of(
    st.binary(min_size=32, max_size=32).map(lambda raw: Digest(HashAlgorithm.SHA256, raw)),
    st.binary(min_size=64, max_size=64).map(lambda raw: Digest(HashAlgorithm.SHA512, raw)),
    st.binary(min_size=32, max_size=32).map(StackDigest),
)
names = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=60)
numbers = st.integers(0, 2**64 - 1)


def test_the_encoding_is_the_documented_one() -> None:
    text = b"fsverity-sha256-12:" + bytes(range(32)).hex().encode()
    assert Statement(SHA256, "web", 3, 1_700_000_000).encode() == (
        b"eroseal-image-v1\0"
        b"\x53\x00" + text + b"\x03\x00web" + (3).to_bytes(8, "little") + (1_700_000_000).to_bytes(8, "little")
    )


@given(digests, names, numbers, numbers)
def test_round_trip(digest: Digest | StackDigest, name: str, version: int, created: int) -> None:
    statement = Statement(digest, name, version, created)
    assert Statement.parse(statement.encode()) == statement


@given(digests, names, st.data())
def test_a_changed_byte_gives_another_statement_or_none(
    digest: Digest | StackDigest, name: str, data: st.DataObject
) -> None:
    good = Statement(digest, name, 1, 2).encode()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    try:
        parsed = Statement.parse(bytes(bad))
    except FormatError:
        return
    assert parsed != Statement.parse(good)
    assert parsed.encode() == bad


@pytest.mark.parametrize("digest", [SHA256, SHA512, STACK])
def test_truncated_and_trailing_bytes_are_refused(digest: Digest | StackDigest) -> None:
    good = Statement(digest, "n", 1, 2).encode()
    for bad in [*(good[:size] for size in range(len(good))), good + b"\0"]:
        with pytest.raises(FormatError):
            Statement.parse(bad)


def test_the_longest_statement_fits() -> None:
    statement = Statement(SHA512, "x" * 255, 2**64 - 1, 2**64 - 1)
    assert len(statement.encode()) == 439
    assert Statement.parse(statement.encode()) == statement
    with pytest.raises(FormatError, match="more than 512"):
        Statement.parse(statement.encode() + bytes(100))


@pytest.mark.parametrize(
    "name",
    ["a\nb", "\x1b[31m", "\x7f", "\x85", "\u2028", "a\u202eb", "\u2066", "x" * 256, "é" * 128, "\ud800"],
)
def test_names_that_a_statement_cannot_hold(name: str) -> None:
    with pytest.raises(UsageError):
        Statement(SHA256, name, 0, 0)


def test_a_forged_name_with_control_characters_does_not_parse() -> None:
    good = Statement(SHA256, "abc", 0, 0).encode()
    with pytest.raises(FormatError, match="control character"):
        Statement.parse(good.replace(b"abc", b"a\nc"))


@pytest.mark.parametrize(("version", "created"), [(-1, 0), (0, -1), (2**64, 0), (0, 2**64)])
def test_numbers_beyond_64_bits(version: int, created: int) -> None:
    with pytest.raises(UsageError, match="64 bits"):
        Statement(SHA256, "", version, created)


def test_uppercase_and_unknown_digests_are_refused() -> None:
    good = Statement(Digest(HashAlgorithm.SHA256, b"\xab" * 32), "", 0, 0).encode()
    with pytest.raises(FormatError):
        Statement.parse(good.replace(b"ab" * 32, b"AB" * 32))
    with pytest.raises(FormatError):
        Statement.parse(good.replace(b"sha256", b"sha999"))


def test_image_digests_parse_by_kind() -> None:
    for digest in (SHA256, SHA512, STACK):
        assert parse_image_digest(str(digest)) == digest
    for bad in ("", "stack-sha256:", "stack-sha256:" + "A" * 64, "stack-sha512:" + "0" * 64, "0" * 64):
        with pytest.raises(UsageError):
            parse_image_digest(bad)
    assert StackDigest(SHA256.value) != SHA256
    with pytest.raises(FormatError):
        StackDigest(b"short")


CMS = ImageSignature(SignatureKind.CMS, b"statement", b"signature")
ED = ImageSignature(SignatureKind.ED25519, b"statement", bytes(64), b"k" * 32)


@pytest.mark.parametrize("signature", [CMS, ED])
def test_signature_round_trip_and_lengths(signature: ImageSignature) -> None:
    good = signature.encode()
    assert ImageSignature.parse(good) == signature
    for bad in [*(good[:size] for size in range(len(good))), good + b"\0"]:
        with pytest.raises(FormatError):
            ImageSignature.parse(bad)


def test_the_signature_entry_is_the_documented_one() -> None:
    head = b"\x01\0\0\0" + (9).to_bytes(4, "little") + (9).to_bytes(4, "little") + bytes(32)
    assert CMS.encode() == head + b"statementsignature"


@pytest.mark.parametrize(("offset", "value"), [(0, 0), (0, 3), (1, 1), (3, 1), (5, 1), (10, 255), (12, 1)])
def test_broken_signature_entries(offset: int, value: int) -> None:
    bad = bytearray(CMS.encode())
    bad[offset] = value
    with pytest.raises(FormatError):
        ImageSignature.parse(bytes(bad))


def test_signature_fields_out_of_bounds() -> None:
    for kind, statement, signature, key in [
        (SignatureKind.CMS, b"", b"s", bytes(32)),
        (SignatureKind.CMS, b"s" * 513, b"s", bytes(32)),
        (SignatureKind.CMS, b"s", b"", bytes(32)),
        (SignatureKind.CMS, b"s", b"s" * 65_537, bytes(32)),
        (SignatureKind.CMS, b"s", b"s", b"k" * 32),
        (SignatureKind.ED25519, b"s", b"s" * 63, b"k" * 32),
        (SignatureKind.ED25519, b"s", b"s" * 64, b"k" * 31),
    ]:
        with pytest.raises(FormatError):
            ImageSignature(kind, statement, signature, key)


@given(st.binary(max_size=200))
def test_noise_raises_only_format_errors(noise: bytes) -> None:
    for parse in (Statement.parse, ImageSignature.parse):
        with pytest.raises(FormatError):
            parse(noise)
