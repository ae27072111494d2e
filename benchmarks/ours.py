"""The side that is measured: the library in this process, and the program as a user runs it."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

from eroseal.build.builder import build
from eroseal.build.options import BlobLayout, BuildOptions, BuildResult
from eroseal.crypto.blocks import BlockHasher
from eroseal.crypto.merkle import hash_region
from eroseal.format.chunkmap import decode_chunk_map
from eroseal.format.digest import BLOCK, Digest, TreeParams
from eroseal.image.check import check_image
from eroseal.image.reader import ImageReader
from eroseal.image.unpack import unpack
from eroseal.seal.blob import seal_in_place
from eroseal.store.protocol import StoredImage
from eroseal.store.reference import parse_reference
from eroseal.store.resolve import resolve
from eroseal.trust.image import VerifiedImage, open_image, open_self_consistent
from eroseal.trust.policy import Policy
from eroseal.trust.scan import scan_blob

_PROGRAM = Path(sys.executable).with_name("eroseal")
_BUILD = """
import sys
from eroseal.build.builder import build
from eroseal.build.options import BlobLayout, BuildOptions
from eroseal.store.reference import parse_reference
options = BuildOptions(durable=False, blobs=BlobLayout(sys.argv[3]))
build(sys.argv[1], parse_reference(sys.argv[2]), options)
"""


def has_command(verb: str) -> bool:
    """Whether the program has this verb."""
    return importlib.util.find_spec(f"eroseal.cli.{verb}") is not None


def command(*arguments: str | Path) -> list[str]:
    """The program with arguments."""
    program = [str(_PROGRAM)] if _PROGRAM.exists() else [sys.executable, "-m", "eroseal"]
    return [*program, *map(str, arguments)]


def build_command(source: Path, target: str, blobs: BlobLayout = BlobLayout.BUILD) -> list[str]:
    """A build in a process of its own: the program, or the library alone where there is no program."""
    if has_command("build"):
        return command("build", "--no-sync", "--blobs", blobs.value, source, target)
    return [sys.executable, "-c", _BUILD, str(source), target, blobs.value]


def build_image(
    source: Path, target: str, *, blobs: BlobLayout = BlobLayout.BUILD, bases: tuple[str, ...] = ()
) -> BuildResult:
    """A build by the library, not synced."""
    return build(source, parse_reference(target), BuildOptions(durable=False, blobs=blobs), bases=bases)


def seal(path: Path, data_size: int) -> Digest:
    """Seal a file in place."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return seal_in_place(fd, data_size, TreeParams()).digest
    finally:
        os.close(fd)


def hash_only(path: Path, data_size: int) -> None:
    """Hash every block and keep nothing: what verification cannot do without."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        hash_region(fd, data_size, BlockHasher(TreeParams()), write_leaves=lambda block, hashes: None)
    finally:
        os.close(fd)


def verify(reference: str, digest: Digest) -> None:
    """Every block of every blob, then the structure."""
    with resolve(reference) as stored, _open(stored, digest) as image:
        scan_blob(stored.meta, image.meta)
        for number, device in enumerate(image.devices):
            source = stored.open_data(device.digest)
            try:
                scan_blob(source, image.device(number))
            finally:
                source.close()
        check_image(ImageReader(image))


def unpack_image(reference: str, digest: Digest, target: Path) -> None:
    """Unpack, each block verified."""
    with resolve(reference) as stored, _open(stored, digest) as image:
        unpack(ImageReader(image), target)


def distinct_chunks(reference: str) -> int:
    """Chunks that an image's data blobs hold."""
    with resolve(reference) as stored, _open(stored, open_self_consistent(stored.meta).digest) as image:
        blobs = [image.device(number) for number in range(len(image.devices))]
        return sum(
            count
            for blob in blobs
            if blob.chunk_map is not None
            for _, count in decode_chunk_map(blob.chunk_map, total_blocks=blob.size // BLOCK)
        )


def _open(stored: StoredImage, digest: Digest) -> VerifiedImage:
    policy = Policy(time=int(time.time()), digests=(digest,))
    return open_image(stored.meta, policy=policy, record=stored.record, open_data=stored.open_data)
