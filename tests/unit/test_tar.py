"""Tar's formats, block by block: headers, numbers, PAX records, maps of sparse files."""

from __future__ import annotations

import tarfile

import pytest
from tests.support.tars import base256, header, octal, old_sparse, record

from eroseal.errors import FormatError, UnsupportedError
from eroseal.format.tar import Header, parse_header, parse_number
from eroseal.format.tar_pax import parse_attributes, parse_global, parse_records, parse_time
from eroseal.format.tar_sparse import (
    DataMap,
    check_pieces,
    parse_old_extension,
    parse_old_map,
    parse_sparse,
)
from eroseal.limits import MAX_SPARSE_PIECES


# --- headers ------------------------------------------------------------------------------------
def test_header() -> None:
    block = header(
        b"name", kind=b"3", size=5, mode=0o4755, uid=1, gid=2, mtime=3, link=b"to", rdev=(7, 8), prefix=b"in"
    )
    assert parse_header(block) == Header(b"3", b"in/name", 0o4755, 1, 2, 5, 3, b"to", (7, 8), False)


def test_header_as_python_writes_it() -> None:
    info = tarfile.TarInfo("d" * 90 + "/" + "n" * 80)
    info.size, info.mtime, info.uid = 123456, 1_700_000_000, 1000
    found = parse_header(info.tobuf(tarfile.USTAR_FORMAT))
    assert found is not None
    assert (found.name, found.size, found.mtime, found.uid) == (info.name.encode(), 123456, 1_700_000_000, 1000)
    info.size, info.mtime = 1 << 40, -5
    found = parse_header(info.tobuf(tarfile.GNU_FORMAT)[-512:])
    assert found is not None
    assert (found.size, found.mtime, found.gnu) == (1 << 40, -5, True)


def test_fields_are_full_or_end_at_a_nul() -> None:
    found = parse_header(header(b"n" * 100, link=b"l" * 100, prefix=b"p" * 155))
    assert found is not None
    assert (found.name, found.link) == (b"p" * 155 + b"/" + b"n" * 100, b"l" * 100)
    found = parse_header(header(b"name\0behind", link=b"to\0behind"))
    assert found is not None
    assert (found.name, found.link) == (b"name", b"to")


def test_only_posix_headers_have_a_prefix() -> None:
    for magic in (b"ustar  \0", bytes(8)):
        found = parse_header(header(b"name", magic=magic, prefix=b"prefix"))
        assert found is not None
        assert found.name == b"name"


def test_zeros_are_no_header() -> None:
    assert parse_header(bytes(512)) is None


@pytest.mark.parametrize("name", [b"plain", "ünï".encode(), b"\xff" * 100])
def test_both_checksums(name: bytes) -> None:
    for signed in (False, True):
        found = parse_header(header(name, signed=signed))
        assert found is not None
        assert found.name == name


def test_a_checksum_may_be_written_in_other_ways() -> None:
    block = header(b"name")
    digits = block[148:154]
    for field in (digits.lstrip(b"0").rjust(6) + b"\0 ", b"0" + digits + b"\0", digits + b" \0", digits + b"\0\0"):
        assert parse_header(block[:148] + field + block[156:]) is not None


def test_wrong_checksums() -> None:
    block = header(b"name")
    total = int(block[148:154], 8)
    wrong = [b"%06o\0 " % value for value in (total + 1, total - 1, total + 65521, total - 256)]
    for field in [*wrong, bytes(8), b" " * 8, b"-" + block[149:156], b"garbage!", b"0o" + block[150:156], b"999999\0 "]:
        with pytest.raises(FormatError, match="checksum"):
            parse_header(block[:148] + field + block[156:])
    for at in [*range(148), *range(156, 512)]:
        with pytest.raises(FormatError, match="checksum"):
            parse_header(block[:at] + bytes([block[at] ^ 0x81]) + block[at + 1 :])


@pytest.mark.parametrize("magic", [b"ustar\0\0\0", b"ustar   ", b"USTAR\x0000", b"ustar\x0001", b"garbage!"])
def test_unknown_magic(magic: bytes) -> None:
    with pytest.raises(FormatError, match="magic"):
        parse_header(header(b"name", magic=magic))


