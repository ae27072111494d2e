"""Hashes of 4096-byte blocks: the leaves of a Merkle tree, many in one call.

SHA-256 goes through the native core where it was built and the processor has the instructions it needs;
else, and for SHA-512, through hashlib, a call a block. Both give the same bytes; callers need not know. Each
releases the GIL while it hashes, so threads scale.

The salt comes before every block and is zero-padded to the hash's input block (fs-verity), so it is
compressed once and not again for each block.
"""

from __future__ import annotations

import hashlib
from mmap import mmap
from typing import Final, Protocol, TypeAlias

from eroseal.errors import UsageError
from eroseal.format.digest import BLOCK, HashAlgorithm, TreeParams

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap
"""Contiguous bytes; collections.abc.Buffer begins with Python 3.12."""

_ZEROS: Final = bytes(65536)


class _Core(Protocol):
    def sha256_blocks(self, buffer: Buffer, salt: Buffer = b"") -> bytes: ...

    def is_zero(self, buffer: Buffer, /) -> bool: ...

    def kernel_name(self) -> str | None: ...


def _load_core() -> _Core | None:
    try:
        from eroseal.crypto import _native  # noqa: PLC0415  the one optional import
    except ImportError:  # not built, or its self-test failed
        return None
    return _native


_core: Final = _load_core()


class BlockHasher:
    """Hashes blocks as one set of tree parameters says.

    Args:
        params: algorithm and salt.
    """

    __slots__ = ("_native_salt", "_new", "_prefix", "params")

    def __init__(self, params: TreeParams) -> None:
        self.params = params
        salt = params.padded_salt
        self._new = hashlib.sha256 if params.algorithm is HashAlgorithm.SHA256 else hashlib.sha512
        self._prefix = self._new(salt, usedforsecurity=True)
        native = params.algorithm is HashAlgorithm.SHA256 and native_kernel() is not None
        self._native_salt = salt if native else None

    @property
    def digest_size(self) -> int:
        """Bytes of one hash: 32 (SHA-256) or 64 (SHA-512)."""
        return self.params.algorithm.digest_size

    def hash_blocks(self, buffer: Buffer) -> bytes:
        """The salted hashes of all 4096-byte blocks, joined in order.

        Args:
            buffer: contiguous bytes, a multiple of 4096 (none is fine); must not change meanwhile.

        Raises:
            UsageError: the length is not a multiple of 4096.
        """
        with memoryview(buffer) as view:
            if view.nbytes % BLOCK:
                raise UsageError(f"blocks have {BLOCK} bytes: {view.nbytes} is not a multiple")
            if self._native_salt is not None and _core is not None:
                return _core.sha256_blocks(view, self._native_salt)
            with view.cast("B") as octets:
                return self._hash_each(octets)

    def _hash_each(self, octets: memoryview) -> bytes:
        starts = range(0, octets.nbytes, BLOCK)
        if not self.params.salt:  # a fresh hash is cheaper than a copy
            new = self._new
            return b"".join([new(octets[start : start + BLOCK]).digest() for start in starts])
        hashes = []
        for start in starts:
            salted = self._prefix.copy()
            salted.update(octets[start : start + BLOCK])
            hashes.append(salted.digest())
        return b"".join(hashes)

    def hash(self, data: Buffer) -> bytes:
        """The plain hash of `data`, of any length and without salt: for descriptors and chunk ids."""
        return self._new(data).digest()


def native_kernel() -> str | None:
    """Name of the native SHA-256 kernel in use; None where hashlib does the work."""
    return None if _core is None else _core.kernel_name()


def is_zero(buffer: Buffer) -> bool:
    """Whether all bytes of the contiguous `buffer` are zero; true for none at all."""
    if _core is not None:
        return _core.is_zero(buffer)
    with memoryview(buffer) as view, view.cast("B") as octets:
        # In pieces, because data that is not zero mostly shows it in the first.
        for start in range(0, octets.nbytes, len(_ZEROS)):
            piece = bytes(octets[start : start + len(_ZEROS)])
            if piece != _ZEROS[: len(piece)]:
                return False
    return True
