"""What is measured on: a copy of a real tree, generated trees, large files; random bytes have fixed seeds."""

from __future__ import annotations

import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

PIECE = 16 << 20
CHUNK = 64 << 10
PER_DIRECTORY = 200


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Args:
        region: bytes of the image that is sealed and verified.
        tree: directory that is copied and built.
        small_files: files of the generated tree.
        sparse, dense: bytes of the two large files of the memory measurements.
        image: bytes of the container image, uncompressed.
        packages, versions: how many packages, and how many versions of each, are stored.
        rounds: of everything but unpacking, builds on a base and container images, which take `few_rounds`.
    """

    region: int = 1 << 30
    tree: Path = Path("/usr/share")
    small_files: int = 40_000
    sparse: int = 20 << 30
    dense: int = 3 << 30
    image: int = 1 << 30
    packages: int = 2
    versions: int = 10
    rounds: int = 5
    few_rounds: int = 2


QUICK = Sizes(
    region=128 << 20,
    tree=Path("/usr/share/doc"),
    small_files=4_000,
    dense=256 << 20,
    image=64 << 20,
    packages=1,
    versions=2,
    rounds=2,
    few_rounds=1,
)


def copy_tree(source: Path, target: Path) -> None:
    """A copy with owners, times and links, in page cache and on disk."""
    subprocess.run(["cp", "-a", "--", source, target], check=True)
    os.sync()


def small_files(target: Path, count: int) -> None:
    """Files of 100 to 4,000 bytes, 200 to a directory."""
    source = random.Random(3)
    data = source.randbytes(PIECE)
    for number in range(count):
        if number % PER_DIRECTORY == 0:
            directory = target / f"{number // PER_DIRECTORY:04}"
            directory.mkdir(parents=True)
        start = source.randrange(PIECE - 4000)
        (directory / f"file-{number}").write_bytes(data[start : start + source.randint(100, 4000)])


def dense_file(path: Path, size: int) -> None:
    """A file of which no two chunks are alike."""
    piece = bytearray(random.Random(4).randbytes(PIECE))
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, PIECE):
            for chunk in range(0, PIECE, CHUNK):
                piece[chunk : chunk + 8] = (start + chunk).to_bytes(8, "little")
            file.write(piece[: min(PIECE, size - start)])


def sparse_file(path: Path, size: int) -> None:
    """A file of holes with one chunk of data in each GiB."""
    source = random.Random(5)
    with path.open("wb", buffering=0) as file:
        file.truncate(size)
        for offset in range(0, size, 1 << 30):
            file.seek(offset + source.randrange(1 << 29))
            file.write(source.randbytes(CHUNK))


def change_files(tree: Path, every: int) -> int:
    """Append to one regular file in `every`, in order of their names; gives how many were changed."""
    paths = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    for path in paths[::every]:
        with path.open("ab") as file:
            file.write(b"changed\n")
    return len(paths[::every])


def count_files(tree: Path) -> int:
    """Names in a tree, the root among them."""
    return 1 + sum(len(directories) + len(files) for _, directories, files in os.walk(tree))


def disk_bytes(*paths: Path) -> int:
    """Bytes of files, and of all files below directories."""
    total = 0
    for path in paths:
        if path.is_dir():
            total += sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
        else:
            total += path.stat().st_size
    return total