# --- numbers ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"0000644 ", 0o644),
        (b"00000644", 0o644),
        (b"   644 \0", 0o644),
        (b"644\0\0\0\0\0", 0o644),
        (b"644\0trsh", 0o644),
        (b"644 trsh", 0o644),
        (bytes(8), 0),
        (b" " * 8, 0),
        (b"\0" + b"7" * 7, 0),
        (b"777777777777", 0o777777777777),
        (b"\x80" + bytes(6) + b"\x05", 5),
        (b"\xff" * 12, -1),
        (base256(1 << 62, 12), 1 << 62),
        (base256(-(1 << 62), 12), -(1 << 62)),
        (base256((1 << 56) - 1, 8), (1 << 56) - 1),
    ],
)
def test_numbers(field: bytes, value: int) -> None:
    assert parse_number(field) == value


@pytest.mark.parametrize(
    "field",
    [
        b"0000648\0",
        b"-000644\0",
        b"+000644\0",
        b"0o00644\0",
        b"00_0644\0",
        b"0x00644\0",
        b"\xc0" + bytes(7),
        b"64a\0\0\0\0\0",
    ],
)
def test_malformed_numbers(field: bytes) -> None:
    with pytest.raises(FormatError, match="malformed number"):
        parse_number(field)


# --- PAX ----------------------------------------------------------------------------------------
def test_records() -> None:
    data = record(b"path", b"a=b\nc") + record(b"SCHILY.xattr.user.x", b"\0\n\xff=") + record(b"empty", b"")
    assert parse_records(data) == [(b"path", b"a=b\nc"), (b"SCHILY.xattr.user.x", b"\0\n\xff="), (b"empty", b"")]
    assert parse_records(b"") == []
    # The length counts its own digits, where these make it longer, too.
    for length in (*range(1, 12), *range(85, 105), *range(985, 1005)):
        assert parse_records(record(b"k", b"v" * length)) == [(b"k", b"v" * length)]


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 512,
        b"6 k=v",
        b"6 k=v\0",
        b"7 k=v\n",
        b"5 k=v\n",
        b"99999999999999999999 k=v\n",
        b"999999999999999999999999999999 k=v\n",
        b"06 k=v\n",
        b"-6 k=v\n",
        b"+6 k=v\n",
        b" 6 k=v\n",
        b"x k=v\n",
        b"0 k=v\n",
        b"1 k=v\n",
        b"2 k=v\n",
        b"5 kv\n",
        b"5 =v\n",
        b"3 \n",
        b"6 k=v\n\0",
        b"6 k=v\n6 k=",
        "６ k=v\n".encode(),
    ],
)
def test_malformed_records(data: bytes) -> None:
    with pytest.raises(FormatError, match="malformed PAX header"):
        parse_records(data)


def test_attributes() -> None:
    found = parse_attributes(
        record(b"path", b"dir/\xff")
        + record(b"linkpath", b"to")
        + record(b"size", b"8589934592")
        + record(b"uid", b"4294967295")
        + record(b"gid", b"0")
        + record(b"mtime", b"1.5")
        + record(b"atime", b"nonsense that nobody reads")
        + record(b"VENDOR.anything", b"\0")
    )
    assert (found.path, found.link, found.size) == (b"dir/\xff", b"to", 1 << 33)
    assert (found.uid, found.gid, found.mtime) == ((1 << 32) - 1, 0, (1, 500_000_000))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"path", b""),
        (b"path", b"a\0b"),
        (b"linkpath", b""),
        (b"linkpath", b"\0"),
        (b"size", b""),
        (b"size", b"-1"),
        (b"size", b"1.5"),
        (b"size", b"0x10"),
        (b"size", b"1_000"),
        (b"size", b" 1"),
        (b"size", b"9" * 21),
        (b"uid", b"-1"),
        (b"gid", b"root"),
        (b"mtime", b""),
        (b"mtime", b"."),
        (b"mtime", b".5"),
        (b"mtime", b"1e9"),
        (b"mtime", b"+1"),
        (b"mtime", b"1.5 "),
        (b"mtime", b"9" * 21),
        (b"SCHILY.xattr.", b"x"),
        (b"SCHILY.xattr.user.\0", b"x"),
        (b"LIBARCHIVE.xattr.user.%00", b"eA"),
        (b"LIBARCHIVE.xattr.user.x", b"!"),
        (b"LIBARCHIVE.xattr.user.x", b"eA\n"),
        (b"LIBARCHIVE.xattr.user.x", b"eAAAA"),
    ],
)
def test_malformed_attributes(key: bytes, value: bytes) -> None:
    with pytest.raises(FormatError, match="malformed PAX header"):
        parse_attributes(record(key, value))


