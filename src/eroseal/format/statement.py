"""The image statement and the value of a type 16 entry that carries its signature.

Source: docs/format.md, "Image record". The statement opens with a role prefix, so that no signature made for
another purpose (a file, a kernel's digest, a dm-verity root) can ever be read as one over an image.
Parsing is strict: what `encode` would not write is refused, so a statement has exactly one spelling.
"""

from __future__ import annotations

import enum
import hashlib
import string
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from eroseal.errors import FormatError, UsageError
from eroseal.format.digest import Digest
from eroseal.limits import MAX_NAME, MAX_SIGNATURE, MAX_STACK_LAYERS, MAX_STATEMENT

STATEMENT_PREFIX: Final = b"eroseal-image-v1\0"
_STACK_KIND: Final = "stack-sha256:"
_STACK_PREFIX: Final = b"eroseal-stack-v1\0"
_COUNT: Final = struct.Struct("<I")

_LENGTH: Final = struct.Struct("<H")
_NUMBERS: Final = struct.Struct("<QQ")
_U64_MAX: Final = (1 << 64) - 1

# kind, three zero bytes, statement length, signature length, key id
_SIGNATURE: Final = struct.Struct("<B3xII32s")
_SIGNATURE_SIZE: Final = 44
assert _SIGNATURE.size == _SIGNATURE_SIZE
NO_KEY_ID: Final = bytes(32)

# C0, DEL, C1, line separators, bidirectional overrides and isolates. Fixed ranges, not a Unicode category:
# categories change between Python versions, a canonical form must not.
_CONTROLS: Final = frozenset(
    map(chr, (*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)))
)


@dataclass(frozen=True, slots=True)
class StackDigest:
    """The typed digest of an image made of stacked layers.

    Args:
        value: 32 raw bytes.
    """

    value: bytes

    def __post_init__(self) -> None:
        if len(self.value) != 32:
            raise FormatError(f"a stack digest has 32 bytes, not {len(self.value)}")

    def __str__(self) -> str:
        return _STACK_KIND + self.value.hex()

    @classmethod
    def of(cls, images: Sequence[Digest]) -> StackDigest:
        """The digest of a stack: SHA-256 over a prefix, the count, and the layers' image digests, the lowest first.

        Each digest is hashed in its spelling, behind its length, so that no two stacks share an input; see
        docs/format.md, "Stacks".

        Raises:
            FormatError: no layers, or more than MAX_STACK_LAYERS.
        """
        if not 1 <= len(images) <= MAX_STACK_LAYERS:
            raise FormatError(f"a stack has 1 to {MAX_STACK_LAYERS} layers, not {len(images)}")
        texts = [str(image).encode("ascii") for image in images]
        parts = [_STACK_PREFIX, _COUNT.pack(len(texts))]
        parts += [_LENGTH.pack(len(text)) + text for text in texts]
        return cls(hashlib.sha256(b"".join(parts)).digest())

    @classmethod
    def parse(cls, text: str) -> StackDigest:
        """Read ``stack-sha256:<64 lowercase hex>``, strictly; raises UsageError."""
        kind, digits = text[: len(_STACK_KIND)], text[len(_STACK_KIND) :]
        if kind != _STACK_KIND or len(digits) != 64 or set(digits) - set(string.hexdigits[:16]):
            raise UsageError(f"not a stack digest: {text!r}", hint="expected stack-sha256: and 64 hex digits")
        return cls(bytes.fromhex(digits))


ImageDigest = Digest | StackDigest
"""What names an image: the digest of its meta blob, or of its stack of layers."""


def parse_image_digest(text: str) -> ImageDigest:
    """Read an image or stack digest; raises UsageError."""
    return StackDigest.parse(text) if text.startswith(_STACK_KIND) else Digest.parse(text)


