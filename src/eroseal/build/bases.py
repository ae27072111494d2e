"""Base images: their chunks are known before a build starts, without their data being read.

A base blob takes part only if its hash and salt are the build's and its tree verifies. Its chunk map is a hint: ids
are computed from verified tree blocks, so a map that lies finds nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from eroseal.crypto.blocks import BlockHasher
from eroseal.errors import FormatError, UsageError
from eroseal.format.chunkmap import decode_chunk_map
from eroseal.format.digest import BLOCK, Digest, TreeParams
from eroseal.seal.chunker import ChunkIndex
from eroseal.store.protocol import StoredImage
from eroseal.store.remote import RemoteOptions
from eroseal.store.resolve import resolve_layers
from eroseal.tree.model import DEVICE_SHIFT
from eroseal.trust.blob import SelfConsistentBlob
from eroseal.trust.image import open_self_consistent_image

_HASHES_AT_ONCE = 1 << 15


@dataclass(slots=True)
class BaseBlob:
    """A data blob of a base image.

    Args:
        number: provisional device number in this build.
        digest, data_size, size, root_hash: of the blob; `size` is that of the whole sealed file.
        image: where it came from.
    """

    number: int
    digest: Digest
    data_size: int
    size: int
    root_hash: bytes
    image: StoredImage


def load_bases(
    references: Sequence[str],
    params: TreeParams,
    index: ChunkIndex,
    stack: contextlib.ExitStack,
    *,
    remote: RemoteOptions,
) -> list[BaseBlob]:
    """Add the chunks of base images to the index.

    Args:
        references: of images and stacks; each blob counts once, in the order met.
        params: of this build.
        index: gets the chunks.
        stack: keeps the images open.
        remote: how servers are spoken to.

    Raises:
        UsageError: a base with another hash or salt.
        NotFoundError, VerificationError: a base that is not there or does not verify.
    """
    blobs: dict[Digest, BaseBlob] = {}
    hasher = BlockHasher(params)
    for reference in references:
        stored = stack.enter_context(resolve_layers(reference, remote=remote))
        for layer in stored.layers:
            image = stack.enter_context(
                open_self_consistent_image(layer.meta, open_data=layer.open_data, name=reference)
            )
            for k, device in enumerate(image.devices):
                blob = image.device(k)
                if not isinstance(blob, SelfConsistentBlob):
                    raise FormatError(f"data blob {k + 1} is not sealed", where=reference)
                if blob.digest in blobs:
                    continue
                _check_params(blob.params, params, reference)
                number = len(blobs) + 1
                blobs[blob.digest] = BaseBlob(
                    number, blob.digest, device.size, blob.seal.sealed_size, blob.descriptor.root_hash, layer
                )
                # A broken map is worth what it listed so far: it is a hint, and every id comes from verified hashes.
                with contextlib.suppress(FormatError):
                    for blocks, digest, block in chunk_ids(blob, hasher):
                        index.add(blocks, digest, number << DEVICE_SHIFT | block)
    return list(blobs.values())


def _check_params(found: TreeParams, wanted: TreeParams, reference: str) -> None:
    if found != wanted:
        raise UsageError(
            f"base {reference} has another hash or salt, so its chunks cannot be compared",
            hint=f"--hash {found.algorithm.name_text}" + (f" --salt {found.salt.hex()}" if found.salt else ""),
        )


def chunk_ids(blob: SelfConsistentBlob, hasher: BlockHasher) -> Iterator[tuple[int, bytes, int]]:
    """(blocks, hash, first block) of each chunk that the blob's chunk map lists."""
    if blob.chunk_map is None:
        return
    width = hasher.digest_size
    total = blob.size // BLOCK
    block = 0
    window, window_start = b"", 0
    for blocks, count in decode_chunk_map(blob.chunk_map, total_blocks=total):
        if blocks * BLOCK > 1 << 20:
            block += blocks * count  # no chunk of ours: nothing could match it
            continue
        for _ in range(count):
            if (block + blocks - window_start) * width > len(window):
                window_start = block
                window = blob.read_tree_hashes(block, min(_HASHES_AT_ONCE, total - block))
            start = (block - window_start) * width
            leaves = window[start : start + blocks * width]
            yield blocks, leaves if blocks == 1 else hasher.hash(leaves), block
            block += blocks
