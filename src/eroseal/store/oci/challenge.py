"""What a server wants when it says 401: the WWW-Authenticate header.

Source: RFC 9110 sections 11.2 to 11.6; RFC 6750 section 3 for Bearer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from eroseal.errors import RemoteError

MAX_CHALLENGE: Final = 16 << 10
"""Characters of all challenges of an answer: real ones have 200."""

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME: Final = re.compile(rf"({_WORD})(?: +|$|(?=[ \t]*,))", re.ASCII)
_PARAMETER: Final = re.compile(rf'({_WORD})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))[ \t]*(?=,|$)', re.ASCII)
# One that ends in "=" cannot be a parameter, because a parameter has a value.
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)", re.ASCII)
_BETWEEN: Final = re.compile(r"[ \t,]*")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to log in.

    Args:
        scheme: in lower case: `bearer`, `basic`.
        parameters: by name in lower case.
    """

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """All challenges of an answer, in its order.

    Args:
        headers: the values of all its WWW-Authenticate headers.

    Raises:
        RemoteError: too long, or malformed.
    """
    text = ", ".join(headers)
    if len(text) > MAX_CHALLENGE:
        raise RemoteError(f"asks for credentials in more than {MAX_CHALLENGE} characters")
    found: list[Challenge] = []
    position = _skip(text, 0)
    while position < len(text):
        scheme = _SCHEME.match(text, position)
        if scheme is None:
            raise RemoteError("asks for credentials in a malformed way")
        position = scheme.end()
        parameters, position = _parameters(text, position)
        found.append(Challenge(scheme[1].lower(), parameters))
    return found


def _parameters(text: str, position: int) -> tuple[dict[str, str], int]:
    """The parameters from `position` on, and where the next challenge begins."""
    parameters: dict[str, str] = {}
    while True:
        position = _skip(text, position)
        match = _PARAMETER.match(text, position)
        if match is None:
            break
        value = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
        parameters.setdefault(match[1].lower(), value)
        position = match.end()
    if not parameters and (token := _TOKEN68.match(text, position)) and not _SCHEME.match(text, position):
        position = _skip(text, token.end())
    return parameters, position


def _skip(text: str, position: int) -> int:
    match = _BETWEEN.match(text, position)
    return position if match is None else match.end()
