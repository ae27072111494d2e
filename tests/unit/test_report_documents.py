"""Documents and text: what scripts rely on, and nothing that could fool a terminal."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from eroseal.format.digest import HashAlgorithm, TreeParams
from eroseal.format.erofs import RawInode
from eroseal.format.fsverity import Descriptor
from eroseal.image.inode import Inode
from eroseal.report.digest import (
    BadBlockEntry,
    BlobVerdict,
    BuildDocument,
    VerifyDocument,
    blob_entry,
    digest_document,
    digest_text,
)
from eroseal.report.document import Document, json_schema, shown, size_text, to_json
from eroseal.report.listing import LsDocument, ls_entry, ls_lines, stat_document, stat_text
from eroseal.report.schemas import DOCUMENTS

DESCRIPTOR = Descriptor(TreeParams(HashAlgorithm.SHA256, b"salt"), 8192, bytes(range(32)))


@pytest.fixture
def inode() -> Inode:
    """Give a regular file's inode; tests change what they are about."""
    mode, mtime = stat.S_IFREG | 0o4751, 1_700_000_000
    raw = RawInode(5, 0, mode, 0, 5, 0, 1, 70000, 0, mtime, 5, 1)
    return Inode(
        nid=40,
        mode=mode,
        uid=70000,
        gid=0,
        size=5,
        mtime=mtime,
        mtime_nsec=5,
        nlink=1,
        rdev=(0, 0),
        layout=raw.layout,
        raw=raw,
        position=1280,
    )


# --- the contract with scripts: fields and their order, as the manual has them ---


def test_the_digest_document() -> None:
    meta = blob_entry(DESCRIPTOR, role="meta", size=20480, path="/store/blobs/ab/cd")
    data = blob_entry(DESCRIPTOR, role="data", size=20480)
    document = json.loads(to_json(digest_document([meta, data])))
    assert list(document) == ["schema", "image", "encrypted", "blobs"]
    assert document["schema"] == "eroseal.digest/1"
    assert document["image"] == str(DESCRIPTOR.digest)
    assert document["encrypted"] is False
    assert document["blobs"] == [
        {
            "digest": str(DESCRIPTOR.digest),
            "role": "meta",
            "data_size": 8192,
            "root_hash": bytes(range(32)).hex(),
            "size": 20480,
            "path": "/store/blobs/ab/cd",
        },
        {
            "digest": str(DESCRIPTOR.digest),
            "role": "data",
            "data_size": 8192,
            "root_hash": bytes(range(32)).hex(),
            "size": 20480,
        },
    ]
    assert digest_text(digest_document([meta])) == str(DESCRIPTOR.digest)


def test_the_build_document() -> None:
    document = BuildDocument(
        image=str(DESCRIPTOR.digest),
        blobs=[blob_entry(DESCRIPTOR, role="meta", size=1)],
        files=3,
        bytes_in=100,
        bytes_new=60,
        bytes_shared=40,
        seconds=0.25,
    )
    assert list(json.loads(to_json(document))) == [
        *("schema", "image", "blobs", "files", "bytes_in", "bytes_new", "bytes_shared", "seconds")
    ]
    assert json.loads(to_json(document))["schema"] == "eroseal.build/1"


def test_the_verify_document() -> None:
    bad = BlobVerdict(digest="d", ok=False, bad_blocks=[BadBlockEntry(level=1, index=2, offset=12288)])
    document = json.loads(to_json(VerifyDocument(ok=False, trusted_by="digest", blobs=[bad], seconds=1.5)))
    assert document == {
        "schema": "eroseal.verify/1",
        "ok": False,
        "trusted_by": "digest",
        "blobs": [{"digest": "d", "ok": False, "bad_blocks": [{"level": 1, "index": 2, "offset": 12288}]}],
        "seconds": 1.5,
    }


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_schemas(kind: type[Document]) -> None:
    schema = json_schema(kind)
    assert schema["$schema"].startswith("https://json-schema.org/")
    main = schema["$defs"][kind.__name__]
    name = re.sub("(?<!^)(?=[A-Z])", "-", kind.__name__.removesuffix("Document")).lower()
    (named,) = main["properties"]["schema"]["enum"]
    assert re.fullmatch(rf"eroseal\.([a-z]+-)?{name}/1", named)
    assert all("description" in definition for definition in schema["$defs"].values())


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_documents_refuse_unknown_fields(kind: type[Document]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"schema": "eroseal.other/1"}, kind)