@pytest.mark.parametrize(
    ("text", "time"),
    [
        (b"0", (0, 0)),
        (b"1.", (1, 0)),
        (b"1.000000001", (1, 1)),
        (b"1.9999999999", (1, 999_999_999)),
        (b"-1", (-1, 0)),
        (b"-1.5", (-2, 500_000_000)),
        (b"-0.000000001", (-1, 999_999_999)),
        (b"-0.0000000001", (-1, 999_999_999)),
        (b"-0.00000000000", (0, 0)),
        (b"-0.9999999999", (-1, 0)),
        (b"-1.9999999999", (-2, 0)),
    ],
)
def test_times(text: bytes, time: tuple[int, int]) -> None:
    assert parse_time(text) == time


def test_xattrs() -> None:
    found = parse_attributes(
        record(b"SCHILY.xattr.user.bin", b"\0\n=\xff")
        + record(b"SCHILY.xattr.user.empty", b"")
        + record(b"SCHILY.xattr.user.a%3Db%253D%41", b"escaped")
        + record(b"LIBARCHIVE.xattr.user.%e2%98%83", b"AAE")
        + record(b"LIBARCHIVE.xattr.user.padded", b"AAE=")
        + record(b"RHT.security.selinux", b"system_u:object_r:bin_t:s0")
    )
    assert found.xattrs == {
        b"user.bin": b"\0\n=\xff",
        b"user.empty": b"",
        b"user.a=b%3D%41": b"escaped",
        "user.☃".encode(): b"\0\1",
        b"user.padded": b"\0\1",
        b"security.selinux": b"system_u:object_r:bin_t:s0\0",
    }


def test_access_control_lists_are_noted() -> None:
    assert parse_attributes(record(b"SCHILY.acl.access", b"user::rwx")).unused == [b"SCHILY.acl.access"]


def test_global_headers() -> None:
    assert parse_global(record(b"comment", b"0" * 40) + record(b"mtime", b"7")).mtime == (7, 0)
    for key, value in (
        (b"path", b"x"),
        (b"linkpath", b"x"),
        (b"size", b"0"),
        (b"SCHILY.xattr.user.x", b""),
        (b"GNU.sparse.major", b"1"),
    ):
        with pytest.raises(FormatError, match="global"):
            parse_global(record(key, value))


# --- sparse -------------------------------------------------------------------------------------
def test_old_map() -> None:
    block = old_sparse(b"n", [(4096 * number, b"x") for number in range(30)], 1 << 20)
    found = parse_old_map(block[:512])
    assert (found.size, found.pieces, found.more) == (1 << 20, [(4096 * number, 1) for number in range(4)], True)
    pieces, more = parse_old_extension(block[512:1024])
    assert (pieces, more) == ([(4096 * number, 1) for number in range(4, 25)], True)
    pieces, more = parse_old_extension(block[1024:1536])
    assert (pieces, more) == ([(4096 * number, 1) for number in range(25, 30)], False)


def test_old_maps_end_at_the_first_gap() -> None:
    tail = (
        bytes(41) + octal(0, 12) + octal(1, 12) + bytes(24) + octal(4096, 12) + octal(1, 12) + bytes(25) + octal(9, 12)
    )
    assert parse_old_map(header(b"n", kind=b"S", tail=tail)).pieces == [(0, 1)]


def test_sparse_records() -> None:
    old = [
        (b"size", b"100"),
        (b"numblocks", b"2"),
        (b"offset", b"0"),
        (b"numbytes", b"1"),
        (b"offset", b"9"),
        (b"numbytes", b"2"),
    ]
    assert parse_sparse(old).pieces == [(0, 1), (9, 2)]
    newer = parse_sparse([(b"size", b"100"), (b"numblocks", b"2"), (b"name", b"real"), (b"map", b"0,1,9,2")])
    assert (newer.size, newer.pieces, newer.name) == (100, [(0, 1), (9, 2)], b"real")
    newest = parse_sparse([(b"major", b"1"), (b"minor", b"0"), (b"name", b"real"), (b"realsize", b"100")])
    assert (newest.size, newest.in_data, newest.name) == (100, True, b"real")
    assert parse_sparse([(b"size", b"100"), (b"numblocks", b"0"), (b"map", b"")]).pieces == []


