"""Ownership maps and file contexts: what parses, which line wins, and what a tree gets from it."""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eroseal.errors import UsageError
from eroseal.tree.attributes import (
    SELINUX,
    Owner,
    apply_attributes,
    load_file_contexts,
    load_owners,
    parse_file_contexts,
    parse_owners,
)
from eroseal.tree.model import Directory, Inode
from eroseal.tree.rules import Scope

REG, DIR, LNK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def found(scope: Scope[Any], path: bytes, mode: int = REG) -> Any:
    """What the scope says of a path, asked for as a walk of a tree does."""
    inner = scope
    for end in (match.end() for match in re.finditer(b"/", path)):
        if path != b"/":
            inner = inner.below(path[:end])
    rule = inner.find(path, mode)
    return None if rule is None else rule.value


def uid(data: bytes, path: bytes) -> int | None:
    owner = found(parse_owners(data), path)
    return None if owner is None else owner.uid


# --- globs --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (b"/", b"/", b"/a"),
        (b"/etc", b"/etc", b"/etc/a /etcetera"),
        (b"/etc/*", b"/etc/a", b"/etc /etc/a/b /etca"),
        (b"/etc/**", b"/etc/a /etc/a/b", b"/etc /etcetera"),
        (b"/**", b"/a /a/b", b""),
        (b"/**/x", b"/x /a/x /a/b/x", b"/ax /x/a"),
        (b"/a/**/x", b"/a/x /a/b/x /a/b/c/x", b"/ax /a/bx /b/a/x"),
        (b"/a**z", b"/az /a/b/z", b"/a"),
        (b"/?", b"/a /\xff", b"/ /ab"),
        (b"/a?b", b"/acb", b"/a/b /ab"),
        (b"/[a-c]x", b"/ax /cx", b"/dx /x"),
        (b"/[!a-c]x", b"/dx /^x", b"/ax"),
        (b"/[^a]", b"/b", b"/a"),
        (b"/a[!b]c", b"/adc", b"/abc /a/c"),
        (b"/[]x]", b"/] /x", b"/a"),
        (b"/[[]", b"/[", b"/]"),
        (b"/[&~|^-]", b"/& /~ /| /^ /-", b"/a"),
        (b"/a.b", b"/a.b", b"/axb"),
        (b"/\\*", b"/*", b"/a"),
        (b"/a\\\\", b"/a\\", b"/a"),
        (b"/\xc3\xa4*", b"/\xc3\xa4b", b"/\xc3b"),
    ],
)
def test_globs(pattern: bytes, yes: bytes, no: bytes) -> None:
    for path in yes.split():
        assert uid(pattern + b" 1 2", path) == 1, path
    for path in no.split():
        assert uid(pattern + b" 1 2", path) is None, path


def test_a_backslash_takes_a_blank() -> None:
    assert uid(b"/a\\ b 1 2", b"/a b") == 1
    assert uid(b"/a?b 1 2", b"/a\nb") == 1


def test_last_line_wins_whether_literal_or_not() -> None:
    data = b"/a 1 1\n/* 2 2\n/b 3 3\n\n # comment\n/c* 4 4\n/c 5 5\r\n/c 6 6\n"
    assert [uid(data, path) for path in (b"/a", b"/b", b"/c", b"/cc", b"/d", b"/d/e")] == [2, 3, 6, 4, 2, None]


