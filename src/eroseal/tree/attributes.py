"""Attributes by path: an ownership map (`--owners`) and SELinux file contexts (`--file-contexts`).

Parsing gives a `Scope` of rules (see `eroseal.tree.rules`); `apply_attributes` gives a tree what they say.

Source: selabel_file(5) for file contexts.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from dataclasses import dataclass
from typing import Final

from eroseal.errors import UsageError
from eroseal.limits import MAX_XATTR_VALUE
from eroseal.tree.model import Directory, Inode, Xattrs
from eroseal.tree.rules import Rule, Scope, compiled, lines, read_map

SELINUX: Final = b"security.selinux"
_ACL: Final = b"system.posix_acl_access"
_ACL_ENTRY: Final = struct.Struct("<HHI")  # e_tag, e_perm, e_id, behind a version of 4 bytes
_ACL_USER_OBJ, _ACL_GROUP_OBJ, _ACL_MASK, _ACL_OTHER = 0x01, 0x04, 0x10, 0x20


# --- ownership maps -----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Owner:
    """What a line of an ownership map gives.

    Args:
        uid, gid: 0 to 2^32 - 2.
        mode: permission bits, 0 to 0o7777; None leaves them as they are.
    """

    uid: int
    gid: int
    mode: int | None


_OWNER_LINE: Final = re.compile(
    rb"((?:\\.|[^\s\\])+)\s+(0|[1-9][0-9]{0,9})\s+(0|[1-9][0-9]{0,9})(?:\s+0?([0-7]{1,4}))?", re.DOTALL
)
_MAX_ID: Final = (1 << 32) - 2
"""The next one means "unchanged" to chown(2)."""


def parse_owners(data: bytes, *, where: str = "ownership map") -> Scope[Owner]:
    r"""An ownership map: lines of a glob, uid, gid and, if wanted, a mode; the last line that matches wins.

    In a glob `*` and `?` do not match `/`, `**` does, and `/**/` also stands for a single `/`. `[...]` is a set, and
    `\` takes the next character, a blank for instance, literally.

    Args:
        data: the file's bytes.
        where: its path, for messages.

    Raises:
        UsageError: a line that is none of these.
    """
    return Scope.of(_owner_rule(line, number, f"{where}:{number}") for number, line in lines(data))


def _owner_rule(line: bytes, number: int, where: str) -> Rule[Owner]:
    match = _OWNER_LINE.fullmatch(line)
    if match is None:
        raise UsageError("not a line of PATTERN UID GID [MODE]", where=where, hint="ids are decimal, the mode octal")
    pattern, uid, gid = match[1], int(match[2]), int(match[3])
    if max(uid, gid) > _MAX_ID:
        raise UsageError(f"{max(uid, gid)} is not an id from 0 to {_MAX_ID}", where=where)
    if not pattern.startswith(b"/") or b"//" in pattern or (pattern.endswith(b"/") and pattern != b"/"):
        raise UsageError(
            f"no path looks like {os.fsdecode(pattern)}", where=where, hint="/etc is a directory, /etc/** what is in it"
        )
    owner = Owner(uid, gid, None if match[4] is None else int(match[4], 8))
    prefix, expression = _translate_glob(pattern, where)
    return Rule(prefix, None if expression is None else compiled(expression, where), 0, number, owner)


_GLOB_TOKEN: Final = re.compile(
    rb"(?P<any>/\*{2,}(?=/))|(?P<deep>\*{2,})|(?P<star>\*)|(?P<one>\?)"
    rb"|\[(?P<set>[!^]?\]?[^\]/]*)\]|(?P<open>\[)|\\(?P<escaped>.)|(?P<plain>.)",
    re.DOTALL,
)


def _translate_glob(pattern: bytes, where: str) -> tuple[bytes, bytes | None]:
    """(literal beginning, regular expression), or None for the latter if there is nothing but the former."""
    prefix, expression, special = b"", b"", False
    for token in _GLOB_TOKEN.finditer(pattern):
        kind = token.lastgroup
        if kind in ("plain", "escaped"):
            expression += re.escape(token[kind])
            prefix += b"" if special else token[kind]
            continue
        special = True
        if kind == "any":
            expression += b"(?:/.*)?"
        elif kind == "deep":
            expression += b".*"
        elif kind == "star":
            expression += b"[^/]*"
        elif kind == "one":
            expression += b"[^/]"
        elif kind == "set":
            expression += _translate_set(token["set"])
        else:
            raise UsageError("a set [...] without its end", where=where, hint="\\[ means the character itself")
    return prefix, expression if special else None


def _translate_set(body: bytes) -> bytes:
    negated = body[:1] in (b"!", b"^")
    members = re.sub(rb"([\\\]\[^&~|])", rb"\\\1", body[1:] if negated else body)
    return b"(?!/)[" + (b"^" if negated else b"") + members + b"]"


# --- file contexts ------------------------------------------------------------------------------
_KINDS: Final = {
    b"--": stat.S_IFREG,
    b"-d": stat.S_IFDIR,
    b"-l": stat.S_IFLNK,
    b"-c": stat.S_IFCHR,
    b"-b": stat.S_IFBLK,
    b"-p": stat.S_IFIFO,
    b"-s": stat.S_IFSOCK,
}
_CONTEXT: Final = re.compile(rb"[!-9;-~]+:[!-9;-~]+:[!-9;-~]+(?::[!-~]+)?")
_NO_CONTEXT: Final = b"<<none>>"
_LITERAL_RANK: Final = 1 << 40
"""Added to the rank of expressions without special characters: far above any line's number."""
_SPECIAL: Final = b".^$?*+|[({"
"""What makes an expression more than a name, by selabel_file(5)'s implementation."""
_REPEATS: Final = b"?*{"
"""What can make the character before it vanish."""
_FOREIGN: Final = re.compile(rb"\\[vZ]|\{,|\[([:.=])[^\]]*\1\]")
"""What Python and PCRE both take, but not for the same."""


def parse_file_contexts(data: bytes, *, where: str = "file contexts") -> Scope[bytes | None]:
    """SELinux file contexts: lines of a regular expression, if wanted a file type, and a context or `<<none>>`.

    Expressions match whole paths. One without special characters wins over others, else the last line that matches.

    Args:
        data: the file's bytes.
        where: its path, for messages.

    Returns:
        Rules that give a context, or None for no context.

    Raises:
        UsageError: a malformed line, or an expression that Python cannot take, or not in the same sense.
    """
    return Scope.of(_context_rule(line, number, f"{where}:{number}") for number, line in lines(data))


def _context_rule(line: bytes, number: int, where: str) -> Rule[bytes | None]:
    fields = line.split()
    if len(fields) not in (2, 3):
        raise UsageError("not a line of EXPRESSION [TYPE] CONTEXT", where=where)
    expression, context = fields[0], fields[-1]
    kind = 0
    if len(fields) == 3:
        if fields[1] not in _KINDS:
            known = " ".join(map(os.fsdecode, _KINDS))
            raise UsageError(f"{os.fsdecode(fields[1])} is no file type", where=where, hint=f"types are {known}")
        kind = _KINDS[fields[1]]
    if context != _NO_CONTEXT and (not _CONTEXT.fullmatch(context) or len(context) > MAX_XATTR_VALUE):
        raise UsageError(f"{os.fsdecode(context)} is no context", where=where, hint="user:role:type:range, or <<none>>")
    value = None if context == _NO_CONTEXT else context
    prefix, literal = _literal_part(expression, where)
    # libselinux 3.4 never matches a first directory with a backslash in it; here it means what it says.
    if literal and not re.search(rb"\\(?:[0-9A-Za-z]|$)", expression):
        return Rule(prefix, None, kind, number + _LITERAL_RANK, value)
    found = _FOREIGN.search(expression)
    if found is not None:
        raise UsageError(
            f"{os.fsdecode(found[0])} in the expression {os.fsdecode(expression)} is not supported", where=where
        )
    return Rule(prefix, compiled(expression, where), kind, number + (_LITERAL_RANK if literal else 0), value)


_EXPRESSION_TOKEN: Final = re.compile(rb"\\(?P<escaped>.)|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<plain>.)", re.DOTALL)


def _literal_part(expression: bytes, where: str) -> tuple[bytes, bool]:
    """(what every match starts with, whether the expression has no special characters at all)."""
    prefix, literal, depth = b"", True, 0
    ended = False
    for token in _EXPRESSION_TOKEN.finditer(expression):
        kind = token.lastgroup
        byte = token[0] if kind == "set" else token[str(kind)]
        special = kind == "set" or (kind == "plain" and byte in _SPECIAL)
        literal = literal and not special
        if kind == "plain":
            depth += (byte == b"(") - (byte == b")")
            if byte == b"|" and depth == 0:
                # libselinux anchors only the outer ends of such expressions, and where a stem is split off depends
                # on its version: no label is better than one that nobody meant.
                raise UsageError(
                    f"alternatives outside of parentheses in {os.fsdecode(expression)}",
                    where=where,
                    hint="write (a|b): a whole expression is anchored, its alternatives are not",
                )
        if special and not ended and kind == "plain" and byte in _REPEATS:
            prefix = prefix[:-1]
        ended = ended or special or (kind == "escaped" and byte.isalnum())
        if not ended:
            prefix += byte
    return prefix, literal


# --- both ---------------------------------------------------------------------------------------
def load_owners(path: str | os.PathLike[str]) -> Scope[Owner]:
    """As `parse_owners`, from a file."""
    return parse_owners(read_map(path), where=os.fspath(path))


def load_file_contexts(path: str | os.PathLike[str]) -> Scope[bytes | None]:
    """As `parse_file_contexts`, from a file."""
    return parse_file_contexts(read_map(path), where=os.fspath(path))


# --- a tree -------------------------------------------------------------------------------------
def apply_attributes(
    root: Directory, *, owners: Scope[Owner] | None = None, file_contexts: Scope[bytes | None] | None = None
) -> None:
    """Give every inode of a tree the attributes of its path; one with several names goes by the first of them.

    Args:
        root: of a tree without packed files.
        owners: gives owner and permissions; without a rule they stay as they are. Symlinks keep their mode, which
            nothing looks at.
        file_contexts: decides on `security.selinux` alone: without a rule there is none.
    """
    known: dict[tuple[Xattrs, bytes | None], Xattrs] = {}

    def apply(path: bytes, inode: Inode, owner_scope: Scope[Owner], context_scope: Scope[bytes | None]) -> None:
        owned = owner_scope.find(path, inode.mode)
        if owned is not None:
            _own(inode, owned.value)
        if file_contexts is not None:
            rule = context_scope.find(path, inode.mode)
            key = inode.xattrs, None if rule is None else rule.value
            xattrs = known.get(key)
            if xattrs is None:
                xattrs = known[key] = _with_xattr(inode.xattrs, SELINUX, key[1])
            inode.xattrs = xattrs

    seen: set[int] = set()
    top = owners or Scope({}, ()), file_contexts or Scope({}, ())
    apply(b"/", root, *top)
    stack = [(root, b"/", *top)]
    while stack:
        directory, prefix, owner_scope, context_scope = stack.pop()
        inner = owner_scope.below(prefix), context_scope.below(prefix)
        below = []
        for name, child in zip(directory.names, directory.children, strict=True):
            assert isinstance(child, Inode)
            if isinstance(child, Directory):
                below.append((child, prefix + name + b"/", *inner))
            elif child.nlink > 1:
                if id(child) in seen:
                    continue
                seen.add(id(child))
            apply(prefix + name, child, *inner)
        stack.extend(reversed(below))


def _own(inode: Inode, owner: Owner) -> None:
    inode.uid, inode.gid = owner.uid, owner.gid
    if owner.mode is None or stat.S_ISLNK(inode.mode):
        return
    inode.mode = stat.S_IFMT(inode.mode) | owner.mode
    for name, value in inode.xattrs:
        if name == _ACL:  # an ACL repeats the mode, and would grant what the mode no longer does
            inode.xattrs = _with_xattr(inode.xattrs, _ACL, _changed_acl(value, owner.mode))


def _changed_acl(value: bytes, mode: int) -> bytes:
    """A POSIX ACL after chmod(2)."""
    if len(value) % _ACL_ENTRY.size != 4:
        return value  # no kernel gives such a thing; whoever reads it will refuse it
    entries = list(_ACL_ENTRY.iter_unpack(value[4:]))
    group = _ACL_MASK if any(tag == _ACL_MASK for tag, _, _ in entries) else _ACL_GROUP_OBJ
    new = {_ACL_USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, _ACL_OTHER: mode & 7}
    return value[:4] + b"".join(_ACL_ENTRY.pack(tag, new.get(tag, perm), who) for tag, perm, who in entries)


def _with_xattr(xattrs: Xattrs, name: bytes, value: bytes | None) -> Xattrs:
    others = [pair for pair in xattrs if pair[0] != name]
    return tuple(sorted(others if value is None else [*others, (name, value)]))
