"""Stock tools agree with the seal: veritysetup on the blob itself, fsverity on its data region."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.sealing import PARAM_IDS, PARAMS, Sample, noise, seal_bytes

from eroseal.errors import IntegrityError
from eroseal.format.digest import BLOCK, TreeParams
from eroseal.format.sealed import TreeShape
from eroseal.readat import FileAt
from eroseal.seal.blob import seal_in_place
from eroseal.trust.image import open_blob
from eroseal.trust.scan import scan_blob

Require = Callable[[str], str]
SIZES = [1, 2, 3, 63, 64, 65, 127, 128, 129, 64 * 64, 64 * 64 + 1, 128 * 128, 128 * 128 + 1]


def verity_accepts(veritysetup: str, path: Path, sample: Sample) -> bool:
    command = [veritysetup, "verify", path, path, sample.sealed.root_hash.hex()]
    command.append(f"--hash-offset={len(sample.data)}")
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def fsverity_digest(fsverity: str, path: Path, params: TreeParams) -> str:
    command = [fsverity, "digest", "--compact", f"--hash-alg={params.algorithm.name_text}"]
    if params.salt:
        command.append(f"--salt={params.salt.hex()}")
    return subprocess.run([*command, path], capture_output=True, check=True, text=True).stdout.strip()


@pytest.mark.parametrize("params", PARAMS, ids=PARAM_IDS)
@pytest.mark.parametrize("blocks", SIZES)
def test_stock_tools_agree(require_peer: Require, tmp_path: Path, params: TreeParams, blocks: int) -> None:
    sample = seal_bytes(tmp_path, noise(blocks), params)
    path = tmp_path / "blob"
    path.write_bytes(sample.blob)
    assert verity_accepts(require_peer("veritysetup"), path, sample)
    os.truncate(path, len(sample.data))
    assert fsverity_digest(require_peer("fsverity"), path, params) == sample.sealed.digest.hex


@pytest.mark.parametrize("params", PARAMS, ids=PARAM_IDS)
def test_veritysetup_makes_the_same_tree(require_peer: Require, tmp_path: Path, params: TreeParams) -> None:
    """Formatted by veritysetup with our UUID and salt, superblock and tree are ours, byte for byte."""
    sample = seal_bytes(tmp_path, noise(200), params)
    shape = TreeShape.of(len(sample.data), params)
    dmverity = sample.blob[shape.data_size :][:BLOCK]
    raw = dmverity[16:32].hex()
    path = tmp_path / "formatted"
    path.write_bytes(sample.data)
    subprocess.run(
        [
            require_peer("veritysetup"),
            "format",
            path,
            path,
            f"--hash={params.algorithm.name_text}",
            f"--hash-offset={shape.data_size}",
            f"--salt={params.padded_salt.hex() or '-'}",
            f"--uuid={raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}",
        ],
        check=True,
        capture_output=True,
    )
    assert path.read_bytes()[: shape.record_offset] == sample.blob[: shape.record_offset]


def test_veritysetup_refuses_what_we_refuse(require_peer: Require, tmp_path: Path) -> None:
    """A byte flipped anywhere in data or tree: both refuse. In the record, which it does not know, only we do."""
    veritysetup = require_peer("veritysetup")
    sample = seal_bytes(tmp_path, noise(300))
    shape = TreeShape.of(len(sample.data), TreeParams())
    choose = random.Random(4)
    places = [choose.randrange(shape.data_size) for _ in range(25)]
    # In level 1 and the top block; padding behind their hashes included.
    places += [choose.randrange(shape.offset, shape.record_offset) for _ in range(25)]
    places += [shape.offset, shape.record_offset - 1, 0, shape.data_size - 1]
    places += [shape.data_size, shape.data_size + 36]  # signature and hash name of the dm-verity superblock
    for place in places:
        data = bytearray(sample.blob)
        data[place] ^= 1 << choose.randrange(8)
        path = tmp_path / "blob"
        path.write_bytes(data)
        assert not verity_accepts(veritysetup, path, sample), place
        with FileAt(path) as source, pytest.raises(IntegrityError):
            scan_blob(source, open_blob(source, sample.sealed.digest))
    data = bytearray(sample.blob)
    data[shape.record_offset + 100] ^= 1
    path.write_bytes(data)
    assert verity_accepts(veritysetup, path, sample)
    with FileAt(path) as source, pytest.raises(IntegrityError):
        open_blob(source, sample.sealed.digest, data_size=shape.data_size)


def test_a_large_sparse_blob(require_peer: Require, tmp_path: Path) -> None:
    """Four levels: three gibibytes of holes around a few bytes (the tools need no more than a moment for it)."""
    size = (128**3 + 1) * BLOCK if os.environ.get("EROSEAL_SOAK") else (128 * 130) * BLOCK
    path = tmp_path / "blob"
    with path.open("w+b") as file:
        fd = file.fileno()
        os.pwrite(fd, b"start", 0)
        os.pwrite(fd, b"end", size - 3)
        sealed = seal_in_place(fd, size, TreeParams())
    with FileAt(path) as source:
        assert scan_blob(source, open_blob(source, sealed.digest)) == []
    command = [require_peer("veritysetup"), "verify", path, path, sealed.root_hash.hex()]
    subprocess.run([*command, f"--hash-offset={size}"], check=True, capture_output=True)
    os.truncate(path, size)
    assert fsverity_digest(require_peer("fsverity"), path, TreeParams()) == sealed.digest.hex