def test_fields_of_an_owner() -> None:
    scope = parse_owners(b"/a 0 4294967294\n/b\t1  2\t4755\n/c 1 2 04755\n/d 1 2 0\n")
    assert found(scope, b"/a") == Owner(0, 4_294_967_294, None)
    assert found(scope, b"/b") == found(scope, b"/c") == Owner(1, 2, 0o4755)
    assert found(scope, b"/d") == Owner(1, 2, 0)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"/a", "not a line"),
        (b"/a 1", "not a line"),
        (b"/a 1 2 3 4", "not a line"),
        (b"/a root root", "not a line"),
        (b"/a -1 0", "not a line"),
        (b"/a 0x1 0", "not a line"),
        (b"/a 01 0", "not a line"),
        (b"/a 1 2 8", "not a line"),
        (b"/a 1 2 17777", "not a line"),
        (b"/a 1 2 # why", "not a line"),
        (b"/a 4294967295 0", "4294967295 is not an id"),
        (b"/a 0 9999999999", "9999999999 is not an id"),
        (b"a 1 2", "no path looks like a"),
        (b"/a/ 1 2", "no path looks like"),
        (b"/a//b 1 2", "no path looks like"),
        (b"/[a 1 2", "without its end"),
        (b"/[a/b] 1 2", "without its end"),
        (b"/[z-a] 1 2", "bad character range"),
    ],
)
def test_lines_that_are_no_owners(line: bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        parse_owners(b"# map\n\n" + line + b"\n", where="map")
    assert error.value.where == "map:3"


# --- file contexts ------------------------------------------------------------------------------
def context(data: bytes, path: bytes, mode: int = REG) -> Any:
    return found(parse_file_contexts(data), path, mode)


def test_expressions_are_anchored_and_the_last_wins() -> None:
    data = b"/.* u:r:any\n/usr(/.*)? u:r:usr\n/usr/lib.* u:r:lib:s0\n/usr/l.b u:r:l:s0-s0:c0.c1023\n"
    assert context(data, b"/") == b"u:r:any"
    assert context(data, b"/usr") == context(data, b"/usr/bin/x") == b"u:r:usr"
    assert context(data, b"/usrlocal") == context(data, b"/x/usr") == b"u:r:any"
    assert context(data, b"/usr/lib") == b"u:r:l:s0-s0:c0.c1023"
    assert context(data, b"/usr/lib/a\nb") == b"u:r:lib:s0"
    assert context(b"/x u:r:t", b"/y") is None


def test_names_win_over_expressions() -> None:
    data = b"/a\\.b u:r:name\n/a\\.b u:r:later\n/a.* u:r:expression\n/a[.]b u:r:set\n"
    assert context(data, b"/a.b") == b"u:r:later"
    assert context(data, b"/axb") == b"u:r:expression"
    digits = b"/\\d\\d u:r:digits\n/[0-9]+ u:r:set\n/11 u:r:eleven\n"
    assert [context(digits, path) for path in (b"/11", b"/12", b"/123")] == [b"u:r:eleven", b"u:r:digits", b"u:r:set"]


def test_file_types_and_none() -> None:
    kinds = {"--": "REG", "-d": "DIR", "-l": "LNK", "-c": "CHR", "-b": "BLK", "-p": "IFO", "-s": "OCK"}
    modes = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]
    data = "".join(f"/n {option} u:r:{name}\n/x.* {option} u:r:{name}\n" for option, name in kinds.items()).encode()
    for mode, name in zip(modes, kinds.values(), strict=True):
        assert context(data, b"/n", mode | 0o600) == context(data, b"/xy", mode) == f"u:r:{name}".encode()
    data = b"/.* u:r:all\n/n -d u:r:dir\n/n/.* <<none>>\n/n/k u:r:kept\n"
    assert context(data, b"/n", DIR) == b"u:r:dir"
    assert context(data, b"/n", REG) == b"u:r:all"
    assert context(data, b"/n/x") is None
    assert context(data, b"/n/k") == b"u:r:kept"


