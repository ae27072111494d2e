r"""How reports are written: JSON documents, their schemas, and text that is safe on a terminal.

File names are bytes. In JSON they are strings in which a byte that is not UTF-8 is a lone surrogate escape
(U+DC80 to U+DCFF), so that nothing is lost; on a terminal such bytes and control characters are shown as
``\xNN``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything that appears in a JSON document."""


def to_json(document: Document) -> str:
    """One line of ASCII JSON, fields in the order of their declaration."""
    # Not msgspec's own encoder: it refuses lone surrogates, which stand for bytes that are not UTF-8.
    return json.dumps(msgspec.to_builtins(document), ensure_ascii=True)


def json_schema(kind: type[Document]) -> dict[str, Any]:
    """The JSON schema (2020-12) of a document type, for the manual."""
    schema = msgspec.json.schema(kind)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def path_text(path: bytes) -> str:
    """A path as it stands in a JSON document; `os.fsencode` gives back the bytes in a UTF-8 locale."""
    return path.decode("utf-8", "surrogateescape")


def shown(text: bytes | str) -> str:
    """Text of unknown origin as it may be printed: it cannot move a cursor or pass for another line."""
    if isinstance(text, bytes):
        text = path_text(text)
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_shown_character(character) for character in text)


def _shown_character(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def size_text(size: int) -> str:
    """Bytes with a binary unit, for people: ``512``, ``4.0K``, ``1.2M``."""
    if size < 1024:
        return str(size)
    value = float(size)
    for unit in "KMGTP":
        value /= 1024
        if value < 1023.95:
            return f"{value:.1f}{unit}"
    return f"{value / 1024:.1f}E"


def table(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of labels and values, the values aligned."""
    pairs = list(rows)
    width = max((len(label) for label, _ in pairs), default=0)
    return [f"{label:<{width}}  {value}".rstrip() for label, value in pairs]