# --- text ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"plain", "plain"),
        ("grün ☃", "grün ☃"),
        (b"back\\slash", "back\\\\slash"),
        (b"line\nbreak\ttab", "line\\x0abreak\\x09tab"),
        (b"\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        (b"not \xff utf-8 \xc3", "not \\xff utf-8 \\xc3"),
        ("over\u202eride", "over\\xe2\\x80\\xaeride"),
        (b"\x7f", "\\x7f"),
        (b"", ""),
    ],
)
def test_what_a_terminal_gets(text: bytes | str, expected: str) -> None:
    assert shown(text) == expected
    assert shown(text).isprintable()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1.0K"),
        (1 << 20, "1.0M"),
        ((1 << 20) - 1, "1.0M"),
        (1500, "1.5K"),
        (1 << 50, "1.0P"),
        (1 << 63, "8.0E"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize("path", [b"plain", b"bytes \xff\x80", "ünïcode".encode(), b"\x01\x7f"])
def test_paths_survive_json(path: bytes, inode: Inode) -> None:
    text = to_json(LsDocument(entries=[ls_entry(path, inode)]))
    assert text.isascii()
    assert os.fsencode(json.loads(text)["entries"][0]["path"]) == path


# --- listings ---


def test_an_ls_entry(inode: Inode) -> None:
    entry = json.loads(to_json(ls_entry(b"dir/file", inode)))
    assert entry == {
        "path": "dir/file",
        "type": "file",
        "mode": "4751",
        "uid": 70000,
        "gid": 0,
        "nlink": 1,
        "size": 5,
        "mtime": 1_700_000_000,
        "mtime_nsec": 5,
        "inode": inode.nid,
    }


def test_ls_lines_are_aligned(inode: Inode) -> None:
    device = replace(inode, mode=stat.S_IFBLK | 0o660, rdev=(259, 1), size=0)
    link = replace(inode, mode=stat.S_IFLNK | 0o777, uid=0)
    lines = ls_lines(
        [
            ls_entry(b"file", inode),
            ls_entry(b"disk", device),
            ls_entry(b"link\n", link, target=b"to\x1b[m"),
            ls_entry(b"old", replace(inode, mtime=-1)),
            ls_entry(b"far", replace(inode, mtime=1 << 60)),
        ]
    )
    assert lines[:4] == [
        "-rwsr-x--x 1 70000 0      5    2023-11-14 22:13 file",
        "brw-rw---- 1 70000 0 259, 1    2023-11-14 22:13 disk",
        "lrwxrwxrwx 1     0 0      5    2023-11-14 22:13 link\\x0a -> to\\x1b[m",
        "-rwsr-x--x 1 70000 0      5    1969-12-31 23:59 old",
    ]
    assert lines[4].endswith(f" {1 << 60} far")
    assert len({line.rindex("2023") for line in lines[:2]}) == 1
    assert ls_lines([ls_entry(b"a\nb", inode)], long=False) == ["a\\x0ab"]
    assert ls_lines([]) == []


@pytest.mark.parametrize(
    ("kind", "letter", "name"),
    [
        (stat.S_IFREG, "-", "file"),
        (stat.S_IFDIR, "d", "directory"),
        (stat.S_IFLNK, "l", "symlink"),
        (stat.S_IFCHR, "c", "char"),
        (stat.S_IFBLK, "b", "block"),
        (stat.S_IFIFO, "p", "fifo"),
        (stat.S_IFSOCK, "s", "socket"),
    ],
)
def test_every_type_has_a_name(inode: Inode, kind: int, letter: str, name: str) -> None:
    entry = ls_entry(b"x", replace(inode, mode=kind | 0o644))
    assert entry.type == name
    assert ls_lines([entry])[0].startswith(f"{letter}rw-r--r--")


def test_stat(inode: Inode) -> None:
    document = stat_document(
        b"file",
        replace(inode, mode=stat.S_IFCHR | 0o600, rdev=(1, 3)),
        xattrs=[(b"user.text", b"some value"), (b"user.bytes", b"\0\xff"), (b"user.none", b"")],
    )
    text = stat_text(document)
    for line in (
        "type             char",
        "mode             0600 (crw-------)",
        "owner            70000:0",
        "modified         2023-11-14 22:13:20.000000005 UTC",
        "device           1, 3",
        'xattr user.text  "some value"',
        "xattr user.bytes  0x00ff",
        'xattr user.none  ""',
    ):
        assert " ".join(line.split()) in {" ".join(found.split()) for found in text.splitlines()}
    found: dict[str, Any] = json.loads(to_json(document))
    assert found["schema"] == "eroseal.stat/1"
    assert found["entry"]["rdev"] == [1, 3]
    assert found["xattrs"][1] == {"name": "user.bytes", "value": "AP8="}