@dataclass(frozen=True, slots=True)
class Statement:
    """What the image creator vouches for.

    Args:
        digest: of the image or the stack.
        name: at most 255 bytes of UTF-8 without control characters; may be empty.
        version: 0 to 2^64 - 1; policy may require a lowest one.
        created: Unix seconds, 0 to 2^64 - 1.

    Raises:
        UsageError: a field is out of range.
    """

    digest: ImageDigest
    name: str
    version: int
    created: int

    def __post_init__(self) -> None:
        check_name(self.name)
        for label, number in (("version", self.version), ("creation time", self.created)):
            if not 0 <= number <= _U64_MAX:
                raise UsageError(f"{label} {number} does not fit 64 bits")

    def encode(self) -> bytes:
        """The canonical bytes, which are what gets signed."""
        digest, name = str(self.digest).encode("ascii"), self.name.encode()
        return b"".join(
            (
                STATEMENT_PREFIX,
                _LENGTH.pack(len(digest)),
                digest,
                _LENGTH.pack(len(name)),
                name,
                _NUMBERS.pack(self.version, self.created),
            )
        )

    @classmethod
    def parse(cls, data: bytes) -> Statement:
        """Read the canonical bytes; anything that `encode` would not write raises FormatError."""
        if len(data) > MAX_STATEMENT:
            raise FormatError(f"image statement has {len(data)} bytes, more than {MAX_STATEMENT}")
        if not data.startswith(STATEMENT_PREFIX):
            raise FormatError("not an image statement: its role prefix is missing")
        digest, offset = _text(data, len(STATEMENT_PREFIX))
        name, offset = _text(data, offset)
        if len(data) != offset + _NUMBERS.size:
            raise FormatError("image statement is truncated or has trailing bytes")
        version, created = _NUMBERS.unpack_from(data, offset)
        try:
            statement = cls(parse_image_digest(digest), name, version, created)
        except UsageError as error:
            raise FormatError(f"image statement: {error.what}") from error
        if statement.encode() != data:
            raise FormatError("image statement is not canonical")
        return statement


def _text(data: bytes, offset: int) -> tuple[str, int]:
    if offset + _LENGTH.size > len(data):
        raise FormatError("image statement is truncated")
    (length,) = _LENGTH.unpack_from(data, offset)
    start = offset + _LENGTH.size
    if start + length > len(data):
        raise FormatError("image statement is truncated")
    try:
        return data[start : start + length].decode(), start + length
    except UnicodeDecodeError as error:
        raise FormatError("image statement holds text that is not UTF-8") from error


def check_name(name: str) -> None:
    """Refuse a name that a statement cannot hold; raises UsageError.

    Control and bidirectional formatting characters are refused because names are shown on terminals.
    """
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise UsageError("image name is not valid Unicode") from error
    if length > MAX_NAME:
        raise UsageError(f"image name has {length} bytes, more than {MAX_NAME}")
    if _CONTROLS.intersection(name):
        raise UsageError(f"image name {name!r} holds a control character")


class SignatureKind(enum.IntEnum):
    """How a statement is signed."""

    CMS = 1
    ED25519 = 2


@dataclass(frozen=True, slots=True)
class ImageSignature:
    """The value of a type 16 entry: a statement, as bytes, and one signature over them.

    Args:
        kind: CMS with its certificate chain, or Ed25519.
        statement: the encoded statement, 1 to 512 bytes; kept as bytes because they are what was signed.
        signature: DER of a detached CMS SignedData, or 64 bytes of Ed25519.
        key_id: SHA-256 of the raw Ed25519 public key; zeros for CMS.
    """

    kind: SignatureKind
    statement: bytes
    signature: bytes
    key_id: bytes = NO_KEY_ID

    def __post_init__(self) -> None:
        if not 0 < len(self.statement) <= MAX_STATEMENT:
            raise FormatError(f"image signature: a statement of {len(self.statement)} bytes")
        if not 0 < len(self.signature) <= MAX_SIGNATURE:
            raise FormatError(f"image signature: a signature of {len(self.signature)} bytes")
        if len(self.key_id) != 32:
            raise FormatError(f"image signature: a key id of {len(self.key_id)} bytes")
        if self.kind is SignatureKind.CMS and self.key_id != NO_KEY_ID:
            raise FormatError("image signature: a CMS signature has no key id")
        if self.kind is SignatureKind.ED25519 and len(self.signature) != 64:
            raise FormatError("image signature: an Ed25519 signature has 64 bytes")

    def encode(self) -> bytes:
        """The entry's value."""
        head = _SIGNATURE.pack(self.kind, len(self.statement), len(self.signature), self.key_id)
        return head + self.statement + self.signature

    @classmethod
    def parse(cls, data: bytes) -> ImageSignature:
        """Read an entry's value; anything that `encode` would not write raises FormatError."""
        if len(data) < _SIGNATURE_SIZE:
            raise FormatError("image signature is truncated")
        number, statement_size, signature_size, key_id = _SIGNATURE.unpack_from(data)
        if any(data[1:4]):
            raise FormatError("image signature: a reserved byte is not zero")
        if number not in list(SignatureKind):
            raise FormatError(f"image signature is of kind {number}, which this version does not know")
        if len(data) != _SIGNATURE_SIZE + statement_size + signature_size:
            raise FormatError("image signature is truncated or has trailing bytes")
        middle = _SIGNATURE_SIZE + statement_size
        return cls(SignatureKind(number), data[_SIGNATURE_SIZE:middle], data[middle:], key_id)
