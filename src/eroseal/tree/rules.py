"""Lists of patterns of paths, of which one wins for each path.

Strategy. A pattern without special characters is looked up in a dictionary. Of the others only those are tried whose
literal beginning agrees with the path's: a directory takes over from its parent the rules that can match below it,
and among these its entries choose by the first byte of their name. So a policy of thousands of lines costs a file a few
dozen attempts.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from eroseal.errors import UsageError
from eroseal.limits import MAX_RULES_FILE

_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Rule(Generic[_V]):
    """One line of a map.

    Args:
        prefix: bytes that every matching path starts with.
        matches: whether a whole path matches; None for a rule that matches only `prefix` itself.
        kind: file type bits that it is for, 0 for all.
        rank: the highest wins.
        value: what it gives.
    """

    prefix: bytes
    matches: Callable[[bytes], object] | None
    kind: int
    rank: int
    value: _V


class Scope(Generic[_V]):
    """The rules that can match paths which start with some prefix.

    Args:
        literals: rules without special characters, by path, best first.
        rules: the others, best first.
        prefix: of the paths that will be asked for; a directory with its trailing slash.
    """

    __slots__ = ("_by_byte", "_literals", "_prefix", "_rules")

    def __init__(self, literals: dict[bytes, list[Rule[_V]]], rules: Iterable[Rule[_V]], prefix: bytes = b"") -> None:
        self._literals = literals
        self._rules = _agreeing(rules, prefix)
        self._prefix = prefix
        self._by_byte: dict[bytes, list[Rule[_V]]] = {}

    @classmethod
    def of(cls, rules: Iterable[Rule[_V]]) -> Scope[_V]:
        """The scope of all paths."""
        literals: dict[bytes, list[Rule[_V]]] = {}
        others = []
        for rule in sorted(rules, key=lambda rule: -rule.rank):
            if rule.matches is None:
                literals.setdefault(rule.prefix, []).append(rule)
            else:
                others.append(rule)
        return cls(literals, others)

    def below(self, prefix: bytes) -> Scope[_V]:
        """The scope of a directory in this one; `prefix` ends with a slash."""
        return Scope(self._literals, self._rules, prefix)

    def find(self, path: bytes, mode: int) -> Rule[_V] | None:
        """The rule that wins.

        Args:
            path: inside the image, with a leading slash; starts with the scope's prefix.
            mode: st_mode, of which the file type counts.
        """
        kind = stat.S_IFMT(mode)
        literal = next((rule for rule in self._literals.get(path, ()) if rule.kind in (0, kind)), None)
        start = len(self._prefix)
        byte = path[start : start + 1]
        rules = self._by_byte.get(byte)
        if rules is None:
            rules = self._by_byte[byte] = _agreeing(self._rules, self._prefix + byte)
        for rule in rules:
            if literal is not None and literal.rank > rule.rank:
                break
            if rule.kind in (0, kind) and rule.matches is not None and rule.matches(path):
                return rule
        return literal


def _agreeing(rules: Iterable[Rule[_V]], prefix: bytes) -> list[Rule[_V]]:
    return [rule for rule in rules if prefix.startswith(rule.prefix) or rule.prefix.startswith(prefix)]


# --- files of them ---
def read_map(path: str | os.PathLike[str]) -> bytes:
    """Bytes of a list.

    Raises:
        UsageError: the file cannot be read, or is too large.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_RULES_FILE + 1)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=os.fspath(path)) from error
    if len(data) > MAX_RULES_FILE:
        raise UsageError(f"more than {MAX_RULES_FILE} bytes", where=os.fspath(path))
    return data


def lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of each that is neither blank nor a comment."""
    for number, line in enumerate(data.split(b"\n"), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith(b"#"):
            yield number, stripped


def compiled(expression: bytes, where: str) -> Callable[[bytes], object]:
    """What tells whether a regular expression matches a whole path.

    Raises:
        UsageError: Python cannot take the expression.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of sets that Python may read differently one day
            return re.compile(expression, re.DOTALL).fullmatch
    except (re.error, OverflowError, RecursionError) as error:
        shown = os.fsdecode(expression)
        raise UsageError(f"the expression {shown} is not supported: {error}", where=where) from error
