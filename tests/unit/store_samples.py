"""Small real sealed blobs and images for the tests of stores."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from eroseal.format.digest import BLOCK, Digest, TreeParams
from eroseal.format.erofs import (
    DEVICE_SLOT_SIZE,
    INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE,
    SUPER_OFFSET,
    DeviceSlot,
    Superblock,
)
from eroseal.format.record import IMAGE_SIGNATURE, RecordEntry
from eroseal.seal.blob import SealedBlob, seal_in_place
from eroseal.store.atomic import write_fully
from eroseal.store.document import BlobInfo, ImageDocument
from eroseal.store.local import LocalStore

SHA256 = TreeParams()
SLOTS_AT = 2048


def signature(text: str) -> RecordEntry:
    """An entry that a store carries without looking into it."""
    return RecordEntry(IMAGE_SIGNATURE, text.encode())


def data_region(seed: int, blocks: int = 3) -> bytes:
    """`blocks` blocks that differ from each other and between seeds."""
    return b"".join(b"%08d%08d" % (seed, block) * (BLOCK // 16) for block in range(blocks))


def meta_region(data: Sequence[BlobInfo] = (), label: int = 0) -> bytes:
    """A superblock and a device table: what steps 6 and 7 look at, without files."""
    flags = INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE if data else 0
    size = -(-(SLOTS_AT + len(data) * DEVICE_SLOT_SIZE) // BLOCK) * BLOCK
    superblock = Superblock(
        blkszbits=12,
        root_nid=36,
        inos=1,
        blocks=size // BLOCK,
        feature_incompat=flags,
        build_time=label,
        extra_devices=len(data),
        devt_slotoff=SLOTS_AT // DEVICE_SLOT_SIZE if data else 0,
    )
    region = bytearray(size)
    encoded = superblock.encode()
    region[SUPER_OFFSET : SUPER_OFFSET + len(encoded)] = encoded
    for number, blob in enumerate(data):
        start = SLOTS_AT + number * DEVICE_SLOT_SIZE
        slot = DeviceSlot(blob.digest.tag(), blob.data_size // BLOCK, 0)
        region[start : start + DEVICE_SLOT_SIZE] = slot.encode()
    return bytes(region)


def seal_into(fd: int, region: bytes, params: TreeParams = SHA256) -> SealedBlob:
    """Write a data region and seal it."""
    write_fully(fd, region, 0)
    return seal_in_place(fd, len(region), params, jobs=1)


def sealed_bytes(region: bytes, params: TreeParams = SHA256) -> tuple[Digest, bytes]:
    """A sealed blob in memory."""
    with tempfile.TemporaryFile() as file:
        sealed = seal_into(file.fileno(), region, params)
        return sealed.digest, os.pread(file.fileno(), sealed.size, 0)


def add_blob(store: LocalStore, region: bytes, params: TreeParams = SHA256) -> BlobInfo:
    """Put a sealed data region into a store."""
    with store.new_blob() as blob:
        sealed = seal_into(blob.fd, region, params)
        return BlobInfo(sealed.digest, len(region), blob.commit(sealed.digest))


def add_image(
    store: LocalStore,
    name: str,
    *,
    seeds: Sequence[int] = (1,),
    label: int = 0,
    record: Sequence[RecordEntry] = (),
    replace: bool = False,
    params: TreeParams = SHA256,
) -> ImageDocument:
    """Publish an image of one meta blob and a data blob for each seed."""
    data = [add_blob(store, data_region(seed), params) for seed in seeds]
    meta = add_blob(store, meta_region(data, label), params)
    document = ImageDocument(meta.digest, (meta, *data))
    store.put_image(name, document, record, replace=replace)
    return document


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a directory with its content."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.is_symlink()
    }


def run_as_user(directory: Path, script: str) -> str:
    """Run a script inside `directory` as somebody who is not root, and give its output."""
    # All is imported and the directory entered before the privileges go: the way there may be root's alone.
    prelude = (
        "import os, sys\nfrom pathlib import Path\nfrom eroseal.errors import *\n"
        "from eroseal.store.document import BlobInfo, ImageDocument\nfrom eroseal.store.fsck import check_store\n"
        "from eroseal.store.local import LocalStore\nfrom eroseal.store.reference import parse_reference\n"
        "from eroseal.store.resolve import resolve\nfrom eroseal.store.single import SingleWriter, write_single\n"
        "if os.geteuid() == 0:\n    os.setgid(65534); os.setuid(65534)\n"
    )
    command = [sys.executable, "-c", prelude + script]
    return subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout
