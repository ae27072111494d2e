"""Reading and writing the bytes that vectors hold (data/README.md, "Bytes")."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BLOCK = 4096
DATA = Path(__file__).parent / "data"
MAX_NUMBER = 1 << 20
GAP = 24
"""Zeros between two parts that are worth a new part."""

Spec = str | dict[str, Any]
Vector = dict[str, Any]


def load(name: str) -> list[Vector]:
    """The vectors of one file."""
    document = json.loads((DATA / name).read_text(encoding="ascii"))
    assert document["schema"] == "eroseal.vectors/1"
    vectors = document["vectors"]
    assert isinstance(vectors, list)
    return vectors


def store(name: str, vectors: list[Vector]) -> None:
    """Write the vectors of one file, in the one form that they have."""
    lines = ",\n".join(f"    {json.dumps(vector)}" for vector in vectors)
    text = f'{{\n  "schema": "eroseal.vectors/1",\n  "vectors": [\n{lines}\n  ]\n}}\n'
    (DATA / name).write_text(text, encoding="ascii")


def expand(spec: Spec, others: Mapping[str, Spec] | None = None) -> bytes:
    """The bytes that a vector describes.

    Args:
        spec: hex digits; or an object with "size" and "parts", to which "numbered" or "from" may give a beginning.
        others: specs by name, for "from".
    """
    if isinstance(spec, str):
        return bytes.fromhex(spec)
    data = bytearray()
    if "from" in spec:
        assert others is not None
        data += expand(others[spec["from"]], others)
    data += numbered(spec.get("numbered", 0))
    size = spec.get("size", len(data))
    data = data[:size].ljust(size, b"\0")
    for offset, part in spec.get("parts", ()):
        raw = bytes.fromhex(part)
        assert offset + len(raw) <= size
        data[offset : offset + len(raw)] = raw
    return bytes(data)


def numbered(blocks: int | Sequence[int]) -> bytes:
    """Blocks that are filled with their number, as 64 little-endian bits: so many from 0 on, or those listed."""
    numbers = range(blocks) if isinstance(blocks, int) else blocks
    return b"".join(number.to_bytes(8, "little") * (BLOCK // 8) for number in numbers)


def shrink(data: bytes) -> Spec:
    """Describe bytes: numbered blocks at the beginning, if there are any, then the parts that are not zero."""
    numbers = _numbers(data)
    start, parts = len(numbers) * BLOCK, []
    while start < len(data):
        if data[start] == 0:
            start += 1
            continue
        end = data.find(bytes(GAP), start)
        end = len(data) if end < 0 else end
        part = data[start:end].rstrip(b"\0")
        parts.append([start, part.hex()])
        start += len(part)
    spec: dict[str, Any] = {"size": len(data)}
    if any(numbers):
        spec["numbered"] = len(numbers) if numbers == list(range(len(numbers))) else numbers
    if parts:
        spec["parts"] = parts
    return spec


def _numbers(data: bytes) -> list[int]:
    found: list[int] = []
    for at in range(0, len(data), BLOCK):
        number = int.from_bytes(data[at : at + 8], "little")
        if number > MAX_NUMBER or data[at : at + BLOCK] != numbered([number]):
            break
        found.append(number)
    while found and found[-1] == 0:
        found.pop()
    return found


def changed(name: str, base: bytes, data: bytes) -> Spec:
    """Describe bytes by how they differ from others that are called `name`, if that is shorter."""
    parts, at = [], 0
    padded = base[: len(data)].ljust(len(data), b"\0")
    while at < len(data):
        if data[at] == padded[at]:
            at += 1
            continue
        end = at + 1
        while end < len(data) and data[end : end + 8] != padded[end : end + 8]:
            end += 1
        parts.append([at, data[at:end].hex()])
        at = end
    spec: dict[str, Any] = {"from": name}
    if len(data) != len(base):
        spec["size"] = len(data)
    if parts:
        spec["parts"] = parts
    alone = shrink(data)
    return alone if len(json.dumps(alone)) < len(json.dumps(spec)) else spec