@pytest.mark.parametrize(
    "records",
    [
        [],
        [(b"numblocks", b"0")],
        [(b"size", b"1")],
        [(b"size", b"1"), (b"numblocks", b"1"), (b"offset", b"0")],
        [(b"size", b"1"), (b"numblocks", b"1"), (b"numbytes", b"0"), (b"offset", b"0")],
        [(b"size", b"1"), (b"numblocks", b"2"), (b"offset", b"0"), (b"numbytes", b"1")],
        [(b"size", b"1"), (b"numblocks", b"1"), (b"map", b"0")],
        [(b"size", b"1"), (b"numblocks", b"1"), (b"map", b"0,x")],
        [(b"size", b"1"), (b"numblocks", b"1"), (b"map", b"0,-1")],
        [(b"size", b"1"), (b"numblocks", b"1"), (b"map", b",")],
        [(b"size", b"1"), (b"numblocks", b"1"), (b"map", b"0,1"), (b"offset", b"0"), (b"numbytes", b"1")],
        [
            (b"size", b"1"),
            (b"numblocks", b"%d" % (MAX_SPARSE_PIECES + 1)),
            (b"map", b",".join([b"0"] * 2 * (MAX_SPARSE_PIECES + 1))),
        ],
        [(b"major", b"1"), (b"minor", b"0")],
        [(b"major", b"1"), (b"minor", b"0"), (b"realsize", b"1"), (b"name", b"")],
        [(b"major", b"1"), (b"minor", b"0"), (b"realsize", b"1"), (b"name", b"a\0")],
    ],
)
def test_malformed_sparse_records(records: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(FormatError, match="malformed"):
        parse_sparse(records)


def test_unknown_sparse_formats() -> None:
    for version in ((b"1", b"1"), (b"2", b"0"), (b"0", b"2"), (b"", b"")):
        with pytest.raises(UnsupportedError, match="sparse format"):
            parse_sparse([(b"major", version[0]), (b"minor", version[1])])


def test_maps_in_the_data() -> None:
    parser = DataMap()
    text = b"100\n" + b"".join(b"%d\n7\n" % (number * 4096) for number in range(100))
    text += bytes(-len(text) % 512)
    for at in range(0, len(text), 512):
        assert not parser.complete
        parser.feed(text[at : at + 512])
    assert parser.complete
    assert parser.pieces() == [(number * 4096, 7) for number in range(100)]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "no number"),
        (b"x\n", "no number"),
        (b"-1\n", "no number"),
        (b"%d\n" % (MAX_SPARSE_PIECES + 1), "pieces"),
        (b"1\n0\n-1\n", "no number"),
        (b"1\n0\n\n", "no number"),
        (b"1\n0\n1\n5\n", "follows"),
        (b"1\n0\n1\nx", "follows"),
    ],
)
def test_malformed_maps_in_the_data(text: bytes, match: str) -> None:
    parser = DataMap()
    with pytest.raises(FormatError, match=match):
        parser.feed(text.ljust(512, b"\0"))
        parser.pieces()


def test_pieces_are_checked() -> None:
    assert check_pieces([(0, 1), (1, 0), (5, 5), (10, 0)], size=10, stored=6) == [(0, 1), (5, 5)]
    for pieces, size, stored in (
        ([(0, 2), (1, 1)], 10, 3),
        ([(5, 1), (0, 1)], 10, 2),
        ([(9, 2)], 10, 2),
        ([(-1, 2)], 10, 2),
        ([(0, -1)], 10, -1),
        ([(11, 0)], 10, 0),
        ([(0, 1)], 10, 2),
        ([(0, 2)], 10, 1),
        ([], -1, 1),
    ):
        with pytest.raises(FormatError, match="sparse map"):
            check_pieces(pieces, size=size, stored=stored)
    with pytest.raises(FormatError, match="more than"):
        check_pieces([(0, 0)] * (MAX_SPARSE_PIECES + 1), size=0, stored=0)