@pytest.mark.parametrize(
    ("expression", "yes", "no"),
    [
        (b"/a?b", b"/b /ab", b"/aab"),
        (b"/ab*", b"/a /abb", b"/b"),
        (b"/ab{2}", b"/abb", b"/ab /a"),
        (b"/ab{0,1}c", b"/ac /abc", b"/abbc"),
        (b"/a\\.?b", b"/ab /a.b", b"/axb"),
        (b"/ab+", b"/ab /abb", b"/a"),
        (b"/(a|b)/c", b"/a/c /b/c", b"/c"),
        (b"/a[|]b", b"/a|b", b"/a /b"),
        (b"/a\\|b", b"/a|b", b"/a"),
        (b"/[]a]", b"/] /a", b"/b"),
        (b"/[^]a]", b"/b", b"/] /a"),
        (b"/[[(]x", b"/[x /(x", b"/x"),
        (b"/lost\\+found/.*", b"/lost+found/x", b"/lost+found"),
        (b"^/a$", b"/a", b"/ab"),
        (b"/a.{3}", b"/abcd", b"/abc"),
    ],
)
def test_expressions(expression: bytes, yes: bytes, no: bytes) -> None:
    for path in yes.split():
        assert context(expression + b" u:r:t", path) == b"u:r:t", path
    for path in no.split():
        assert context(expression + b" u:r:t", path) is None, path


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"/a", "not a line"),
        (b"/a -- u:r:t more", "not a line"),
        (b"/a -x u:r:t", "-x is no file type"),
        (b"/a --", "-- is no context"),
        (b"/a u:r", "is no context"),
        (b"/a u:r:t:" + b"c" * 65_536, "is no context"),
        (b"/a <<nothing>>", "is no context"),
        (b"/a(b u:r:t", "not supported: missing"),
        (b"/a\\ u:r:t", "not supported: bad escape"),
        (b"/a\\h u:r:t", "not supported: bad escape"),
        (b"/\\Qa.b\\E u:r:t", "not supported: bad escape"),
        (b"/(?|a|b) u:r:t", "not supported: unknown extension"),
        (b"/[[:alpha:]] u:r:t", re.escape("[:alpha:] in the expression")),
        (b"/a{,2} u:r:t", re.escape("{, in the expression")),
        (b"/a\\v u:r:t", "in the expression"),
        (b"/a|/b u:r:t", "outside of parentheses"),
    ],
)
def test_lines_that_are_no_file_contexts(line: bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        parse_file_contexts(b"/.* u:r:t\n  # comment\n" + line, where="policy")
    assert error.value.where == "policy:3"


# Short alphabets, so that patterns and paths meet.
_PATHS = st.lists(st.text("ab.", min_size=1, max_size=3), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)
_PIECES = st.sampled_from(["/", "a", "b", r"\.", ".", ".*", "[^/]*", "a?", "b+", "(/.*)?", "(a|b)", "[ab]", "a{2}"])
_EXPRESSIONS = st.lists(_PIECES, max_size=6).map(lambda pieces: "/" + "".join(pieces))


@given(st.lists(st.tuples(_EXPRESSIONS, st.sampled_from(["", "--", "-d"])), max_size=12), st.lists(_PATHS, max_size=8))
def test_narrowing_loses_nothing(rules: list[tuple[str, str]], paths: list[str]) -> None:
    text = "".join(f"{expression} {kind} u:r:t{number}\n" for number, (expression, kind) in enumerate(rules))
    scope = parse_file_contexts(text.encode())
    for path in paths:
        for mode, kind in ((REG, "--"), (DIR, "-d")):
            best = max(
                (
                    (not re.search(r"(?<!\\)[.?*+\[({]", expression), number)
                    for number, (expression, wanted) in enumerate(rules)
                    if wanted in ("", kind) and re.fullmatch(expression, path)
                ),
                default=None,
            )
            assert found(scope, path.encode(), mode) == (None if best is None else b"u:r:t%d" % best[1])


# --- files of them, and trees -------------------------------------------------------------------
@pytest.mark.parametrize("load", [load_owners, load_file_contexts])
def test_files_that_cannot_be_read(
    load: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="No such file") as error:
        load(tmp_path / "missing")
    assert error.value.where == str(tmp_path / "missing")
    with pytest.raises(UsageError, match="directory"):
        load(tmp_path)
    monkeypatch.setattr("eroseal.tree.rules.MAX_RULES_FILE", 10)
    (tmp_path / "large").write_bytes(b"#" * 11)
    with pytest.raises(UsageError, match="more than 10 bytes"):
        load(tmp_path / "large")


def make_tree(**children: Inode) -> Directory:
    root = Directory(DIR, 1000, 1000, 0, 0)
    root.names = [name.encode() for name in sorted(children)]
    root.children = [children[name] for name in sorted(children)]
    return root


def test_a_file_with_several_names_goes_by_the_first() -> None:
    shared = Inode(REG, 1000, 1000, 0, 0, 0)
    shared.nlink = 3
    inner = make_tree(a=shared)
    root = make_tree(a=inner, x=shared, y=shared)
    apply_attributes(
        root,
        owners=parse_owners(b"/a/a 1 1\n/x 2 2\n/y 3 3\n/a 4 4"),
        file_contexts=parse_file_contexts(b"/a/a u:r:1\n/x u:r:2\n/y u:r:3"),
    )
    # The names of a directory come before those of its subdirectories.
    assert (shared.uid, shared.gid, shared.xattrs) == (2, 2, ((SELINUX, b"u:r:2"),))
    assert (inner.uid, inner.xattrs) == (4, ())
    assert root.uid == 1000


def test_contexts_replace_what_was_there_and_are_kept_in_order() -> None:
    before = ((b"security.selinux", b"old\0"), (b"trusted.a", b""), (b"user.a", b""))
    files = {name: Inode(REG, 0, 0, 0, 0, 0, before) for name in ("a", "b", "none")}
    files["plain"] = Inode(REG, 0, 0, 0, 0, 0, ((b"security.a", b""), (b"user.a", b"")))
    apply_attributes(make_tree(**files), file_contexts=parse_file_contexts(b"/[ab] u:r:new\n/p.* u:r:new"))
    assert files["a"].xattrs == ((SELINUX, b"u:r:new"), *before[1:])
    assert files["a"].xattrs is files["b"].xattrs
    assert files["none"].xattrs == before[1:]
    assert [name for name, _ in files["plain"].xattrs] == [b"security.a", SELINUX, b"user.a"]
    apply_attributes(make_tree(**files), owners=parse_owners(b"/** 5 5"))
    assert files["a"].xattrs == ((SELINUX, b"u:r:new"), *before[1:])


def test_modes() -> None:
    files = {"file": Inode(REG, 1, 1, 0, 0, 0), "kept": Inode(REG | 0o4000, 1, 1, 0, 0, 0)}
    files["link"] = Inode(LNK, 1, 1, 0, 0, 0)
    root = make_tree(**files)
    apply_attributes(root, owners=parse_owners(b"/** 0 0 4755\n/kept 0 0\n/ 0 0 1777\n"))
    assert [oct(inode.mode) for inode in files.values()] == ["0o104755", "0o104644", "0o120777"]
    assert (files["link"].uid, oct(root.mode)) == (0, "0o41777")


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            acl((1, 7, NOBODY), (2, 6, 1000), (4, 5, NOBODY), (16, 7, NOBODY), (32, 4, NOBODY)),
            acl((1, 6, NOBODY), (2, 6, 1000), (4, 5, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY)),
        ),
        (acl((1, 7, NOBODY), (4, 7, NOBODY), (32, 7, NOBODY)), acl((1, 6, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY))),
        (b"odd", b"odd"),
    ],
)
def test_an_acl_follows_the_mode(before: bytes, after: bytes) -> None:
    name = b"system.posix_acl_access"
    file = Inode(REG, 1, 1, 0, 0, 0, ((name, before), (b"user.a", b"")))
    apply_attributes(make_tree(file=file), owners=parse_owners(b"/file 0 0"))
    assert file.xattrs == ((name, before), (b"user.a", b""))
    apply_attributes(make_tree(file=file), owners=parse_owners(b"/file 0 0 640"))
    assert file.xattrs == ((name, after), (b"user.a", b""))
